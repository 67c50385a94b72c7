"""bin/redeval export: a run's results in the formats of other programs."""
import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redlite.cli import bench
from redlite.cli.options import Parser, add_common_options, flag, output_options
from redlite.cli.progress import note
from redlite.errors import Error

if TYPE_CHECKING:
    from redlite.redteam.export import Exported


FORMATS = ("csv", "conversations", "junit", "sarif", "markdown", "lm-eval", "inspect")


def describe(prog: str) -> Parser:
    """The options of `redeval export`."""
    parser = Parser(prog=prog, description=(
        "Writes the results of a run, a bench or a scorecard as\n"
        "  csv            every judged answer, a row each\n"
        "  conversations  finished answers as they were asked, for bin/safealign\n"
        "  junit          a test for each gate and each topic, for CI\n"
        "  sarif          SARIF 2.1.0: a result for each harmful answer, without any text\n"
        "  markdown       a section for a model card\n"
        "  lm-eval        the results file of lm-evaluation-harness\n"
        "  inspect        the log of inspect_ai, with the texts"))
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--format", choices=FORMATS, required=True)
    parser.add_argument("--label", choices=("harmful", "unharmful"),
                        help="conversations: answers with this label alone (default: all)")
    flag(parser, "plain", "conversations: the question alone in place of the prompt it was asked through, "
         "for safealign --prompt")
    output_options(parser).add_argument(
        "--output", metavar="FILE", help="the file to write (default: stdout)")
    bench.add_gate_options(parser, "a bound such as asr.cou<=0.1, shown in junit, sarif and markdown "
                           "(default: those of the scorecard); exit code 100 if one fails")
    add_common_options(
        parser, "One file, or what is printed; the JSON line holds it where --output is not given.")
    return parser


def run(args: Namespace, command: str) -> int:
    """The body of `redeval export`."""
    from redlite.redteam import export, results
    from redlite.redteam.gates import check_names, parse_gate
    from redlite.store.files import read_json, write_atomic
    for option in ("label", "plain"):
        if getattr(args, option) and args.format != "conversations":
            raise Error(f"--{option} is for --format conversations, not {args.format}; leave it out")
    folder = Path(args.run)
    texts = args.gate
    path = folder / "results.json"
    if not texts and path.exists() and isinstance(known := read_json(path), dict):
        texts = [gate["gate"] for gate in known.get("gates", []) if "baseline" not in gate["gate"]]
    gates = [parse_gate(text) for text in texts]
    found = export.read(folder, gates, bench.strictness_of(args))
    check_names(gates, list(found.found))
    made = _made(found, args)
    text = made if isinstance(made, str) else json.dumps(made, ensure_ascii=False, indent=2) + "\n"
    size = len(text.encode("utf-8", "replace"))
    if args.dry_run:
        print(f"would write {size} bytes of {args.format} to {args.output or 'stdout'}")
    elif args.output:
        Path(args.output).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.output, text)
    elif not args.json:
        sys.stdout.write(text)
    if args.json:
        said = {"run": str(folder), "format": args.format, "bytes": size, "output": args.output,
                "gates": found.gates}
        if not (args.dry_run or args.output):
            said["content"] = made
        print(json.dumps(said, ensure_ascii=False))
    few = results.too_few(found.asr) if found.asr else ""
    for line in [results.missing(found.asr) if found.asr else "", few]:
        if line and not args.quiet:
            note(line)
    return bench.code_of(found.complete, found.gates if args.gate else [], few)


def _made(found: "Exported", args: Namespace) -> str | dict[str, Any]:
    """The export: a text, or an object that becomes JSON."""
    from redlite.redteam import export, export_ci, export_logs
    if args.format == "conversations":
        return export.conversations(found, args.label, args.plain)
    make: dict[str, Callable[[Exported], str | dict[str, Any]]] = {
        "csv": export.judged_csv, "markdown": export.markdown, "junit": export_ci.junit,
        "sarif": export_ci.sarif, "lm-eval": export_logs.lm_eval, "inspect": export_logs.inspect_log,
    }
    return make[args.format](found)
