"""Conversation files → conversations: read in any KNOWN shape, cleaned, deduplicated, split by question."""
import gzip
import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from redlite.errors import Error
from redlite.store.files import half_surrogate, loads

ROLES = {"human": "user", "user": "user", "prompter": "user", "gpt": "assistant", "assistant": "assistant",
         "system": "system"}
HH_TURN = re.compile(r"\n\n(Human|Assistant):")
KNOWN = ("blue_conversations/red_conversations (HarmfulQA), chosen/rejected (hh-rlhf), messages, "
         "conversations (ShareGPT), instruction/output (Alpaca) or prompt.replies (Open-Assistant trees)")


Messages = tuple[dict[str, str], ...]     # {"role": "system" | "user" | "assistant", "content": text}


@dataclass(frozen=True)
class Conversation:
    """One conversation of one colour (blue: safe, red: harmful, helpful: ordinary).

    It may begin with a system message. User and assistant turns follow by turns, an assistant turn last.
    """
    id: str
    question: str
    colour: str
    messages: Messages
    topic: str = ""

    @property
    def first_turn(self) -> str:
        """The text of the first user turn."""
        return first_turn(self.messages)


def first_turn(messages: Messages) -> str:
    """The text of the first user turn."""
    return next(m["content"] for m in messages if m["role"] == "user")


def read(path: str | Path, colour: str) -> tuple[list[Conversation], Counter[str]]:
    """The conversations of one colour in a `.json`, `.jsonl` or `.gz` file, and what was dropped, by reason.

    A record is in any shape that KNOWN lists. Blue and helpful take `chosen`, and of records with a boolean
    `label` those with true; red takes `rejected` and false. Raises Error naming file, record and field.
    """
    path = Path(path)
    conversations, dropped = list[Conversation](), Counter[str]()
    for number, record in _records(path):
        where = f"{path}: record {number}"
        for suffix, question, turns in _shapes(record, colour, where):
            messages = _clean(turns, where)
            if isinstance(messages, str):
                dropped[messages] += 1
                continue
            identity = _text(record, "id", where) or _text(record, "message_tree_id", where) or str(number)
            question, topic = question or first_turn(messages), _text(record, "topic", where)
            conversations.append(Conversation(identity + suffix, question, colour, messages, topic))
    if not conversations:
        reasons = ", ".join(f"{n} {why}" for why, n in dropped.items()) or "none has that colour"
        raise Error(f"{path}: no {colour} conversation can be used ({reasons})")
    return conversations, dropped


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, record) of a JSON list, one JSON object, or JSON lines, whatever the file's name."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        # gzip's own OSError has no strerror.
        reason = getattr(error, "strerror", None) or error
        raise Error(f"{path}: cannot be read as UTF-8 text ({reason})") from None
    for number, record in enumerate(_values(text, path), 1):
        if not isinstance(record, dict):
            raise Error(f"{path}: record {number} must be a JSON object, not {type(record).__name__}")
        yield number, record


