"""bin/safealign merge: a model plus a multiple of the difference of two, or a weighted sum of adapters."""
import argparse
import json
from pathlib import Path

from redlite import __version__
from redlite.cli.options import Parser, add_common_options, number, output_options
from redlite.cli.program import DONE
from redlite.cli.progress import note
from redlite.cli.training_options import check_output
from redlite.errors import Error
from redlite.store.files import read_json
from redlite.store.run_directory import Run


def describe(prog: str) -> Parser:
    """The options of `safealign merge`."""
    parser = Parser(prog=prog, description=(
        "Writes MODEL + SCALE x (ADD - MINUS), weight by weight: task arithmetic (arXiv 2212.04089). With an "
        "aligned model to add\nand an unaligned one to take away it is RESTA (arXiv 2402.11746), which gives "
        "a fine-tuned model its safety back.\nOr writes the weighted sum of --adapters as one adapter."))
    parser.add_argument("--model", help="the model to change: a directory or a .gguf file")
    parser.add_argument("--add", metavar="MODEL", help="such as the aligned model")
    parser.add_argument("--minus", metavar="MODEL", help="such as the unaligned model (default: --model)")
    parser.add_argument("--scale", type=number(-100, 100), help="default: 0.5")
    parser.add_argument("--adapters", nargs="+", metavar="DIR=WEIGHT", help=(
        "in place of --model and --add: LoRA adapters of one model, such as safe=0.8 helpful=0.2; one alone "
        "becomes weaker or stronger"))
    parser.add_argument("--template", help="their chat format, where their own files do not say it")
    output_options(parser).add_argument("--output-dir", metavar="DIR", required=True,
                                        help="where the model is written")
    add_common_options(parser, "A Hugging Face directory, and manifest.json.")
    return parser


def run(args: argparse.Namespace, command: str) -> int:
    """The body of `safealign merge`."""
    if args.adapters:
        return _adapters(args, command)
    for option in ("model", "add"):
        if not getattr(args, option):
            raise Error(f"--{option} is missing; name a model, or give --adapters DIR=WEIGHT")
    if args.scale is None:
        args.scale = 0.5
    if not args.scale:
        raise Error("--scale 0: nothing would be added; give a number other than 0, such as 0.5")
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


def _adapters(args: argparse.Namespace, command: str) -> int:
    """Write the weighted sum of --adapters."""
    from redlite.weights import adapter, adapter_sum
    given = [name for name in ("model", "add", "minus", "scale", "template")
             if getattr(args, name) is not None]
    if given:
        raise Error(f"--{given[0]} is for models; leave it out, or leave --adapters out")
    named = [_weighted(text) for text in args.adapters]
    parts = [(adapter.read(path), weight) for path, weight in named]
    output = Path(args.output_dir)
    manifest = {"command": command, "version": __version__, "adapters": [
        {"name": one.path.name, "sha256": one.sha256(), "weight": weight} for one, weight in parts]}
    for one, _ in parts:
        check_output(output, manifest, one.path)
    made = adapter_sum.weighted_sum(parts)
    line = " + ".join(f"{weight:g} x {path}" for path, weight in named)
    if args.dry_run:
        print(f"would write {line} into {output}; cost: 0 (this machine)")
    else:
        from redlite.model.lora import write_adapter
        base = _base([one.path for one, _ in parts])
        with Run(output, manifest):
            write_adapter(output, made.tensors, made.rank, made.rank, base)
        print(f"{line}, of rank {made.rank}\nAdapter: {output}")
    if args.json:
        print(json.dumps({"rank": made.rank, "output_dir": str(output)}))
    return DONE


def _base(paths: list[Path]) -> str:
    """The model that the first adapter names as its base; a note where another names another."""
    from redlite.weights.source import ADAPTER_CONFIG
    named = [str(read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path") or "") for path in paths]
    for path, name in zip(paths, named, strict=True):
        if name != named[0]:
            note(f"safealign merge: {path} is of the base {name!r}, and {paths[0]} of {named[0]!r}; if these "
                 "are different models, the sum fits neither")
    return named[0]


def _weighted(text: str) -> tuple[str, float]:
    """DIR=WEIGHT, or DIR alone, which counts once."""
    path, found, weight = text.rpartition("=")
    if not found:
        return text, 1.0
    try:
        return path, number(-100, 100)(weight)
    except argparse.ArgumentTypeError as error:
        raise Error(f"--adapters {text!r}: {error}; write DIR=WEIGHT, such as safe/adapter=0.8") from None
