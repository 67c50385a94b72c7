"""The ledger: what the loss does to each token of given conversations.

The conversations are taken as the global batch of one step. They go through the very functions that a step of
training goes through: `dataset.pack`, `collate`, `trainer.assess`. A coefficient c means that the step adds
c · (p − onehot) to the gradient of the token's logits. Above 0 the token is made likelier, below 0 less
likely.
"""
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from redlite import loss
from redlite.errors import Error
from redlite.store import files
from redlite.store.run_directory import Run
from redlite.text.chat_choice import Format
from redlite.text.tokenizer import Tokenizer
from redlite.training import dataset
from redlite.training.conversations import Conversation
from redlite.training.dataset import Batch, Phase, TokenizedConversation, Unit
from redlite.training.trainer import Recipe, Scorer, assess, references

LEDGER = "ledger.jsonl"
COUNTS = ("conversations", "tokens", "trained", "raised", "lowered", "capped")
Entry = dict[str, Any]      # of one token
Totals = dict[str, dict[str, int]]   # colour → COUNTS
Encoded = Sequence[tuple[Conversation, TokenizedConversation]]


@torch.no_grad()
def ledger(scorer: Scorer, examples: Sequence[TokenizedConversation], phase: Phase,
           recipe: Recipe) -> Iterator[tuple[TokenizedConversation, list[Entry]]]:
    """Each example with one entry a token, in the order of packing.

    position, token  place in the conversation, and id
    trained          whether the token is trained
    nll              nats; None for the first token, which nothing predicts
    coefficient      0 for a token that is not trained
    capped           whether the token is past the objective's cap
    response         index of the response in the example; None for a token that is not trained

    For DPO the examples must hold references and come in pairs; see `units`.
    """
    drawn = units(examples, phase.objective)
    share = dataset.shares(drawn, recipe.per)
    for part in dataset.pack(drawn, recipe.tokens_per_batch):
        batch = dataset.collate(part, share, scorer.device)
        trained, every_nll = _trained_entries(scorer, batch, phase), _every_nll(scorer, batch)
        offset = 0
        for e in (e for unit in part for e in unit):
            entries, numbers = list[Entry](), dict[int, int]()
            for position, token in enumerate(e.ids.tolist()):
                # The row before a token predicts it.
                row = offset + position - 1 if position else None
                known = trained.get(row) if row is not None else None
                entry = {"position": position, "token": token, "trained": known is not None}
                if known:
                    own = numbers.setdefault(known["response"], len(numbers))
                    entry |= known | {"response": own}
                else:
                    nll = every_nll[row] if row is not None else None
                    entry |= {"nll": nll, "coefficient": 0.0, "capped": False, "response": None}
                entries.append(entry)
            yield e, entries
            offset += len(e)


def _trained_entries(scorer: Scorer, batch: Batch, phase: Phase) -> dict[int, Entry]:
    """Row of a micro-batch → figures of the trained token after it, its response counted from the first."""
    nll_N, _, coefficient_N = assess(scorer, batch, phase)
    capped_N = loss.capped(phase.objective, nll_N, batch.responses, phase.parameters)
    length_R = batch.responses.length.cpu()
    response_N = torch.arange(len(length_R)).repeat_interleave(length_R)
    columns = (x.tolist() for x in (batch.rows, nll_N, coefficient_N, capped_N, response_N))
    return {row: {"nll": nll, "coefficient": coefficient, "capped": capped, "response": response}
            for row, nll, coefficient, capped, response in zip(*columns, strict=True)}


def _every_nll(scorer: Scorer, batch: Batch) -> list[float]:
    """[T]: the NLL of the token after each, trained or not; no meaning after a conversation's last token."""
    following = batch.packed.ids.roll(-1)
    rows = torch.arange(len(following), device=following.device)
    nll: list[float] = scorer(replace(batch, targets=following, rows=rows)).tolist()
    return nll


def units(examples: Sequence[TokenizedConversation], objective: str) -> list[Unit]:
    """What a step would draw together: for DPO pairs of blue and red, and helpful ones; else each alone."""
    if objective == "dpo":
        return dataset.pairs(examples) + [(e,) for e in examples if e.colour == "helpful"]
    return [(e,) for e in examples]


def roles(conversation: Conversation, example: TokenizedConversation, template: Format) -> list[str]:
    """Who each token of an example belongs to: "system", "user" or "assistant".

    The marks of the chat format go with the turn that they introduce. A trained token is the assistant's.
    Before the first answer, the user's turn begins where the conversation's ids and those of one with
    another first question part.
    """
    messages = list(conversation.messages)
    first = next(i for i, m in enumerate(messages) if m["role"] == "user")
    other = "Q" if messages[first]["content"].startswith("Z") else "Z"
    question = {"role": "user", "content": other}
    changed = template.encode([*messages[:first], question], add_generation_prompt=True).ids
    both = zip(example.ids.tolist(), changed, strict=False)     # as far as the shorter one goes
    start = next((i for i, (a, b) in enumerate(both) if a != b), 0)
    found = ["system"] * start + ["user"] * (len(example) - start)
    return ["assistant" if trained else role for role, trained in zip(found, example.trained, strict=True)]


def encoded(found: Sequence[Conversation], template: Format, objective: str, max_tokens: int,
            tokens_per_batch: int) -> Encoded:
    """What `write` takes: the conversations that have an answer within `max_tokens`.

    Raises Error where none is left, or one does not fit a micro-batch.
    """
    pairs = []
    for c in found:
        example = dataset.encode(c, template, max_tokens)
        if example is not None and example.responses:
            pairs.append((c, example))
    if not pairs:
        raise Error(f"none of the {len(found)} conversations has an answer within {max_tokens} tokens, "
                    "so there is nothing to show; raise max_tokens", "max_tokens")
    drawn = units([e for _, e in pairs], objective)
    if not drawn:
        raise Error(f"the objective {objective} takes blue and red conversations that ask the same question, "
                    "and there is no such pair; give both blue and red", "objective")
    dataset.require_fit(drawn, tokens_per_batch)
    return pairs


def write(directory: Run, scorer: Scorer, pairs: Encoded, template: Format, tokenizer: Tokenizer,
          phase: Phase, recipe: Recipe) -> Totals:
    """Write LEDGER (one line a token) into a run directory; its totals by colour. pairs: of `encoded`."""
    examples = [e for _, e in pairs]
    if phase.objective in loss.NEED_REFERENCE:
        examples = references(scorer, examples, recipe.tokens_per_batch)
    source = {id(e): c for (c, _), e in zip(pairs, examples, strict=True)}
    totals: Totals = {}
    with files.replacing(directory.directory / LEDGER) as file:
        for e, entries in ledger(scorer, examples, phase, recipe):
            for entry, role in zip(entries, roles(source[id(e)], e, template), strict=True):
                text = tokenizer.piece_bytes(entry["token"]).decode("utf-8", "backslashreplace")
                entry |= {"conversation": e.id, "colour": e.colour, "text": text, "role": role}
                file.write(files.encode(entry) + b"\n")
            _count(totals.setdefault(e.colour, dict.fromkeys(COUNTS, 0)), entries)
    return totals


def _count(total: dict[str, int], entries: list[Entry]) -> None:
    total["conversations"] += 1
    total["tokens"] += len(entries)
    total["trained"] += sum(x["trained"] for x in entries)
    total["raised"] += sum(x["coefficient"] > 0 for x in entries)
    total["lowered"] += sum(x["coefficient"] < 0 for x in entries)
    total["capped"] += sum(x["capped"] for x in entries)
