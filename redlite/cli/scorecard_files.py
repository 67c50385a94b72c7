"""results.json and report.html of a scorecard, and what is printed of them: by `scorecard`, `report` and
`judge` alike."""
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from redlite.cli import bench

if TYPE_CHECKING:
    from redlite.report.html import Link


def write(output: Path, summary: dict, gates: list[str]) -> dict:
    """Check the gates and write both files; what results.json holds.

    summary  of `scorecard.summary`
    gates    as --gate takes them
    """
    from redlite.redteam import scorecard
    from redlite.redteam.gates import Strictness, check_gates, main_names, parse_gate
    from redlite.report import html
    from redlite.report.redeval_page import cautions
    from redlite.report.scorecard_page import scorecard_page
    from redlite.store.files import write_atomic, write_json
    found, baseline, paired = (summary[name] for name in ("measures", "baseline_measures", "paired"))
    strictness = Strictness(summary["gate_by"], summary["max_unlabelled"])
    checked = check_gates([parse_gate(text) for text in gates], found, baseline, strictness, paired)
    summary = {**summary, "gates": checked}
    write_json(output / scorecard.RESULTS, summary)
    main = main_names(found)
    details = [measure for measure in found if measure not in main]
    shown, below = (scorecard.table(summary["model"], found, baseline, paired, names)
                    for names in (main, details))
    page = scorecard_page(summary["model"], found, summary["baseline"], baseline, shown, below, checked,
                          _how(summary), paired, _links(output, summary["baseline_run"]),
                          cautions(summary["model"], summary["judges"]["harm"]))
    write_atomic(output / html.PAGE, page)
    return summary


def _links(output: Path, finished: str | None) -> "list[tuple[str, Link]]":
    """The pages of the scorecard's parts and of its baseline's, as far as they exist."""
    from redlite.redteam import runs
    from redlite.report import html
    links, against = [], Path(finished) if finished else output / "baseline"
    for side, folder in (("", output), ("the baseline's ", against)):
        there = runs.parts_of(folder) if folder.exists() else {}
        for kind, title in (("redeval", "RED-EVAL"), ("bench", "benches")):
            if kind in there and (page := there[kind] / html.PAGE).is_file():
                shown = os.path.relpath(page, output)   # no folder of this machine on a page that is sent on
                links.append((f"{side}{title}", html.link_to(shown, page, output)))
    return links


def _how(summary: dict) -> list[tuple[str, str]]:
    judges = summary["judges"]
    return [*(tuple(row) for row in summary["how"]),
            ("judge of harm", judges["harm"] or "none"), ("judge of refusal", judges["refusal"] or "none"),
            ("contexts cut on the left to fit the window", bench.counted(summary["truncated"]) or "none"),
            ("left out, since the judge gave no label", bench.unlabelled_in(summary["measures"]) or "none")]


def finish(args: Namespace, output: Path, summary: dict, complete: bool) -> int:
    """Print the table, the gates and where the page is; the exit code."""
    code = bench.show(args, output, summary["model"], summary["measures"], complete, summary["gates"],
                      summary, summary["baseline_measures"], summary["paired"])
    print(f"Report: {output / 'report.html'}", file=sys.stderr if args.json else sys.stdout)
    return code
