"""bin/safealign: train a model to be safer (arXiv 2308.09662), see what the loss does, prove it."""
import argparse
import json
import sys
from pathlib import Path

from redlite import data
from redlite.cli import align, audit, evaluation, merge, probe
from redlite.cli.config_file import from_config
from redlite.cli.options import (
    Options,
    Parser,
    add_common_options,
    add_machine_options,
    add_template_options,
    flag,
    number,
    output_options,
    whole,
)
from redlite.cli.program import DONE, FAILED, Command, dispatch, guarded, parse
from redlite.cli.training_options import EMBEDDED, PROGRAM
from redlite.errors import Error

RECIPES = Path(data.__file__).parent / "recipes"
COLOURS = {"blue": "safe", "red": "harmful", "helpful": "ordinary"}


def main(arguments: list[str] | None = None) -> int:
    """The program. Without a command's name it runs `train`."""
    def body(given: list[str]) -> int:
        return dispatch(PROGRAM, COMMANDS, "train", given, parse_options)
    return guarded(PROGRAM, body, arguments)


def parse_options(parser: Parser, arguments: list[str]) -> argparse.Namespace:
    """Options: the recipe's, then those of --config, then the command line, the later winning."""
    args = parse(parser, arguments)
    recipe = getattr(args, "recipe", None)
    trains = getattr(args, "demo", None) is False       # audit has no demo among its defaults
    if trains and recipe is None and args.model == EMBEDDED and not any(getattr(args, c) for c in COLOURS):
        recipe = EMBEDDED
    if recipe is None:
        return args
    known = {p.stem: p for p in sorted(RECIPES.glob("*.json"))}
    if recipe not in known:
        raise Error(f"--recipe {recipe!r} is not known; use {', '.join(known)}, "
                    "or --config for a file of your own")
    settings = from_config(parser, known[recipe])
    given = [*(from_config(parser, Path(args.config)) if args.config else []), *arguments]
    args = parser.parse_args([*settings, *given])
    if args.strategy == "A":    # what a recipe says of strategy B does not hold
        kept = [s for s in settings if not s.startswith(("--objective=", "--preset="))]
        args = parser.parse_args([*kept, *given])
    args.recipe, args.demo = recipe, recipe == EMBEDDED
    return args


def describe_train(prog: str) -> Parser:
    """The options of `safealign train`."""
    parser = Parser(prog=prog, description=(
        "SAFE-ALIGN (arXiv 2308.09662): strategy A trains on blue (safe) and helpful conversations; "
        "strategy B goes on, after --steps-a steps of A,\nwith pushing red (harmful) responses away. Writes "
        "a Hugging Face directory, a log, checkpoints and a page; the same command again goes on\n"
        "where it stopped. Without options it aligns the embedded model organism and measures it before and "
        "after, offline.\n"
        "On several processes: torchrun --nproc-per-node N -m redlite.cli.safealign …"),
        epilog="Commands: train (may be left out), audit (what the loss does, token by token), "
               "prove (the gradients, on this machine), "
               "merge (a model plus the difference of two others), "
               "probe (a tamper test); each has --help.")
    parser.set_defaults(demo=False)
    parser.many_processes = True
    parser.add_argument("--recipe", metavar="NAME",
                        help="settings to begin with: starling-blue or starling-blue-red (the paper's), "
                             "organism")
    _add_data(parser)
    flag(parser, "anyway", "train although a look at the answers says that they are not of their colours, "
         "the first step of strategy B that it pushes nothing, or the data ask the evaluation's questions")
    plan = parser.add_argument_group("what is trained")
    plan.add_argument("--strategy", choices=("A", "B"), default="A", help="default: %(default)s")
    plan.add_argument("--steps-a", type=whole(0), metavar="K",
                      help="steps of A before red is drawn (default: 200, and at most a third of all steps)")
    plan.add_argument("--epochs", type=number(0.001, 1e9), default=3.0,
                      help="passes over the blue conversations (default: %(default)g)")
    plan.add_argument("--steps", type=whole(1, 10_000_000), metavar="N",
                      help="steps in all, instead of --epochs")
    plan.add_argument("--batch-size", type=whole(1, 1_000_000), default=64, metavar="N",
                      help="conversations a step, over all processes (default: %(default)s)")
    plan.add_argument("--mix", nargs="+", default=[], metavar="COLOUR=PART",
                      help="parts of helpful, blue and red in a step (default: 1 each)")
    _add_objective(plan)
    plan.add_argument("--lora", type=whole(1, 1 << 16), metavar="RANK",
                      help="train low-rank adapters; they are merged into the model that is written, "
                           "and kept in adapter/ too")
    plan.add_argument("--lora-alpha", type=number(0.001, 1e6), metavar="X",
                      help="the adapter's scale is X / RANK (default: 2 RANK)")
    plan.add_argument("--lora-targets", nargs="+", metavar="NAME",
                      help="of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj "
                           "(default: all seven)")
    flag(plan, "adapter-only", "with --lora: write adapter/ alone, for --adapter, and not the merged model, "
                               "which is as large as the weights in --dtype")
    plan.add_argument("--quantize", choices=("int8", "int4"),
                      help="with --lora, on CPUs: keep the weights as whole numbers, as redeval's --quantize "
                           "does, and train adapters beside them")
    _add_loop(parser.add_argument_group("how"))
    evaluation.add_options(parser.add_argument_group("evaluation during training"))
    output_options(parser).add_argument(
        "--output-dir", metavar="DIR",
        help="the run directory, which becomes the model's (default: one under ./runs)")
    add_common_options(
        parser,
        "A Hugging Face directory, with adapter/ where --lora is given; manifest.json, log.jsonl, "
        "starts.jsonl, results.json and report.html; checkpoints/, from which a run that was stopped "
        "goes on; of the organism stages.json.")
    return parser


