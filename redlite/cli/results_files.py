"""results.json and report.html of a RED-EVAL run, made of the journals that a command has read."""
from collections.abc import Sequence

from redlite.judges import combine
from redlite.judges.agreement import on_harm_in_words
from redlite.redteam import journals as red_journals
from redlite.redteam import results, scorecard
from redlite.redteam.gates import BY_VALUE, Gate, Strictness, check_gates
from redlite.redteam.journals import RunJournals
from redlite.report import html, redeval_page
from redlite.store.files import write_atomic, write_json


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
    judge = summary["judge"]
    others = {}
    for name in red_journals.read_judges(journals.folder):
        if name != judge:
            others[name] = results.summarize(journals.answers, journals.judged_by(name))
    own, differ = journals.judged_by(judge), combine.differing(journals.judgments)
    page = redeval_page.redeval_page(
        red_journals.read_made(journals.folder), summary, journals.answers, own,
        others=others, published=results.published_table(), agreement=on_harm_in_words(judge),
        incomplete=" ".join(filter(None, [results.missing(summary), results.too_few(summary)])),
        differ=differ)
    write_atomic(journals.folder / html.PAGE, page)
    for name, page in redeval_page.answer_pages(summary, journals.answers, own, differ):
        write_atomic(journals.folder / name, page)
