"""The page of a training run: what its log says, as plots; one self-contained file like RED-EVAL's (report.py)."""
from html import escape
from pathlib import Path

from redlite import loss
from redlite.report import html
from redlite.store.records import read_lines
from redlite.store.run_directory import read_manifest
from redlite.store.text import percent

PAGE = html.PAGE
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 220, 46, 24
TONE = {"helpful": 3, "blue": 0, "red": 2}      # classes c0 … of the style sheet
POINTS = 600                                    # of a curve; longer logs are thinned by means


def page(directory: str | Path, summary: dict) -> str:
    """The HTML of a run directory; summary: what results.json holds."""
    directory = Path(directory)
    made, history = read_manifest(directory), read_lines(directory / "log.jsonl")[0]
    parts = [f'<p class="note">{escape(summary["stopped"])}</p>\n'] if summary["stopped"] else []
    if summary.get("stages"):
        stages = summary["stages"]
        rows = [[m, *(percent(s[m]["value"]) for s in stages.values())] for m in next(iter(stages.values()))]
        parts.append(html.section("Before and after", html.grid(["", *stages], rows)))
    parts += [html.section(title, body) for title, body in _plots(history) if body]
    figures = [[c, *("–" if (v := summary[k].get(c)) is None else f"{v:.4f}" for k in ("first", "last", "validation_before", "validation"))] for c in loss.COLOURS]
    parts.append(html.section("NLL by colour, nats", html.grid(["colour", "first step", "last step", "held out, before", "held out, after"], figures)))
    facts = [("command", made.get("command", "")), ("redlite", f"{made['version']}, seed {made['seed']}"), ("data, SHA-256", made["data"]),
             *((f"model {k}", v) for k, v in made["model"].items()), *((k, v) for k, v in made["plan"].items()),
             *((k, v) for k, v in made["recipe"].items()), *((f"used: {k}", v) for k, v in summary["conversations"].items())]
    parts.append(html.section("How it was run", '<dl class="facts">\n' + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>\n" for k, v in facts) + "</dl>\n"))
    lead = f"strategy {made['plan']['strategy']}, {len(history)} of {summary['steps']} steps, {summary['tokens']:,} tokens"
    return html.document(f"SAFE-ALIGN of {made['model']['name']}", lead, "".join(parts), None)


def _plots(history: list[dict]) -> list[tuple[str, str]]:
    held = {c: [(r["step"], r[k][c]) for r in history for k in ("validation_before", "validation") if c in r.get(k, {})] for c in loss.COLOURS}
    nll = plot("NLL by colour", [(c, TONE[c], _series(history, c), held[c]) for c in loss.COLOURS])
    one = [("Share of red tokens past the cap", "red_capped", 2), ("Norm of the gradient", "gradient_norm", 4), ("Learning rate", "learning_rate", 5),
           ("Tokens a second", "tokens_per_second", 1)]
    return [("NLL by colour (dots: held out)", nll), *((title, plot(title, [(name.replace("_", " "), tone, _series(history, name), [])])) for title, name, tone in one)]


def _series(history: list[dict], name: str) -> list[tuple[float, float]]:
    """(step, value) of a figure, at most POINTS of them: neighbours are averaged."""
    points = [(r["step"], r[name]) for r in history if isinstance(r.get(name), (int, float))]
    group = -(-len(points) // POINTS) or 1
    groups = [points[i:i + group] for i in range(0, len(points), group)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def plot(title: str, curves: list[tuple[str, int, list[tuple[float, float]], list[tuple[float, float]]]]) -> str:
    """Curves of (name, class number, points, dots) over the steps as inline SVG with a legend; "" without a point."""
    curves = [c for c in curves if c[2] or c[3]]
    every = [p for _, _, points, dots in curves for p in (*points, *dots)]
    if not every:
        return ""
    (x0, x1), (y0, y1) = ((min(v), max(v)) for v in zip(*every))
    x1, y0, y1 = max(x1, x0 + 1), min(y0, 0.0) if y0 < 0.5 * y1 else y0, y1 if y1 > y0 else y0 + (abs(y0) or 1)

    def place(x: float, y: float) -> str:
        return f"{LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - 8):.1f} {HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - BOTTOM - 10):.1f}"
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        value = y0 + share * (y1 - y0)
        y = place(x0, value).split()[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{y}" y2="{y}"/><text class="tick" x="{LEFT - 4}" y="{y}" text-anchor="end">{value:.3g}</text>')
    for value, anchor in ((x0, "start"), (x1, "end")):
        parts.append(f'<text class="tick" x="{place(value, y0).split()[0]}" y="{HEIGHT - 6}" text-anchor="{anchor}">step {value:.0f}</text>')
    for _, tone, points, dots in curves:
        if points:
            parts.append(f'<path class="c{tone}" d="M{"L".join(place(x, y) for x, y in points)}"/>')
        parts += [f'<circle class="c{tone}" cx="{place(x, y).split()[0]}" cy="{place(x, y).split()[1]}" r="3.5"/>' for x, y in dots]
    ends = "; ".join(f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, _, points, _ in curves if points)
    legend = " ".join(f'<b class="c{tone}">— {escape(name)}</b>' for name, tone, _, _ in curves)
    return (f'<div class="wide"><svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}: {escape(ends)}">{"".join(parts)}</svg>'
            f'<p class="legend">{legend}</p></div>\n')
