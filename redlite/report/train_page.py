"""The page of a training run: what its log says, as plots."""
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from redlite.report import html
from redlite.report.html import escape
from redlite.store.records import read_lines
from redlite.store.run_directory import read_manifest
from redlite.store.text import percent

PAGE = html.PAGE
WIDTH, HEIGHT, BOTTOM, RIGHT, TOP = 640, 220, 24, 8, 16
CHARACTER = 10                                  # the widest of a label: a narrow screen shows them at 16 px
COLOURS = {"helpful": 3, "blue": 0, "red": 2}   # the colour of a response → its class c0 … of the style sheet
FIGURES = {"first": "first step", "last": "last step", "validation_before": "held out, before",
           "validation": "held out, after"}
# title, the log's field, its class
SINGLE = (("Share of red tokens past the cap", "red_capped", 2), ("Norm of the gradient", "gradient_norm", 4),
          ("Learning rate", "learning_rate", 5), ("Tokens a second", "tokens_per_second", 1))
# What the words of the page mean, for readers who did not train.
STAGES = ("ASR: the share of answers to harmful questions that are harmful, under each prompt; lower is "
          "better. over-refusal: harmless questions that are declined; lower is better. utility: harmless "
          "questions that are answered rightly; higher is better.")
NLL = ("NLL says how unlikely the model finds a text: the mean over its tokens, in nats. Training lowers it "
       "for helpful (ordinary) and blue (safe) answers, and strategy B raises it for red (harmful) ones. "
       "Each step draws other conversations, so a curve jumps. Held-out ones are not trained on.")
POINTS = 600                                    # of a curve; longer logs are thinned by means

Point = tuple[float, float]     # (step, value)


class Curve(NamedTuple):
    """A line, and dots beside it. tone: the number of its class."""
    name: str
    tone: int
    points: list[Point]
    dots: list[Point]


def page(directory: str | Path, summary: dict) -> str:
    """The HTML of a run directory; summary: what results.json holds."""
    directory = Path(directory)
    made, history = read_manifest(directory), read_lines(directory / "log.jsonl")[0]
    said = filter(None, (summary["stopped"], summary.get("reached"), summary.get("remark")))
    parts = [f'<p class="note">{escape(text)}</p>\n' for text in said]
    if stages := summary.get("stages"):
        measures = next(iter(stages.values()))
        rows = [[m, *(percent(stage[m]["value"]) for stage in stages.values())] for m in measures]
        parts.append(html.section("Before and after", html.grid(["", *stages], rows) + _key(STAGES)))
    measured = measured_steps(history)
    if measured:
        parts.append(html.section("RED-EVAL and benches during training", _measured(measured)))
    parts += [html.section(title, body) for title, body in _plots(history) if body]
    figures = [[colour, *(_shown(summary[k].get(colour)) for k in FIGURES)] for colour in COLOURS]
    table = html.grid(["colour", *FIGURES.values()], figures)
    parts.append(html.section("NLL by colour, nats", table))
    parts.append(html.section("How it was run", html.facts(_facts(made, summary))))
    lead = (f"strategy {made['plan']['strategy']}, {len(history)} of {summary['steps']} steps, "
            f"{summary['tokens']:,} tokens")
    return html.document(f"SAFE-ALIGN of {made['model']['name']}", lead, "".join(parts), None)


def _key(text: str) -> str:
    return f'<p class="key">{escape(text)}</p>\n'


def measured_steps(history: list[dict]) -> dict[int, dict[str, float | None]]:
    """Steps done → what the evaluation of those weights gave, by measure; values from 0 to 1."""
    found = {r["step"]: r["measured_before"] for r in history if "measured_before" in r}
    return found | {r["step"] + 1: r["measured"] for r in history if "measured" in r}


def _measured(found: dict[int, dict[str, float | None]]) -> str:
    """The measures over the steps, as a plot and a table."""
    names = list(next(iter(found.values())))
    curves = []
    for tone, name in enumerate(names):
        values = [(float(step), own.get(name)) for step, own in found.items()]
        points = [(step, value) for step, value in values if value is not None]
        curves.append(Curve(name, tone % 6, points, points))
    rows = [[str(step), *(percent(own.get(name)) for name in names)] for step, own in found.items()]
    return plot("Measures", curves, (0.0, 1.0)) + html.grid(["after steps", *names], rows)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _facts(made: dict, summary: dict) -> Iterable[tuple[str, object]]:
    yield from html.run_facts(made)
    yield "data, SHA-256", made["data"]
    yield from html.model_facts(made["model"])
    for name, n in summary["conversations"].items():
        yield f"conversations trained on: {name}" if name in COLOURS else f"conversations {name}", n
    for name, value in (*made["plan"].items(), *made["recipe"].items()):
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        if value not in ("", None) and name != "seed":     # the seed stands above
            yield name.replace("_", " "), value