def _add_loop(loop: Options) -> None:
    loop.add_argument("--learning-rate", type=number(0, 10), default=1e-5, metavar="X",
                      help="at its peak (default: %(default)g)")
    loop.add_argument("--final-rate", type=number(0, 1), default=0.0, metavar="X",
                      help="share of it that the cosine ends at (default: 0)")
    loop.add_argument("--warmup", type=number(0, 1), default=0.03, metavar="SHARE",
                      help="of the steps (default: %(default)g)")
    loop.add_argument("--weight-decay", type=number(0, 10), default=0.0, metavar="X", help="default: 0")
    loop.add_argument("--clip", type=number(0, 1e30), default=1.0, metavar="X",
                      help="largest norm of the gradient; 0: none (default: 1)")
    flag(loop, "recompute", "activation checkpointing: keep less, compute a layer twice; "
                            "a run may go on with or without")
    loop.add_argument("--checkpoint-every", type=whole(1), default=100, metavar="N",
                      help="steps (default: %(default)s); a run may go on with another")
    loop.add_argument("--evaluate-every", type=whole(0), default=0, metavar="N",
                      help="steps; before the first and after the last it is always done")
    loop.add_argument("--helpful-rise", type=number(0, 1e30), default=1.0, metavar="NATS",
                      help="stop when the helpful NLL rises this much (default: 1)")
    flag(loop, "save-a", "keep the model as it is after strategy A in after-A/ too")
    add_machine_options(loop)


