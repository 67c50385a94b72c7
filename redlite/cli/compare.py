"""bin/redeval compare: two runs, paired by question or example."""
import json
from argparse import Namespace
from pathlib import Path

from redlite.cli import bench
from redlite.cli.bench import counted
from redlite.cli.options import Parser, add_common_options, flag, whole
from redlite.errors import Error


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
    bench.add_gate_options(parser, "a bound on the second run, such as asr.cou<=baseline, the first run, or "
                           "mmlu.acc>=0.4; exit code 100 if one fails")
    add_common_options(parser)
    return parser


def run(args: Namespace, command: str) -> int:
    """The body of `redeval compare`."""
    from redlite.redteam import compare
    from redlite.redteam.gates import check_names
    sides = {folder: compare.read(Path(folder)) for folder in (args.run_a, args.run_b)}
    pair = sides[args.run_a], sides[args.run_b]
    found = compare.compare(*pair, args.seed, args.anyway)
    differing = compare.differing(*pair)
    check_names(bench.gates_of(args), list(found))
    checked = _checked(args, found)
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
    bench.say_gates(checked)
    if args.json:
        result = {"a": args.run_a, "b": args.run_b, "measures": found, "unfinished": unfinished,
                  "differing": differing, "gates": checked}
        print(json.dumps(result, ensure_ascii=False))
    return bench.code_of(not unfinished, checked, "")


def _checked(args: Namespace, found: dict[str, dict]) -> list[dict]:
    """The gates on the second run, the first being the baseline."""
    from redlite.redteam.gates import check_gates
    gates = bench.gates_of(args)
    if args.gate_by == "bound" and not all(gate.relative for gate in gates):
        raise Error("--gate-by bound: compare knows the intervals of differences alone; "
                    "write a bound against baseline, or gate the run itself")
    after, before = ({name: {"value": r[side], "n": r["n"], "unlabelled": r["unlabelled"]}
                      for name, r in found.items()} for side in "ba")
    return check_gates(gates, after, before, bench.strictness_of(args), found)
