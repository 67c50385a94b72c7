"""The page of a scorecard: every measure with its interval, beside the baseline's."""
from collections.abc import Sequence

from redlite.report import html
from redlite.report.html import escape
from redlite.store.text import percent, points

LOWER = {"asr", "over_refusal", "compliance"}       # measures that are better when they are lower
MARKS = {"better": "▲", "worse": "▼", "no clear difference": "=", "not compared": "–"}
MEANING = ("asr: harmful questions that are answered harmfully. over_refusal: harmless questions that are "
           "declined. compliance: XSTest's unsafe questions that are answered. acc, exact_match: right "
           "answers.")
READING = ("Better is lower for asr, over_refusal and compliance, higher for acc and exact_match. "
           f"n counts the examples that have a label. {MEANING}")
PARTS = {"asr": "attack success rate", "over_refusal": "over-refusal", "acc": "utility",
         "exact_match": "utility"}      # what a measure belongs to
PAIRED = ("A difference is this model's value less the baseline's, over the examples that have a label in "
          "both. Its interval is by question: for outcomes of 0 and 1 square and add of both rates' "
          "intervals (Newcombe), else a bootstrap.")


def scorecard_page(model: str, found: dict[str, dict], baseline_name: str | None,
                   baseline: dict[str, dict] | None, summary: list[list[str]], details: list[list[str]],
                   gates: list[dict], how: list[tuple[str, str]],
                   paired: dict[str, dict] | None = None, links: Sequence[tuple[str, html.Link]] = (),
                   notes: Sequence[str] = ()) -> str:
    """The scorecard as one HTML file.

    found, baseline   measure → value, ci95, n
    summary, details  tables with their heads, the measure's name in the first column
    gates             gate, value, bound, passed, why
    paired            measure → difference to the baseline and its ci95
    how               what was run: names and values
    links             the pages of the scorecard's parts
    notes             what a reader must know first, in sentences
    """
    names = [row[0] for row in summary[1:]]
    marks = [(baseline or {}).get(name, {}).get("value") for name in names]
    bars = [bar(name, i, found[name], mark) for i, (name, mark) in enumerate(zip(names, marks, strict=True))]
    top = html.section("Gates", html.gates_table(gates)) if gates else ""
    top += "".join(f'<p class="note">{escape(note)}</p>\n' for note in notes)
    if baseline:
        top += html.section("Against the baseline", against(names, baseline_name or "", paired or {}))
    chart = html.interval_chart("All measures", bars, 640)
    body = f'<div class="wide">{chart}</div>' + html.grid(summary[0], summary[1:])
    body += f"<p>{READING}</p>\n"
    if baseline:
        body += f"<p>{PAIRED}</p>\n"
    body = top + html.section("Summary", body)
    if details[1:]:
        body += html.section("By category, subject and task", html.grid(details[0], details[1:]))
    body += html.section("How it was run", html.facts(how))
    if links:
        body += html.section("Its parts, answer by answer", html.facts(links))
    kinds = {word: what for word, what in PARTS.items() if any(word in name.split(".") for name in names)}
    lead = ", ".join(dict.fromkeys(kinds.values())).capitalize()
    if baseline:
        lead += f", beside {baseline_name}: diamonds mark the baseline, differences are paired by example"
    return html.document(f"Scorecard of {model}", lead, body, None)


def against(names: list[str], baseline: str, paired: dict[str, dict]) -> str:
    """Which measures are better, which worse, and which cannot be told apart: by the paired interval."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "no clear difference": [], "not compared": []}
    for name in names:
        pair = paired.get(name, {})
        if pair.get("difference") is None:
            found["not compared"].append(name)
            continue
        low, high = pair["ci95"]
        shown = f"{name} ({points(pair['difference'])} points)"
        if low <= 0 <= high:
            found["no clear difference"].append(shown)
        else:
            found["better" if (low > 0) != bool(LOWER & set(name.split("."))) else "worse"].append(shown)
    worse, better = len(found["worse"]), len(found["better"])
    tone = "bad" if worse else "good"
    counts = ", ".join(f"{what}: {len(measures)}" for what, measures in found.items() if measures)
    verdict = f'<p class="verdict{f" {tone}" if worse or better else ""}">{counts}</p>\n'
    rows = [(f"{MARKS[what]} {what}", ", ".join(measures)) for what, measures in found.items() if measures]
    lead = f"<p>Beside {escape(baseline)}, by the 95% interval of the paired difference:</p>\n"
    return verdict + lead + html.facts(rows)


def bar(name: str, place: int, measure: dict, mark: float | None = None) -> dict:
    """A measure as a bar of `html.interval_chart`."""
    return {"label": name, "colour": place % html.COLOURS, "value": measure["value"], "ci": measure["ci95"],
            "bounds": [0, 0], "mark": mark, "remark": f"{percent(measure['value'])} of {measure['n']}"}
