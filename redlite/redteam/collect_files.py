"""The files between a collection's stages, as people may have edited them: read, and checked field by field.
"""
from pathlib import Path
from typing import Any

from redlite.errors import Error
from redlite.store.files import read_json
from redlite.store.records import Kind, require

STAGES = ("topics.json", "questions.json", "red.json", "harmfulqa.json")
MEND = "mend it, or delete the file to have its stage done again"
RED_ROW: dict[str, Kind] = {"topic": str, "subtopic": str, "question": str, "red_conversations": dict}
BLUE_ROW: dict[str, Kind] = {**RED_ROW, "blue_conversations": dict}


def read(directory: str | Path, name: str) -> Any:
    """The value of a stage's file, of the form that collect.py's docstring gives.

    Raises Error, which says where and how to mend it, if it is of another form, or empty.
    """
    path = Path(directory) / name
    value = read_json(path)
    kind: Any = dict if name in STAGES[:2] else list
    if not isinstance(value, kind) or not value:
        form = "JSON object" if kind is dict else "list"
        raise Error(f"{path}: must hold a {form} that is not empty; {MEND}")
    if name == STAGES[0]:
        for topic, names in value.items():
            _texts(names, f"{path}, {topic!r}", "a list of subtopics")
    elif name == STAGES[1]:
        for topic, below in value.items():
            if not isinstance(below, dict):
                _texts(None, f"{path}, {topic!r}", "{subtopic: [question, …]}")
            for subtopic, questions in below.items():
                where = " / ".join(filter(None, (topic, subtopic)))
                _texts(questions, f"{path}, {where!r}", "{subtopic: [question, …]}")
    else:
        for number, row in enumerate(value, 1):
            _row(row, RED_ROW if name == STAGES[2] else BLUE_ROW, f"{path}, row {number}")
    return value


def read_topics(path: str | Path) -> list[str] | dict[str, list[str]]:
    """A user's own topics: a list of names, or {topic: [subtopic, …]}. Raises Error for another form."""
    found = read_json(path)
    lists = list(found.values()) if isinstance(found, dict) else []
    fine = bool(found) and _are_texts(list(found) if lists else found)
    if not fine or not all(names and _are_texts(names) for names in lists):
        raise Error(
            f"{path}: must hold a list of topics, or {{topic: [subtopic, …]}}, texts that are not empty")
    return found


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) and text.strip() for text in value)


def _texts(value: object, where: str, form: str) -> None:
    if not _are_texts(value):
        raise Error(f"{where}: must hold {form}, texts that are not empty; {MEND}")


def _row(row: object, fields: dict[str, Kind], where: str) -> None:
    found = require(row, fields | {"id": (int, str)}, where, MEND)
    if not found["question"].strip():
        raise Error(f"{where}: its question is empty; {MEND}")
    for colour in fields:
        if colour.endswith("_conversations"):
            for number, turns in found[colour].items():
                if not _is_conversation(turns):
                    raise Error(
                        f'{where}, {colour} {number!r}: must be turns {{"from": "human" and "gpt" by turns, '
                        f'"value": a text that is not empty}}; {MEND}')


def _is_conversation(turns: object) -> bool:
    if not isinstance(turns, list) or not turns or len(turns) % 2:
        return False
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict) or turn.get("from") != ("human", "gpt")[i % 2]:
            return False
        if not isinstance(turn.get("value"), str) or not turn["value"].strip():
            return False
    return True
