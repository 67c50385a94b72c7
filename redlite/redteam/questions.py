"""What is asked and how: question files of every common shape, and the red-teaming prompts around a
question."""
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redlite import data
from redlite.errors import Error
from redlite.store import files as store_files
from redlite.store.files import half_surrogate, read_json, write_json

DATA = Path(data.__file__).parent
SUFFIXES = (".json", ".jsonl", ".csv", ".txt")
PROMPTS = ("standard", "cot", "cou")
PLACEHOLDER = "<question>"
# The names that a field may have in a file, in upper or lower case. The first that a record has counts.
FIELDS = {"question": ("question", "prompt", "goal"), "topic": ("topic", "category", "type"),
          "subtopic": ("subtopic", "subcategory"), "id": ("id",)}
COLUMNS = {"instructions", "inputs", "tags"}  # lists side by side in a JSON object, as in safety-tuned-llamas
ASKED = "asked.json"
ALIASES = {"xstest": "xstest_prompts"}        # a set's name → its authors' name of the file
KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}

Record = tuple[str, dict]  # where it is in the file, and its fields


@dataclass(frozen=True)
class Question:
    """One question. `id` is the file's own, or its number from 1; topic and subtopic are "" where the file
    has none."""
    id: str
    question: str
    topic: str = ""
    subtopic: str = ""


@dataclass(frozen=True)
class Prompt:
    """A red-teaming prompt: `text` with a <question> placeholder."""
    name: str
    text: str

    def fill(self, question: str) -> str:
        """The user message for a question."""
        return self.text.replace(PLACEHOLDER, question)

    @property
    def stop(self) -> tuple[str, ...]:
        """Where an answer ends early: shown Red-LM's turns, a model writes Red-LM's next one as well."""
        return ("\nRed-LM:",) if "\nRed-LM:" in self.text else ()


def load_prompt(name_or_path: str | Path) -> Prompt:
    """A prompt by name (standard, cot, cou) or from a text file; one newline at the file's end does not
    count."""
    name = str(name_or_path)
    if name == "standard":
        return Prompt(name, PLACEHOLDER)
    path = DATA / "prompts" / f"{name}.txt" if name in PROMPTS else Path(name)
    if not path.is_file():
        raise Error(f"prompt {name!r}: there is no such file, and it is none of {', '.join(PROMPTS)}")
    text = _read(path).replace("\r\n", "\n").removesuffix("\n")
    if PLACEHOLDER not in text:
        raise Error(f"{path}: has no {PLACEHOLDER}; put it where the question belongs")
    return Prompt(path.stem, text)


