"""The records of question files: every common shape, and the columns of the public sets.

JSON: a list of texts or objects; {topic: [..]}; {topic: {subtopic: [..]}}; lists side by side, one a column;
and what pandas writes (`to_json` in any orientation). JSONL: a text or an object a line. CSV, TSV: with a
header. Text: a question a line.

Columns are known by their names, in upper or lower case. Beside plain names those are the authors' own of
HarmBench, StrongREJECT, SORRY-Bench, JailbreakBench, AdvBench, WildJailbreak, Do-Not-Answer,
SimpleSafetyTests, ForbiddenQuestions and BeaverTails. What no column says is left out; what is said twice or
in another kind is refused.
"""
import csv
import io
import math
from ast import literal_eval
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from redlite.errors import Error
from redlite.store import files as store_files

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt")
# The names that a field may have in a file. The first that a record has counts: JailbreakBench's `behavior`
# is a short name of its `goal`; SimpleSafetyTests' `category` is no topic beside its `harm_area`.
FIELDS = {
    "question": ("question", "prompt", "goal", "forbidden_prompt", "adversarial", "vanilla", "behavior",
                 "turns", "prompts_final", "instruction", "instructions", "questions", "prompts", "query",
                 "queries", "text", "texts"),
    "topic": ("topic", "harm_area", "risk_area", "category", "semanticcategory", "type", "data_type",
              "content_policy_name", "tags", "topics", "categories"),
    "subtopic": ("subtopic", "subcategory", "functionalcategory", "types_of_harm"),
    "id": ("id", "behaviorid", "question_id", "index"),
    "context": ("contextstring", "context"),        # stands before the question
    "input": ("input", "inputs"),                   # what an instruction is about: stands behind it
    "target": ("target",),
    "style": ("prompt_style",),                     # SORRY-Bench's variants of one question share its id
    "image": ("imagefilename",)}
BETWEEN = "\n\n---\n\n"   # of context and behaviour, as in HarmBench's own direct requests
KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}

Found = tuple[str, dict[str, str]]      # where a record is in its file; Question's fields that it has
Raw = tuple[str, dict]                  # the same before its columns are looked at


def records(path: Path) -> Iterator[Found]:
    """Yield every record of a file: where it is, and the fields of a Question that it gives.

    Raises Error naming file, record and column.
    """
    for where, record in _raw(path):
        yield where, _fields(record, f"{path}, {where}")


def rows(path: Path) -> list[dict]:
    """The objects of a JSON list, or of JSONL. Raises Error naming the row that is none."""
    text = read_text(path)
    if path.suffix.lower() == ".jsonl":
        lines = [line for line in text.split("\n") if line.strip()]
        found = [_parse(path, f"line {number}", line) for number, line in enumerate(lines, 1)]
    else:
        found = _parse(path, "the file", text)
    if not isinstance(found, list):
        raise Error(f"{path}: must hold a list of rows")
    for number, row in enumerate(found, 1):
        if not isinstance(row, dict):
            raise Error(f"{path}, row {number}: is {_kind(row)}; it must be an object")
    return found


def read_text(path: Path) -> str:
    """A file of UTF-8, with or without a byte order mark. Raises Error naming it."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise store_files.unreadable(path, error) from None
    except UnicodeDecodeError as error:
        raise Error(f"{path}: is not UTF-8 (byte {error.start}); convert it") from None


# One record

def _fields(record: dict, where: str) -> dict[str, str]:
    lowered: dict[str, Any] = {}
    for key, value in record.items():
        name = str(key).strip().lower()
        if name in lowered:
            raise Error(f"{where}: has the column {name!r} twice; keep one")
        lowered[name] = value
    if lowered.get("adversarial") in ("", None) and "vanilla" in lowered:
        lowered.pop("adversarial", None)        # WildJailbreak has both columns, and fills one or both
    takes_input = _name(lowered, "question") in ("instruction", "instructions")
    found = {field: _text(lowered, field, where) for field in FIELDS if field != "input" or takes_input}
    if found.pop("image"):
        raise Error(f"{where}, column 'imagefilename': asks about an image, and only text is sent; "
                    "leave such rows out")
    if not found["question"]:
        raise Error(f"{where}: has no question ({_why(lowered)})")
    context, about, style = found.pop("context"), found.pop("input", ""), found.pop("style")
    if context:
        found["question"] = context + BETWEEN + found["question"]
    if about:
        found["question"] += "\n\n" + about
    if found["id"] and style not in ("", "base"):
        found["id"] += f"-{style}"
    return {field: text for field, text in found.items() if text}


def _name(record: dict, field: str) -> str | None:
    """The record's column for a field."""
    return next((name for name in FIELDS[field] if name in record), None)


