"""Answers that other programs collected, as a run directory: to be judged, labelled and compared here.

Read are garak's report.jsonl, PyRIT's message pieces (its memory exports, JSON or CSV), promptfoo's results
(JSON, JSONL) and HarmBench's completions JSON. The other program's own verdicts are left out: the answers are
judged anew.
"""
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from redlite import __version__
from redlite.answer import Answer
from redlite.errors import Error
from redlite.redteam import redeval
from redlite.redteam.journals import RESPONSES, AnswerKey
from redlite.redteam.questions import Question, write_asked
from redlite.store.files import read_json, sha256_file, sha256_json
from redlite.store.records import read_lines
from redlite.store.run_directory import Run

OTHERS = ("garak", "pyrit", "promptfoo", "harmbench")
UNNAMED = "imported"    # the prompt's name where the file names no attack


class Item(NamedTuple):
    """One answer.

    id      of the question, "" where the file has none
    attack  the probe or strategy behind it
    finish  as in responses.jsonl: "stop", or "refused_by_api" where a filter took the answer away
    model   what answered, "" where the file does not say it
    """
    id: str
    question: str
    attack: str
    text: str
    topic: str = ""
    finish: str = "stop"
    model: str = ""


class Collected(NamedTuple):
    """What a file holds. lost: answers without a text, which the other program failed to get."""
    program: str
    items: list[Item]
    lost: int


def read(path: Path, program: str | None = None, provider: str | None = None) -> Collected:
    """The answers of a file.

    program   of `OTHERS`; None: the one that the file looks like
    provider  whose answers, where the file holds those of several models
    Raises Error naming the file and the record that is none of its program's, or the models.
    """
    if not path.is_file():
        raise Error(f"{path}: there is no such file")
    records = _records(path)
    name = program or next((one for one, (_, fits) in READERS.items() if fits(records)), None)
    if name is None:
        raise Error(f"{path}: is no file of {', '.join(OTHERS)} that is known here; "
                    "write the answers as CSV with question, answer, label and use `redeval agreement`, "
                    "or name the program")
    found: list[Item | None] = READERS[name][0](path, records)
    items = [item for item in found if item is not None]
    models = sorted({item.model for item in items})
    if provider is not None and provider not in models:
        raise Error(f"{path}: holds no answer of {provider!r}; it has {', '.join(models)}", "provider")
    if provider is None and len(models) > 1:
        raise Error(f"{path}: holds answers of {', '.join(models)}, and a run is of one model; name one",
                    "provider")
    items = [item for item in items if provider in (None, item.model)]
    if not items:
        raise Error(f"{path}: holds no answer in {name}'s format")
    return Collected(name, items, found.count(None))


def _records(path: Path) -> Any:
    if path.suffix.lower() == ".jsonl":
        return read_lines(path)[0]
    if path.suffix.lower() == ".csv":
        csv.field_size_limit(1 << 24)
        try:
            with open(path, newline="", encoding="utf-8-sig") as file:
                return list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise Error(f"{path}: cannot be read as CSV in UTF-8 ({error})") from None
    return read_json(path)


def _rows(path: Path, records: Any, program: str) -> list[dict]:
    """The records, each of which is an object; Error for a file that is built otherwise."""
    if not isinstance(records, list):
        raise Error(f"{path}: is no file of {program}, which holds a list of records")
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise Error(f"{path}, record {number}: is no object; import what {program} itself wrote")
    return records


def _first(records: Any) -> dict:
    """The first record of a list, {} where there is none."""
    return records[0] if isinstance(records, list) and records and isinstance(records[0], dict) else {}


# garak

def _is_garak(records: Any) -> bool:
    return "entry_type" in _first(records)


def _garak(path: Path, records: Any) -> list[Item | None]:
    """An attempt is written when it is answered and again when it is judged: the last one counts."""
    rows = _rows(path, records, "garak")
    attempts = {str(r.get("uuid")): r for r in rows if r.get("entry_type") == "attempt"}
    model = _garak_model(rows)
    found: list[Item | None] = []
    for id, r in attempts.items():
        where = f"{path}, attempt {id}"
        question, attack = _garak_text(r.get("prompt"), where), str(r.get("probe_classname") or UNNAMED)
        outputs = r.get("outputs") or r.get("responses")
        if not isinstance(outputs, list):
            raise Error(f"{where}: outputs is no list; import what garak itself wrote")
        for output in outputs:
            text = None if output is None else _garak_text(output, where)
            asked = question is not None and text is not None
            item = Item(id, question or "", attack, text or "", model=model)
            found.append(item if asked else None)
    return found


