"""The page of a comparison: what is better and worse, paired differences, and the questions that changed."""
from redlite.report import html
from redlite.report.html import escape
from redlite.report.scorecard_page import MEANING, against

LISTED = 500    # changed questions on the page
_KEY = ("A difference is the second run's value less the first's, over the examples that have a label in "
        "both. Better is lower for asr, over_refusal and compliance, higher for acc and exact_match. "
        "Intervals and p are by question; p (Holm) is adjusted for the measures beside it. Wins are examples "
        f"on which the second run is better. {MEANING}")


def compare_page(names: tuple[str, str], found: dict[str, dict], main: list[str], head: list[str],
                 rows: dict[str, list[str]], changed: list[list], sides: list[dict], gates: list[dict],
                 notes: list[str]) -> str:
    """The comparison of two runs as one HTML file.

    names    of the runs
    found    measure → difference, ci95 and more, as `redteam.compare.compare` gives them
    main     the measures of the summary
    rows     measure → its row under `head`
    changed  a mark, the measure, the outcome in the first and in the second run (texts or links), the
             question or example
    sides    what tells each run's making: name → value or link
    gates    gate, value, bound, passed, why
    notes    what a reader must know first, in sentences
    """
    body = html.section("Gates", html.gates_table(gates)) if gates else ""
    body += "".join(f'<p class="note">{escape(note)}</p>\n' for note in notes)
    body += html.section(f"{names[1]} against {names[0]}", against(main, names[0], found))
    table = html.grid(head, [rows[name] for name in main])
    body += html.section("Differences", f"{table}<p>{_KEY}</p>\n")
    if details := [rows[name] for name in rows if name not in main]:
        every = html.grid(head, details)
        body += html.section("By topic, subject and task",
                             f"<details><summary>All {len(details)}</summary>\n{every}</details>\n")
    if changed:
        lead = f"<p>{len(changed)} changed, the worse ones first"
        lead += f"; the first {LISTED} are listed.</p>\n" if len(changed) > LISTED else ".</p>\n"
        head = ["", "measure", names[0], names[1], "question or example"]
        body += html.section("What changed", lead + html.grid(head, changed[:LISTED], 5))
    fields = dict.fromkeys(name for side in sides for name in side)
    how = [[name, *(side.get(name, "–") for side in sides)] for name in fields]
    body += html.section("How they were made", html.grid(["what", *names], how, 3))
    return html.document(f"{names[1]} compared with {names[0]}",
                         "Two runs on the same questions or examples, paired", body, None)
