"""What is asked and how: question files of every common shape, and the red-teaming prompts around a question."""
import csv
import io
from dataclasses import dataclass
from pathlib import Path

from redlite import data
from redlite.errors import Error
from redlite.store import files as store_files
from redlite.store.files import half_surrogate, read_json, write_json

DATA = Path(data.__file__).parent
SUFFIXES = (".json", ".jsonl", ".csv", ".txt")
PROMPTS = ("standard", "cot", "cou")
PLACEHOLDER = "<question>"
# Field names that are understood, in any case; of several that a record has, the first here counts.
FIELDS = {"question": ("question", "prompt", "goal"), "topic": ("topic", "category", "type"), "subtopic": ("subtopic", "subcategory"), "id": ("id",)}
COLUMNS = {"instructions", "inputs", "tags"}  # of a JSON object that holds lists side by side, as safety-tuned-llamas has them
ASKED = "asked.json"
ALIASES = {"xstest": "xstest_prompts"}        # a set's name where its authors' file has another


@dataclass(frozen=True)
class Question:
    """One question. `id` is the file's own, or its number from 1; topic and subtopic are "" where the file has none."""
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
        """Where generation ends early: a prompt that shows Red-LM's turns makes models write the next one as well."""
        return ("\nRed-LM:",) if "\nRed-LM:" in self.text else ()


def load_prompt(name_or_path) -> Prompt:
    """A prompt by name (standard, cot, cou) or from a text file; one newline at the file's end does not count."""
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


