"""bin/safealign merge: a model plus a multiple of the difference of two others."""
import argparse
import json
from pathlib import Path

from redlite import __version__
from redlite.cli.options import Parser, add_common_options, number, output_options
from redlite.cli.program import DONE
from redlite.cli.training_options import check_output
from redlite.store.run_directory import Run


def describe(prog: str) -> Parser:
    """The options of `safealign merge`."""
    parser = Parser(prog=prog, description=(
        "Writes MODEL + SCALE x (ADD - MINUS), weight by weight: task arithmetic (arXiv 2212.04089). With an "
        "aligned model to add\nand an unaligned one to take away it is RESTA (arXiv 2402.11746), which gives "
        "a fine-tuned model its safety back."))
    parser.add_argument("--model", required=True, help="the model to change: a directory or a .gguf file")
    parser.add_argument("--add", required=True, metavar="MODEL", help="such as the aligned model")
    parser.add_argument("--minus", metavar="MODEL", help="such as the unaligned model (default: --model)")
    parser.add_argument("--scale", type=number(-100, 100), default=0.5, help="default: %(default)s")
    parser.add_argument("--template", help="their chat format, where their own files do not say it")
    output_options(parser).add_argument("--output-dir", metavar="DIR", required=True,
                                        help="where the model is written")
    add_common_options(parser, "A Hugging Face directory, and manifest.json.")
    return parser


def run(args: argparse.Namespace, command: str) -> int:
    """The body of `safealign merge`."""
    from redlite.inference.parts import fingerprints, parts
    named = {"model": args.model, "add": args.add, "minus": args.minus or args.model}
    found = {role: parts(path, args.template) for role, path in named.items()}
    manifest = {"command": command, "version": __version__, "scale": args.scale,
                **{role: {"name": one.path.name, **fingerprints(one)} for role, one in found.items()}}
    output = Path(args.output_dir)
    for one in found.values():
        check_output(output, manifest, one.path)
    from redlite.training import arithmetic
    arithmetic.require_versions_of_one(list(found.values()))
    line = f"{args.model} + {args.scale:g} x ({named['add']} - {named['minus']})"
    if args.dry_run:
        print(f"would write {line} into {output}; cost: 0 (this machine)")
        if args.json:
            print(json.dumps({**manifest, "output_dir": str(output)}))
        return DONE
    from redlite.inference.lm import LM
    from redlite.weights.save import save_pretrained
    lm = LM.load(found["model"], trainable=True)
    added, before = arithmetic.add_difference(lm.model, found["add"], found["minus"], args.scale)
    with Run(output, manifest):
        save_pretrained(lm.model, output, found["model"].path)
    print(f"{line}: what was added has {100 * added / before:.3g}% of the model's norm\nModel: {output}")
    if args.json:
        print(json.dumps({"norm_added": added, "norm_before": before, "output_dir": str(output)}))
    return DONE
