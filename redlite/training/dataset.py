"""Conversations → token ids and masks of what is trained → the batches of every step, packed without padding.

The batch of step i is a pure function of the files, the seed and i. So a run that stops goes on at step i
without any state, and any number of processes sees the same global batch.
"""
import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redlite.errors import Error
from redlite.loss import COLOURS, Responses
from redlite.model.sequences import PackedSequences
from redlite.text.chat_choice import Format
from redlite.training.conversations import Conversation, question_key


@dataclass(frozen=True, eq=False)
class TokenizedConversation:
    """A conversation as token ids [L] and the mask [L] of the tokens that are trained.

    reference  each response's summed NLL under the model before training (NPO, DPO); () when unused
    """
    id: str
    question: str
    colour: str
    ids: np.ndarray[Any, np.dtype[np.int32]]
    trained: np.ndarray[Any, np.dtype[np.bool_]]
    reference: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def responses(self) -> list[tuple[int, int]]:
        """[first, last) positions of each run of trained tokens: one assistant turn each.

        Position 0 has no predecessor, so it is never in one.
        """
        mask = np.concatenate(([False], self.trained[1:], [False]))
        edges = np.flatnonzero(mask[1:] != mask[:-1]) + 1
        return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def encode(conversation: Conversation, template: Format, max_tokens: int,
           answer_tokens: int | None = None) -> TokenizedConversation | None:
    """Token ids and mask by a chat template; None if not even the first exchange has at most `max_tokens`.

    Later exchanges are cut, whole, until it has.
    answer_tokens  as for `answers_begun`, before the length is looked at
    """
    messages = list(conversation.messages)
    while messages and messages[-1]["role"] == "assistant":
        encoded = template.encode(messages)
        example = TokenizedConversation(
            conversation.id, question_key(conversation.question), conversation.colour,
            np.asarray(encoded.ids, np.int32), np.asarray(encoded.trained, bool))
        if answer_tokens is not None:
            example = answers_begun(example, answer_tokens)
        if len(example) <= max_tokens:
            return example
        messages = messages[:-2]
    return None


def answers_begun(example: TokenizedConversation, tokens: int) -> TokenizedConversation:
    """The conversation with the first `tokens` tokens of each answer trained, and none of the rest.

    What follows the last trained token is left out: nothing depends on it. The end of a longer answer is
    not trained, so a model learns how answers begin and does not learn to break off.
    """
    mask = example.trained.copy()
    for first, last in example.responses:
        mask[first + tokens:last] = False
    end = int(mask.nonzero()[0].max(initial=-1)) + 1 or len(mask)
    return replace(example, ids=example.ids[:end], trained=mask[:end])


def encode_all(conversations: Iterable[Conversation], template: Format, max_tokens: int,
               answer_tokens: int | None = None) -> tuple[list[TokenizedConversation], Counter[str]]:
    """`encode` of each, and how many were dropped, by reason."""
    examples, notes = list[TokenizedConversation](), Counter[str]()
    for c in conversations:
        example = encode(c, template, max_tokens, answer_tokens)
        if example is None:
            notes["too long even for its first exchange"] += 1
        elif not example.responses:
            notes["without a trained token"] += 1
        else:
            examples.append(example)
    return examples, notes


# The batches of every step

Unit = tuple[TokenizedConversation, ...]    # what is drawn together: one example, or a blue and a red one


def tokens(units: Iterable[Unit]) -> int:
    """The tokens of all examples of these units."""
    return sum(len(e) for unit in units for e in unit)


@dataclass(frozen=True)
class Phase:
    """A stretch of training under one objective of loss.py.

    draw  units of every stream that each of its `steps` steps takes
    """
    steps: int
    draw: dict[str, int]
    objective: str = "A"
    parameters: dict[str, float] | None = None


