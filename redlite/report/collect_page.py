"""The page of a collection: its statistics, what was dropped and why, and every conversation."""
from redlite.report import html
from redlite.report.html import escape

FIGURES = [(colour, what) for colour in ("blue", "red") for what in ("conversations", "turns", "tokens")]


def collect_page(name: str, rows: list[dict], found: dict) -> str:
    """One HTML file.

    name   the model's
    rows   HarmfulQA's
    found  what statistics.json holds
    """
    head = ["topic", "questions", *(f"{colour} {what}" for colour, what in FIGURES)]
    table = html.grid(head, [_figures("all", found), *(_figures(t, r) for t, r in found["by_topic"].items())])
    drops = []
    for stage, reasons in found["drops"].items():
        drops += [[stage, reason, n] for reason, n in sorted(reasons.items(), key=lambda item: -item[1])]
    dropped = html.grid(["stage", "reason", "times"], drops, left=2) if drops else "<p>Nothing.</p>\n"
    body = html.section("What was collected", table) + html.section("What was dropped", dropped)
    for topic in found["by_topic"]:
        body += html.section(topic, "".join(_question(row) for row in rows if row["topic"] == topic))
    lead = (f"{found['questions']} questions, answered by {name}. Blue conversations hold safe answers. "
            "Red ones are harmful on purpose: keep this page where such text may lie.")
    return html.document("Collected conversations", lead, body, None)


def _figures(label: str, counts: dict) -> list[object]:
    return [label, counts["questions"], *(counts[colour][what] for colour, what in FIGURES)]


def _question(row: dict) -> str:
    talks = []
    for colour in ("blue", "red"):
        for number, turns in row[f"{colour}_conversations"].items():
            said = "".join(f"<dt>{escape(t['from'])}</dt><dd>{escape(t['value'])}</dd>" for t in turns)
            talks.append(f"<h4>{colour} {escape(number)}</h4>\n<dl>{said}</dl>\n")
    summary = f"{escape(row['question'])} <small>{escape(row['subtopic'])}</small>"
    body = "".join(talks) or "<p>No conversation was kept.</p>"
    return f"<details>\n<summary>{summary}</summary>\n{body}</details>\n"
