"""What a benchmark task is: its examples, the records that are kept of them, and the files that tasks read.
"""
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Protocol

from redlite.errors import Error
from redlite.store.files import sha256_json
from redlite.store.records import Kind, read_lines, require

PROTOCOLS = ("lm_eval", "paper")
# What is read again of a record.
RECORD: dict[str, Kind] = {
    "id": str, "doc_hash": str, "category": (str, NoneType), "truncated_tokens": int,
    "shots_dropped": (int, NoneType), "metrics": {str: (int, float)}}


@dataclass(frozen=True)
class Example:
    """One question of a task.

    id        unique in its task
    document  what the file holds
    requests  all Scored, or one Continued; none where a judge decides
    target    for `Task.measure`
    category  "" unless results are also given by category
    """
    id: str
    document: dict
    requests: tuple[Any, ...]
    target: Any = None
    category: str = ""


@dataclass(frozen=True)
class Task:
    """Examples that are measured alike.

    name, version  lm-evaluation-harness's, where it has the task
    measure        (example, answers) → {metric: value}; an answer is a log-probability (nats) or a text
    filter         the harness's name of what is done to an answer before it is measured
    groups         names of the groups whose mean the task goes into
    mean           "size": groups weigh examples alike; "task": groups weigh tasks alike
    batch          tasks of the same batch, unless "", are put to the model together: they share contexts, or
                   are few and long in answering
    whole          examples before any limit; 0: all that are here
    """
    name: str
    version: float
    examples: list[Example]
    measure: Callable[[Example, list[Any]], dict[str, float]]
    metrics: tuple[str, ...] = ("acc",)
    filter: str = "none"
    shots: int = 0
    groups: tuple[str, ...] = ()
    mean: str = "size"
    batch: str = ""
    whole: int = 0

    def fingerprint(self) -> str:
        """SHA-256 of every document and request, and their order."""
        examples = [[e.id, e.document, [vars(request) for request in e.requests]] for e in self.examples]
        return sha256_json([self.name, self.version, examples])


class TaskModule(Protocol):
    """What a module of tasks (hhh, truthfulqa, mmlu, bbh) has."""

    def load(self, folder: Path, protocol: str) -> list[Task]:
        """The tasks that the folder's files hold, by a protocol of `PROTOCOLS`."""
        ...


def subset(task: Task, count: int, seed: int | None = None) -> Task:
    """The first `count` examples, as the harness limits; or with a seed a sample, in the file's order."""
    chosen = task.examples[:count]
    if seed is not None:
        ranked = sorted(task.examples, key=lambda e: sha256_json([seed, task.name, e.id]))[:count]
        keep = {e.id for e in ranked}
        chosen = [e for e in task.examples if e.id in keep]
    return replace(task, examples=chosen, whole=task.whole or len(task.examples))


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
            raise Error(
                f"task {task.name}, example {example.id}: holds NaN or Infinity, which are no numbers "
                "of JSON; write null or leave the field out") from None
    return task


# Running

def ranks() -> tuple[int, int]:
    """(this process's rank, how many there are): of torchrun, else (0, 1)."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def sample_file(task_name: str) -> str:
    """Where the records of a task are kept, within a run directory."""
    return f"samples_{task_name}.jsonl"


def records(folder: Path, task_name: str) -> dict[str, dict]:
    """The records of a task in a run directory, and in its rank-N folders, by example id."""
    name = sample_file(task_name)
    found: dict[str, dict] = {}
    for path in (folder / name, *(other / name for other in sorted(folder.glob("rank-*")))):
        for number, record in enumerate(read_lines(path)[0], 1):
            require(record, RECORD, f"{path}, line {number}", "delete the line to have it done again")
            found.setdefault(record["id"], record)
    return found


def record_of(example: Example, prompt: object, extra: dict, cut: int, metrics: dict[str, float]) -> dict:
    """What is kept of an example that was answered.

    prompt  what was asked, of which the hash is kept
    extra   the answer, in whatever fields
    cut     tokens cut from the beginning of the longest context
    """
    category = {"category": example.category} if example.category else {}
    return {"id": example.id, "doc_hash": sha256_json(example.document), "prompt_hash": sha256_json(prompt),
            **category, **extra, "truncated_tokens": cut, "metrics": metrics}


# Files

def first_file(folder: Path, *names: str) -> Path:
    """The first of the files that exists; Error names the folder and all of them."""
    for name in names:
        if (folder / name).exists():
            return folder / name
    raise Error(f"{folder}: {' or '.join(names)} is missing; put the upstream repository's files there, "
                "or name their folder", "data")


def folder(data: Path | str | None, suite: str) -> Path:
    """The folder of a suite's files: DATA/suite, or DATA itself if it is called so."""
    if data is None:
        raise Error(f"the data of {suite} is missing: name the folder that holds {suite}/ "
                    "(the upstream repository's own files)", "data")
    path = Path(data)
    if not path.is_dir():
        raise Error(f"data {data}: there is no such folder", "data")
    for candidate in (path / suite, path):
        if candidate.is_dir() and candidate.name.lower().replace("-", "_") == suite:
            return candidate
    raise Error(f"data {data}: holds no folder {suite}/", "data")