class Mixture:
    """The global batch of every step: streams of units in endless seeded orders, drawn as the phases say.

    A stream goes through all its units before any comes again, in a new order each time. The order of one
    stream does not depend on the others.
    """

    def __init__(self, streams: dict[str, list[Unit]], phases: list[Phase], seed: int):
        for phase in phases:
            for name, count in phase.draw.items():
                if count and not streams.get(name):
                    raise Error(f"the mixture draws {count} {name} conversations a step and there is none; "
                                f"give {name} a file", name)
        self.streams, self.phases, self.seed = streams, phases, seed
        self.steps = sum(p.steps for p in phases)
        self._orders: dict[tuple[str, int], np.ndarray[Any, Any]] = {}  # (stream, time round) → its order

    def phase(self, step: int) -> Phase:
        """The phase that step (from 0) belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        raise IndexError("step is past the end of the mixture")

    def step(self, step: int) -> list[Unit]:
        """The units of the global batch of a step (from 0)."""
        drawn, before, left = Counter[str](), Counter[str](), step
        for phase in self.phases:
            passed = min(left, phase.steps)
            for name, count in phase.draw.items():
                before[name] += passed * count
            left -= passed
            if passed < phase.steps:
                drawn.update(phase.draw)
                break
        return [self._unit(name, before[name] + i) for name in sorted(drawn) for i in range(drawn[name])]

    def tokens(self, name: str, count: int) -> int:
        """Tokens of the first `count` units of a stream's order."""
        units = self.streams[name]
        rounds, left = divmod(count, len(units))
        return rounds * tokens(units) + tokens(self._unit(name, rounds * len(units) + i) for i in range(left))

    def fingerprint(self) -> str:
        """SHA-256 of what decides the batches: every unit's ids, masks and colours, the phases and the seed.

        References are left out: they are the model's, and with other processes or threads their last digits
        differ, but a run must go on.
        """
        digest = hashlib.sha256(repr((self.seed, self.phases)).encode())
        for name in sorted(self.streams):
            digest.update(name.encode())
            for unit in self.streams[name]:
                for e in unit:
                    digest.update(f"\n{e.colour} {len(unit)}\n".encode())
                    digest.update(e.ids.tobytes() + e.trained.tobytes())
        return digest.hexdigest()

    def _unit(self, name: str, place: int) -> Unit:
        units = self.streams[name]
        time, index = divmod(place, len(units))
        if (name, time) not in self._orders:
            digest = hashlib.sha256(f"{self.seed}\n{name}\n{time}".encode()).digest()
            generator = np.random.default_rng(int.from_bytes(digest, "big"))
            self._orders = {k: v for k, v in self._orders.items() if k[0] != name or k[1] >= time - 1}
            self._orders[name, time] = generator.permutation(len(units))
        return units[self._orders[name, time][index]]


def singles(examples: Iterable[TokenizedConversation]) -> dict[str, list[Unit]]:
    """Streams by colour, one example a unit."""
    streams: dict[str, list[Unit]] = {}
    for e in examples:
        streams.setdefault(e.colour, []).append((e,))
    return streams


def pairs(examples: Iterable[TokenizedConversation]) -> list[Unit]:
    """(blue, red) units of conversations that ask the same question, each used once; others are left out."""
    waiting: dict[str, list[TokenizedConversation]] = {}
    examples, found = list(examples), list[Unit]()
    for e in examples:
        if e.colour == "red":
            waiting.setdefault(e.question, []).append(e)
    for e in examples:
        if e.colour == "blue" and waiting.get(e.question):
            found.append((e, waiting[e.question].pop(0)))
    return found


def require_fit(units: Iterable[Unit], tokens_per_batch: int) -> None:
    """Raises Error for a unit that is larger than a micro-batch."""
    worst = max(units, key=lambda unit: tokens([unit]), default=())
    size = tokens([worst])
    if size > tokens_per_batch:
        pair = " with its pair" if len(worst) > 1 else ""
        raise Error(f"conversation {worst[0].id!r} has {size} tokens{pair}, more than a micro-batch of "
                    f"{tokens_per_batch}; raise tokens_per_batch or lower max_tokens", "tokens_per_batch")


