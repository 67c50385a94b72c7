"""The files between a collection's stages, as people may have edited them: read, checked field by field, and refused in one line that says where and how to mend."""
from pathlib import Path

from redlite.errors import Error
from redlite.store.files import read_json
from redlite.store.records import require

STAGES = ("topics.json", "questions.json", "red.json", "harmfulqa.json")
MEND = "mend it, or delete the file to have its stage done again"
ROW = {"topic": str, "subtopic": str, "question": str, "red_conversations": dict}


def read(directory: Path, name: str):
    """The value of a stage's file, of the form that collect.py's docstring gives. Raises Error if it is of another, or empty."""
    path = Path(directory) / name
    value = read_json(path)
    rows = name in STAGES[2:]
    if not isinstance(value, list if rows else dict) or not value:
        raise Error(f"{path}: must hold a {'list' if rows else 'JSON object'} that is not empty; {MEND}")
    if rows:
        for number, row in enumerate(value, 1):
            _row(row, ROW if name == STAGES[2] else {**ROW, "blue_conversations": dict}, f"{path}, row {number}")
    else:
        for topic, below in value.items():
            for subtopic, texts in ({"": below} if name == STAGES[0] else below if isinstance(below, dict) else {"": None}).items():
                if not isinstance(texts, list) or not all(isinstance(t, str) and t.strip() for t in texts):
                    form = "a list of subtopics" if name == STAGES[0] else "{subtopic: [question, …]}"
                    raise Error(f"{path}, {' / '.join(filter(None, (topic, subtopic)))!r}: must hold {form}, texts that are not empty; {MEND}")
    return value


def _row(row, fields: dict[str, type], where: str) -> None:
    require(row, fields, where, MEND)
    if isinstance(row.get("id"), bool) or not isinstance(row.get("id"), (int, str)):
        raise Error(f"{where}: field 'id' must be a number or a text; {MEND}")
    if not row["question"].strip():
        raise Error(f"{where}: its question is empty; {MEND}")
    for colour in (f for f in fields if f.endswith("_conversations")):
        for number, turns in row[colour].items():
            fine = isinstance(turns, list) and len(turns) % 2 == 0 and turns and all(
                isinstance(t, dict) and t.get("from") == ("human", "gpt")[i % 2] and isinstance(t.get("value"), str) and t["value"].strip() for i, t in enumerate(turns))
            if not fine:
                raise Error(f'{where}, {colour} {number!r}: must be turns {{"from": "human" and "gpt" by turns, "value": a text that is not empty}}; {MEND}')