def find_questions(name_or_path, data_dir=None) -> Path:
    """The file that a question set's name or path means.

    A name is looked for as NAME.json, .jsonl, .csv or .txt in `data_dir` and two levels of folders in it, then among the
    embedded sets. Raises Error if there is none, or more than one place has it.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.suffix in SUFFIXES or path.name != str(name_or_path):
        raise Error(f"questions {str(path)!r}: there is no such file")
    if data_dir is not None:
        root = Path(data_dir)
        if not root.is_dir():
            raise Error(f"--data {str(root)!r}: is not a directory")
        files = sorted(p for level in ("*", "*/*", "*/*/*") for p in root.glob(level) if p.suffix in SUFFIXES and p.is_file())
        found = [p for p in files if p.stem in (path.name, ALIASES.get(path.name))]
        if len(found) > 1:
            raise Error(f"questions {path.name!r}: both {found[0]} and {found[1]} are there; give the path")
        if found:
            return found[0]
    embedded = {p.stem: p for p in (DATA / "questions").glob("*.json")} | {"organism": DATA / "organism" / "questions.json"}
    if path.name in embedded:
        return embedded[path.name]
    if data_dir is None:
        raise Error(f"questions {path.name!r}: not an embedded set ({', '.join(sorted(embedded))}); say with --data where it lies, or give a file")
    alike = [p.stem for p in files if path.name.lower() in p.stem.lower()]
    raise Error(f"questions {path.name!r}: neither under {data_dir} nor embedded; use {', '.join([*alike, *sorted(embedded)])}, or give a file")


def set_name(path: Path) -> str:
    """What a question file is called: questions.json by its folder, any other by itself."""
    return path.resolve().parent.name if path.stem == "questions" else path.stem


def load_questions(name_or_path, data_dir=None) -> list[Question]:
    """The questions of a set by name, or of a .json, .jsonl, .csv or .txt file.

    JSON: a list of strings or objects, or {topic: [..]}, or {topic: {subtopic: [..]}}, or lists side by side (COLUMNS).
    JSONL: a string or object a line. CSV: with a header. Text: a question a line. FIELDS lists the names that objects and
    columns may have.
    Raises Error naming file and record.
    """
    path = find_questions(name_or_path, data_dir)
    records = list(_records(path))
    if not records:
        raise Error(f"{path}: has no questions")
    numbered = [bool(_field(r, "id")) for _, r in records]
    if any(numbered) and not all(numbered):
        raise Error(f"{path}, {records[numbered.index(False)][0]}: has no id though others have; give every record one, or none")
    questions, seen = [], {}
    for number, (where, record) in enumerate(records, 1):
        given = _value(record, "id")
        if not (given is None or isinstance(given, str) or _field(record, "id")):
            raise Error(f"{path}, {where}: the id {given!r} is neither a text nor a whole number; write it as a text")
        text = _field(record, "question")
        if not text:
            raise Error(f"{path}, {where}: has no question (a non-empty text in {', '.join(FIELDS['question'])})")
        if any(half_surrogate(_field(record, field)) for field in FIELDS):
            raise Error(f"{path}, {where}: holds half of a surrogate pair (\\ud800 to \\udfff), which is no character; mend or remove it")
        question = Question(_field(record, "id") or str(number), text, _field(record, "topic"), _field(record, "subtopic"))
        if question.id in seen:
            raise Error(f"{path}, {where}: has the id {question.id!r} of {seen[question.id]}; make the ids unique")
        seen[question.id] = where
        questions.append(question)
    return questions


def write_asked(folder: Path, questions: list[Question]) -> None:
    """Keep in a run directory what is asked there, so that what answers say of their questions can be held against it."""
    write_json(folder / ASKED, {q.id: [q.question, q.topic, q.subtopic] for q in questions})


def read_asked(folder: Path) -> dict[str, list[str]] | None:
    """id → [question, topic, subtopic]; None for a run that was made before this was kept."""
    path = folder / ASKED
    found = read_json(path) if path.exists() else None
    if path.exists() and not (isinstance(found, dict) and all(isinstance(q, list) and len(q) == 3 and all(isinstance(t, str) for t in q) for q in found.values())):
        raise Error(f"{path}: must hold an object of ids, each with its question, topic and subtopic; restore it, or delete it and run the same command again")
    return found


def _value(record: dict, field: str):
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


def _records(path: Path):
    """Yield (where in the file, {"question": …, …}) for every record."""
    text = _read(path)
    if path.suffix == ".json":
        value = _parse(path, "the file", text)
        beside = isinstance(value, dict) and "instructions" in value and set(value) <= COLUMNS
        yield from _columns(path, value) if beside else _walk(path, value)
    elif path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"line {number}", _record(path, f"line {number}", _parse(path, f"line {number}", line))
    elif path.suffix == ".csv":
        yield from _csv(path, text)
    elif path.suffix == ".txt":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield f"line {number}", {"question": line}
    else:
        raise Error(f"{path}: questions come as {', '.join(SUFFIXES)}; rename or convert the file")


def _parse(path: Path, where: str, text: str):
    try:
        return store_files.loads(text)
    except ValueError as error:
        raise Error(f"{path}, {where}: is not valid JSON ({error})") from None


def _record(path: Path, where: str, value) -> dict:
    if not isinstance(value, (str, dict)):
        raise Error(f"{path}, {where}: is {_kind(value)}; a question is a text, or an object with {' or '.join(FIELDS['question'])}")
    return {"question": value} if isinstance(value, str) else value


def _kind(value) -> str:
    return {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")


def _walk(path: Path, value, topics: tuple[str, ...] = ()):
    """Records of a list, or of {topic: list} or {topic: {subtopic: list}}."""
    where = "".join(f"[{t!r}]" for t in topics) or "the file"
    if isinstance(value, list):
        for number, item in enumerate(value, 1):
            spot = f"record {number}" + (f" of {where}" if topics else "")
            yield spot, {**dict(zip(("topic", "subtopic"), (t.strip().rstrip(":") for t in topics))), **_record(path, spot, item)}
    elif isinstance(value, dict) and len(topics) < 2:
        for key, inner in value.items():
            yield from _walk(path, inner, (*topics, key))
    else:
        raise Error(f"{path}, {where}: is {_kind(value)}; expected a list of questions" + ("" if topics else ", or topics that hold lists"))


def _columns(path: Path, value: dict):
    """Records of lists side by side: an instruction with the input that it is about; the tag is the topic. An empty list is none."""
    value = {name: column for name, column in value.items() if column != [] or name == "instructions"}
    for name, column in value.items():
        if not isinstance(column, list) or not all(isinstance(v, str) for v in column):
            raise Error(f"{path}, {name!r}: must be a list of texts, since the file has lists side by side")
        if len(column) != len(value["instructions"]):
            raise Error(f"{path}: has {len(value['instructions'])} instructions and {len(column)} {name}; each needs its own")
    for number, instruction in enumerate(value["instructions"]):
        about, tag = (value[name][number].strip() if name in value else "" for name in ("inputs", "tags"))
        yield f"record {number + 1}", {"question": f"{instruction}\n\n{about}" if about else instruction, "topic": tag}


def _csv(path: Path, text: str):
    csv.field_size_limit(1 << 24)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [str(name).strip().lower() for name in reader.fieldnames or ()]
        if not set(header) & set(FIELDS["question"]):
            raise Error(f"{path}: its columns are {', '.join(header) or 'missing'}; one must be {' or '.join(FIELDS['question'])}")
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                raise Error(f"{path}, row {number} (line {reader.line_num}): has {'more' if None in row else 'fewer'} fields than the header")
            yield f"row {number}", row
    except csv.Error as error:
        raise Error(f"{path}, line {reader.line_num}: is not valid CSV ({error})") from None
