"""The page of a ledger: conversations with every token coloured by what the loss does to it."""
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from redlite.report import html
from redlite.report.html import escape

PAGE = "audit.html"
SHADES = 5                 # of each direction
SHOWN = 200                # conversations; the ledger holds all
Entry = Mapping[str, Any]  # a line of ledger.jsonl


def page(totals: Mapping[str, Mapping[str, int]], entries: Iterable[Entry], lead: str) -> str:
    """Plain HTML without a script.

    totals   colour → how many conversations, tokens, trained tokens …
    entries  the lines of the ledger: tokens in order, conversation after conversation
    """
    shown = [entries for _, entries in zip(range(SHOWN), _conversations(entries), strict=False)]
    largest = max((abs(x["coefficient"]) for tokens in shown for x in tokens), default=0.0) or 1.0
    head = ["colour", *next(iter(totals.values()), {})]
    key = ('<p class="key">Green: made likelier; red: made less likely; the stronger, the larger the '
           f'coefficient (darkest: {largest:.3g}). <span class="capped">Struck out</span>: past the cap. '
           'Grey: not trained. Point at a token for its figures.</p>')
    grid = html.grid(head, [[colour, *total.values()] for colour, total in totals.items()])
    more = sum(total["conversations"] for total in totals.values()) - len(shown)
    note = f'<p class="note">{more} more conversations are in ledger.jsonl.</p>' if more else ""
    articles = "".join(_article(tokens, largest) for tokens in shown)
    body = html.section("What the loss does", grid + key) + html.section("Conversations", note + articles)
    return html.document("SAFE-ALIGN, token by token", lead, body, None)


def _conversations(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """The tokens of each conversation; position 0 begins one."""
    tokens: list[Entry] = []
    for entry in entries:
        if entry["position"] == 0 and tokens:
            yield tokens
            tokens = []
        tokens.append(entry)
    if tokens:
        yield tokens


def _article(tokens: list[Entry], largest: float) -> str:
    first, spans = tokens[0], "".join(_span(x, largest) for x in tokens)
    colour, name = escape(first["colour"]), escape(first["conversation"])
    meta = f'<div class="meta"><b>{colour}</b><span>{name}</span></div>'
    return f'<article>{meta}\n<p class="answer ledger">{spans}</p></article>\n'


def _span(x: Entry, largest: float) -> str:
    kind = _kind(x, largest) + (" capped" if x["capped"] else "")
    nll = "" if x["nll"] is None else f", NLL {x['nll']:.4f}"
    capped = ", capped" if x["capped"] else ""
    title = f"{x['role']}, token {x['token']}{nll}, coefficient {x['coefficient']:.3g}{capped}"
    return f'<span class="{kind}" title="{escape(title)}">{escape(x["text"])}</span>'


def _kind(x: Entry, largest: float) -> str:
    """The class of the style sheet: a direction and a shade, which is rounded up."""
    coefficient = x["coefficient"]
    if not x["trained"]:
        return "untrained"
    if not coefficient:
        return "still"
    shade = min(SHADES, int(-(-abs(coefficient) * SHADES // largest)))
    return f"{'up' if coefficient > 0 else 'down'}{shade}"
