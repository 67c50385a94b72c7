"""The page of a collection: its statistics, what was dropped and why, and every conversation, all text escaped."""
from html import escape

from redlite.report import html


def page(name: str, rows: list[dict], found: dict) -> str:
    """One HTML file. rows: HarmfulQA's; found: of `collect.statistics`."""
    head = ["topic", "questions", *(f"{colour} {what}" for colour in ("blue", "red") for what in ("conversations", "turns", "tokens"))]

    def line(label: str, r: dict) -> list[str]:
        return [label, str(r["questions"]), *(str(r[colour][what]) for colour in ("blue", "red") for what in ("conversations", "turns", "tokens"))]
    table = html.grid(head, [line("all", found), *(line(topic, r) for topic, r in found["by_topic"].items())])
    drops = [[stage, reason, str(n)] for stage, reasons in found["drops"].items() for reason, n in sorted(reasons.items(), key=lambda item: -item[1])]
    body = html.section("What was collected", table)
    body += html.section("What was dropped", html.grid(["stage", "reason", "times"], drops, left=2) if drops else "<p>Nothing.</p>\n")
    for topic in found["by_topic"]:
        body += html.section(topic, "".join(_question(row) for row in rows if row["topic"] == topic))
    return html.document("Collected conversations", f"{found['questions']} questions, answered by {name}. Red conversations are harmful on purpose: keep this page where such text may lie.", body, None)


def _question(row: dict) -> str:
    talks = "".join(f"<h4>{colour} {escape(number)}</h4>\n<dl>{''.join(_turn(t) for t in turns)}</dl>\n"
                    for colour in ("blue", "red") for number, turns in row[f"{colour}_conversations"].items())
    return f"<details>\n<summary>{escape(row['question'])} <small>{escape(row['subtopic'])}</small></summary>\n{talks or '<p>No conversation was kept.</p>'}</details>\n"


def _turn(turn: dict) -> str:
    return f"<dt>{escape(turn['from'])}</dt><dd>{escape(turn['value'])}</dd>"
