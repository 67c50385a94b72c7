"""Conversations → examples (token ids and what is trained) → the batches of every step, packed without padding.

Nothing here is random beyond a seed: the batch of step i is a pure function of the files, the seed and i,
so a run that stops goes on at step i without any state, and any number of ranks sees the same global batch.
"""
import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from redlite.errors import Error
from redlite.loss import COLOURS, Responses
from redlite.model.sequences import PackedSequences
from redlite.training.conversations import Conversation, question_key


@dataclass(frozen=True, eq=False)
class TokenizedConversation:
    """A conversation as token ids [L] and the mask [L] of the tokens that are trained.

    reference: one number a response, its summed NLL under the model before training (NPO, DPO); () when unused.
    """
    id: str
    question: str
    colour: str
    ids: np.ndarray
    trained: np.ndarray
    reference: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def responses(self) -> list[tuple[int, int]]:
        """[first, last) positions of each run of trained tokens: one assistant turn each. Position 0 has no predecessor and is never one."""
        mask = np.concatenate(([False], self.trained[1:], [False]))
        edges = np.flatnonzero(mask[1:] != mask[:-1]) + 1
        return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


def encode(conversation: Conversation, template, max_tokens: int) -> TokenizedConversation | None:
    """Token ids and mask by a chat template; later exchanges are cut, whole, until at most `max_tokens` remain. None: not even the first fits."""
    messages = list(conversation.messages)
    while messages and messages[-1]["role"] == "assistant":
        encoded = template.encode(messages)
        if len(encoded.ids) <= max_tokens:
            return TokenizedConversation(conversation.id, question_key(conversation.question), conversation.colour,
                           np.asarray(encoded.ids, np.int32), np.asarray(encoded.trained, bool))
        messages = messages[:-2]
    return None


def encode_all(conversations: Iterable[Conversation], template, max_tokens: int) -> tuple[list[TokenizedConversation], Counter]:
    """`encode` of each; and how many were dropped or shortened."""
    examples, notes = [], Counter()
    for c in conversations:
        example = encode(c, template, max_tokens)
        if example is None or not example.responses:
            notes["too long even for its first exchange" if example is None else "without a trained token"] += 1
        else:
            examples.append(example)
    return examples, notes


# The batches of every step

Unit = tuple[TokenizedConversation, ...]    # what is drawn together: one example, or the blue and the red one of a pair


@dataclass(frozen=True)
class Phase:
    """A stretch of training: `steps` steps, each of `draw[stream]` units of every named stream, under one objective of loss.py."""
    steps: int
    draw: dict[str, int]
    objective: str = "A"
    parameters: dict | None = None


class Mixture:
    """The global batch of every step: `streams` of units, each in an endless seeded order, drawn as the phases say.

    A stream goes through all its units before any comes again, in a new order each time round; the order of
    one stream does not depend on the others.
    """

    def __init__(self, streams: dict[str, list[Unit]], phases: list[Phase], seed: int):
        for phase in phases:
            for name, count in phase.draw.items():
                if count and not streams.get(name):
                    raise Error(f"the mixture draws {count} {name} conversations a step and there is none; give --{name} a file")
        self.streams, self.phases, self.seed = streams, phases, seed
        self.steps = sum(p.steps for p in phases)
        self._orders: dict[tuple[str, int], np.ndarray] = {}

    def phase(self, step: int) -> Phase:
        """The phase that step (from 0) belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        raise IndexError("step is past the end of the mixture")

    def step(self, step: int) -> list[Unit]:
        """The units of the global batch of a step (from 0)."""
        drawn, before, left = Counter(), Counter(), step
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
        sizes = [sum(len(e) for e in unit) for unit in self.streams[name]]
        laps, left = divmod(count, len(sizes))
        return laps * sum(sizes) + sum(len(e) for i in range(left) for e in self._unit(name, laps * len(sizes) + i))

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the batches: every unit's ids, masks and colours, the phases and the seed.

        References are the model's, not the data's: with other ranks or threads their last digits differ, and a run must go on.
        """
        digest = hashlib.sha256(repr((self.seed, self.phases)).encode())
        for name in sorted(self.streams):
            digest.update(name.encode())
            for unit in self.streams[name]:
                for e in unit:
                    digest.update(f"\n{e.colour} {len(unit)}\n".encode() + e.ids.tobytes() + e.trained.tobytes())
        return digest.hexdigest()

    def _unit(self, name: str, place: int) -> Unit:
        units = self.streams[name]
        lap, index = divmod(place, len(units))
        if (name, lap) not in self._orders:
            digest = hashlib.sha256(f"{self.seed}\n{name}\n{lap}".encode()).digest()
            self._orders = {k: v for k, v in self._orders.items() if k[0] != name or k[1] >= lap - 1}
            self._orders[name, lap] = np.random.default_rng(int.from_bytes(digest, "big")).permutation(len(units))
        return units[self._orders[name, lap][index]]


def singles(examples: Iterable[TokenizedConversation]) -> dict[str, list[Unit]]:
    """Streams by colour, one example a unit."""
    streams: dict[str, list[Unit]] = {}
    for e in examples:
        streams.setdefault(e.colour, []).append((e,))
    return streams


