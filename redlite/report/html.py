"""The parts of every page: document, section, table, chart."""
import base64
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from html import escape as escape_markup
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from redlite.store.text import percent, plain

PAGE = "report.html"
ASSETS = Path(__file__).parent / "assets"
NAME, LONG = 16, 48  # characters of a cell from which on it wraps: on a narrow screen, on any
COLOURS = 6  # classes c0 … c5 of the style sheet
STEP, EDGE = 44, 6  # of a chart: from bar to bar, and the room beside the bars

_DOCUMENT = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{lead}</p>
</header>
<main>
{body}</main>
{scripts}</body>
</html>
"""


def document(title: str, lead: str, body: str, data: object, script: str = "report.js") -> str:
    """A whole page, in one file.

    title, lead  plain text
    body         markup, whose texts are escaped where it is made
    data         JSON for the page's script, None for a page without one
    script       the script's file among the assets

    The content security policy allows exactly this style and this script, by their hashes.
    """
    style, code = ((ASSETS / name).read_text(encoding="utf-8") for name in ("report.css", script))
    allowed, scripts = "'none'", ""
    if data is not None:
        allowed = f"'{_hash(code)}'"
        block = f'<script type="application/json" id="data">{json_block(data)}</script>'
        scripts = f"{block}\n<script>{code}</script>\n"
    policy = (f"default-src 'none'; style-src '{_hash(style)}'; script-src {allowed}; base-uri 'none'; "
              "form-action 'none'")
    return _DOCUMENT.format(policy=policy, title=escape(title), style=style, lead=escape(lead), body=body,
                            scripts=scripts)


def escape(text: object) -> str:
    """A text as markup. What would turn the writing of the texts beside it is shown as JSON escapes it."""
    return escape_markup(plain(str(text)))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def json_block(value: object) -> str:
    """JSON that no HTML parser can end early and no JavaScript parser can trip over."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


class Link(NamedTuple):
    """A text that leads to another page; a cell of a table, or a value of a list of facts."""
    text: str
    address: str


def link_to(text: str, page: Path, here: Path, part: str = "") -> Link:
    """A link from a page in the folder `here` to another page, relative, so that both may be moved together.

    part  "question=ID": which answers that page lists
    """
    address = quote(Path(os.path.relpath(page, here)).as_posix())
    return Link(text, f"{address}#{quote(part, safe='=')}" if part else address)


def section(title: str, body: str) -> str:
    """A part of a page; `body` is markup."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}</section>\n"


def span(pair: Sequence[float]) -> str:
    """An interval of shares for people."""
    return f"{100 * pair[0]:.1f}–{100 * pair[1]:.1f}%"


def gates_table(gates: list[dict]) -> str:
    """What each gate asked, and whether it holds. gates: as `redteam.gates.check_gates` gives them."""
    rows = [["FAILED" if not g["passed"] else "passed", g["gate"], g["why"], percent(g["value"]),
             percent(g["bound"])] for g in gates]
    failed = sum(not g["passed"] for g in gates)
    verdict = f"{failed} of {len(gates)} gates failed." if failed else "All gates passed."
    return (f'<p class="verdict {"bad" if failed else "good"}">{verdict}</p>\n'
            + grid(["result", "gate", "why", "value", "bound"], rows, 3))


def grid(head: Sequence[object], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """A table of plain texts and links; the first `left` columns are text, the others numbers."""
    body = "".join(_row(row, "td", left) for row in rows)
    return (f'<div class="scroll"><table>\n<thead>{_row(head, "th", left)}</thead>\n'
            f"<tbody>\n{body}</tbody>\n</table></div>\n")


def _row(cells: Sequence[object], tag: str, left: int) -> str:
    marked = [f"<{tag}{_wide(cell)}>{_shown(cell)}</{tag}>" for cell in cells[:left]]
    for cell in cells[left:]:
        kind = '"number name"' if tag == "th" and len(str(cell)) > NAME else "number"     # a model's name
        marked.append(f"<{tag} class={kind}>{_shown(cell)}</{tag}>")
    return f"<tr>{''.join(marked)}</tr>\n"


def _wide(cell: object) -> str:
    """A long text is the one cell that wraps; on a narrow screen a long name does so too."""
    if isinstance(cell, Link) or len(str(cell)) <= NAME:
        return ""
    return " class=long" if len(str(cell)) > LONG else " class=name"


def _shown(value: object) -> str:
    """A value as markup."""
    if isinstance(value, Link):
        return f'<a href="{escape(value.address)}">{escape(value.text)}</a>'
    return escape(value)


def facts(rows: Iterable[tuple[str, object]]) -> str:
    """A list of names and values, as plain texts or links."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{_shown(value)}</dd>\n" for name, value in rows)
    return f'<dl class="facts">\n{items}</dl>\n'