def _why(record: dict) -> str:
    name = _name(record, "question")
    if name:
        return f"its column {name!r} is empty"
    return f"a non-empty text in {', '.join(FIELDS['question'])}"


def _text(record: dict, field: str, where: str) -> str:
    """A field's text, "" where the record has none."""
    name = _name(record, field)
    value = None if name is None else record[name]
    if name == "turns":
        value = _only_turn(value, where)
    if isinstance(value, str):
        return value.strip()
    if value is None or (isinstance(value, float) and math.isnan(value)):   # as pandas writes an empty cell
        return ""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and field != "question":
        return str(value)
    if field == "id":
        raise Error(f"{where}: the id {value!r} is neither a text nor a whole number; write it as a text")
    if field == "topic" and isinstance(value, dict) and all(isinstance(on, bool) for on in value.values()):
        value = [part for part, on in value.items() if on]      # BeaverTails
    if field == "topic" and isinstance(value, list) and all(isinstance(part, str) for part in value):
        return ", ".join(value)
    raise Error(f"{where}, column {name!r}: is {_kind(value)}; write a text, or leave it out")


def _only_turn(value: object, where: str) -> object:
    """The text of SORRY-Bench's `turns`: a list of one, which its CSV holds as Python writes it."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise Error(f"{where}, column 'turns': is no list; write [\"the question\"]") from None
    if isinstance(value, list):
        if len(value) != 1:
            raise Error(f"{where}, column 'turns': holds {len(value)} turns, and a question is one; "
                        "keep the one that asks")
        return value[0]
    return value


# Files

def _raw(path: Path) -> Iterator[Raw]:
    text, suffix = read_text(path), path.suffix.lower()
    if suffix == ".json":
        yield from _walk(path, _parse(path, "the file", text), ())
    elif suffix in (".csv", ".tsv"):
        yield from _table(path, text)
    elif suffix in (".jsonl", ".txt"):
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                where = f"line {number}"
                value = line if suffix == ".txt" else _parse(path, where, line)
                yield where, _record(path, where, value)
    else:
        raise Error(f"{path}: questions come as {', '.join(SUFFIXES)}; rename or convert the file")


def _parse(path: Path, where: str, text: str) -> Any:
    try:
        return store_files.loads(text)
    except ValueError as error:
        raise Error(f"{path}, {where}: is not valid JSON ({error})") from None


def _record(path: Path, where: str, value: object) -> dict:
    if isinstance(value, str):
        return {"question": value}
    if isinstance(value, dict):
        return value
    raise Error(f"{path}, {where}: is {_kind(value)}; a question is a text, or an object with one of "
                f"{', '.join(FIELDS['question'])}")


def _kind(value: object) -> str:
    return KINDS.get(type(value), "a number")


def _walk(path: Path, value: object, topics: tuple[str, ...]) -> Iterator[Raw]:
    """Records of a list, of columns, of {topic: list} or {topic: {subtopic: list}}.

    topics  those above `value`
    """
    where = "".join(f"[{t!r}]" for t in topics) or "the file"
    if isinstance(value, list):
        rows: Sequence[tuple[str, object]] = [(f"record {n}", item) for n, item in enumerate(value, 1)]
    elif isinstance(value, dict) and (columns := _columns(path, where, value)) is not None:
        rows = columns
    elif isinstance(value, dict) and len(topics) < 2:
        for key, inner in value.items():
            yield from _walk(path, inner, (*topics, key))
        return
    else:
        also = "" if topics else ", or topics that hold lists"
        raise Error(f"{path}, {where}: is {_kind(value)}; expected a list of questions{also}")
    names = [topic.strip().rstrip(":") for topic in topics]
    above = dict(zip(("topic", "subtopic"), names, strict=False))
    for number, item in rows:
        spot = f"{number} of {where}" if topics else number
        record = _record(path, spot, item)
        own = {str(key).strip().lower() for key in record}
        yield spot, {**{field: name for field, name in above.items() if field not in own}, **record}


def _columns(path: Path, where: str, value: dict) -> list[tuple[str, dict]] | None:
    """The records of an object that holds columns; None for one that holds topics.

    A column is a list, or as pandas writes it an object of row name → value. An object with a column of
    questions holds columns. One that has names of other fields alone lacks the questions. Rows by name
    (pandas, orient="index") are objects with a question each.
    """
    if {"columns", "data"} <= set(value) <= {"columns", "data", "index"}:     # pandas, orient="split"
        return [(f"record {n}", dict(zip(value["columns"], row, strict=True)))
                for n, row in enumerate(_split(path, value), 1)]
    if isinstance(value.get("data"), list) and "schema" in value:               # pandas, orient="table"
        return [(f"record {n}", _record(path, f"record {n}", row)) for n, row in enumerate(value["data"], 1)]
    only = list(value.values())[0] if len(value) == 1 and all(map(_asks, value)) else None
    if isinstance(only, list) and any(isinstance(row, dict) for row in only):   # records below such a name
        return [(f"record {n}", _record(path, f"record {n}", row)) for n, row in enumerate(only, 1)]
    if value and all(isinstance(row, dict) and _asks_text(row) for row in value.values()):
        return [(f"record {name!r}", row) for name, row in value.items()]
    lowered = {str(key).strip().lower() for key in value}
    known = lowered & {name for names in FIELDS.values() for name in names}
    if not known or not (all(isinstance(column, list) for column in value.values())
                         or all(isinstance(column, dict) for column in value.values())):
        return None
    if not lowered & set(FIELDS["question"]):
        if lowered - known:
            return None     # a topic of such a name, beside others
        raise Error(f"{path}, {where}: has the columns {', '.join(value)} and none with questions; "
                    f"name one {FIELDS['question'][0]}")
    columns = {name: column for name, column in value.items() if len(column) or _asks(name)}
    asks = next(name for name in columns if _asks(name))
    rows = list(columns[asks]) if isinstance(columns[asks], dict) else range(len(columns[asks]))
    for name, column in columns.items():
        if len(column) != len(rows) or (isinstance(column, dict) and list(column) != list(rows)):
            raise Error(f"{path}, {where}: has {len(rows)} {asks} and {len(column)} {name}; "
                        "columns side by side need the same rows")
    return [(f"record {n}", {name: column[row] for name, column in columns.items()})
            for n, row in enumerate(rows, 1)]


def _asks(name: str) -> bool:
    return str(name).strip().lower() in FIELDS["question"]


def _asks_text(row: dict) -> bool:
    return any(_asks(name) and isinstance(text, str) for name, text in row.items())


def _split(path: Path, value: dict) -> list[list]:
    columns, rows = value["columns"], value["data"]
    if not isinstance(columns, list) or not isinstance(rows, list):
        raise Error(f"{path}: its columns and data must be lists, as pandas writes them")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list) or len(row) != len(columns):
            raise Error(f"{path}, row {number}: needs one value for each of {len(columns)} columns")
    return rows


def _table(path: Path, text: str) -> Iterator[Raw]:
    """Rows of CSV or TSV. The separator is the one that gives a column with questions."""
    csv.field_size_limit(1 << 24)
    separators = "\t" if path.suffix.lower() == ".tsv" else ",;\t"
    reader, header = next(
        (made for made in map(_opener(text), separators) if set(made[1]) & set(FIELDS["question"])),
        _opener(text)(separators[0]))
    try:
        if not set(header) & set(FIELDS["question"]):
            raise Error(f"{path}: its columns are {', '.join(header) or 'missing'}; "
                        f"one must be {' or '.join(FIELDS['question'])}")
        if twice := next((name for name in header if name and header.count(name) > 1), ""):
            raise Error(f"{path}: its header has the column {twice!r} twice; keep one")
        for number, row in enumerate(reader, 1):
            where = f"{path}, row {number} (line {reader.line_num})"
            if None in row:
                raise Error(f"{where}: has more fields than the header")
            if None in row.values():
                raise Error(f"{where}: has fewer fields than the header")
            yield f"row {number}", row
    except csv.Error as error:
        raise Error(f"{path}, line {reader.line_num}: is not valid CSV ({error})") from None


def _opener(text: str) -> Callable[[str], tuple[csv.DictReader, list[str]]]:
    def opened(separator: str) -> tuple[csv.DictReader, list[str]]:
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
        try:
            names = reader.fieldnames or ()
        except csv.Error:
            names = ()
        return reader, [str(name).strip().lower() for name in names]
    return opened
