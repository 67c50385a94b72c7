"""bin/redeval inspect: what a model is and would do, without loading it."""
import json
from argparse import Namespace

from redlite.cli.options import Parser, add_common_options, add_template_options
from redlite.cli.program import DONE, FAILED


def describe(prog: str) -> Parser:
    """The options of `redeval inspect`."""
    parser = Parser(prog=prog, description=(
        "Tells what a model is from its files' headers, without its weights: family, size, types, context, "
        "tokenizer,\nchat format with a sample, special tokens, what runs in C, the memory that it needs, "
        "what would be refused.\nExit code 1 if something would be."))
    parser.add_argument("model", metavar="MODEL",
                        help="a Hugging Face directory, a .gguf file, or organism, the embedded model")
    add_template_options(parser)
    add_common_options(parser, "Nothing but what is printed.")
    return parser


def run(args: Namespace, command: str) -> int:
    """The body of `redeval inspect`."""
    from redlite import inspection
    found = inspection.inspect(args.model, args.template)
    print("\n".join(inspection.lines(found)))
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
    return FAILED if found["refused"] else DONE
