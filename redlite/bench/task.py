"""What a benchmark task is, and the files that tasks read."""
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from redlite.errors import Error
from redlite.store.files import sha256_json
from redlite.store.records import read_lines

PROTOCOLS = ("lm_eval", "paper")


@dataclass(frozen=True)
class Example:
    """id: unique in its task. document: what the file holds. requests: all Scored, or one Continued. target: for `Task.measure`.

    category  where results are also given by category
    """
    id: str
    document: dict
    requests: tuple
    target: object = None
    category: str = ""


@dataclass(frozen=True)
class Task:
    """name, version: lm-evaluation-harness's, where it has the task. metrics: result key → filter ("none", …).

    measure  (example, answers) → {metric: value}; an answer is a log-probability (nats) or a text
    groups   names of the groups whose size-weighted mean the task goes into
    mean     "size": groups weigh examples alike; "task": groups weigh tasks alike
    batch    tasks of the same non-empty batch are put to the model together, since they share contexts, or are few and long in answering
    """
    name: str
    version: float
    examples: list[Example]
    measure: Callable[[Example, list], dict[str, float]]
    metrics: tuple[str, ...] = ("acc",)
    filter: str = "none"
    shots: int = 0
    groups: tuple[str, ...] = ()
    mean: str = "size"
    batch: str = ""
    whole: int = 0  # examples before any limit; 0: all that are here

    def fingerprint(self) -> str:
        """SHA-256 of every document and request, and their order."""
        return sha256_json([self.name, self.version, [[e.id, e.document, [vars(r) for r in e.requests]] for e in self.examples]])


def subset(task: Task, count: int, seed: int | None = None) -> Task:
    """The first `count` examples (as the harness limits), or with a seed a fixed sample of them, in the file's order."""
    chosen = task.examples[:count]
    if seed is not None:
        ranked = sorted(task.examples, key=lambda e: sha256_json([seed, task.name, e.id]))[:count]
        keep = {e.id for e in ranked}
        chosen = [e for e in task.examples if e.id in keep]
    return Task(**{**vars(task), "examples": chosen, "whole": task.whole or len(task.examples)})


def check(task: Task) -> Task:
    """The task, if it has examples and their ids are unique; Error otherwise."""
    if not task.examples:
        raise Error(f"task {task.name}: its files hold no example")
    seen = set()
    for example in task.examples:
        if example.id in seen:
            raise Error(f"task {task.name}: the id {example.id!r} occurs twice; ids must be unique")
        seen.add(example.id)
        try:
            sha256_json(example.document)
        except ValueError:
            raise Error(f"task {task.name}, example {example.id}: holds NaN or Infinity, which are no numbers of JSON; write null or leave the field out") from None
    return task


# Running

def ranks() -> tuple[int, int]:
    """(this process's rank, how many there are): of torchrun, else (0, 1)."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def sample_file(task_name: str) -> str:
    """Where the records of a task are kept, within a run directory."""
    return f"samples_{task_name}.jsonl"


_RECORD = {  # what is read of a record again, and whether a value is of its kind
    "id": lambda v: isinstance(v, str),
    "doc_hash": lambda v: isinstance(v, str),
    "category": lambda v: v is None or isinstance(v, str),
    "truncated_tokens": lambda v: type(v) is int,
    "shots_dropped": lambda v: v is None or type(v) is int,
    "metrics": lambda v: isinstance(v, dict) and all(type(x) in (int, float) and math.isfinite(x) for x in v.values()),
}


def records(folder: Path, task_name: str) -> dict[str, dict]:
    """The records of a task in a run directory by example id; those that other ranks left in its rank-N folders too."""
    name, found = sample_file(task_name), {}
    for path in (folder / name, *(other / name for other in sorted(folder.glob("rank-*")))):
        for number, record in enumerate(read_lines(path)[0], 1):
            if field := next((f for f, sound in _RECORD.items() if not sound(record.get(f))), None):
                raise Error(f"{path}, line {number}: field {field!r} is missing or not of its kind; delete the line to have it done again")
            found.setdefault(record["id"], record)
    return found


def _record(task: Task, example: Example, answers: list, extra: dict, cut: int) -> dict:
    return {"id": example.id, "doc_hash": sha256_json(example.document), "prompt_hash": sha256_json([vars(r) for r in example.requests]),
            **category(example), **extra, "truncated_tokens": cut, "metrics": task.measure(example, answers)}


def category(example: Example) -> dict:
    """The record's field `category`, where the example has one."""
    return {"category": example.category} if example.category else {}


# Files

@dataclass
class Files:
    """The data directory of a suite, and what was read from it."""
    folder: Path
    read: list[Path] = field(default_factory=list)

    def need(self, *names: str) -> Path:
        """The first of the files that exists; Error names the folder and all of them."""
        for name in names:
            if (self.folder / name).exists():
                return self.folder / name
        raise Error(f"{self.folder}: {' or '.join(names)} is missing; put the upstream repository's files there, or name their folder by --data")


def folder(data: Path | str | None, suite: str) -> Path:
    """The folder of a suite's files: DATA/suite, or DATA itself if it is called so."""
    if data is None:
        raise Error(f"--data is missing: the folder that holds {suite}/ (the upstream repository's own files)")
    path = Path(data)
    if not path.is_dir():
        raise Error(f"--data {data}: there is no such folder")
    for candidate in (path / suite, path):
        if candidate.is_dir() and candidate.name.lower().replace("-", "_") == suite:
            return candidate
    raise Error(f"--data {data}: holds no folder {suite}/")
