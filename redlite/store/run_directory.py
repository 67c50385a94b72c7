"""Run directories: append-only journals that survive being killed, and a manifest that guards them.

This is what redeval, collect and safealign have in common on disk. A run directory belongs to one process at
a time (a lock) and to one set of inputs (manifest.json). It loses nothing that was appended: after a kill,
even SIGKILL, the next process finds every complete line.

Durability: a line is one write() to a file opened for appending, so a killed process leaves at most its last
line torn. The file is synchronised to the disk at most once a second, and when it is closed. A power cut may
therefore cost the lines of the last second. What it leaves torn is dropped and done again, like any other
torn line.
"""
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from redlite.errors import Error
from redlite.store.files import (
    BAD_LUCK,
    encode,
    read_json,
    sync_directory,
    unwritable,
    write_atomic,
    write_json,
)
from redlite.store.records import each_line, read_lines

INFORMATION = ("command", "info")  # manifest fields that are kept for the reader and never compared
SYNC_SECONDS = 1.0
# Files of a run whose first request was refused: nothing that cost time or money.
NOT_WORK = ("manifest.json", "asked.json", "api.jsonl", "judges.json", ".lock")
UNFINISHED = "unfinished.jsonl"    # tokens of answers under way; see inference/unfinished.py
SHOWN = 48                         # characters of a value in a message
# by this process, in order: an interrupted program says where its work is kept
opened: list[Path] = []


def read_manifest(directory: str | Path) -> dict:
    """The manifest of an existing run."""
    path = Path(directory) / "manifest.json"
    if not path.exists():
        raise Error(f"{directory}: is not a run directory (it has no manifest.json)")
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise Error(f"{path}: must hold a JSON object")
    return manifest


class Difference(NamedTuple):
    """A field in which two JSON values differ ("a.b" is field b of the object a), and what each has there."""
    field: str
    there: object
    here: object

    def __str__(self) -> str:
        return f"{self.field} is {_shown(self.there)} there and {_shown(self.here)} now"