def _values(text: str, path: Path) -> list[Any]:
    """The values of a JSON list, or of each line."""
    try:
        whole = loads(text)
        return whole if isinstance(whole, list) else [whole]
    except json.JSONDecodeError as error:
        as_one = error
    except ValueError as error:
        raise Error(f"{path}: is no JSON that can be read ({error})") from None
    values = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            values += [loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            # Where the first line is none, the file is one text over several lines: its own fault says more.
            line_number, fault = (as_one.lineno, as_one) if number == 1 else (number, error)
            raise Error(f"{path}: line {line_number} is no JSON ({fault.msg})") from None
        except ValueError as error:
            raise Error(f"{path}: line {number} is no JSON that can be read ({error})") from None
    return values


def _shapes(record: dict[str, Any], colour: str, where: str) -> list[tuple[str, str, Any]]:
    """(suffix of the id, question or "", raw turns) of every conversation of `colour` in a record."""
    if "blue_conversations" in record or "red_conversations" in record:
        if colour == "helpful":
            raise Error(f"{where} holds blue and red conversations; "
                        "give the file as blue or red, not as helpful", "helpful")
        held = record.get(f"{colour}_conversations") or {}
        if not isinstance(held, dict):
            raise Error(f"{where}: {colour}_conversations must be an object of conversations, "
                        f"not {type(held).__name__}")
        question = _text(record, "question", where)
        return [(f"/{colour}/{k}", question, turns) for k, turns in held.items()]
    if "chosen" in record or "rejected" in record:
        return [("", "", _chosen(record, "rejected" if colour == "red" else "chosen", where))]
    if isinstance(record.get("label"), bool) and record["label"] == (colour == "red"):
        return []
    for field in ("messages", "conversations"):
        if field in record:
            return [("", _text(record, "question", where), record[field])]
    if "instruction" in record and "output" in record:
        ask = "\n\n".join(filter(None, (_text(record, k, where) for k in ("instruction", "input"))))
        return [("", "", [_message("user", ask), _message("assistant", record["output"])])]
    if isinstance(record.get("prompt"), dict) and "replies" in record["prompt"]:
        return [("", "", _best_thread(record["prompt"], where))]
    fields = ", ".join(list(record)[:6]) or "(none)"
    raise Error(f"{where}: unknown shape with fields {fields}; known: {KNOWN}")


def _message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _text(record: dict[str, Any], field: str, where: str) -> str:
    """A field's text, a number's digits; "" where there is none."""
    value = record.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str | None):
        raise Error(f"{where}: field {field!r} must be a text, not {type(value).__name__}")
    if half_surrogate(value or ""):
        raise Error(f"{where}: field {field!r} must be a text without halves of surrogate pairs")
    return value or ""


