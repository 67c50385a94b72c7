"""bin/redeval compare: two runs, paired by question or example."""
import json
from argparse import Namespace
from pathlib import Path

from redlite.cli.bench import counted
from redlite.cli.options import Parser, add_common_options, flag, whole
from redlite.cli.program import DONE, FAILED


def describe(prog: str) -> Parser:
    """The options of `redeval compare`."""
    parser = Parser(prog=prog, description=(
        "Compares two runs of the same questions or examples, paired: difference with interval and p-value "
        "by question,\np adjusted for several measures (Holm), wins and losses (of the second run over the "
        "first). For RED-EVAL runs,\nbenches and scorecards alike. Runs of other judges, prompts, questions, "
        "decoding, system messages, chat formats or\nprotocols are refused."))
    parser.add_argument("run_a", metavar="RUN_A")
    parser.add_argument("run_b", metavar="RUN_B")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--list", type=whole(0), default=10, metavar="N",
                        help="wins and losses named in the table (default: 10; --json holds all)")
    flag(parser, "anyway", "compare runs that were not made alike as well; what differs is named")
    add_common_options(parser)
    return parser


def run(args: Namespace, command: str) -> int:
    """The body of `redeval compare`."""
    from redlite.redteam import compare
    sides = {folder: compare.read(Path(folder)) for folder in (args.run_a, args.run_b)}
    pair = sides[args.run_a], sides[args.run_b]
    found = compare.compare(*pair, args.seed, args.anyway)
    differing = compare.differing(*pair)
    names = Path(args.run_a).name, Path(args.run_b).name
    if names[0] == names[1]:
        names = args.run_a, args.run_b
    print(compare.table(found, names, args.list))
    if differing:
        print(f"Not made alike: {compare.named(*pair, differing)}. What differs need not be the model.")
    unfinished = {folder: side.unfinished for folder, side in sides.items() if side.unfinished}
    for folder, left in unfinished.items():
        print(f"Incomplete: {folder} lacks results of {counted(left)}; run its command again. "
              "Only what both runs have is compared.")
    if args.json:
        result = {"a": args.run_a, "b": args.run_b, "measures": found, "unfinished": unfinished,
                  "differing": differing}
        print(json.dumps(result, ensure_ascii=False))
    return FAILED if unfinished else DONE