def pack(units: list[Unit], tokens_per_batch: int, ranks: int = 1) -> list[list[Unit]]:
    """Share units out over micro-batches of at most `tokens_per_batch` tokens, few and of even size.

    Every process must run as many as the others, so their number is a multiple of `ranks`; some may be empty.
    Raises Error for a unit that is larger than a micro-batch.
    """
    require_fit(units, tokens_per_batch)
    sizes = [tokens([unit]) for unit in units]
    bins = max(1, -(-sum(sizes) // (tokens_per_batch * ranks))) * ranks
    while True:
        heap = [(0, i) for i in range(bins)]
        packed: list[list[Unit]] = [[] for _ in range(bins)]
        # Largest first, each to the emptiest micro-batch.
        for k in sorted(range(len(units)), key=lambda k: -sizes[k]):
            load, i = heapq.heappop(heap)
            packed[i].append(units[k])
            heapq.heappush(heap, (load + sizes[k], i))
        if max(load for load, _ in heap) <= tokens_per_batch:
            return packed
        bins += ranks


@dataclass(frozen=True)
class Batch:
    """A micro-batch of T tokens packed end to end, N of them trained.

    targets  [T] the token after each where that is trained, else −100
    rows     [N] the places whose next token is trained
    """
    packed: PackedSequences
    targets: Tensor
    rows: Tensor
    responses: Responses


def shares(units: Iterable[Unit], per: str = "response") -> Callable[[TokenizedConversation, int], float]:
    """(example, index of its response) → that response's weight in its colour's mean over the global batch.

    per  what counts alike within a colour: each "response" (1 / responses), each "token" (tokens of the
         response / tokens) or each "conversation" (1 / conversations / responses of this one). The units,
         and so the counts, are those of all processes and micro-batches.
    """
    conversations, responses, trained = Counter[str](), Counter[str](), Counter[str]()
    for unit in units:
        for e in unit:
            conversations[e.colour] += 1
            responses[e.colour] += len(e.responses)
            trained[e.colour] += sum(last - first for first, last in e.responses)

    def share(e: TokenizedConversation, k: int) -> float:
        first, last = e.responses[k]
        return {"response": 1 / responses[e.colour], "token": (last - first) / trained[e.colour],
                "conversation": 1 / conversations[e.colour] / len(e.responses)}[per]

    return share


def collate(units: list[Unit], share: Callable[[TokenizedConversation, int], float],
            device: str | torch.device = "cpu") -> Batch:
    """Pack units into tensors; `share` comes from `shares` of the whole global batch."""
    ids, targets = list[list[int]](), [np.zeros(0, np.int64)]
    lengths, colours, weights, reference, pairs = [], [], [], list[float](), []
    for i, unit in enumerate(units):
        for e in unit:
            ids.append(e.ids.tolist())
            targets += [np.where(e.trained[1:], e.ids[1:], -100), np.array([-100])]
            reference += e.reference or [math.nan] * len(e.responses)
            for k, (first, last) in enumerate(e.responses):
                lengths.append(last - first)
                colours.append(COLOURS.index(e.colour))
                weights.append(share(e, k))
                pairs.append(i if len(unit) > 1 else -1)
    targets_T = torch.as_tensor(np.concatenate(targets), dtype=torch.int64)
    responses = Responses(
        torch.tensor(lengths, dtype=torch.int64), torch.tensor(colours, dtype=torch.int64),
        torch.tensor(weights, dtype=torch.float32), torch.tensor(reference, dtype=torch.float32),
        torch.tensor(pairs, dtype=torch.int64))
    rows_N = (targets_T != -100).nonzero()[:, 0]
    packed = PackedSequences.of(ids, device)
    return Batch(packed, targets_T.to(device), rows_N.to(device), responses.to(device))


def with_references(examples: list[TokenizedConversation],
                    sums: list[tuple[float, ...]]) -> list[TokenizedConversation]:
    """The examples with the summed NLL of each of their responses under the reference model."""
    return [replace(e, reference=s) for e, s in zip(examples, sums, strict=True)]
