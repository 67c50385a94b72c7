"""Answers that are not finished: their tokens go to a file, so that a process that is killed loses little.

Every 30 s, and when the run directory is closed, the file is written anew, whole, with the tokens of the
answers under way. The next process takes them up: it runs the same tokens through the model again, many at a
time, and goes on. Where the layers run in C, the numbers are those of an undisturbed run to the last bit
(kernels/README.md). The random numbers of a sampled answer are counted, one a token, from its seed.
"""
import hashlib
import time
from collections.abc import Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING, NamedTuple, Protocol

from redlite.errors import Error
from redlite.store.records import Kind, require
from redlite.store.run_directory import UNFINISHED, Run

if TYPE_CHECKING:
    from redlite.inference.engine import Request

SECONDS = 30.0
RECORD: dict[str, Kind] = {"key": str, "ids": [int], "seconds": (int, float)}
MEND = "delete the file: its answers are then begun anew"


class Begun(NamedTuple):
    """What there is of an answer: its token ids, and the seconds that they took."""
    ids: list[int]
    seconds: float


class Growing(Protocol):
    """An answer under way."""
    ids: list[int]

    def seconds(self) -> float:
        """Since its prefill began, those of earlier processes included."""
        ...


class Unfinished:
    """The unfinished answers of a run directory, by the key of their request."""

    def __init__(self, run: Run, vocabulary: int, every: float = SECONDS):
        """
        run         writes them once more when it is closed
        vocabulary  how many tokens the model has
        every       seconds between two writings
        Raises Error for a line that was edited.
        """
        self.run, self.every, self.written = run, every, time.monotonic()
        self.growing: dict[str, Growing] = {}
        self.begun: dict[str, Begun] = {}
        for number, record in enumerate(run.read(UNFINISHED), 1):
            where = f"{run.directory / UNFINISHED}, line {number}"
            require(record, RECORD, where, MEND)
            if alien := [i for i in record["ids"] if not 0 <= i < vocabulary]:
                raise Error(f"{where}: holds the token {alien[0]}, which the model does not have; {MEND}")
            self.begun[record["key"]] = Begun(record["ids"], record["seconds"])
        run.before_closing.append(self.write)

    def take(self, key: str, answer: Growing) -> Begun | None:
        """Keep an answer from now on, until `drop`; what an earlier process made of it, if anything."""
        self.growing[key] = answer
        return self.begun.pop(key, None)

    def drop(self, key: str) -> None:
        """An answer is finished and kept elsewhere, or given up."""
        self.growing.pop(key, None)

    def tick(self) -> None:
        """Write the file if its time has come."""
        if time.monotonic() - self.written >= self.every:
            self.write()

    def write(self) -> None:
        """Write the file whole; it is removed where there is nothing to write."""
        kept = self.begun | {key: Begun(list(a.ids), a.seconds()) for key, a in self.growing.items() if a.ids}
        self.run.replace(UNFINISHED, [
            {"key": key, "ids": b.ids, "seconds": round(b.seconds, 3)} for key, b in kept.items()])
        self.written = time.monotonic()


def key_of(request: "Request", shared: int) -> str:
    """What identifies an answer: all that its numbers depend on, beside the model.

    shared  tokens of the prefix that is computed apart: it decides the order of sums, and so the last bits
    """
    settings = request.max_new_tokens, astuple(request.rule), request.seed, request.stop, shared
    digest = hashlib.sha256(repr(settings).encode())
    for ids in (request.ids, sorted(request.stop_ids)):
        digest.update(_bytes(ids))
    return digest.hexdigest()[:32]


def _bytes(ids: Sequence[int]) -> bytes:
    return b"|" + ",".join(map(str, ids)).encode()
