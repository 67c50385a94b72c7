"""Conversation files → examples (token ids and what is trained) → the batches of every step, packed without padding.

Nothing here is random beyond a seed: the batch of step i is a pure function of the files, the seed and i,
so a run that stops goes on at step i without any state, and any number of ranks sees the same global batch.
"""
import gzip
import hashlib
import heapq
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from redlite.errors import Error
from redlite.loss import COLOURS, Responses
from redlite.model import Packed

ROLES = {"human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
HH_TURN = re.compile(r"\n\n(Human|Assistant):")
KNOWN = ("blue_conversations/red_conversations (HarmfulQA), chosen/rejected (hh-rlhf), messages, conversations (ShareGPT), "
         "instruction/output (Alpaca) or prompt.replies (Open-Assistant trees)")


@dataclass(frozen=True)
class Conversation:
    """One conversation of one colour (blue: safe, red: harmful, helpful: ordinary); it ends with an assistant turn."""
    id: str
    question: str
    colour: str
    messages: tuple[dict, ...]     # {"role": "system" | "user" | "assistant", "content": str}
    topic: str = ""


@dataclass(frozen=True)
class Example:
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


def text_example(ids: list[int], id: str = "", colour: str = "helpful") -> Example:
    """Plain text as an example: every token is trained (the first only conditions the rest)."""
    return Example(id, "", colour, np.asarray(ids, np.int32), np.ones(len(ids), bool))


# Reading files

def read(path: str | Path, colour: str) -> tuple[list[Conversation], Counter]:
    """The conversations of one colour in a `.json` or `.jsonl` file (or `.gz` of either), and what was dropped, by reason.

    A record is in any shape that KNOWN lists. Blue and helpful take `chosen`, and of records with a boolean
    `label` those with true; red takes `rejected` and false. Raises Error naming file, record and field.
    """
    path = Path(path)
    conversations, dropped = [], Counter()
    for number, record in _records(path):
        where = f"{path}: record {number}"
        for suffix, question, turns in _shapes(record, colour, where):
            messages = _clean(turns, where)
            if isinstance(messages, str):
                dropped[messages] += 1
                continue
            first = next(m["content"] for m in messages if m["role"] == "user")
            identity = str(record.get("id", record.get("message_tree_id", number)))
            conversations.append(Conversation(identity + suffix, question or first, colour, messages, str(record.get("topic", ""))))
    if not conversations:
        reasons = ", ".join(f"{n} {why}" for why, n in dropped.items()) or "none has that colour"
        raise Error(f"{path}: no {colour} conversation can be used ({reasons})")
    return conversations, dropped


def _records(path: Path) -> Iterator[tuple[int, dict]]:
    """(number from 1, record) of a JSON list, one JSON object, or JSON lines, by content and not by the file's name."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except FileNotFoundError:
        raise Error(f"{path}: no such file") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise Error(f"{path}: cannot be read as UTF-8 text ({error})") from None
    try:
        whole = json.loads(text)
        records = whole if isinstance(whole, list) else [whole]
    except RecursionError:
        raise Error(f"{path}: its JSON is nested too deeply") from None
    except json.JSONDecodeError as whole_error:
        records, lines = [], text.split("\n")
        for number, line in enumerate(lines, 1):
            try:
                records += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                first = whole_error if number == 1 else error
                raise Error(f"{path}: line {first.lineno if number == 1 else number} is no JSON ({first.msg})") from None
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise Error(f"{path}: record {number} must be a JSON object, not {type(record).__name__}")
        yield number, record


def _shapes(record: dict, colour: str, where: str) -> list[tuple[str, str, list]]:
    """(suffix of the id, question or "", raw turns) of every conversation of `colour` in a record of any known shape."""
    if "blue_conversations" in record or "red_conversations" in record:
        if colour == "helpful":
            raise Error(f"{where} holds blue and red conversations; pass the file to --blue or --red, not --helpful")
        held = record.get(f"{colour}_conversations") or {}
        if not isinstance(held, dict):
            raise Error(f"{where}: {colour}_conversations must be an object of conversations, not {type(held).__name__}")
        return [(f"/{colour}/{k}", str(record.get("question") or ""), turns) for k, turns in held.items()]
    if "chosen" in record or "rejected" in record:
        return [("", "", _chosen(record, "rejected" if colour == "red" else "chosen", where))]
    if isinstance(record.get("label"), bool) and record["label"] == (colour == "red"):
        return []
    for field in ("messages", "conversations"):
        if field in record:
            return [("", str(record.get("question") or ""), record[field])]
    if "instruction" in record and "output" in record:
        ask = "\n\n".join(str(record[k]) for k in ("instruction", "input") if record.get(k))
        return [("", "", [{"role": "user", "content": ask}, {"role": "assistant", "content": record["output"]}])]
    if isinstance(record.get("prompt"), dict) and "replies" in record["prompt"]:
        return [("", "", _best_thread(record["prompt"], where))]
    raise Error(f"{where}: unknown shape with fields {', '.join(list(record)[:6]) or '(none)'}; known: {KNOWN}")


def _chosen(record: dict, side: str, where: str) -> list:
    """The turns of one side of a preference pair: hh-rlhf text, or an answer (text, message or messages) after the record's prompt."""
    answer = record.get(side)
    if isinstance(answer, str) and HH_TURN.match(answer):
        parts = HH_TURN.split(answer)[1:]
        return [{"from": {"Human": "human", "Assistant": "gpt"}[who], "value": said.strip()} for who, said in zip(parts[::2], parts[1::2])]
    before = record.get("conversations", record.get("prompt", []))
    before = [{"role": "user", "content": before}] if isinstance(before, str) else before
    after = {str: lambda: [{"role": "assistant", "content": answer}], dict: lambda: [answer], list: lambda: answer}.get(type(answer))
    if after is None or not isinstance(before, list):
        raise Error(f"{where}: field {side!r} must be a text, a message or a list of messages after a prompt")
    return after() if isinstance(answer, list) and answer[:len(before)] == before else before + after()


def _best_thread(node: dict, where: str) -> list:
    """The thread of an Open-Assistant tree that takes the best-ranked reply (rank 0 is best, then the first) at every turn."""
    turns = []
    while node:
        if not isinstance(node, dict):
            raise Error(f"{where}: a reply must be an object, not {type(node).__name__}")
        turns.append({"role": node.get("role"), "content": node.get("text")})
        replies = [r for r in node.get("replies") or [] if not (isinstance(r, dict) and r.get("deleted"))]
        ranked = [r for r in replies if isinstance(r, dict) and isinstance(r.get("rank"), int)]
        node = min(ranked, key=lambda r: r["rank"]) if ranked else next(iter(replies), None)
    return turns


def _clean(turns, where: str) -> tuple[dict, ...] | str:
    """Messages with the standard roles, from a user turn to an assistant turn and in turns; or why they are dropped."""
    if not isinstance(turns, list):
        raise Error(f"{where}: a conversation must be a list of turns, not {type(turns).__name__}")
    messages = []
    for turn in turns:
        role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
        content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
        if role not in ROLES or not isinstance(content, str):
            raise Error(f"{where}: a turn needs role (or from) among {', '.join(ROLES)} and a text in content (or value)")
        messages.append({"role": ROLES[role], "content": content})
    system = [m for m in messages[:1] if m["role"] == "system" and m["content"].strip()]
    messages = [m for i, m in enumerate(messages) if i or m["role"] != "system"]
    if messages and messages[0]["role"] == "assistant":   # ShareGPT threads are often cut from the middle
        messages = messages[1:]
    if messages and messages[-1]["role"] == "user":       # nothing answers it, so nothing is trained there
        messages = messages[:-1]
    if not messages:
        return "without an answer"
    if [m["role"] for m in messages] != ["user", "assistant"] * (len(messages) // 2):
        return "with turns out of order"
    if not all(m["content"].strip() for m in messages):
        return "with an empty turn"
    return tuple(system + messages)


# Choosing

def _key(text: str) -> str:
    return " ".join(text.casefold().split())


def deduplicate(conversations: Iterable[Conversation]) -> tuple[list[Conversation], Counter]:
    """Each text once a colour (case and spacing aside), and none that is both blue (or helpful) and red; and what was dropped."""
    def text(c: Conversation) -> tuple:
        return tuple((m["role"], _key(m["content"])) for m in c.messages)

    conversations = list(conversations)
    red = {text(c) for c in conversations if c.colour == "red"}
    both = red & {text(c) for c in conversations if c.colour != "red"}
    kept, seen, dropped = [], set(), Counter()
    for c in conversations:
        key = (c.colour, text(c))
        if key[1] in both:
            dropped["both red and not red"] += 1
        elif key in seen:
            dropped["repeated"] += 1
        else:
            seen.add(key)
            kept.append(c)
    return kept, dropped


def split(conversations: list[Conversation], share: float, seed: int) -> tuple[list[Conversation], list[Conversation]]:
    """(training, validation): `share` of the questions, with every conversation of any colour that asks them, are held out.

    A question's place depends on the seed and its own text only, never on the order of files.
    """
    def place(question: str) -> bytes:
        return hashlib.sha256(f"{seed}\n{question}".encode()).digest()

    questions = sorted({_key(c.question) for c in conversations}, key=place)
    held = set(questions[:round(share * len(questions))])
    return ([c for c in conversations if _key(c.question) not in held], [c for c in conversations if _key(c.question) in held])


def encode(conversation: Conversation, template, max_tokens: int) -> Example | None:
    """Token ids and mask by a chat template; later exchanges are cut, whole, until at most `max_tokens` remain. None: not even the first fits."""
    messages = list(conversation.messages)
    while messages and messages[-1]["role"] == "assistant":
        encoded = template.encode(messages)
        if len(encoded.ids) <= max_tokens:
            return Example(conversation.id, _key(conversation.question), conversation.colour,
                           np.asarray(encoded.ids, np.int32), np.asarray(encoded.trained, bool))
        messages = messages[:-2]
    return None


def encode_all(conversations: Iterable[Conversation], template, max_tokens: int) -> tuple[list[Example], Counter]:
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

Unit = tuple[Example, ...]    # what is drawn together: one example, or the blue and the red one of a pair


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

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the batches: every unit's ids, masks and colours, the phases and the seed."""
        digest = hashlib.sha256(repr((self.seed, self.phases)).encode())
        for name in sorted(self.streams):
            digest.update(name.encode())
            for unit in self.streams[name]:
                for e in unit:
                    digest.update(f"\n{e.colour} {len(unit)} {e.reference}\n".encode() + e.ids.tobytes() + e.trained.tobytes())
        return digest.hexdigest()

    def _unit(self, name: str, place: int) -> Unit:
        units = self.streams[name]
        lap, index = divmod(place, len(units))
        if (name, lap) not in self._orders:
            digest = hashlib.sha256(f"{self.seed}\n{name}\n{lap}".encode()).digest()
            self._orders = {k: v for k, v in self._orders.items() if k[0] != name or k[1] >= lap - 1}
            self._orders[name, lap] = np.random.default_rng(int.from_bytes(digest, "big")).permutation(len(units))
        return units[self._orders[name, lap][index]]


def singles(examples: Iterable[Example]) -> dict[str, list[Unit]]:
    """Streams by colour, one example a unit."""
    streams: dict[str, list[Unit]] = {}
    for e in examples:
        streams.setdefault(e.colour, []).append((e,))
    return streams


def pairs(examples: Iterable[Example]) -> list[Unit]:
    """(blue, red) units of conversations that ask the same question, each used once; what has no partner is left out."""
    waiting: dict[str, list[Example]] = {}
    examples = list(examples)
    for e in examples:
        if e.colour == "red":
            waiting.setdefault(e.question, []).append(e)
    return [(blue, waiting[blue.question].pop(0)) for blue in examples if blue.colour == "blue" and waiting.get(blue.question)]


def pack(units: list[Unit], tokens_per_batch: int, ranks: int = 1) -> list[list[Unit]]:
    """Share units out over micro-batches of at most `tokens_per_batch` tokens, as few and as even as their sizes allow.

    The number of micro-batches is a multiple of `ranks` (every rank takes part in every one); with fewer
    units than that some are empty. Raises Error for a unit that is larger than a micro-batch.
    """
    sizes = [sum(len(e) for e in unit) for unit in units]
    if units and max(sizes) > tokens_per_batch:
        worst = units[sizes.index(max(sizes))]
        raise Error(f"conversation {worst[0].id!r} has {max(sizes)} tokens, more than a micro-batch of {tokens_per_batch}; "
                    "raise --tokens-per-batch or lower --max-tokens")
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
    packed: Packed
    targets: Tensor
    rows: Tensor
    responses: Responses


def shares(units: Iterable[Unit], per: str = "response") -> Callable[[Example, int], float]:
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

    def share(e: Example, k: int) -> float:
        first, last = e.responses[k]
        return {"response": 1 / responses[e.colour], "token": (last - first) / tokens[e.colour],
                "conversation": 1 / conversations[e.colour] / len(e.responses)}[per]

    return share


def collate(units: list[Unit], share: Callable[[Example, int], float], device: str | torch.device = "cpu") -> Batch:
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
    return Batch(Packed.of([e.ids.tolist() for e in examples], device), target_T.to(device), rows.to(device), responses.to(device))


def with_references(examples: list[Example], sums: list[tuple[float, ...]]) -> list[Example]:
    """The examples with the summed NLL of each of their responses under the reference model."""
    return [replace(e, reference=s) for e, s in zip(examples, sums, strict=True)]
