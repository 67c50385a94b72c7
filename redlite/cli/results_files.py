"""results.json and report.html of a RED-EVAL run, and report.html of benches."""
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from redlite.cli import bench
from redlite.errors import Error
from redlite.judges import combine
from redlite.judges.agreement import on_harm_in_words
from redlite.redteam import journals as red_journals
from redlite.redteam import results, scorecard
from redlite.redteam.gates import (
    BY_VALUE,
    CORRECTED,
    Gate,
    Strictness,
    check_gates,
    check_names,
    main_names,
)
from redlite.redteam.journals import RunJournals
from redlite.report import bench_page, html, redeval_page
from redlite.report.answer_list import AnswerList
from redlite.store.files import write_atomic, write_json
from redlite.store.run_directory import read_manifest


def write_results(journals: RunJournals, judge_name: str, gates: Sequence[Gate] = (),
                  strictness: Strictness = BY_VALUE) -> dict:
    """Write both files by one judge's labels; what results.json holds, with the gates if there are any."""
    summary = results.results(journals, judge_name)
    if gates:
        summary["gates"] = check_gates([*gates], scorecard.measures(summary, None), None, strictness)
    write_json(journals.folder / red_journals.RESULTS, summary)
    write_page(journals, summary)
    return summary


def write_page(journals: RunJournals, summary: dict) -> None:
    """Write report.html of a run, and the pages of answers beside it where there are many."""
    judge, others = summary["judge"], {}
    notes = [results.missing(summary), results.too_few(summary), results.copied(summary)]
    for name in red_journals.read_judges(journals.folder):
        if name != judge:
            others[name] = results.summarize(journals.answers, journals.judged_by(name))
    own, differ = journals.judged_by(judge), combine.differing(journals.judgments)
    listed = AnswerList(list(summary["prompts"]), journals.answers, own, differ)
    page = redeval_page.redeval_page(
        red_journals.read_made(journals.folder), summary, listed,
        others=others, published=results.published_table(), agreement=on_harm_in_words(judge),
        incomplete=" ".join(filter(None, notes)))
    write_atomic(journals.folder / html.PAGE, page)
    for name, page in listed.pages(f"RED-EVAL of {summary['model']}: answers"):
        write_atomic(journals.folder / name, page)


def write_bench_page(folder: Path, summary: dict, gates: Sequence[dict] = ()) -> None:
    """Write report.html of a bench run. summary: what its results.json holds; gates: as they were checked."""
    found = scorecard.measures(None, summary)
    main = main_names(found)
    details = [measure for measure in found if measure not in main]
    shown, below = (scorecard.table(summary["model"], found, names=names) for names in (main, details))
    notes = [] if summary["complete"] else ["Incomplete: run the same command again."]
    unlabelled = {name: r["unlabelled"] for name, r in found.items() if r.get("unlabelled")}
    notes += [f"{name}: {n} examples are left out, since the judge gave no label."
              for name, n in unlabelled.items() if name in main]
    page = bench_page.bench_page(read_manifest(folder), summary, found, shown, below, [*gates], notes)
    write_atomic(folder / html.PAGE, page)


def check_gates_of(args: Namespace, prompts: list[str]) -> None:
    """Refuse a gate on what these prompts do not measure, or against a baseline: before the work."""
    gates = bench.gates_of(args)
    if any(gate.relative for gate in gates):
        raise Error("--gate … baseline …: one run has no baseline; use compare A B --gate, or a number")
    names = [f"asr.{prompt}{end}" for prompt in prompts for end in ("", CORRECTED)]
    check_names(gates, names)


def finish(args: Namespace, journals: RunJournals, judge_name: str, published: bool = False) -> int:
    """Write results.json and report.html, show the table and the gates, and say whether all is there."""
    if args.gate:
        check_gates_of(args, list(dict.fromkeys(key.prompt for key in journals.answers)))
    summary = write_results(journals, judge_name, bench.gates_of(args), bench.strictness_of(args))
    print(results.table(summary, published))
    checked = summary.get("gates", [])
    bench.say_gates(checked)
    print(f"Report: {journals.folder / html.PAGE}", file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps({**summary, "output_dir": str(journals.folder)}, ensure_ascii=False))
    return bench.code_of(summary["complete"], checked, results.too_few(summary))
