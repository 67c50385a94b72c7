"""python -m redlite.cli.serve: a local model behind the OpenAI chat-completions protocol, on loopback."""
import ipaddress
import sys

from redlite.cli.options import (
    Parser,
    add_adapter_option,
    add_common_options,
    add_machine_options,
    add_template_options,
    whole,
)
from redlite.cli.program import DONE, guarded, parse
from redlite.errors import Error
from redlite.net import offline

PROGRAM = "serve"
DESCRIPTION = """\
Serves a model on this machine as POST /v1/chat/completions and GET /v1/models, on a loopback address, until
interrupted."""


def main(arguments: list[str] | None = None) -> int:
    """The program; it serves until it is interrupted."""
    return guarded(PROGRAM, _serve, arguments)


def _parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=DESCRIPTION)
    parser.add_argument(
        "--model",
        default="organism",
        help="a Hugging Face directory, a .gguf file, or organism, the embedded model (default)")
    parser.add_argument("--name",
                        help="the model's name for clients (default: that of its file or directory)")
    add_template_options(parser)
    add_adapter_option(parser)
    parser.add_argument("--quantize", choices=("int8", "int4"), help="weights of the matrices")
    parser.add_argument("--address", default="127.0.0.1", help="a loopback address (default: %(default)s)")
    parser.add_argument("--port",
                        type=whole(0),
                        default=8000,
                        help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--batch-size", type=whole(1), metavar="N",
                        help="answers made together; the results do not depend on it")
    add_machine_options(parser)
    add_common_options(parser)
    return parser


def _serve(arguments: list[str]) -> int:
    args = parse(_parser(), arguments, listens=True)
    try:
        fine = ipaddress.ip_address(args.address).is_loopback and args.port <= 65535
    except ValueError:
        fine = False
    if not fine:
        raise Error(
            f"--address {args.address} --port {args.port}: a loopback address such as 127.0.0.1 and a port "
            "up to 65535 are needed; nothing else is served")
    offline.allow_listening(args.address, args.port)
    if args.dry_run:
        print(f"would serve {args.model} on http://{args.address}:{args.port}/v1; cost 0 (this machine)")
        return DONE
    from redlite.inference.lm import LM, parts
    from redlite.net import serve
    from redlite.text.chat_choice import given
    found = parts(args.model, args.template, args.date, args.adapter)
    given(found.chat)  # without a chat format there is nothing to serve
    lm = LM.load(found, args.dtype, args.device, args.quantize)
    if args.batch_size:
        lm.engine.max_batch = args.batch_size
    name = args.name or lm.path.name
    try:
        server = serve.Server(lm, name, args.address, args.port)
    except OSError as error:
        raise Error(f"--port {args.port}: cannot listen there ({error.strerror}); choose another") from None
    print(f"serving {name} on http://{args.address}:{server.server_port}/v1 (Ctrl-C ends it)", flush=True)
    with server:
        server.serve_forever()
    return DONE


if __name__ == "__main__":
    sys.exit(main())
