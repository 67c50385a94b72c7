"""The page of benches: accuracy and over-refusal with intervals, the worst subjects, settings and hashes."""
from redlite.report import html
from redlite.report.html import escape
from redlite.report.scorecard_page import LOWER, READING, bar

WORST = 12  # subjects and tasks that are named as the worst


def bench_page(made: dict, summary: dict, found: dict[str, dict], shown: list[list[str]],
               details: list[list[str]], gates: list[dict], notes: list[str]) -> str:
    """The benches of a model as one HTML file.

    made, summary   manifest.json and results.json
    found           measure → value, ci95, n
    shown, details  tables with their heads, the measure's name in the first column
    gates           gate, value, bound, passed, why
    notes           what a reader must know first, in sentences
    """
    bars = [bar(row[0], i, found[row[0]]) for i, row in enumerate(shown[1:])]
    body = html.section("Gates", html.gates_table(gates)) if gates else ""
    body += "".join(f'<p class="note">{escape(note)}</p>\n' for note in notes)
    chart = html.interval_chart("All measures", bars, 640)
    table = html.grid(shown[0], shown[1:])
    body += html.section("Summary", f'<div class="wide">{chart}</div>{table}<p>{READING}</p>\n')
    if len(details) > 2:
        of = len(details) - 1
        lead = (f"<p>The {min(WORST, of)} worst subjects, tasks and categories of {of}. Where few "
                "examples were asked, the intervals are wide and the order is chance.</p>\n")
        ranked = sorted(details[1:], key=lambda row: _how_good(row[0], found[row[0]]["value"]))
        body += html.section("Worst", lead + html.grid(details[0], ranked[:WORST]))
        every = html.grid(details[0], details[1:])
        body += html.section("By category, subject and task",
                             f"<details><summary>All {len(details) - 1}</summary>\n{every}</details>\n")
    body += html.section("How it was run", _how(made, summary) + _tasks(made, summary))
    asked = sum(task["n"] for task in made["tasks"].values())
    lead = f"{asked} examples of {len(made['tasks'])} tasks by the protocol {summary['protocol']}"
    if summary["judge"]:
        lead += f", refusals judged by {summary['judge']}"
    return html.document(f"Benches of {summary['model']}", lead, body, None)


def _how_good(name: str, value: float | None) -> float:
    if value is None:
        return 2.0      # neither good nor bad: last
    return 1 - value if LOWER & set(name.split(".")) else value


def _how(made: dict, summary: dict) -> str:
    rows = [*html.run_facts(made), *html.model_facts(made["model"]), ("protocol", summary["protocol"]),
            ("chat format", "yes" if summary["chat"] else "no")]
    if judge := made.get("judge"):
        rows.append(("judge of refusal", ", ".join(f"{k} {v}" for k, v in judge.items())))
        rows.append(("longest answer to XSTest", f"{made['refusal_tokens']} tokens"))
    return html.facts(rows)


def _tasks(made: dict, summary: dict) -> str:
    """The tasks, each with what was asked of it, and the hash of its examples."""
    rows = []
    for name, task in made["tasks"].items():
        size, cut = summary["n-samples"][name], summary["truncated"][name]
        shots, whole = summary["n-shot"][name], size["original"]
        rows.append([name, task["sha256"], f"{size['effective']} of {whole}", shots, cut or ""])
    table = html.grid(["task", "SHA-256 of its examples", "examples", "shots", "contexts cut"], rows, 2)
    return f"<details><summary>Tasks and their hashes</summary>\n{table}</details>\n"