def _add_data(parser: Parser) -> None:
    group = parser.add_argument_group("model and conversations")
    group.add_argument("--model", default=EMBEDDED,
                       help="a Hugging Face directory, a .gguf file, or organism, the embedded model "
                            "(default)")
    add_template_options(group)
    for colour, what in COLOURS.items():
        group.add_argument(f"--{colour}", nargs="+", metavar="FILE",
                           help=f"{what} conversations: HarmfulQA, ShareGPT, messages, hh-rlhf, Alpaca or "
                                "Open-Assistant; .json, .jsonl, .gz")
    group.add_argument("--limit", type=whole(1), metavar="N",
                       help="the first N conversations of each colour only")
    group.add_argument("--prompt", nargs="+", metavar="P",
                       help="how conversations ask their first question, in turns: standard, cot, cou, play "
                            "(a Chain of Utterances that RED-EVAL does not use), or text files with a "
                            "<question> placeholder (default: as they stand)")
    flag(group, "plain-helpful", "leave helpful conversations out of --prompt: the model learns to withstand "
         "an attack, and keeps its answers to plain questions")
    group.add_argument("--answer-tokens", type=whole(1), metavar="N",
                       help="train the first N tokens of each answer alone, where it is decided "
                            "whether a model refuses (arXiv 2406.05946) (default: all)")
    group.add_argument("--max-tokens", type=whole(8), default=1280, metavar="N",
                       help="of a conversation; later exchanges are cut, whole (default: %(default)s)")
    group.add_argument("--tokens-per-batch", type=whole(8), default=2048, metavar="N",
                       help="of a packed micro-batch (default: %(default)s)")
    group.add_argument("--validation", type=number(0, 0.5), default=0.02, metavar="SHARE",
                       help="of the questions, held out (default: %(default)g)")
    group.add_argument("--seed", type=whole(0), default=0, help="of everything drawn at random (default: 0)")


def objective(text: str) -> str:
    """An option type: the name of an objective of strategy B."""
    from redlite import loss  # imports torch, which --help can do without

    known = [name for name in loss.OBJECTIVES if name != "A"]
    if text not in known:
        names = ", ".join(known)
        raise argparse.ArgumentTypeError(f"{text[:24]!r} is no objective of strategy B; use {names}")
    return text


def _add_objective(group: Options) -> None:
    group.add_argument("--objective", type=objective, metavar="NAME",
                       help="of strategy B's red responses: B (default), hinge, unlikelihood, weighted, npo, "
                       "simnpo or dpo (redlite/loss.py)")
    group.add_argument("--preset", choices=("paper", "capped"),
                       help="of the objective B: the paper's coefficients, or bounded ones (default: capped)")
    group.add_argument("--parameter", nargs="+", default=[], metavar="NAME=X",
                       help="of the objective, e.g. tau=2 beta=0.1 blue=1")
    group.add_argument("--per", choices=("response", "token", "conversation"), default="response",
                       help="what counts alike in a colour's mean (default: %(default)s)")


def describe_audit(prog: str) -> Parser:
    """The options of `safealign audit`."""
    parser = Parser(prog=prog, description=(
        "Shows what the loss does to each token of given conversations: its role, whether it is trained, its "
        "NLL, its coefficient, whether it was\ncapped; as ledger.jsonl and as a page. It runs the code that "
        "training runs, on one step that holds all these conversations."))
    _add_data(parser)
    _add_objective(parser)
    parser.add_argument("--strategy", choices=("A", "B"), default="B", help="default: %(default)s")
    add_machine_options(parser)
    output_options(parser).add_argument("--output-dir", metavar="DIR", help="default: runs/audit-MODEL")
    add_common_options(parser, "manifest.json, ledger.jsonl and audit.html.")
    return parser


def describe_prove(prog: str) -> Parser:
    """The options of `safealign prove`."""
    parser = Parser(prog=prog, description=(
        "Checks every objective and every implementation of token_nll on this machine against float64: a "
        "table of worst\nerrors, exit code 0 if all hold, 1 if one does not."))
    add_common_options(parser, "Nothing but what is printed.")
    return parser


def run_prove(args: argparse.Namespace, command: str) -> int:
    """The body of `safealign prove`."""
    if args.dry_run:
        plan = "would check every objective and implementation here; cost: 0 (this machine)"
        print(json.dumps({"plan": plan}) if args.json else plan)
        return DONE
    from redlite.training import prove
    result = prove.prove()
    if args.json:
        print(json.dumps(result))
    return DONE if result["ok"] else FAILED


COMMANDS: dict[str, Command] = {
    "train": (describe_train, align.run), "audit": (describe_audit, audit.run),
    "prove": (describe_prove, run_prove), "merge": (merge.describe, merge.run),
    "probe": (probe.describe, probe.run)}

if __name__ == "__main__":
    sys.exit(main())