def difference(there: object, here: object, field: str = "") -> Difference | None:
    """The first difference of two JSON values, None if they are equal. field: where they stand."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in there | here:
            name = f"{field}.{key}" if field else str(key)
            if found := difference(there.get(key), here.get(key), name):
                return found
        return None
    return None if there == here else Difference(field, there, here)


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[:SHOWN - 4] + "…" + text[-1]


def check(directory: str | Path, manifest: dict) -> None:
    """Raise the Error that `Run` would raise, as far as these fields tell, and make nothing: for a dry run.
    """
    directory = Path(directory)
    there = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    if not there.is_dir():
        raise _unusable(directory, f"{there} is no directory")
    if not os.access(there, os.W_OK):
        raise _unusable(directory, f"{there} is not writable")
    if (directory / "manifest.json").exists():
        found = read_manifest(directory)
        _agree({k: found.get(k) for k in manifest}, manifest, directory)
    else:
        _refuse_unknown(directory)


def _unusable(directory: Path, reason: str | None) -> Error:
    return _refusal(directory, f"cannot be used as a run directory ({reason}); choose another")


def _refusal(directory: Path, what: str) -> Error:
    return Error(f"{directory}: {what}", "output_dir")


def _refuse_unknown(directory: Path) -> None:
    if journals := sorted(directory.glob("*.jsonl")):
        raise _refusal(directory, f"has {journals[0].name} but no manifest.json, so what made it is unknown; "
                       "choose another directory")


def _agree(there: dict, here: dict, directory: Path) -> None:
    here = json.loads(encode(here))
    compared = [{k: v for k, v in made.items() if k not in INFORMATION} for made in (there, here)]
    if found := difference(compared[0], compared[1]):
        raise Error(f"{directory / 'manifest.json'}: this run was made differently: {found}; "
                    "use another directory, or the settings it was made with", found.field)


def _grown(there: dict, here: dict, grown: Callable[[dict, dict], dict | None] | None) -> dict | None:
    here = json.loads(encode(here))
    compared = [{k: v for k, v in made.items() if k not in INFORMATION} for made in (there, here)]
    return grown(there, here) if grown and difference(compared[0], compared[1]) else None


class Run:
    """A run directory, opened for writing by this process alone.

    A context manager; `close` gives the lock back.
    """

    def __init__(self, directory: str | Path, manifest: dict | None = None,
                 grown: Callable[[dict, dict], dict | None] | None = None):
        """Create the directory with this manifest, or reopen it.

        manifest  JSON values. The fields `command` and `info` are for the reader. All others must equal those
                  of the run that is there. None reopens whatever run is there.
        grown     (manifest there, manifest here) → the manifest of a run that goes on to more, which is then
                  written; None where they differ otherwise
        Raises Error naming the first field that differs, with that field as its setting; and if another
        process has the run, or the directory cannot be written.
        """
        self.directory = Path(directory)
        self._files: dict[str, int] = {}
        self._sizes: dict[str, int] = {}     # in bytes; no other process writes these files
        self._synced: dict[str, float] = {}
        self._read: set[str] = set()         # journals whose torn last lines are cut off already
        self._lock = -1
        self._abandoned = False
        self.before_closing: list[Callable[[], None]] = []  # what has something left to write
        # what this process makes, from the outside in
        there = [self.directory, *self.directory.parents]
        self._made = [folder for folder in reversed(there) if not folder.exists()]
        if manifest is None:
            read_manifest(self.directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if error.errno in BAD_LUCK:
                raise unwritable(self.directory, error) from None
            raise _unusable(self.directory, error.strerror) from None
        try:
            self._take_lock()
            self.manifest = self._agree(manifest, grown)
        except BaseException:
            self.close()
            raise
        opened.append(self.directory)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _refusal(self.directory, "another process is working in this run directory; wait for it, "
                           "or choose another directory") from None
        except OSError as error:
            raise _refusal(self.directory, f"this file system gives no locks ({error.strerror}); "
                           "choose another directory") from None

    def _agree(self, manifest: dict | None, grown: Callable[[dict, dict], dict | None] | None) -> dict:
        path = self.directory / "manifest.json"
        if path.exists():
            there = read_manifest(self.directory)
            if manifest is None:
                return there
            if merged := _grown(there, manifest, grown):
                write_json(path, merged)
                return merged
            _agree(there, manifest, self.directory)
            return there
        if manifest is None:
            raise _refusal(self.directory, "its manifest.json has vanished; restore it")
        _refuse_unknown(self.directory)
        write_json(path, manifest)
        return manifest

    def read(self, name: str) -> list[dict]:
        """All complete records of a journal, such as "responses.jsonl".

        A torn last line is cut off the file.
        """
        records, sound = read_lines(self.directory / name)
        self._cut(name, sound)
        return records

    def each(self, name: str) -> Iterator[tuple[dict, int]]:
        """The complete records of a journal one by one, each with the place of its line in the file.

        A torn last line is cut off the file, once all are read.
        """
        end = 0
        for record, start, end in each_line(self.directory / name):     # noqa: B007 (end is used below)
            yield record, start
        self._cut(name, end)

    def _cut(self, name: str, sound: int) -> None:
        path = self.directory / name
        if path.exists() and sound < path.stat().st_size:
            os.truncate(path, sound)
        self._read.add(name)

    def append(self, name: str, record: dict) -> int:
        """Add one line to a journal file. Returns the line's place in it, in bytes.

        When this returns, killing the process can no longer lose the line.
        """
        if name not in self._files:
            self._open(name)
        descriptor, line, start = self._files[name], encode(record) + b"\n", self._sizes[name]
        try:
            written = os.write(descriptor, line)
            while written < len(line):
                written += os.write(descriptor, line[written:])
        except OSError as error:
            with suppress(OSError):     # a line that stays torn is cut off by the next process
                os.ftruncate(descriptor, start)
            raise unwritable(self.directory / name, error) from None
        self._sizes[name] = start + len(line)
        if time.monotonic() - self._synced[name] >= SYNC_SECONDS:
            self._sync(name)
        return start

    def replace(self, name: str, records: list[dict]) -> None:
        """Write a file of records anew, whole or not at all; it is removed where there are none.

        For files that are never appended to. When this returns, killing the process can no longer lose it.
        """
        path = self.directory / name
        if records:
            write_atomic(path, b"".join(encode(record) + b"\n" for record in records))
        else:
            path.unlink(missing_ok=True)

    def _sync(self, name: str) -> None:
        try:
            os.fsync(self._files[name])
        except OSError as error:
            raise unwritable(self.directory / name, error) from None
        self._synced[name] = time.monotonic()

    def _open(self, name: str) -> None:
        path = self.directory / name
        if name not in self._read:
            self.read(name)  # cuts off a torn line, before anything is put behind it
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._files[name], self._synced[name] = descriptor, time.monotonic()
            size = os.lseek(descriptor, 0, os.SEEK_END)
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                size += os.write(descriptor, b"\n")
            self._sizes[name] = size
            sync_directory(self.directory)
        except OSError as error:
            raise unwritable(path, error) from None

    def abandon(self) -> None:
        """Remove the directory on closing, if this process made it and its work has not begun."""
        self._abandoned = True

    def _remove(self) -> None:
        work = [path for path in self.directory.glob("*") if path.name not in NOT_WORK]
        if self.directory not in self._made or work:
            return
        for name in NOT_WORK:
            (self.directory / name).unlink(missing_ok=True)
        for folder in reversed(self._made):
            if any(folder.iterdir()):
                break
            folder.rmdir()

    def close(self) -> None:
        """Synchronise and close the files and give the lock back. Safe to call twice.

        Raises Incomplete, when all is closed, for a disk that does not take what was written.
        """
        faults = []
        while self.before_closing:
            try:
                self.before_closing.pop()()
            except Error as error:
                faults.append(error)
        for name in list(self._files):
            try:
                self._sync(name)
            except Error as error:
                faults.append(error)
            os.close(self._files.pop(name))
        if self._lock >= 0:
            if self._abandoned:
                self._remove()
            os.close(self._lock)
            self._lock = -1
        if faults:
            raise faults[0]

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            self.close()
        except Error:
            if kind is None:    # else what broke off the work is to be told
                raise
