"""The files of a RED-EVAL run, read and checked."""
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from sys import intern
from types import NoneType
from typing import BinaryIO, NamedTuple

from redlite.errors import Error
from redlite.judges import combine
from redlite.judges.verdict import LABELS
from redlite.redteam.questions import ASKED, read_asked
from redlite.store.files import read_json
from redlite.store.records import Kind, each_line, parse, require
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
    "ended": (str, NoneType), "copied": (int, float, NoneType)}
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


class Records(Mapping[AnswerKey, dict]):
    """Records of a journal, which stay in its file: memory holds keys and places, and the last one read.

    A million answers take some 0.2 GB so, and several GB as dicts.
    """

    def __init__(self, path: Path, places: dict[AnswerKey, int]):
        """
        path    the journal
        places  of the records' lines in it, in bytes
        """
        self.path, self._places = path, places
        self._file: BinaryIO | None = None
        self._last: tuple[AnswerKey | None, dict] = (None, {})

    def add(self, key: AnswerKey, place: int) -> None:
        """Take in a record, new or in place of an earlier one, whose line is in the file."""
        self._places[key] = place
        self._last = (None, {})

    def in_order(self, keys: Iterable[AnswerKey]) -> "Records":
        """These of the records, in this order."""
        return Records(self.path, {key: self._places[key] for key in keys})

    def __getitem__(self, key: AnswerKey) -> dict:
        if key != self._last[0]:
            place = self._places[key]
            if self._file is None:
                self._file = open(self.path, "rb")      # noqa: SIM115 (__del__ closes it)
            self._file.seek(place)
            record = parse(self._file.readline())
            if record is None:
                raise Error(f"{self.path}: was changed while it was read; run the command again")
            self._last = key, record
        return self._last[1]

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[AnswerKey]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()


class Combined(Mapping[AnswerKey, dict]):
    """The combined judgments of a panel, made as they are read: of the answers that all its judges judged."""

    def __init__(self, name: str, found: Sequence[Mapping[AnswerKey, dict]]):
        self.name, self.found = name, found
        self.keys_of_all = dict.fromkeys(key for key in found[0] if all(key in own for own in found))

    def __getitem__(self, key: AnswerKey) -> dict:
        if key not in self.keys_of_all:
            raise KeyError(key)
        return combine.combined(self.name, [own[key] for own in self.found])

    def __contains__(self, key: object) -> bool:
        return key in self.keys_of_all

    def __iter__(self) -> Iterator[AnswerKey]:
        return iter(self.keys_of_all)

    def __len__(self) -> int:
        return len(self.keys_of_all)


@dataclass
class RunJournals:
    """What the journals of a run directory hold. A command reads them once and keeps this up as it adds to
    them.

    answers    records of responses.jsonl; one that ended in "error" gives way to a later one
    judgments  the judge's name → records of judgments.jsonl
    """
    folder: Path
    answers: Records
    judgments: dict[str, Records]

    def judged_by(self, judge: str) -> Mapping[AnswerKey, dict]:
        """One judge's judgments, or the combined ones of a panel; {} if there are none."""
        nothing: Mapping[AnswerKey, dict] = {}
        found = [self.judgments.get(name, nothing) for name in combine.judges_of(judge)]
        if judge in self.judgments or not found:
            return self.judgments.get(judge, nothing)
        return Combined(judge, found)


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
    answers, path = _answers(place, folder), folder / JUDGMENTS
    judgments: dict[str, dict[AnswerKey, int]] = {}
    for number, (record, start) in enumerate(_lines(place, JUDGMENTS), 1):
        where = f"{path}, line {number}"
        require(record, JUDGMENT, where, MEND)
        _add(judgments.setdefault(record["judge"], {}), record, start, where)
    return RunJournals(folder, answers, {judge: Records(path, own) for judge, own in judgments.items()})


def _answers(place: Run | Path, folder: Path) -> Records:
    answers: dict[AnswerKey, int] = {}
    failed: set[AnswerKey] = set()      # what may be there once more
    kept = read_asked(folder)
    asked = dict(kept or {})
    for number, (record, start) in enumerate(_lines(place, RESPONSES), 1):
        where = f"{folder / RESPONSES}, line {number}"
        require(record, ANSWER, where, MEND)
        question = [record[field] for field in ("question", "topic", "subtopic")]
        known = kept is None or record["id"] in kept
        if not known or asked.setdefault(record["id"], question) != question:
            against = "a line before" if kept is None else ASKED
            raise Error(f"{where}: the id {record['id']!r} belongs to another question, or to none, "
                        f"in {against}; {MEND}")
        key = _add(answers, record, start, where, failed)
        if record["finish"] == "error":
            failed.add(key)
        else:
            failed.discard(key)
    return Records(folder / RESPONSES, answers)


def _lines(place: Run | Path, name: str) -> Iterator[tuple[dict, int]]:
    """Each record of a journal, with the place of its line."""
    if isinstance(place, Run):
        return place.each(name)
    return ((record, start) for record, start, _ in each_line(Path(place) / name))


def _add(places: dict[AnswerKey, int], record: dict, start: int, where: str,
         replaceable: Collection[AnswerKey] = ()) -> AnswerKey:
    key = AnswerKey(intern(record["id"]), intern(record["prompt"]), record["sample"])
    if key in places and key not in replaceable:
        raise Error(f"{where}: holds {key} a second time; delete one of the two lines")
    places[key] = start
    return key