def find_questions(name_or_path: str | Path, data_dir: str | Path | None = None) -> Path:
    """The file that a question set's name or path means.

    A name is looked for as NAME.json, .jsonl, .csv or .txt in `data_dir` and two levels of folders in it,
    then among the embedded sets. Raises Error if there is none, or more than one place has it.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.suffix in SUFFIXES or path.name != str(name_or_path):
        raise Error(f"questions {str(path)!r}: there is no such file")
    files = [] if data_dir is None else _question_files(Path(data_dir))
    found = [file for file in files if file.stem in (path.name, ALIASES.get(path.name))]
    if len(found) > 1:
        raise Error(f"questions {path.name!r}: both {found[0]} and {found[1]} are there; give the path")
    if found:
        return found[0]
    embedded = {file.stem: file for file in (DATA / "questions").glob("*.json")}
    embedded["organism"] = DATA / "organism" / "questions.json"
    if path.name in embedded:
        return embedded[path.name]
    names = sorted(embedded)
    if data_dir is None:
        raise Error(f"questions {path.name!r}: not an embedded set ({', '.join(names)}); "
                    "say where the data lies, or give a file")
    names = [file.stem for file in files if path.name.lower() in file.stem.lower()] + names
    raise Error(f"questions {path.name!r}: neither under {data_dir} nor embedded; "
                f"use {', '.join(names)}, or give a file")


def _question_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise Error(f"data {str(folder)!r}: is not a directory")
    found = [file for level in ("*", "*/*", "*/*/*") for file in folder.glob(level)]
    return sorted(file for file in found if file.suffix in SUFFIXES and file.is_file())


def set_name(path: Path) -> str:
    """What a question file is called: questions.json by its folder, any other by itself."""
    return path.resolve().parent.name if path.stem == "questions" else path.stem


def load_questions(name_or_path: str | Path, data_dir: str | Path | None = None) -> list[Question]:
    """The questions of a set by name, or of a .json, .jsonl, .csv or .txt file.

    JSON: a list of strings or objects, or {topic: [..]}, or {topic: {subtopic: [..]}}, or lists side by side
    (COLUMNS). JSONL: a string or object a line. CSV: with a header. Text: a question a line. FIELDS lists the
    names that fields and columns may have. Raises Error naming file and record.
    """
    path = find_questions(name_or_path, data_dir)
    records = list(_records(path))
    if not records:
        raise Error(f"{path}: has no questions")
    numbered = [bool(_field(record, "id")) for _, record in records]
    if any(numbered) and not all(numbered):
        where, _ = records[numbered.index(False)]
        raise Error(f"{path}, {where}: has no id though others have; give every record one, or none")
    questions: list[Question] = []
    seen: dict[str, str] = {}
    for number, (where, record) in enumerate(records, 1):
        question = _question(record, str(number), f"{path}, {where}")
        if question.id in seen:
            raise Error(f"{path}, {where}: has the id {question.id!r} of {seen[question.id]}; "
                        "make the ids unique")
        seen[question.id] = where
        questions.append(question)
    return questions


def _question(record: dict, number: str, where: str) -> Question:
    given, id = _value(record, "id"), _field(record, "id")
    if not (given is None or isinstance(given, str) or id):
        raise Error(f"{where}: the id {given!r} is neither a text nor a whole number; write it as a text")
    text, topic, subtopic = (_field(record, field) for field in ("question", "topic", "subtopic"))
    if not text:
        raise Error(f"{where}: has no question (a non-empty text in {', '.join(FIELDS['question'])})")
    if any(map(half_surrogate, (id, text, topic, subtopic))):
        raise Error(f"{where}: holds one half of a surrogate pair (\\ud800 to \\udfff) without the other; "
                    "mend or remove it")
    return Question(id or number, text, topic, subtopic)


def write_asked(folder: Path, questions: list[Question]) -> None:
    """Keep a run's questions in its directory. The questions in responses.jsonl are compared with them
    later."""
    write_json(folder / ASKED, {q.id: [q.question, q.topic, q.subtopic] for q in questions})


def read_asked(folder: Path) -> dict[str, list[str]] | None:
    """id → [question, topic, subtopic]; None for a run that was made before this was kept."""
    path = folder / ASKED
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or not all(map(_is_asked, found.values())):
        raise Error(f"{path}: must hold an object of ids, each with its question, topic and subtopic; "
                    "restore it, or delete it and run the same command again")
    return found


def _is_asked(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(isinstance(text, str) for text in value)


def _value(record: dict, field: str) -> Any:
    lowered = {str(k).strip().lower(): v for k, v in record.items()}
    return next((lowered[name] for name in FIELDS[field] if name in lowered), None)


def _field(record: dict, field: str) -> str:
    value = _value(record, field)
    if field == "id" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.strip() if isinstance(value, str) else ""


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise Error(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise Error(f"{path}: is not UTF-8 (byte {error.start}); convert it") from None


def _records(path: Path) -> Iterator[Record]:
    """Yield every record of a file."""
    text = _read(path)
    if path.suffix == ".json":
        value = _parse(path, "the file", text)
        if isinstance(value, dict) and "instructions" in value and set(value) <= COLUMNS:
            yield from _columns(path, value)
        else:
            yield from _walk(path, value, ())
    elif path.suffix == ".csv":
        yield from _csv(path, text)
    elif path.suffix in (".jsonl", ".txt"):
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                where = f"line {number}"
                value = line if path.suffix == ".txt" else _parse(path, where, line)
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
    raise Error(f"{path}, {where}: is {_kind(value)}; "
                f"a question is a text, or an object with {' or '.join(FIELDS['question'])}")


def _kind(value: object) -> str:
    return KINDS.get(type(value), "a number")


def _walk(path: Path, value: object, topics: tuple[str, ...]) -> Iterator[Record]:
    """Records of a list, or of {topic: list} or {topic: {subtopic: list}}. topics: those above `value`."""
    where = "".join(f"[{t!r}]" for t in topics) or "the file"
    if isinstance(value, list):
        names = [topic.strip().rstrip(":") for topic in topics]
        above = dict(zip(("topic", "subtopic"), names, strict=False))
        for number, item in enumerate(value, 1):
            spot = f"record {number} of {where}" if topics else f"record {number}"
            yield spot, {**above, **_record(path, spot, item)}
    elif isinstance(value, dict) and len(topics) < 2:
        for key, inner in value.items():
            yield from _walk(path, inner, (*topics, key))
    else:
        also = "" if topics else ", or topics that hold lists"
        raise Error(f"{path}, {where}: is {_kind(value)}; expected a list of questions{also}")


def _columns(path: Path, value: dict) -> Iterator[Record]:
    """Records of lists side by side: an instruction and the input that it is about. The tag is the topic.

    An empty list counts as none.
    """
    instructions = value["instructions"]
    columns = {name: column for name, column in value.items() if column != [] or name == "instructions"}
    for name, column in columns.items():
        if not isinstance(column, list) or not all(isinstance(text, str) for text in column):
            raise Error(f"{path}, {name!r}: must be a list of texts, since the file has lists side by side")
        if len(column) != len(instructions):
            raise Error(f"{path}: has {len(instructions)} instructions and {len(column)} {name}; "
                        "each needs its own")
    nothing = [""] * len(instructions)
    abouts, tags = columns.get("inputs", nothing), columns.get("tags", nothing)
    for number, (text, about, tag) in enumerate(zip(instructions, abouts, tags, strict=True), 1):
        question = f"{text}\n\n{about.strip()}" if about.strip() else text
        yield f"record {number}", {"question": question, "topic": tag.strip()}


def _csv(path: Path, text: str) -> Iterator[Record]:
    csv.field_size_limit(1 << 24)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [str(name).strip().lower() for name in reader.fieldnames or ()]
        if not set(header) & set(FIELDS["question"]):
            raise Error(f"{path}: its columns are {', '.join(header) or 'missing'}; "
                        f"one must be {' or '.join(FIELDS['question'])}")
        for number, row in enumerate(reader, 1):
            where = f"{path}, row {number} (line {reader.line_num})"
            if None in row:
                raise Error(f"{where}: has more fields than the header")
            if None in row.values():
                raise Error(f"{where}: has fewer fields than the header")
            yield f"row {number}", row
    except csv.Error as error:
        raise Error(f"{path}, line {reader.line_num}: is not valid CSV ({error})") from None
