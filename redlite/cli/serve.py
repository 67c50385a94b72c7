"""python -m redlite.cli.serve: a local model behind the OpenAI chat-completions protocol, on loopback."""
import ipaddress
import json
import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING

from redlite.cli.options import (
    Parser,
    add_adapter_option,
    add_common_options,
    add_machine_options,
    add_template_options,
    number,
    whole,
)
from redlite.cli.program import DONE, guarded, parse, seal
from redlite.errors import Error
from redlite.net import offline

if TYPE_CHECKING:
    from redlite.net.serve import Server

PROGRAM = "serve"
MODEL_THREAD = "model"
TERMINATED = 143    # 128 + SIGTERM, as shells count
DESCRIPTION = """\
Serves a model on this machine as POST /v1/chat/completions and GET /v1/models, on a loopback address, until
interrupted."""


def main(arguments: list[str] | None = None) -> int:
    """The program; it serves until it is interrupted."""
    code = guarded(PROGRAM, _serve, arguments)
    if any(thread.name == MODEL_THREAD for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(code)  # its step takes long, and it must not run while the interpreter is taken down
    return code


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
    parser.add_argument("--batch-size", type=whole(1), default=8, metavar="N",
                        help="answers made together, each of which holds memory (default: %(default)s)")
    parser.add_argument("--cache-memory", type=number(0.001, 1e6), metavar="GB",
                        help="memory for keys and values; requests wait while those under way might need it, "
                             "and one that can never fit is refused (default: half of what is free)")
    add_machine_options(parser)
    add_common_options(parser, "Nothing but what is printed.")
    return parser


def _serve(arguments: list[str]) -> int:
    args = parse(_parser(), arguments, seals_later=True)
    try:
        fine = ipaddress.ip_address(args.address).is_loopback and args.port <= 65535
    except ValueError:
        fine = False
    if not fine:
        raise Error(
            f"--address {args.address} --port {args.port}: a loopback address such as 127.0.0.1 and a port "
            "up to 65535 are needed; nothing else is served")
    if args.dry_run:
        url = _url(args.address, args.port)
        print(json.dumps({"model": args.model, "url": url}) if args.json
              else f"would serve {args.model} on {url}; cost 0 (this machine)")
        return DONE
    from redlite.net import serve
    offline.allow_listening(args.address, args.port)
    try:
        listening = serve.listener(args.address, args.port)
    except OSError as error:
        raise Error(f"--address {args.address} --port {args.port}: cannot listen there ({error.strerror}); "
                    "choose another") from None
    seal(args.quiet)    # there is one socket now, and there will be no other
    from redlite.inference.lm import LM, parts
    from redlite.text.chat_choice import given
    found = parts(args.model, args.template, args.date, args.adapter)
    given(found.chat)  # without a chat format there is nothing to serve
    lm = LM.load(found, args.dtype, args.device, args.quantize)
    lm.engine.max_batch = args.batch_size
    if args.cache_memory:
        lm.engine.cache_bytes = int(args.cache_memory * 1e9)
    name = args.name or lm.path.name
    with serve.Server(lm, name, listening) as server:
        url = _url(args.address, server.server_port)
        print(json.dumps({"model": name, "url": url}) if args.json
              else f"serving {name} on {url} (Ctrl-C ends it)", flush=True)
        return _until_interrupted(server)


def _until_interrupted(server: "Server") -> int:
    """Serve until a signal comes; the exit code that stands for it."""
    def terminate(number: int, frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
    try:
        server.serve_forever(poll_interval=0.1)
    except SystemExit:
        return TERMINATED
    return DONE


def _url(address: str, port: int) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}/v1"


if __name__ == "__main__":
    sys.exit(main())