def run_facts(made: dict) -> list[tuple[str, object]]:
    """What a manifest says of the run: its command, the version of redlite, and when it began."""
    return [("command", made["command"]), ("redlite", f"{made['version']}, seed {made['seed']}"),
            ("started", made.get("info", {}).get("started", "unknown"))]


def model_facts(model: dict) -> list[tuple[str, object]]:
    """What a manifest says of its model: its name and how it ran, and the hashes of its files."""
    shown = [str(model[k]) for k in ("name", "dtype", "device", "quantize") if model.get(k)]
    hashes = [(f"{k}, SHA-256", model[k]) for k in ("weights", "tokenizer", "template") if k in model]
    return [("model", ", ".join(shown)), *hashes]


# Charts

def interval_chart(title: str, bars: list[dict], width: int = 380) -> str:
    """Horizontal bars from 0 to 100% as inline SVG.

    bars  each with label, colour (a class number), value (a share or None), remark, ci: [lo, hi], bounds:
          [lo, hi], and mark (a share to point at, or None)

    The thin line is the interval; the pale band runs over the bounds.
    """
    height = STEP * len(bars) + 26
    parts = []
    for share, anchor in ((0, "start"), (0.25, "middle"), (0.5, "middle"), (0.75, "middle"), (1, "end")):
        x = _x(share, width)
        parts.append(
            f'<line class="grid" x1="{x}" x2="{x}" y1="20" y2="{height - 20}"/>'
            f'<text class="tick" x="{x}" y="{height - 6}" text-anchor="{anchor}">{round(100 * share)}%</text>'
        )
    parts += [_bar(bar, STEP * i + 22, width) for i, bar in enumerate(bars)]
    spoken = [f"{bar['label']} {percent(bar['value'])}, interval {span(bar['ci'])}" for bar in bars]
    label = f"{escape(title)}: {escape('; '.join(spoken))}"
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>\n'


def _x(share: float, width: int) -> str:
    return f"{EDGE + share * (width - 2 * EDGE):.1f}"


def _bar(bar: dict, y: int, width: int) -> str:
    """One bar, whose track begins at y."""
    room, kind = width - 2 * EDGE, f"c{bar['colour']}"
    (lo, hi), (least, most) = bar["ci"], bar["bounds"]
    band = (most - least) * room
    parts = [
        f'<text class="label" x="{EDGE}" y="{y - 6}">{escape(shorten(bar["label"]))}</text>'
        f'<text class="value" x="{width - EDGE}" y="{y - 6}" text-anchor="end">{escape(bar["remark"])}</text>'
        f'<rect class="track" x="{EDGE}" y="{y}" width="{room}" height="14"/>'
        f'<rect class="band {kind}" x="{_x(least, width)}" y="{y}" width="{band:.1f}" height="14"/>'
    ]
    if bar["value"] is not None:
        left, right = _x(lo, width), _x(hi, width)
        parts.append(
            f'<rect class="bar {kind}" x="{EDGE}" y="{y + 2}" width="{bar["value"] * room:.1f}" height="10"/>'
            f'<path class="whisker" d="M{left} {y + 7}H{right}M{left} {y + 3}v8M{right} {y + 3}v8"/>')
    if bar.get("mark") is not None:
        parts.append(f'<path class="mark" d="M{_x(bar["mark"], width)} {y - 2}l5 9l-5 9l-5 -9z"/>')
    return "".join(parts)


def shorten(label: str, longest: int = 38) -> str:
    """A label cut to so many characters."""
    return label if len(label) <= longest else label[:longest - 1] + "…"
