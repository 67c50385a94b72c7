"""bin/redeval compare: two runs, paired by question or example."""
import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from redlite.cli import bench
from redlite.cli.bench import counted
from redlite.cli.options import Parser, add_common_options, flag, output_options, whole
from redlite.errors import Error

if TYPE_CHECKING:
    from redlite.redteam.compare import Side
    from redlite.report.html import Link


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
    output_options(parser).add_argument(
        "--output", metavar="FILE",
        help="write a page of the comparison, report.html or another .html, with links to "
             "both runs' pages")
    flag(parser, "anyway", "compare runs that were not made alike as well; what differs is named")
    bench.add_gate_options(parser, "a bound on the second run, such as asr.cou<=baseline, the first run, or "
                           "mmlu.acc>=0.4; exit code 100 if one fails")
    add_common_options(parser, "Nothing but what is printed, unless --output names a page.")
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
    if args.output and not args.output.endswith(".html"):
        raise Error(f"--output {args.output}: is a page; name it .html")
    print(compare.table(found, names, args.list))
    if differing:
        print(f"Not made alike: {compare.named(*pair, differing)}. What differs need not be the model.")
    unfinished = {folder: side.unfinished for folder, side in sides.items() if side.unfinished}
    for folder, left in unfinished.items():
        print(f"Incomplete: {folder} lacks results of {counted(left)}; run its command again. "
              "Only what both runs have is compared.")
    bench.say_gates(checked)
    if args.output:
        notes = [f"Not made alike: {compare.named(*pair, differing)}."] if differing else []
        notes += [f"Incomplete: {folder} lacks results of {counted(left, 4)}."
                  for folder, left in unfinished.items()]
        _write_page(Path(args.output), pair, names, found, checked, notes)
        print(f"Report: {args.output}")
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


def _write_page(path: Path, sides: "tuple[Side, Side]", names: tuple[str, str], found: dict[str, dict],
                gates: list[dict], notes: list[str]) -> None:
    """Write the page of a comparison."""
    from redlite.redteam import compare
    from redlite.redteam.gates import main_names
    from redlite.report.compare_page import compare_page
    from redlite.store.files import write_atomic
    head, *rows = compare.rows_of(found, names)
    page = compare_page(names, found, main_names(found), head, {row[0]: row for row in rows},
                        _changed(path.parent, sides, found), [_made(path.parent, side) for side in sides],
                        gates, notes)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page)


def _changed(here: Path, sides: "tuple[Side, Side]", found: dict[str, dict]) -> "list[list[str | Link]]":
    """A row for each example whose outcome changed, those that became worse first.

    here  the page's folder
    """
    from redlite.redteam.gates import main_names
    rows: list[list[str | Link]] = []
    seen = set()    # examples of a group, which its parts hold as well
    for what, mark in (("losses", "▼"), ("wins", "▲")):
        for name in main_names(found):
            lead, _, rest = name.partition(".")
            own = sides[0].outcomes.get(name, {})
            for key in found[name][what]:
                if "/" in key and lead != "asr":
                    if (key, rest) in seen:
                        continue
                    seen.add((key, rest))
                outcomes = [_outcome(here, side, name, key) for side in sides]
                rows.append([mark, name, *outcomes, own[key].same if lead == "asr" else key])
    return rows


def _outcome(here: Path, side: "Side", name: str, key: str) -> "str | Link":
    """An example's outcome in a run, with a link to its answer where the run has a page."""
    from redlite.report import html
    outcome = side.outcomes[name][key]
    if not name.startswith("asr."):
        return f"{outcome.value:g}"
    text = "harmful" if outcome.value else "unharmful"
    page = _page_of(side.folder, "redeval")
    return html.link_to(text, page, here, f"question={outcome.unit}") if page else text


def _page_of(folder: Path, part: str) -> Path | None:
    """The page of a run, or of a scorecard's part; None where there is none."""
    from redlite.redteam import runs
    from redlite.report import html
    found = runs.parts_of(folder).get(part)
    return found / html.PAGE if found and (found / html.PAGE).is_file() else None


def _made(here: Path, side: "Side") -> "dict[str, str | Link]":
    """What tells how a run was made: its pages, its command, the hashes of its model and questions."""
    from redlite.redteam import runs
    from redlite.report import html
    from redlite.store.run_directory import read_manifest
    rows: dict[str, str | Link] = {"directory": str(side.folder)}
    for part, folder in runs.parts_of(side.folder).items():
        made = read_manifest(folder)
        if page := _page_of(side.folder, part):
            rows[f"page of {part}"] = html.link_to(html.PAGE, page, here)
        rows |= {name: str(value) for name, value in html.run_facts(made)}
        rows |= {name: str(value) for name, value in html.model_facts(made.get("model") or {})}
    for name, value in side.conditions.items():
        if value is not None:
            rows[name] = str(value["name"] if isinstance(value, dict) else value)
    return rows
