"""Conversation files → conversations: every shape that the contract lists, cleaned, deduplicated, split by question."""
import gzip
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from redlite.errors import Error
from redlite.store.files import half_surrogate, loads

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
            identity = _text(record, "id", where) or _text(record, "message_tree_id", where) or str(number)
            conversations.append(Conversation(identity + suffix, question or first, colour, messages, _text(record, "topic", where)))
    if not conversations:
        reasons = ", ".join(f"{n} {why}" for why, n in dropped.items()) or "none has that colour"
        raise Error(f"{path}: no {colour} conversation can be used ({reasons})")
    return conversations, dropped


def _records(path: Path) -> Iterator[tuple[int, dict]]:
    """(number from 1, record) of a JSON list, one JSON object, or JSON lines, by content and not by the file's name."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:    # gzip's own OSError has no strerror
        raise Error(f"{path}: cannot be read as UTF-8 text ({getattr(error, 'strerror', None) or error})") from None
    try:
        whole = loads(text)
        records = whole if isinstance(whole, list) else [whole]
    except json.JSONDecodeError as whole_error:
        records, lines = [], text.split("\n")
        for number, line in enumerate(lines, 1):
            try:
                records += [loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                first = whole_error if number == 1 else error
                raise Error(f"{path}: line {first.lineno if number == 1 else number} is no JSON ({first.msg})") from None
            except ValueError as error:
                raise Error(f"{path}: line {number} is no JSON that can be read ({error})") from None
    except ValueError as error:
        raise Error(f"{path}: is no JSON that can be read ({error})") from None
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
        return [(f"/{colour}/{k}", _text(record, "question", where), turns) for k, turns in held.items()]
    if "chosen" in record or "rejected" in record:
        return [("", "", _chosen(record, "rejected" if colour == "red" else "chosen", where))]
    if isinstance(record.get("label"), bool) and record["label"] == (colour == "red"):
        return []
    for field in ("messages", "conversations"):
        if field in record:
            return [("", _text(record, "question", where), record[field])]
    if "instruction" in record and "output" in record:
        ask = "\n\n".join(text for k in ("instruction", "input") if (text := _text(record, k, where)))
        return [("", "", [{"role": "user", "content": ask}, {"role": "assistant", "content": record["output"]}])]
    if isinstance(record.get("prompt"), dict) and "replies" in record["prompt"]:
        return [("", "", _best_thread(record["prompt"], where))]
    raise Error(f"{where}: unknown shape with fields {', '.join(list(record)[:6]) or '(none)'}; known: {KNOWN}")


def _text(record: dict, field: str, where: str) -> str:
    """A field's text, a number's digits; "" where there is none."""
    value = record.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str | None) or half_surrogate(value or ""):
        raise Error(f"{where}: field {field!r} must be a text{' without halves of surrogate pairs' if isinstance(value, str) else f', not {type(value).__name__}'}")
    return value or ""


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
        if not isinstance(node.get("replies") or [], list):
            raise Error(f"{where}: field 'replies' must be a list of replies, not {type(node['replies']).__name__}")
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
        if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
            raise Error(f"{where}: a turn needs role (or from) among {', '.join(ROLES)} and a text in content (or value)")
        if half_surrogate(content):
            raise Error(f"{where}: a turn's text holds half of a surrogate pair (\\ud800 to \\udfff), which is no character; mend or remove it")
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


def question_key(text: str) -> str:
    return " ".join(text.casefold().split())


def deduplicate(conversations: Iterable[Conversation]) -> tuple[list[Conversation], Counter]:
    """Each text once a colour (case and spacing aside), and none that is both blue (or helpful) and red; and what was dropped."""
    def text(c: Conversation) -> tuple:
        return tuple((m["role"], question_key(m["content"])) for m in c.messages)

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

    A conversation asks its record's question and its first user turn; what shares either, over however many steps, is one
    group, and groups are held out whole. One that holds over a quarter of all (a greeting as first turn makes such) stays in
    training. A group's place depends on the seed and its texts only, never on the order of files.
    """
    def place(question: str) -> bytes:
        return hashlib.sha256(f"{seed}\n{question}".encode()).digest()

    first: dict[str, str] = {}          # question → another of its group, nearer to the one that stands for it

    def group(question: str) -> str:
        while first[question] != question:
            first[question] = first[first[question]]
            question = first[question]
        return question
    keys = [{question_key(c.question), question_key(next(m["content"] for m in c.messages if m["role"] == "user"))} for c in conversations]
    for own in keys:
        one, *others = sorted(own)
        first.setdefault(one, one)
        for other in others:
            first[group(first.setdefault(other, other))] = group(one)
    groups = [group(next(iter(own))) for own in keys]
    places: dict[str, bytes] = {}
    for question in first:
        places[group(question)] = min(places.get(group(question), b"\xff"), place(question))
    sizes = Counter(groups)
    order = sorted((g for g in places if 4 * sizes[g] <= len(conversations) or len(places) < 4), key=places.__getitem__)
    held = set(order[:round(share * len(places))])
    return ([c for c, g in zip(conversations, groups) if g not in held], [c for c, g in zip(conversations, groups) if g in held])
