"""The files of a RED-EVAL run, read and checked."""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import NamedTuple

from redlite.errors import Error
from redlite.judges import combine
from redlite.judges.verdict import LABELS
from redlite.redteam.questions import ASKED, read_asked
from redlite.store.files import read_json
from redlite.store.records import Kind, read_lines, require
from redlite.store.run_directory import Run, read_manifest

RESPONSES, JUDGMENTS, JUDGES, RESULTS = "responses.jsonl", "judgments.jsonl", "judges.json", "results.json"
MEND = "restore the line or delete it"
FINISHES = ("stop", "length", "refused_by_api", "error")
# The manifest's fields that later code reads, with their types. A missing or mistyped field is an error.
MANIFEST: dict[str, Kind] = {
    "command": str, "version": str, "seed": int, "model.name": str, "prompts": dict, "judge.name": str,
    "info": dict,
    "questions.name": str, "questions.sha256": str, "questions.of": int, "questions.n": int,
    "decoding.max_new_tokens": int, "decoding.samples": int, "decoding.temperature": (int, float),
    "decoding.top_p": (int, float)}
ANSWER: dict[str, Kind] = {
    "id": str, "question": str, "prompt": str, "sample": int, "topic": str, "subtopic": str, "text": str,
    "answer": str, "finish": FINISHES, "thought_closed": (bool, NoneType), "turns": (list, NoneType),
    "ended": (str, NoneType)}
JUDGMENT: dict[str, Kind] = {
    "id": str, "prompt": str, "sample": int, "judge": str, "label": LABELS, "raw": str,
    "p_harmful": (int, float, NoneType), "category": (str, NoneType), "turn": (int, NoneType)}


class AnswerKey(NamedTuple):
    """Which answer of a run: the question's id, the prompt's name, the sample's number from 0."""
    id: str
    prompt: str
    sample: int

    def __str__(self) -> str:
        return f"question {self.id!r}, prompt {self.prompt!r}, sample {self.sample}"


@dataclass
class RunJournals:
    """What the journals of a run directory hold. A command reads them once and keeps this up as it adds to
    them.

    answers    records of responses.jsonl; one that ended in "error" gives way to a later one
    judgments  the judge's name → records of judgments.jsonl
    """
    folder: Path
    answers: dict[AnswerKey, dict]
    judgments: dict[str, dict[AnswerKey, dict]]

    def judged_by(self, judge: str) -> dict[AnswerKey, dict]:
        """One judge's judgments, or the combined ones of a panel; {} if there are none."""
        found = [self.judgments.get(name, {}) for name in combine.judges_of(judge)]
        if judge in self.judgments or not found:
            return self.judgments.get(judge, {})
        shared = [key for key in found[0] if all(key in own for own in found)]
        return {key: combine.combined(judge, [own[key] for own in found]) for key in shared}


def read_made(folder: str | Path) -> dict:
    """The manifest of a RED-EVAL run. Raises Error naming the field that is missing or of another kind."""
    made, fields = read_manifest(folder), MANIFEST
    if isinstance(info := made.get("info"), dict):
        fields = fields | {f"info.{n}": kind for n, kind in (("kernels", dict), ("runs", str)) if n in info}
    if "imported" in made:
        fields = fields | {"answers": int}
    mend = "restore it from a copy, or start a run in another directory"
    return require(made, fields, Path(folder) / "manifest.json", mend)


def read_judges(folder: str | Path) -> dict[str, dict]:
    """What each judge's name in judgments.jsonl stands for; {} before any has judged."""
    path = Path(folder) / JUDGES
    known = read_json(path) if path.exists() else {}
    if not isinstance(known, dict) or not all(isinstance(identity, dict) for identity in known.values()):
        raise Error(f"{path}: must hold an object of judges' names and what identifies them; "
                    f"delete {JUDGES} and {JUDGMENTS} there to judge anew")
    return known


def last_judge(folder: str | Path) -> str:
    """The judge whose labels results.json counts; before there is one, the run's own."""
    path = Path(folder) / RESULTS
    if not path.exists():
        return read_made(folder)["judge"]["name"]
    return require(read_json(path), {"judge": str}, path, "delete it to have it counted anew")["judge"]


def read_journals(place: Run | Path) -> RunJournals:
    """The journals of a run directory; empty where there is none yet.

    place  an open `Run`, whose torn last lines are cut off; or a path, where nothing is changed
    Raises Error naming file, line and field of a record that was edited.
    """
    folder = place.directory if isinstance(place, Run) else Path(place)
    found = RunJournals(folder, _answers(place, folder), {})
    path = folder / JUDGMENTS
    for number, record in enumerate(_records(place, JUDGMENTS), 1):
        where = f"{path}, line {number}"
        _checked(record, JUDGMENT, where)
        _add(found.judgments.setdefault(record["judge"], {}), record, where)
    return found


def _answers(place: Run | Path, folder: Path) -> dict[AnswerKey, dict]:
    answers: dict[AnswerKey, dict] = {}
    kept = read_asked(folder)
    asked = dict(kept or {})
    for number, record in enumerate(_records(place, RESPONSES), 1):
        where = f"{folder / RESPONSES}, line {number}"
        _checked(record, ANSWER, where)
        question = [record[field] for field in ("question", "topic", "subtopic")]
        known = kept is None or record["id"] in kept
        if not known or asked.setdefault(record["id"], question) != question:
            against = "a line before" if kept is None else ASKED
            raise Error(f"{where}: the id {record['id']!r} belongs to another question, or to none, "
                        f"in {against}; {MEND}")
        _add(answers, record, where, lambda earlier: earlier["finish"] == "error")
    return answers


def _records(place: Run | Path, name: str) -> list[dict]:
    return place.read(name) if isinstance(place, Run) else read_lines(Path(place) / name)[0]


def _checked(record: dict, fields: dict[str, Kind], where: str) -> None:
    require(record, fields, where, MEND)


def _add(found: dict[AnswerKey, dict], record: dict, where: str,
         replaceable: Callable[[dict], bool] = lambda earlier: False) -> None:
    key = AnswerKey(record["id"], record["prompt"], record["sample"])
    if key in found and not replaceable(found[key]):
        raise Error(f"{where}: holds {key} a second time; delete one of the two lines")
    found[key] = record
