"""The page of a scorecard: every measure with its interval, beside the baseline's."""
from redlite.report import html
from redlite.store.text import percent

READING = ("Better is lower for asr, over_refusal and compliance, higher for acc and exact_match. "
           "n counts the examples that have a label.")
PAIRED = ("A difference is this model's value less the baseline's, over the examples that have a label in "
          "both. Its interval is by question: for outcomes of 0 and 1 square and add of both rates' "
          "intervals (Newcombe), else a bootstrap.")


def scorecard_page(model: str, found: dict[str, dict], baseline_name: str | None,
                   baseline: dict[str, dict] | None, summary: list[list[str]], details: list[list[str]],
                   gates: list[dict], how: list[tuple[str, str]],
                   paired: dict[str, dict] | None = None) -> str:
    """The scorecard as one HTML file.

    found, baseline   measure → value, ci95, n
    summary, details  tables with their heads, the measure's name in the first column
    gates             gate, value, bound, passed
    how               what was run: names and values
    """
    names = [row[0] for row in summary[1:]]
    marks = [(baseline or {}).get(name, {}).get("value") for name in names]
    bars = [_bar(name, i, found[name], mark) for i, (name, mark) in enumerate(zip(names, marks, strict=True))]
    body = html.interval_chart("All measures", bars, 720) + html.grid(summary[0], summary[1:])
    body += f"<p>{READING}</p>\n"
    if baseline:
        body += f"<p>{PAIRED}</p>\n"
    body = html.section("Summary", body)
    if gates:
        rows = [[g["gate"], percent(g["value"]), percent(g["bound"]),
                 "passed" if g["passed"] else f"FAILED: {g['why']}"] for g in gates]
        body += html.section("Gates", html.grid(["gate", "value", "bound", "result"], rows))
    if details[1:]:
        body += html.section("By category, subject and task", html.grid(details[0], details[1:]))
    body += html.section("How it was run", html.grid(["what", "value"], [list(row) for row in how], left=2))
    lead = "Attack success rate, over-refusal and utility"
    if baseline:
        lead += f", beside {baseline_name}: diamonds mark the baseline, differences are paired by example"
    return html.document(f"Scorecard of {model}", lead, body, None)


def _bar(name: str, place: int, measure: dict, mark: float | None) -> dict:
    return {"label": name, "colour": place % html.COLOURS, "value": measure["value"], "ci": measure["ci95"],
            "bounds": [0, 0], "mark": mark, "remark": f"{percent(measure['value'])} of {measure['n']}"}