def _garak_model(rows: list[dict]) -> str:
    """What answered, by the set-up that stands first: target_name since garak 0.13, model_name before."""
    setup = next((r for r in rows if r.get("entry_type") == "start_run setup"), {})
    fields = ("target_name", "model_name", "target_type", "model_type")
    named = [setup.get(f"plugins.{name}") for name in fields]
    return next((name for name in named if isinstance(name, str) and name), "")


def _garak_text(value: Any, where: str) -> str | None:
    """A text, a message's text, or that of a conversation's last user's turn; None for an image or alike."""
    if isinstance(value, dict) and isinstance(value.get("turns"), list):
        asked = [turn for turn in value["turns"] if isinstance(turn, dict) and turn.get("role") == "user"]
        value = asked[-1].get("content") if asked else None
    if isinstance(value, dict) and "text" in value:
        value = value["text"]
        if value is None:
            return None
    if not isinstance(value, str):
        raise Error(f"{where}: has no text where a message should be; import what garak itself wrote")
    return value


# PyRIT

def _is_pyrit(records: Any) -> bool:
    return {"conversation_id", "role", "converted_value"} <= set(_first(records))


def _pyrit(path: Path, records: Any) -> list[Item | None]:
    """Every answer of a conversation, with the user's message before it as it was before converters.

    A message may have several pieces: its texts belong together, and what is no text (an image, a thought)
    is left out. An answer that a filter blocked holds the API's error in place of a text.
    """
    by_conversation: dict[str, dict[int, list[dict]]] = {}
    for r in _rows(path, records, "PyRIT"):
        id = str(r.get("conversation_id"))
        try:
            turn = int(r.get("sequence") or 0)
        except (TypeError, ValueError):
            raise Error(f"{path}, conversation {id}: a sequence is no whole number") from None
        by_conversation.setdefault(id, {}).setdefault(turn, []).append(r)
    found: list[Item | None] = []
    for id, messages in by_conversation.items():
        asked, number = "", 0
        for _, pieces in sorted(messages.items()):
            role = pieces[0].get("role")
            if role == "user":
                asked = _pyrit_text(pieces, "original_value") or _pyrit_text(pieces, "converted_value")
            elif role == "assistant" and asked:
                number += 1
                errors = {r.get("response_error") or "none" for r in pieces}
                text = _pyrit_text(pieces, "converted_value")
                item = Item(f"{id}/{number}", asked, UNNAMED, text)
                if "blocked" in errors:
                    found.append(item._replace(text="", finish="refused_by_api"))
                else:
                    found.append(item if text and errors == {"none"} else None)
    return found


def _pyrit_text(pieces: list[dict], field: str) -> str:
    """The texts of a message's pieces, "" where it has none."""
    texts = [r.get(field) for r in pieces if r.get(f"{field}_data_type") in (None, "", "text")]
    return "\n".join(text for text in texts if isinstance(text, str))


# promptfoo

def _promptfoo_rows(records: Any) -> Any:
    """The results: within results.results or results of an object, or the lines of JSONL."""
    inner = records.get("results") if isinstance(records, dict) else records
    return inner.get("results") if isinstance(inner, dict) else inner


def _is_promptfoo(records: Any) -> bool:
    return bool({"response", "vars"} & set(_first(_promptfoo_rows(records))))


def _promptfoo(path: Path, records: Any) -> list[Item | None]:
    found: list[Item | None] = []
    rows = _promptfoo_rows(records)
    for number, r in enumerate(rows if isinstance(rows, list) else [], 1):
        given, response, told = (_object(r, name) for name in ("vars", "response", "metadata"))
        named = [given[name] for name in ("question", "prompt", "query", "goal") if given.get(name)]
        asked = named[0] if named else _object(r, "prompt").get("raw")
        if not isinstance(asked, str):
            raise Error(f"{path}, result {number}: has no question (a text in vars or in prompt.raw)")
        output = response.get("output")
        told_as_text = isinstance(output, str) or output is None
        text = output if told_as_text else json.dumps(output, ensure_ascii=False)
        attack = str(told.get("strategyId") or _object(r, "prompt").get("label") or UNNAMED)
        topic = str(told.get("pluginId") or "")
        provider = r.get("provider") if isinstance(r, dict) else None
        model = str((provider.get("id") if isinstance(provider, dict) else provider) or "")
        item = Item("", asked, _short(attack), text or "", topic, model=model)
        found.append(None if text is None else item)
    return found


