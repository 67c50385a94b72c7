"""The ledger: what the loss does to each token of given conversations.

The conversations are taken as one global batch of one step, and go through the very functions that a step of training
goes through: `dataset.pack`, `collate`, `train.assess`. A coefficient c means that the step adds c · (p − onehot) to
the gradient of the token's logits: above 0 the token is made likelier, below 0 less likely, 0 left alone.
"""
import json
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from pathlib import Path

import torch

from redlite import loss
from redlite.errors import Error
from redlite.report import html
from redlite.store import files
from redlite.store.files import replacing, write_atomic
from redlite.store.run_directory import Run
from redlite.training import dataset, trainer
from redlite.training.conversations import Conversation

LEDGER, PAGE = "ledger.jsonl", "audit.html"
SHADES = 5                 # of each direction on the page
SHOWN = 200                # conversations on the page; the ledger holds all


@torch.no_grad()
def ledger(scorer: trainer.Scorer, examples: list[dataset.TokenizedConversation], phase: dataset.Phase, recipe: trainer.Recipe) -> Iterator[tuple[dataset.TokenizedConversation, list[dict]]]:
    """Each example with one entry a token: position, token (id), trained, nll, coefficient, capped, response (index or None).

    nll: nats, None for the first token, which nothing predicts. Coefficients of tokens that are not trained are 0.
    The order is that of packing. For DPO the examples must hold references and come in pairs; see `units`.
    """
    drawn = units(examples, phase.objective)
    share, device = dataset.shares(drawn, recipe.per), scorer.llama.output_weight.device
    for part in dataset.pack(drawn, recipe.tokens_per_batch):
        batch = dataset.collate(part, share, device)
        nll_N, _, coefficient_N = trainer.assess(scorer, batch, phase)
        capped_N = loss.capped(phase.objective, nll_N, batch.responses, phase.parameters)
        rest_T, place = _every_nll(scorer, batch), {int(row): n for n, row in enumerate(batch.rows)}
        nll, coefficient, capped, response = nll_N.tolist(), coefficient_N.tolist(), capped_N.tolist(), _responses(batch)
        offset = 0
        for e in (e for unit in part for e in unit):
            entries, numbers = [], {}
            for position, token in enumerate(e.ids.tolist()):
                n = place.get(offset + position - 1) if position else None     # the row before a token predicts it
                entry = {"position": position, "token": token, "trained": n is not None}
                if n is None:
                    entry |= {"nll": rest_T[offset + position - 1] if position else None, "coefficient": 0.0, "capped": False, "response": None}
                else:
                    own = numbers.setdefault(response[n], len(numbers))
                    entry |= {"nll": nll[n], "coefficient": coefficient[n], "capped": capped[n], "response": own}
                entries.append(entry)
            yield e, entries
            offset += len(e)


def units(examples: list[dataset.TokenizedConversation], objective: str) -> list[dataset.Unit]:
    """What a step would draw together: pairs of blue and red for DPO, with helpful ones alone, else each example alone."""
    if objective == "dpo":
        return dataset.pairs(examples) + [(e,) for e in examples if e.colour == "helpful"]
    return [(e,) for e in examples]


def _every_nll(scorer: trainer.Scorer, batch: dataset.Batch) -> list[float]:
    """[T]: the NLL of the token after each, trained or not; what follows a conversation's last token means nothing."""
    following = batch.packed.ids.roll(-1)
    return scorer(replace(batch, targets=following, rows=torch.arange(len(following), device=following.device))).tolist()


def _responses(batch: dataset.Batch) -> list[int]:
    """[N]: which response each trained token belongs to, counted over the micro-batch."""
    return torch.arange(len(batch.responses.length)).repeat_interleave(batch.responses.length.cpu()).tolist()


def roles(conversation: Conversation, example: dataset.TokenizedConversation, template) -> list[str]:
    """Who each token of an example belongs to: "system", "user" or "assistant"; the marks of the chat format go with the turn that they introduce.

    A token that is trained is the assistant's. Before the first answer, the user's turn begins where the ids of
    the conversation and those of one with another first question part.
    """
    messages = list(conversation.messages)
    first = next(i for i, m in enumerate(messages) if m["role"] == "user")
    other = "Z" if not messages[first]["content"].startswith("Z") else "Q"
    changed = template.encode([*messages[:first], {"role": "user", "content": other}], add_generation_prompt=True).ids
    ids = example.ids.tolist()
    start = next((i for i, (a, b) in enumerate(zip(ids, changed)) if a != b), 0)
    return ["assistant" if trained else "system" if i < start else "user" for i, trained in enumerate(example.trained)]


