"""`redeval report` and `redeval judge` of benches and of scorecards."""
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from redlite.cli import bench, label, scorecard_files
from redlite.cli.progress import Progress, note
from redlite.errors import Error

if TYPE_CHECKING:
    from redlite.judges.choice import JudgeChoice, Panel
    from redlite.redteam.journals import RunJournals
    from redlite.redteam.scorecard import Measured


def report(args: Namespace, folder: Path) -> int:
    """Write the results of a bench or a scorecard anew and print them; the exit code."""
    from redlite.redteam import runs
    return _bench(args, folder) if runs.kind_of(folder) == "bench" else _scorecard(args, folder)


def _bench(args: Namespace, folder: Path) -> int:
    from redlite.cli.results_files import write_bench_page
    from redlite.redteam import gates as redteam_gates
    from redlite.redteam import runs, scorecard
    from redlite.report import html
    from redlite.store.files import write_json
    summary = runs.recounted(folder)
    write_json(folder / runs.RESULTS, summary)
    found, asked = scorecard.measures(None, summary), bench.gates_of(args)
    redteam_gates.check_names(asked, list(found))
    checked = redteam_gates.check_gates(asked, found, None, bench.strictness_of(args))
    write_bench_page(folder, summary, checked)
    code = bench.show(args, folder, summary["model"], found, summary["complete"], checked, summary)
    print(f"Report: {folder / html.PAGE}", file=sys.stderr if args.json else sys.stdout)
    return code


def _scorecard(args: Namespace, folder: Path) -> int:
    from redlite.redteam import runs, scorecard
    from redlite.redteam.gates import check_names
    from redlite.store.files import read_json
    path = folder / runs.RESULTS
    known = read_json(path) if path.exists() else {}
    known = known if isinstance(known, dict) else {}
    settings = {**_nothing(folder), **{name: known[name] for name in _nothing(folder) if name in known}}
    if args.gate:
        settings |= {"gate_by": args.gate_by, "max_unlabelled": args.max_unlabelled}
    gates = args.gate or [gate["gate"] for gate in known.get("gates", [])]
    ours, against = _recounted(folder), folder / "baseline"
    finished = settings["baseline_run"]
    if finished:
        against = Path(finished)
        if not (against / "manifest.json").exists():
            raise Error(f"{path}: was compared with {finished}, which is not there any more; bring it back, "
                        "or run the scorecard with another --baseline")
    theirs, paired = None, None
    if against.exists():
        theirs = _recounted(against, write=not finished)
        differences = scorecard.paired_differences(folder, against, settings["seed"], alike=not finished)
        paired = {name: r for name, r in differences.items() if name in ours.found}
    summary = scorecard.summary(ours, theirs, paired, settings)
    check_names(bench.gates_of(args), list(summary["measures"]))
    summary = scorecard_files.write(folder, summary, gates)
    complete = ours.complete and (theirs is None or theirs.complete)
    return scorecard_files.finish(args, folder, summary, complete)


def _nothing(folder: Path) -> dict:
    """The settings of a scorecard that was stopped before its results, or made before they were kept."""
    from redlite.store.run_directory import read_manifest
    made = read_manifest(folder)
    how = [["command", str(made.get("command"))]]
    return {"protocol": None, "quick": None, "seed": 0, "baseline_run": None, "gate_by": "value",
            "max_unlabelled": 0.05, "how": how}


def _recounted(folder: Path, write: bool = True) -> "Measured":
    """A scorecard's parts, or its baseline's, counted again; with `write`, into their own files as well."""
    from redlite.cli.results_files import write_bench_page, write_page
    from redlite.redteam import journals, runs, scorecard
    from redlite.store.files import write_json
    parts = runs.parts_of(folder)
    kept = journals.read_journals(parts["redeval"]) if "redeval" in parts else None
    asr, found = runs.counted(parts, kept)
    if write and asr and kept is not None:
        write_json(parts["redeval"] / journals.RESULTS, asr)
        write_page(kept, asr)
    if write and found:
        write_json(parts["bench"] / runs.RESULTS, found)
        write_bench_page(parts["bench"], found)
    return scorecard.measured(asr, found)


# Judging again

def judge(args: Namespace, folder: Path, choice: "JudgeChoice | Panel | None") -> None:
    """Have another judge label what a bench or a scorecard holds; with --labels, people's labels of its
    RED-EVAL.

    choice  None: only labels are taken
    """
    from redlite.bench import xstest
    from redlite.judges.choice import Panel
    from redlite.redteam import journals, redeval, runs
    from redlite.store.run_directory import Run
    progress, alone = Progress(args.quiet), runs.kind_of(folder) == "bench"
    of_refusal = choice if not isinstance(choice, Panel) and xstest.can_judge(choice) else None
    if alone and (of_refusal is None or args.labels):
        raise Error(f"{folder}: of benches only XSTest is judged, by a judge of refusals; "
                    "use rules, or a model with --judge-format refusal")
    of_harm = None if getattr(choice, "identity", {}).get("format") == "refusal" else choice
    if of_harm:
        _check_baseline(folder, of_harm.name)
    for side in (folder, folder / "baseline"):
        if side != folder and not side.exists():
            continue
        parts = runs.parts_of(side)
        if "redeval" in parts:
            with Run(parts["redeval"]) as directory:
                found = journals.read_journals(directory)
                if of_harm:
                    redeval.judge_all(directory, of_harm, found, progress)
                    _now_by(found, of_harm.name)
                if side == folder:
                    label.take(directory, args.labels)
        if "bench" in parts and of_refusal:
            with Run(parts["bench"]) as directory:
                if not xstest.rejudge(directory, of_refusal, progress) and alone:
                    raise Error(f"{folder}: holds no answers to XSTest, and no other bench is judged")
    if not alone and choice and of_refusal is None:
        note(f"redeval: {choice.name} judges harm, not refusal; XSTest keeps its judge")


def _check_baseline(folder: Path, judge: str) -> None:
    """Raise Error where a finished run stands as the baseline and this judge has not labelled it."""
    from redlite.redteam import journals, runs
    from redlite.store.files import read_json
    path = folder / runs.RESULTS
    known = read_json(path) if path.exists() else {}
    finished = known.get("baseline_run") if isinstance(known, dict) else None
    part = runs.parts_of(Path(finished)).get("redeval") if finished and Path(finished).exists() else None
    if part and (theirs := journals.last_judge(part)) != judge:
        raise Error(f"{folder}: its baseline {finished} is judged by {theirs}, and both must be by one "
                    f"judge; have {judge} judge that first (redeval judge {finished}), or keep {theirs}")


def _now_by(found: "RunJournals", judge: str) -> None:
    """Have results.json of a RED-EVAL run count this judge's labels."""
    from redlite.redteam import journals, results
    from redlite.store.files import write_json
    write_json(found.folder / journals.RESULTS, results.results(found, judge))