def _object(record: Any, name: str) -> dict:
    value = record.get(name) if isinstance(record, dict) else None
    return value if isinstance(value, dict) else {}


def _short(attack: str) -> str:
    """A prompt's name; promptfoo's label may be a whole template."""
    return attack if len(attack) <= 40 and "\n" not in attack else UNNAMED


# HarmBench

def _is_harmbench(records: Any) -> bool:
    inner = next(iter(records.values()), None) if isinstance(records, dict) else None
    return "generation" in _first(inner)


def _harmbench(path: Path, records: Any) -> list[Item | None]:
    if not isinstance(records, dict):
        raise Error(f"{path}: is no file of HarmBench, which holds an object of behaviours")
    found: list[Item | None] = []
    for behaviour, rows in records.items():
        for number, r in enumerate(rows if isinstance(rows, list) else [], 1):
            r = r if isinstance(r, dict) else {}
            asked, text = r.get("test_case"), r.get("generation")
            if isinstance(asked, list) and asked and isinstance(asked[-1], str):
                asked = asked[-1]       # an image and its text
            if not isinstance(asked, str):
                raise Error(f"{path}, {behaviour!r}, completion {number}: test_case is no text")
            found.append(Item(behaviour, asked, UNNAMED, text) if isinstance(text, str) else None)
    return found


READERS: dict[str, tuple[Callable[[Path, Any], list[Item | None]], Callable[[Any], bool]]] = {
    "garak": (_garak, _is_garak), "pyrit": (_pyrit, _is_pyrit), "promptfoo": (_promptfoo, _is_promptfoo),
    "harmbench": (_harmbench, _is_harmbench)}


# The run

def write(output: Path, path: Path, found: Collected, model: str, command: str,
          questions: dict[str, Question]) -> Run:
    """A run directory of the answers, which is the caller's to close; importing the file again adds nothing.

    model      the name of what answered
    questions  by id, where the file's test cases are not what is to be judged (HarmBench's behaviours)
    """
    placed = _placed(found.items, questions)
    asked = {key.id: question for key, question, _ in placed}
    prompts = {key.prompt: sha256_json(key.prompt) for key, *_ in placed}
    samples = 1 + max(key.sample for key, *_ in placed)
    listed = [[q.id, q.question, q.topic, q.subtopic] for q in asked.values()]
    manifest = {
        "command": command, "version": __version__, "seed": 0, "model": {"name": model},
        "imported": {"program": found.program, "file": path.name, "sha256": sha256_file(path)},
        "answers": len(placed), "prompts": prompts, "system": None, "judge": {"name": "none"},
        "questions": {"name": path.stem, "sha256": sha256_json(listed), "of": len(asked), "n": len(asked)},
        "decoding": {"max_new_tokens": 1, "temperature": 0.0, "top_p": 1.0, "samples": samples}, "info": {}}
    directory = Run(output, manifest)
    write_asked(output, list(asked.values()))
    there = {AnswerKey(r["id"], r["prompt"], r["sample"]) for r in directory.read(RESPONSES)}
    for key, question, item in placed:
        if key not in there:
            answer = Answer(item.text, item.finish, None, None, 0.0)
            directory.append(RESPONSES, redeval.answer_record(key, question, answer))
    return directory


def _placed(items: list[Item], questions: dict[str, Question]) -> list[tuple[AnswerKey, Question, Item]]:
    """Each answer with its key and question. Equal questions share an id, and answers to them are samples."""
    numbers: dict[tuple[str, str], str] = {}
    counts: dict[tuple[str, str], int] = {}
    made: dict[str, Question] = {}
    placed = []
    for item in items:
        known = questions.get(item.id)
        text = known.question if known else item.question
        if (item.id, text) not in numbers:
            name = item.id or str(len(numbers) + 1)
            numbers[item.id, text] = name if name not in made else f"{name}-{len(numbers) + 1}"
        id = numbers[item.id, text]
        sample = counts.get((id, item.attack), 0)
        counts[id, item.attack] = sample + 1
        topic = known.topic if known else item.topic
        question = made.setdefault(id, Question(id, text, topic, known.subtopic if known else ""))
        placed.append((AnswerKey(id, item.attack, sample), question, item))
    return placed
