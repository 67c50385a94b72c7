"""The files of a RED-EVAL run, read and checked."""
from pathlib import Path

from redlite.errors import Error
from redlite.judges.verdict import LABELS
from redlite.redteam.questions import ASKED, read_asked
from redlite.store.files import read_json
from redlite.store.records import read_lines, require
from redlite.store.run_directory import Run, read_manifest

RESPONSES, JUDGMENTS, JUDGES, RESULTS = "responses.jsonl", "judgments.jsonl", "judges.json", "results.json"
# What a manifest of ours holds and what follows relies on, so that an edited one is refused by the field's name.
MADE = {"command": str, "version": str, "seed": int, "model.name": str, "questions.name": str, "questions.sha256": str, "questions.of": int,
        "questions.n": int, "prompts": dict, "judge.name": str, "decoding.max_new_tokens": int, "decoding.samples": int,
        "decoding.temperature": (int, float), "decoding.top_p": (int, float), "info": dict}
FINISHES = ("stop", "length", "refused_by_api", "error")


def read_made(folder) -> dict:
    """The manifest of a RED-EVAL run. Raises Error naming the field that is missing or of another kind."""
    made = read_manifest(folder)
    kernels = {"info.kernels": dict} if isinstance(info := made.get("info"), dict) and "kernels" in info else {}
    return require(made, MADE | kernels, Path(folder) / "manifest.json", "restore it from a copy, or start a run in another --output-dir")


def read_judges(folder) -> dict[str, dict]:
    """What each judge's name in judgments.jsonl stands for; {} before any has judged."""
    path = Path(folder) / JUDGES
    known = read_json(path) if path.exists() else {}
    if not isinstance(known, dict) or not all(isinstance(identity, dict) for identity in known.values()):
        raise Error(f"{path}: must hold an object of judges' names and what identifies them; delete {JUDGES} and {JUDGMENTS} there to judge anew")
    return known


def last_judge(folder) -> str:
    """The judge whose labels results.json counts; before there is one, the run's own."""
    path = Path(folder) / RESULTS
    if not path.exists():
        return read_made(folder)["judge"]["name"]
    return require(read_json(path), {"judge": str}, path, "delete it to have it counted anew")["judge"]


def responses(directory: Run | Path) -> dict[tuple, dict]:
    """The responses of a run by (id, prompt, sample); one that ended in "error" gives way to a later one."""
    kept = read_asked(directory.directory if isinstance(directory, Run) else Path(directory))
    asked = dict(kept or {})

    def key_of(record: dict) -> tuple:
        question = [record[field] for field in ("question", "topic", "subtopic")]
        if kept is not None and record["id"] not in kept or asked.setdefault(record["id"], question) != question:
            raise Error(f"the id {record['id']!r} belongs to another question, or to none, in {'a line before' if kept is None else ASKED}; restore the line or delete it")
        return record["id"], record["prompt"], record["sample"]
    return _by_key(directory, RESPONSES, {"id": str, "question": str, "prompt": str, "sample": int, "topic": str, "subtopic": str,
                                         "text": str, "answer": str, "finish": FINISHES}, key_of, lambda r: r["finish"] == "error")


def judgments(directory: Run | Path, judge_name: str) -> dict[tuple, dict]:
    """One judge's judgments of a run by (id, prompt, sample)."""
    found = _by_key(directory, JUDGMENTS, {"id": str, "prompt": str, "sample": int, "judge": str, "label": LABELS, "raw": str},
                    lambda r: (r["id"], r["prompt"], r["sample"], r["judge"]), lambda r: False)
    return {key[:3]: record for key, record in found.items() if key[3] == judge_name}


def _by_key(directory, name: str, fields: dict[str, type | tuple[str, ...]], key_of, replaceable) -> dict[tuple, dict]:
    path = (directory.directory if isinstance(directory, Run) else Path(directory)) / name
    records = directory.read(name) if isinstance(directory, Run) else read_lines(path)[0]
    found = {}
    for number, record in enumerate(records, 1):
        for field, kind in fields.items():
            value = record.get(field)
            if value not in kind if isinstance(kind, tuple) else type(value) is not kind:
                wanted = " or ".join(kind) if isinstance(kind, tuple) else "a number" if kind is int else "a text"
                raise Error(f"{path}, line {number}: field {field!r} is missing or not {wanted}; restore the line or delete it")
        try:
            key = key_of(record)
        except Error as error:
            raise Error(f"{path}, line {number}: {error}") from None
        if key in found and not replaceable(found[key]):
            raise Error(f"{path}, line {number}: holds {key} a second time; delete one of the two lines")
        found[key] = record
    return found