def _chosen(record: dict[str, Any], side: str, where: str) -> list[Any]:
    """The turns of one side of a preference pair.

    It is a text of hh-rlhf, or an answer (a text, a message or messages) after the record's prompt.
    """
    answer = record.get(side)
    if isinstance(answer, str) and HH_TURN.match(answer):
        roles = {"Human": "user", "Assistant": "assistant"}
        parts = HH_TURN.split(answer)[1:]
        return [_message(roles[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)]
    before = record.get("conversations", record.get("prompt", []))
    if isinstance(before, str):
        before = [_message("user", before)]
    if isinstance(answer, str):
        answer = [_message("assistant", answer)]
    elif isinstance(answer, dict):
        answer = [answer]
    elif isinstance(answer, list) and isinstance(before, list) and answer[:len(before)] == before:
        return answer           # which repeats the prompt
    if not isinstance(answer, list) or not isinstance(before, list):
        raise Error(f"{where}: field {side!r} must be a text, a message or a list of messages after a prompt")
    return before + answer


def _best_thread(node: Any, where: str) -> list[dict[str, Any]]:
    """The thread of an Open-Assistant tree with the best reply (rank 0, else the first) at every turn."""
    turns = []
    while node:
        if not isinstance(node, dict):
            raise Error(f"{where}: a reply must be an object, not {type(node).__name__}")
        turns.append({"role": node.get("role"), "content": node.get("text")})
        if not isinstance(node.get("replies") or [], list):
            kind = type(node["replies"]).__name__
            raise Error(f"{where}: field 'replies' must be a list of replies, not {kind}")
        replies = [r for r in node.get("replies") or [] if not (isinstance(r, dict) and r.get("deleted"))]
        ranked = [r for r in replies if isinstance(r, dict) and isinstance(r.get("rank"), int)]
        node = min(ranked, key=lambda r: int(r["rank"])) if ranked else next(iter(replies), None)
    return turns


def _clean(turns: Any, where: str) -> Messages | str:
    """Messages with the standard roles, as `Conversation` has them; or why the conversation is dropped."""
    if not isinstance(turns, list):
        raise Error(f"{where}: a conversation must be a list of turns, not {type(turns).__name__}")
    messages = []
    for turn in turns:
        role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
        content = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
        if not isinstance(role, str) or role not in ROLES or not isinstance(content, str):
            raise Error(f"{where}: a turn needs role (or from) among {', '.join(ROLES)} "
                        "and a text in content (or value)")
        if half_surrogate(content):
            raise Error(f"{where}: a turn's text holds half of a surrogate pair (\\ud800 to \\udfff), "
                        "which is no character; mend or remove it")
        messages.append(_message(ROLES[role], content))
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
    """A question for comparison: case and spacing aside."""
    return " ".join(text.casefold().split())


def deduplicate(conversations: Iterable[Conversation]) -> tuple[list[Conversation], Counter[str]]:
    """Each text once a colour (case and spacing aside), and none that is both red and not red.

    Also counts what was dropped, by reason.
    """
    def text(c: Conversation) -> tuple[tuple[str, str], ...]:
        return tuple((m["role"], question_key(m["content"])) for m in c.messages)

    conversations = list(conversations)
    red = {text(c) for c in conversations if c.colour == "red"}
    both = red & {text(c) for c in conversations if c.colour != "red"}
    kept, seen, dropped = list[Conversation](), set(), Counter[str]()
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


def split(conversations: list[Conversation], share: float,
          seed: int) -> tuple[list[Conversation], list[Conversation]]:
    """(training, validation): `share` of the questions, with every conversation that asks them, are held out.

    A conversation asks its record's question and its first user turn. Conversations that share either, over
    however many steps, are one group, and groups are held out whole. A group of over a quarter of all stays
    in training: a greeting as first turn makes such. Whether a group is held out depends on the seed and
    its texts, never on the order of files.
    """
    groups = _groups(conversations)
    places: dict[str, bytes] = {}       # of a group: the least hash of its questions decides
    for question, group in groups.items():
        place = hashlib.sha256(f"{seed}\n{question}".encode()).digest()
        places[group] = min(places.get(group, b"\xff"), place)
    own = [groups[question_key(c.question)] for c in conversations]
    sizes, few = Counter(own), len(places) < 4
    candidates = [g for g in places if few or 4 * sizes[g] <= len(conversations)]
    held = set(sorted(candidates, key=places.__getitem__)[:round(share * len(places))])
    parts: tuple[list[Conversation], list[Conversation]] = [], []
    for c, group in zip(conversations, own, strict=True):
        parts[group in held].append(c)
    return parts


def ask_through(conversations: Iterable[Conversation], prompts: Sequence[str],
                colours: Sequence[str]) -> list[Conversation]:
    """The conversations with their first user turns put into red-teaming prompts.

    prompts  texts with a <question> placeholder; the questions take them in turns
    colours  whose conversations; the others stay as they are
    All conversations of a question have one prompt, since a pair of answers is compared after the same words.
    """
    places: dict[str, int] = {}
    asked = []
    for c in conversations:
        if c.colour not in colours:
            asked.append(c)
            continue
        place = places.setdefault(question_key(c.question), len(places))
        first = next(i for i, m in enumerate(c.messages) if m["role"] == "user")
        messages = [dict(m) for m in c.messages]
        messages[first]["content"] = prompts[place % len(prompts)].replace("<question>", c.first_turn)
        asked.append(replace(c, messages=tuple(messages)))
    return asked


def _groups(conversations: list[Conversation]) -> dict[str, str]:
    """Every question → the one that stands for its group: those that a chain of conversations connects."""
    # question → another of its group, nearer to the one that stands for it
    nearer: dict[str, str] = {}

    def group(question: str) -> str:
        while nearer[question] != question:
            nearer[question] = nearer[nearer[question]]
            question = nearer[question]
        return question
    for c in conversations:
        questions = question_key(c.question), question_key(c.first_turn)
        for question in questions:
            nearer.setdefault(question, question)
        nearer[group(questions[1])] = group(questions[0])
    return {question: group(question) for question in nearer}
