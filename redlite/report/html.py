"""The parts of every page: document, section, table, chart."""
import base64
import hashlib
import json
from html import escape
from pathlib import Path

from redlite.store.text import percent

PAGE = "report.html"
ASSETS = Path(__file__).parent / "assets"
COLOURS = 6  # classes c0 … c5 of the style sheet


def document(title: str, lead: str, body: str, data, script: str = "report.js") -> str:
    """A whole page. title, lead: plain text; body: markup, escaped where it is made; data: JSON for the page's script, None for a page without one; script: the script's file among the assets."""
    style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in ("report.css", script))
    allowed, scripts = "'none'", ""
    if data is not None:
        allowed = f"'{_hash(script)}'"
        scripts = f'<script type="application/json" id="data">{json_block(data)}</script>\n<script>{script}</script>\n'
    policy = f"default-src 'none'; style-src '{_hash(style)}'; script-src {allowed}; base-uri 'none'; form-action 'none'"
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
            f'<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n<header>\n<h1>{escape(title)}</h1>\n<p>{escape(lead)}</p>\n</header>\n'
            f'<main>\n{body}</main>\n{scripts}</body>\n</html>\n')


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def json_block(value) -> str:
    """JSON that no HTML parser can end early and no JavaScript parser can trip over."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def section(title: str, body: str) -> str:
    """A part of a page; `body` is markup."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}</section>\n"


def span(pair) -> str:
    return f"{100 * pair[0]:.1f}–{100 * pair[1]:.1f}%"


def grid(head: list[str], rows: list[list], left: int = 1) -> str:
    """A table of plain texts; the first `left` columns are text, the others numbers."""
    def line(cells, tag):
        return "<tr>" + "".join(f"<{tag}{' class=number' if i >= left else ''}>{escape(str(c))}</{tag}>" for i, c in enumerate(cells)) + "</tr>\n"
    return f'<div class="scroll"><table>\n<thead>{line(head, "th")}</thead>\n<tbody>\n{"".join(line(r, "td") for r in rows)}</tbody>\n</table></div>\n'


# Charts

def interval_chart(title: str, bars: list[dict], width: int = 380) -> str:
    """Horizontal bars from 0 to 100% as inline SVG.

    A bar: label, colour (a class number), value (a share or None), remark, ci: [lo, hi], bounds: [lo, hi], and mark (a
    share to point at, or None). The thin line is the interval; the pale band runs over the bounds.
    """
    step, left, right = 44, 6, width - 6
    height = step * len(bars) + 26

    def x(share: float) -> str:
        return f"{left + share * (right - left):.1f}"
    parts = [f'<line class="grid" x1="{x(s)}" x2="{x(s)}" y1="20" y2="{height - 20}"/><text class="tick" x="{x(s)}" y="{height - 6}" text-anchor="{anchor}">{round(100 * s)}%</text>'
             for s, anchor in ((0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1, "end"))]
    for i, bar in enumerate(bars):
        y, lo, hi = step * i + 22, *bar["ci"]
        parts.append(f'<text class="label" x="{left}" y="{y - 6}">{escape(shorten(bar["label"]))}</text>'
                     f'<text class="value" x="{right}" y="{y - 6}" text-anchor="end">{escape(bar["remark"])}</text>'
                     f'<rect class="track" x="{left}" y="{y}" width="{right - left}" height="14"/>'
                     f'<rect class="band c{bar["colour"]}" x="{x(bar["bounds"][0])}" y="{y}" width="{(bar["bounds"][1] - bar["bounds"][0]) * (right - left):.1f}" height="14"/>')
        if bar["value"] is not None:
            parts.append(f'<rect class="bar c{bar["colour"]}" x="{left}" y="{y + 2}" width="{bar["value"] * (right - left):.1f}" height="10"/>'
                         f'<path class="whisker" d="M{x(lo)} {y + 7}H{x(hi)}M{x(lo)} {y + 3}v8M{x(hi)} {y + 3}v8"/>')
        if bar.get("mark") is not None:
            parts.append(f'<path class="mark" d="M{x(bar["mark"])} {y - 2}l5 9l-5 9l-5 -9z"/>')
    spoken = "; ".join(f"{bar['label']} {percent(bar['value'])}, interval {span(bar['ci'])}" for bar in bars)
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}: {escape(spoken)}">{"".join(parts)}</svg>\n'


def shorten(label: str, longest: int = 38) -> str:
    return label if len(label) <= longest else label[:longest - 1] + "…"
