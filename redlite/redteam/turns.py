"""Attacks of several turns: the model's own answers stand between the user's messages.

Every turn is in turns.jsonl, flushed, before the next is asked. So a kill at any turn loses nothing, and the
next process goes on with the turn that is missing. A conversation ends early where an answer has no words to
go on from, was refused by the API, or leaves no room in the model's context.
"""
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import NoneType

from redlite.answer import Answer
from redlite.errors import Error
from redlite.redteam.answerers import Answerer, Decoding, Messages
from redlite.redteam.journals import FINISHES, AnswerKey
from redlite.store.records import Kind, require
from redlite.store.run_directory import Run
from redlite.text.reasoning import split_thoughts

TURNS = "turns.jsonl"
TURN: dict[str, Kind] = {
    "id": str, "prompt": str, "sample": int, "turn": int, "user": str, "text": str, "answer": str,
    "finish": FINISHES, "prompt_tokens": int, "completion_tokens": int, "seconds": (int, float),
    "thought_closed": (bool, NoneType), "taken_back": (bool, NoneType)}

Conversation = list[dict]       # the records of its turns, from the first


def read_turns(directory: Run) -> dict[AnswerKey, Conversation]:
    """The turns that a run directory holds, those that failed left out. Raises Error for an edited line."""
    found: dict[AnswerKey, Conversation] = {}
    for number, record in enumerate(directory.read(TURNS), 1):
        where = f"{directory.directory / TURNS}, line {number}"
        require(record, TURN, where, "restore the line from a copy")
        own = found.setdefault(AnswerKey(record["id"], record["prompt"], record["sample"]), [])
        if record["finish"] == "error":
            continue
        if record["turn"] != len(own) + 1:
            raise Error(f"{where}: is turn {record['turn']} and follows turn {len(own)} of its conversation; "
                        "restore the lines from a copy")
        own.append(record)
    return found


def ask(directory: Run, answerer: Answerer, wanted: Mapping[AnswerKey, Sequence[str]], decoding: Decoding,
        seed_of: Callable[[AnswerKey, int], int], system: str | None,
        stop: tuple[str, ...]) -> Iterator[tuple[AnswerKey, Conversation]]:
    """Go on with each conversation to its end; yield each as it ends.

    wanted   the user's messages of each
    seed_of  the seed of an answer, by the turn from 1
    A conversation whose turn failed is yielded as well, its last record being the failed one.
    """
    kept = read_turns(directory)
    conversations = {key: kept.get(key, []) for key in wanted}
    going = dict(wanted)
    for key in list(going):
        if _is_over(conversations[key], going[key]):
            del going[key]
            yield key, conversations[key]
    while going:
        # Those that have the same number of turns are asked together.
        turn = min(len(conversations[key]) for key in going)
        keys = [key for key in going if len(conversations[key]) == turn]
        asked = [messages_of(conversations[key], going[key][turn], system) for key in keys]
        fits = fitting(answerer, asked, decoding, stop) if turn else [True] * len(keys)
        for key, fit in zip(keys, fits, strict=True):
            if not fit:     # what was said stands; nothing more can be
                del going[key]
                yield key, conversations[key]
        keys = [key for key, fit in zip(keys, fits, strict=True) if fit]
        asked = [messages for messages, fit in zip(asked, fits, strict=True) if fit]
        seeds = [seed_of(key, turn + 1) for key in keys]
        beside = _asked_before(kept, {key.prompt for key in wanted}, turn, system)
        for i, answer in answerer.answer(asked, decoding, seeds, stop, beside) if keys else ():
            key = keys[i]
            record = record_of(key, turn + 1, going[key][turn], answer)
            directory.append(TURNS, record)
            conversations[key].append(record)
            if _is_over(conversations[key], going[key]):
                del going[key]
                yield key, conversations[key]


def _asked_before(kept: Mapping[AnswerKey, Conversation], prompts: set[str], turn: int,
                  system: str | None) -> list[Messages]:
    """What earlier processes asked at this turn, from 0, under these prompts."""
    return [messages_of(said[:turn], said[turn]["user"], system) for key, said in kept.items()
            if key.prompt in prompts and len(said) > turn]


def _is_over(conversation: Conversation, users: Sequence[str]) -> bool:
    if not conversation:
        return False
    last = conversation[-1]
    return (len(conversation) >= len(users) or last["finish"] in ("error", "refused_by_api")
            or not last["answer"].strip())


def messages_of(conversation: Conversation, user: str, system: str | None) -> Messages:
    """What the model is asked at the next turn."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    for record in conversation:
        messages += [{"role": "user", "content": record["user"]},
                     {"role": "assistant", "content": record["answer"]}]
    return [*messages, {"role": "user", "content": user}]


def fitting(answerer: Answerer, asked: list[Messages], decoding: Decoding,
             stop: tuple[str, ...]) -> list[bool]:
    """Which conversations have room for an answer. An answerer refuses those that have none at once."""
    fits = []
    for messages in asked:
        try:
            answerer.answer([messages], decoding, [0], stop, [])
            fits.append(True)
        except Error:
            fits.append(False)
    return fits


def record_of(key: AnswerKey, turn: int, user: str, answer: Answer) -> dict:
    """A line of turns.jsonl."""
    said = split_thoughts(answer.text, answer.opened)
    broken = {} if said.closed else {"thought_closed": False}
    return {**key._asdict(), "turn": turn, "user": user, "text": answer.text, "answer": said.answer,
            "finish": answer.finish, **broken, "prompt_tokens": answer.prompt_tokens or 0,
            "completion_tokens": answer.completion_tokens or 0, "seconds": answer.seconds}


def whole(conversation: Conversation) -> dict:
    """What responses.jsonl holds of a conversation: its last answer, all turns, and what they cost."""
    last = conversation[-1]
    same = {name: last[name] for name in ("text", "answer", "finish", "thought_closed") if name in last}
    spent = {name: sum(record[name] for record in conversation)
             for name in ("prompt_tokens", "completion_tokens", "seconds")}
    shown = ("user", "answer", "taken_back")
    turns = [{name: r[name] for name in shown if name in r} for r in conversation]
    return {**same, **spent, "turns": turns}