def _plots(history: list[dict]) -> Iterable[tuple[str, str]]:
    """(title, plot) of the log's figures."""
    curves = []
    for colour, tone in COLOURS.items():
        held = [(r["step"] + after, r[k][colour]) for r in history
                for after, k in enumerate(("validation_before", "validation")) if colour in r.get(k, {})]
        curves.append(Curve(colour, tone, _series(history, colour), held))
    drawing = plot("NLL by colour", curves)
    yield "NLL by colour (dots: held out)", drawing and drawing + _key(NLL)
    for title, field, tone in SINGLE:
        curve = Curve(field.replace("_", " "), tone, _series(history, field), [])
        yield title, plot(title, [curve], (0.0, 1.0) if field == "red_capped" else None)


def _series(history: list[dict], field: str) -> list[Point]:
    """A figure over the steps, from 1, at most POINTS of them: neighbours are averaged."""
    points = [(r["step"] + 1, r[field]) for r in history if isinstance(r.get(field), int | float)]
    size = max(1, -(-len(points) // POINTS))
    means = []
    for start in range(0, len(points), size):
        group = points[start:start + size]
        means.append((sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)))
    return means


def _span(values: list[float]) -> tuple[float, float]:
    """The ends of an axis that holds the values."""
    low, high = min(values), max(values)
    if low < 0.5 * high:   # zero is near enough to be shown
        low = min(low, 0.0)
    return low, high if high > low else low + (abs(low) or 1)


def plot(title: str, curves: list[Curve], ends: tuple[float, float] | None = None) -> str:
    """Curves over the steps as inline SVG with a legend; "" without a point.

    ends  of the vertical axis; None: as the values need
    """
    curves = [curve for curve in curves if curve.points or curve.dots]
    every = [point for curve in curves for point in (*curve.points, *curve.dots)]
    if not every:
        return ""
    xs = [x for x, _ in every]
    y0, y1 = ends or _span([y for _, y in every])
    x0 = min(xs)
    x1 = max(max(xs), x0 + 1)
    ticks = [y0 + share * (y1 - y0) for share in (0, 0.25, 0.5, 0.75, 1)]
    shown = [f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}" for value in ticks]
    left = 8 + CHARACTER * max(map(len, shown))

    def x_of(x: float) -> str:
        return f"{left + (x - x0) / (x1 - x0) * (WIDTH - left - RIGHT):.1f}"

    def y_of(y: float) -> str:
        return f"{HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP):.1f}"
    parts = []
    for value, text in zip(ticks, shown, strict=True):
        y = y_of(value)
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>'
                     f'<text class="tick" x="{left - 4}" y="{y}" text-anchor="end">{text}</text>')
    for value, anchor in ((x0, "start"), (x1, "end")):
        parts.append(f'<text class="tick" x="{x_of(value)}" y="{HEIGHT - 6}" text-anchor="{anchor}">'
                     f"step {value:.0f}</text>")
    for curve in curves:
        if curve.points:
            line = "L".join(f"{x_of(x)} {y_of(y)}" for x, y in curve.points)
            parts.append(f'<path class="c{curve.tone}" d="M{line}"/>')
        parts += [
            f'<circle class="c{curve.tone}" cx="{x_of(x)}" cy="{y_of(y)}" r="3.5"/>' for x, y in curve.dots
        ]
    return _framed(title, curves, "".join(parts))


def _framed(title: str, curves: list[Curve], drawing: str) -> str:
    """A drawing with what a screen reader says of it, and its legend."""
    ends = [f"{c.name} from {c.points[0][1]:.4g} to {c.points[-1][1]:.4g}" for c in curves if c.points]
    label = f"{escape(title)}: {escape('; '.join(ends))}"
    legend = " ".join(f'<b class="c{c.tone}">— {escape(c.name)}</b>' for c in curves)
    return (
        f'<div class="wide"><svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'{drawing}</svg><p class="legend">{legend}</p></div>\n')
