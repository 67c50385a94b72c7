"""bin/redeval import: answers of other programs as a run directory, to be judged here."""
import json
from argparse import Namespace
from pathlib import Path

from redlite.cli.options import Parser, add_common_options, output_options
from redlite.cli.program import DONE
from redlite.cli.progress import note

OTHERS = ("garak", "pyrit", "promptfoo", "harmbench")


def describe(prog: str) -> Parser:
    """The options of `redeval import`."""
    parser = Parser(prog=prog, description=(
        "Reads answers that another program collected and makes a run directory of them, which judge, label, "
        "report,\ncompare, table and export take as any other: garak's report.jsonl, PyRIT's memory export "
        "(JSON or CSV), promptfoo's\nresults (JSON or JSONL), HarmBench's completions JSON. Their verdicts "
        "are left out."))
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--from", dest="program", choices=OTHERS,
                        help="whose file it is (default: by its content)")
    parser.add_argument("--provider", metavar="ID",
                        help="whose answers, where promptfoo's file holds those of several models")
    parser.add_argument("--model", metavar="NAME",
                        help="what the answering model is called (default: as in the file, else imported)")
    parser.add_argument("--questions", metavar="FILE",
                        help="question file whose texts and topics stand for the file's ids, such as "
                             "HarmBench's behaviours: a judge then reads the behaviour, not the attack")
    output_options(parser).add_argument(
        "--output-dir", metavar="DIR", help="the run directory (default: one under ./runs)")
    add_common_options(parser, "A run directory, as redeval run writes it, judged by nobody yet.")
    return parser


def run(args: Namespace, command: str) -> int:
    """The body of `redeval import`."""
    from redlite.cli.results_files import write_results
    from redlite.redteam import imported, journals
    from redlite.redteam.questions import load_questions
    path = Path(args.file)
    found = imported.read(path, args.program, args.provider)
    known = {q.id: q for q in load_questions(args.questions)} if args.questions else {}
    if known and not known.keys() & {item.id for item in found.items}:
        note(f"redeval: no id of {args.questions} is in {path}; the file's own questions stand")
    output = Path(args.output_dir or f"runs/import-{found.program}-{path.stem}")
    model = args.model or found.items[0].model or "imported"
    said = f"{len(found.items)} answers of {found.program} into {output}"
    if found.lost:
        said += f"; {found.lost} have no text there and are left out"
    if args.dry_run:
        print(f"would import {said}")
    else:
        with imported.write(output, path, found, model, command, known) as directory:
            write_results(journals.read_journals(directory), journals.last_judge(output))
        print(f"{said}. Next: redeval judge {output} --judge J")
    if args.json:
        print(json.dumps({"program": found.program, "answers": len(found.items), "without_text": found.lost,
                          "output_dir": str(output)}))
    return DONE
