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
from weakref import WeakKeyDictionary

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
    """The unfinished answers of a run directory, by the key of their request, whichever model makes them."""

    def __init__(self, run: Run, every: float = SECONDS):
        """
        run    writes them once more when it is closed
        every  seconds between two writings
        Raises Error for a line that was edited.
        """
        self.run, self.every, self.written = run, every, time.monotonic()
        self.growing: dict[str, Growing] = {}
        self.begun: dict[str, Begun] = {}
        for number, record in enumerate(run.read(UNFINISHED), 1):
            where = f"{run.directory / UNFINISHED}, line {number}"
            require(record, RECORD, where, MEND)
            self.begun[record["key"]] = Begun(record["ids"], record["seconds"])
        run.before_closing.append(self.write)

    @staticmethod
    def of(run: Run) -> "Unfinished":
        """Those of a run directory: several models may answer there, an attacker and its target."""
        if run not in _of_runs:
            _of_runs[run] = Unfinished(run)
        return _of_runs[run]

    def take(self, key: str, answer: Growing, vocabulary: int) -> Begun | None:
        """Keep an answer from now on, until `drop`; what an earlier process made of it, if anything.

        vocabulary  how many tokens the model has; Raises Error for others
        """
        self.growing[key] = answer
        begun = self.begun.pop(key, None)
        if begun and (alien := [i for i in begun.ids if not 0 <= i < vocabulary]):
            raise Error(f"{self.run.directory / UNFINISHED}: holds the token {alien[0]}, which the model "
                        f"does not have; {MEND}")
        return begun

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


def end(run: Run) -> None:
    """All of a run's answers are finished: nothing is kept, not even what no request took up."""
    if run in _of_runs:
        _of_runs[run].begun.clear()
    run.replace(UNFINISHED, [])


_of_runs: WeakKeyDictionary[Run, Unfinished] = WeakKeyDictionary()


def key_of(model: str, request: "Request", shared: int) -> str:
    """What identifies an answer: all that its numbers depend on.

    model   what identifies it
    shared  tokens of the prefix that is computed apart: it decides the order of sums, and so the last bits
    """
    settings = model, request.max_new_tokens, astuple(request.rule), request.seed, request.stop, shared
    digest = hashlib.sha256(repr(settings).encode())
    for ids in (request.ids, sorted(request.stop_ids)):
        digest.update(_bytes(ids))
    return digest.hexdigest()[:32]


def _bytes(ids: Sequence[int]) -> bytes:
    return b"|" + ",".join(map(str, ids)).encode()