def encoded(found: list[Conversation], template, objective: str, max_tokens: int, tokens_per_batch: int) -> list[tuple[Conversation, dataset.TokenizedConversation]]:
    """What `write` takes: the conversations that have an answer within `max_tokens`. Raises Error where none is left, or one does not fit a micro-batch."""
    pairs = [(c, e) for c in found if (e := dataset.encode(c, template, max_tokens)) is not None and e.responses]
    if not pairs:
        raise Error(f"none of the {len(found)} conversations has an answer within {max_tokens} tokens, so there is nothing to show; raise --max-tokens")
    drawn = units([e for _, e in pairs], objective)
    if not drawn:
        raise Error(f"the objective {objective} takes blue and red conversations that ask the same question, and there is no such pair; give both --blue and --red")
    dataset.require_fit(drawn, tokens_per_batch)
    return pairs


def write(directory: Run, scorer: trainer.Scorer, pairs: list[tuple[Conversation, dataset.TokenizedConversation]], template, tokenizer, phase: dataset.Phase,
          recipe: trainer.Recipe, lead: str) -> dict:
    """Write LEDGER (one line a token) and PAGE into a run directory; the totals: tokens, trained, raised, lowered, capped, by colour. pairs: of `encoded`."""
    examples = [e for _, e in pairs]
    if phase.objective in loss.NEED_REFERENCE:
        examples = trainer.references(scorer, examples, recipe.tokens_per_batch)
    source = {id(e): c for (c, _), e in zip(pairs, examples)}
    totals, articles = {}, []
    with replacing(directory.directory / LEDGER) as file:
        for e, entries in ledger(scorer, examples, phase, recipe):
            for entry, role in zip(entries, roles(source[id(e)], e, template), strict=True):
                text = tokenizer.piece_bytes(entry["token"]).decode("utf-8", "backslashreplace")
                entry |= {"conversation": e.id, "colour": e.colour, "text": text, "role": role}
                file.write(files.encode(entry) + b"\n")
            _count(totals.setdefault(e.colour, dict.fromkeys(("conversations", "tokens", "trained", "raised", "lowered", "capped"), 0)), entries)
            if len(articles) < SHOWN:
                articles.append((e, entries))
    write_atomic(directory.directory / PAGE, page(totals, articles, lead))
    return totals


def _count(total: dict, entries: list[dict]) -> None:
    total["conversations"] += 1
    total["tokens"] += len(entries)
    total["trained"] += sum(x["trained"] for x in entries)
    total["raised"] += sum(x["coefficient"] > 0 for x in entries)
    total["lowered"] += sum(x["coefficient"] < 0 for x in entries)
    total["capped"] += sum(x["capped"] for x in entries)


def page(totals: dict, shown: list[tuple[dataset.TokenizedConversation, list[dict]]], lead: str) -> str:
    """The conversations with every token coloured by its coefficient; plain HTML without a script."""
    largest = max((abs(x["coefficient"]) for _, entries in shown for x in entries), default=0.0) or 1.0
    head = ["colour", *next(iter(totals.values()), {})]
    key = (f'<p class="key">Green: made likelier; red: made less likely; the stronger, the larger the coefficient (darkest: {largest:.3g}). '
           '<span class="capped">Struck out</span>: past the cap. Grey: not trained. Point at a token for its figures.</p>')
    parts = [html.section("What the loss does", html.grid(head, [[c, *t.values()] for c, t in totals.items()]) + key)]
    body = "".join(_article(e, entries, largest) for e, entries in shown)
    more = sum(t["conversations"] for t in totals.values()) - len(shown)
    note = f'<p class="note">{more} more conversations are in {LEDGER}.</p>' if more else ""
    parts.append(html.section("Conversations", note + body))
    return html.document("SAFE-ALIGN, token by token", lead, "".join(parts), None)


def _article(e: dataset.TokenizedConversation, entries: list[dict], largest: float) -> str:
    spans = []
    for x in entries:
        shade = -(-abs(x["coefficient"]) * SHADES // largest)
        kind = "untrained" if not x["trained"] else f"{'up' if x['coefficient'] > 0 else 'down'}{min(SHADES, int(shade))}" if x["coefficient"] else "still"
        nll = "" if x["nll"] is None else f", NLL {x['nll']:.4f}"
        title = f"{x['role']}, token {x['token']}{nll}, coefficient {x['coefficient']:.3g}{', capped' if x['capped'] else ''}"
        spans.append(f'<span class="{kind}{" capped" if x["capped"] else ""}" title="{escape(title)}">{escape(x["text"])}</span>')
    return f'<article><div class="meta"><b>{escape(e.colour)}</b><span>{escape(e.id)}</span></div>\n<p class="answer ledger">{"".join(spans)}</p></article>\n'


def read(path: str | Path) -> Iterator[dict]:
    """The entries of a ledger, one a token."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