def pairs(examples: Iterable[TokenizedConversation]) -> list[Unit]:
    """(blue, red) units of conversations that ask the same question, each used once; what has no partner is left out."""
    waiting: dict[str, list[TokenizedConversation]] = {}
    examples = list(examples)
    for e in examples:
        if e.colour == "red":
            waiting.setdefault(e.question, []).append(e)
    return [(blue, waiting[blue.question].pop(0)) for blue in examples if blue.colour == "blue" and waiting.get(blue.question)]


def require_fit(units: Iterable[Unit], tokens_per_batch: int) -> None:
    """Raises Error for a unit that is larger than a micro-batch."""
    worst = max(units, key=lambda unit: sum(map(len, unit)), default=())
    if (size := sum(map(len, worst))) > tokens_per_batch:
        raise Error(f"conversation {worst[0].id!r} has {size} tokens{' with its pair' if len(worst) > 1 else ''}, more than a micro-batch of {tokens_per_batch}; "
                    "raise --tokens-per-batch or lower --max-tokens")


def pack(units: list[Unit], tokens_per_batch: int, ranks: int = 1) -> list[list[Unit]]:
    """Share units out over micro-batches of at most `tokens_per_batch` tokens, as few and as even as their sizes allow.

    The number of micro-batches is a multiple of `ranks` (every rank takes part in every one); with fewer
    units than that some are empty. Raises Error for a unit that is larger than a micro-batch.
    """
    require_fit(units, tokens_per_batch)
    sizes = [sum(len(e) for e in unit) for unit in units]
    bins = max(1, -(-sum(sizes) // (tokens_per_batch * ranks))) * ranks
    while True:
        heap = [(0, i) for i in range(bins)]
        packed: list[list[Unit]] = [[] for _ in range(bins)]
        for k in sorted(range(len(units)), key=lambda k: -sizes[k]):   # largest first, each to the emptiest micro-batch
            load, i = heapq.heappop(heap)
            packed[i].append(units[k])
            heapq.heappush(heap, (load + sizes[k], i))
        if max(load for load, _ in heap) <= tokens_per_batch:
            return packed
        bins += ranks


@dataclass(frozen=True)
class Batch:
    """A micro-batch: T tokens packed end to end; `targets` [T] the token after each where it is trained, else -100; `rows` [N] the trained places."""
    packed: PackedSequences
    targets: Tensor
    rows: Tensor
    responses: Responses


def shares(units: Iterable[Unit], per: str = "response") -> Callable[[TokenizedConversation, int], float]:
    """(example, index of its response) → the weight of that response's mean NLL in its colour's mean over the whole global batch.

    per: what counts alike within a colour: each "response" (1 / responses), each "token" (tokens of the
    response / tokens) or each "conversation" (1 / conversations / responses of this one). The counts are
    those of every rank and accumulation step.
    """
    conversations, responses, tokens = Counter(), Counter(), Counter()
    for unit in units:
        for e in unit:
            conversations[e.colour] += 1
            responses[e.colour] += len(e.responses)
            tokens[e.colour] += sum(last - first for first, last in e.responses)

    def share(e: TokenizedConversation, k: int) -> float:
        first, last = e.responses[k]
        return {"response": 1 / responses[e.colour], "token": (last - first) / tokens[e.colour],
                "conversation": 1 / conversations[e.colour] / len(e.responses)}[per]

    return share


def collate(units: list[Unit], share: Callable[[TokenizedConversation, int], float], device: str | torch.device = "cpu") -> Batch:
    """Pack units into tensors; `share` comes from `shares` of the whole global batch."""
    examples = [e for unit in units for e in unit]
    pair = [i if len(unit) > 1 else -1 for i, unit in enumerate(units) for _ in unit]
    targets, lengths, colours, weights, reference, partner = [], [], [], [], [], []
    for e, p in zip(examples, pair):
        targets += [np.where(e.trained[1:], e.ids[1:], -100), [-100]]
        for k, (first, last) in enumerate(e.responses):
            lengths.append(last - first)
            colours.append(COLOURS.index(e.colour))
            weights.append(share(e, k))
            reference.append(e.reference[k] if e.reference else float("nan"))
            partner.append(p)
    target_T = torch.as_tensor(np.concatenate(targets) if targets else np.zeros(0), dtype=torch.int64)
    length_R = torch.tensor(lengths, dtype=torch.int64)
    responses = Responses(length_R, torch.tensor(colours, dtype=torch.int64), torch.tensor(weights, dtype=torch.float32),
                          torch.tensor(reference, dtype=torch.float32), torch.tensor(partner, dtype=torch.int64))
    rows = (target_T != -100).nonzero()[:, 0]
    return Batch(PackedSequences.of([e.ids.tolist() for e in examples], device), target_T.to(device), rows.to(device), responses.to(device))


def with_references(examples: list[TokenizedConversation], sums: list[tuple[float, ...]]) -> list[TokenizedConversation]:
    """The examples with the summed NLL of each of their responses under the reference model."""
    return [replace(e, reference=s) for e, s in zip(examples, sums, strict=True)]
