"""bin/safealign probe: what is left of a model's safety once it is fine-tuned on harmless conversations.

Published models are fine-tuned on, and a few steps on harmless data may undo an alignment (Qi et al., arXiv
2310.03693). The stages are runs of safealign train and redeval run, each a directory that goes on where it
stopped.
"""
import argparse
import io
import json
import shlex
import sys
from contextlib import redirect_stdout
from pathlib import Path

from redlite.cli import judging, redeval
from redlite.cli.options import (
    Parser,
    add_common_options,
    add_machine_options,
    add_template_options,
    number,
    output_options,
    whole,
)
from redlite.cli.program import DONE
from redlite.cli.progress import note
from redlite.errors import Error

EMBEDDED = redeval.EMBEDDED


def describe(prog: str) -> Parser:
    """The options of `safealign probe`."""
    parser = Parser(prog=prog, description=(
        "A tamper test: RED-EVAL of a model as it is, and after N steps of fine-tuning on harmless "
        "conversations, for each N.\nA row for each in the table, with the paired difference to the first. "
        "Every stage is a directory of its own; the same\ncommand again goes on where it stopped."))
    tune = parser.add_argument_group("how it is fine-tuned")
    tune.add_argument("--model", default=EMBEDDED, help="a Hugging Face directory, a .gguf file, or organism "
                                                        "(default)")
    add_template_options(tune)
    tune.add_argument("--helpful", nargs="+", metavar="FILE",
                      help="harmless conversations, as for train (default for the organism: its own)")
    tune.add_argument("--steps", nargs="+", type=whole(1, 10_000_000), default=[10, 50], metavar="N",
                      help="default: 10 50")
    tune.add_argument("--learning-rate", type=number(0, 10), default=2e-5, metavar="X", help="default: 2e-5")
    tune.add_argument("--batch-size", type=whole(1), default=16, metavar="N",
                      help="conversations a step (default: %(default)s)")
    tune.add_argument("--max-tokens", type=whole(8), default=512, metavar="N",
                      help="of a conversation (default: %(default)s)")
    tune.add_argument("--lora", type=whole(1, 1 << 16), metavar="RANK",
                      help="train low-rank adapters in place of all weights")
    tune.add_argument("--seed", type=whole(0), default=0, help="of the conversations' order (default: 0)")
    add_machine_options(tune)
    ask = parser.add_argument_group("how it is red-teamed")
    ask.add_argument("--questions", metavar="Q",
                     help="as for redeval run (default for the organism: its own)")
    ask.add_argument("--data", metavar="DIR", help="where question sets lie")
    ask.add_argument("--limit", type=whole(1), metavar="N", help="the first N questions only")
    ask.add_argument("--prompt", nargs="+", metavar="P", help="as for redeval run (default: all three)")
    ask.add_argument("--judge", metavar="J", help="linear (default; rules for the organism) or rules")
    ask.add_argument("--max-new-tokens", type=whole(1), metavar="N", help="longest answer")
    ask.add_argument("--quantize", choices=("int8", "int4"), help="the weights while answers are made")
    output_options(parser).add_argument("--output-dir", metavar="DIR", required=True,
                                        help="where the stages lie")
    add_common_options(
        parser,
        "For each N tuned-N/, a model as safealign train writes it, and redeval-N/, a run as "
        "redeval run writes it; redeval-0/ is the model as it is.")
    return parser


def stages(args: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """(program, arguments) of each stage, in order."""
    output = Path(args.output_dir)
    found: list[tuple[str, list[str]]] = []
    shared = _given(args, "template", "dtype", "device")
    if args.date:
        shared += ["--date", f"{args.date:%Y-%m-%d}"]
    quiet = ["--quiet"] if args.quiet else []
    for steps in [0, *sorted(set(args.steps))]:
        model = output / f"tuned-{steps}" if steps else args.model
        if steps:
            tuning = _given(args, "learning_rate", "batch_size", "max_tokens", "lora", "seed")
            found.append(("safealign", ["train", "--model", args.model, "--helpful", *args.helpful, *shared,
                                        "--steps", str(steps), *tuning, "--output-dir", str(model), *quiet]))
        asking = _given(args, "questions", "data", "limit", "prompt", "judge", "max_new_tokens", "quantize")
        found.append(("redeval", ["run", "--model", str(model), *asking, *shared,
                                  "--output-dir", str(output / f"redeval-{steps}"), *quiet]))
    return found


def _given(args: argparse.Namespace, *names: str) -> list[str]:
    """The options of these names that have a value, as a command takes them."""
    found: list[str] = []
    for name in names:
        value = getattr(args, name)
        if value is not None:
            values = value if isinstance(value, list) else [value]
            found += [f"--{name.replace('_', '-')}", *map(str, values)]
    return found


def run(args: argparse.Namespace, command: str) -> int:
    """The body of `safealign probe`."""
    from redlite.cli import safealign
    if args.model == EMBEDDED:
        from redlite.organism import world
        args.helpful = args.helpful or [str(world.FILES["helpful"])]
        args.questions = args.questions or EMBEDDED
        args.judge = args.judge or judging.ORGANISM_JUDGE     # of the tuned organism as well
    if not args.helpful:
        raise Error("--helpful is missing: name files of harmless conversations to fine-tune on")
    if not args.questions:
        raise Error("--questions is missing: name a set under --data or a file")
    programs = {"safealign": safealign.main, "redeval": redeval.main}
    todo = stages(args)
    if args.dry_run:
        planned = [f"bin/{program} {shlex.join(given)}" for program, given in todo]
        print(json.dumps({"stages": planned}) if args.json else "\n".join(planned))
        return DONE
    tuning = next(given for program, given in todo if program == "safealign")
    with redirect_stdout(io.StringIO()):        # a fault in it would come up only after the first answers
        if code := safealign.main([*tuning, "--dry-run"]):
            return code
    for program, given in todo:
        if not args.quiet:
            note(f"bin/{program} {shlex.join(given)}")
        with redirect_stdout(sys.stderr):       # what this command prints is the table
            code = programs[program](given)
        if code:
            note(f"safealign probe: bin/{program} ended with exit code {code}; mend what it says, and give "
                 "the same command again")
            return code
    runs = [given[given.index("--output-dir") + 1] for program, given in todo if program == "redeval"]
    return redeval.main(["table", *runs, *(["--json"] if args.json else [])])
