"""Run directories: an append-only journal that survives being killed, a manifest that guards it, files written whole.

What redeval, collect and safealign have in common on disk. A run directory belongs to one process at a time (a lock),
to one set of inputs (manifest.json), and loses nothing that was appended: after a kill, even SIGKILL, the next process
finds every complete line. Only this module writes into run directories.

Durability: a line is one write() to a file opened for appending, so a killed process leaves at most its last line
torn. The file is synchronised to the disk at most once a second and when it is closed, so a power cut may cost the
lines of the last second; what it leaves torn is dropped and done again like any other torn line.
"""
import fcntl
import json
import os
import re
import time
from pathlib import Path

from redlite.errors import Error
from redlite.store.files import encode, read_json, sync_directory, write_json
from redlite.store.records import read_lines

INFORMATION = ("command", "info")  # manifest fields that are kept for the reader and never compared
# What sets a manifest's field, for those whose name does not say it: pattern of the field → options.
SET_BY = {r"(questions|tasks\..+)\.n": "--limit or --quick", r"tasks\.[^.]+": "--tasks", "chat": "--apply-chat-template", "refusal_tokens": "--xstest-tokens", r"topics(\..+)?": "--topics or --limit"}
SYNC_SECONDS = 1.0
opened: list[Path] = []            # the run directories that this process has opened, in order: what an interrupted program may say is kept


def read_manifest(directory) -> dict:
    """The manifest of an existing run."""
    path = Path(directory) / "manifest.json"
    if not path.exists():
        raise Error(f"{directory}: is not a run directory (it has no manifest.json)")
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise Error(f"{path}: must hold a JSON object")
    return manifest


def difference(there, here, field: str = "") -> str:
    """The first field in which two JSON values differ, with both values in short; "" if none does."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in [*there, *(k for k in here if k not in there)]:
            name = f"{field}.{key}" if field else str(key)
            if found := difference(there.get(key), here.get(key), name):
                return found
        return ""
    if there == here:
        return ""
    def short(value):
        text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 48 else text[:44] + "…" + text[-1]
    return f"{field} is {short(there)} there and {short(here)} now"


def check(directory, manifest: dict) -> None:
    """Raises the Error that `Run` would raise for this directory, as far as these fields tell, and makes nothing: for a dry run."""
    directory = Path(directory)
    there = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise Error(f"{directory}: cannot be used as a run directory ({there} is {'not writable' if there.is_dir() else 'no directory'}); choose another --output-dir")
    if (directory / "manifest.json").exists():
        found = read_manifest(directory)
        _agree({k: found.get(k) for k in manifest}, manifest, directory)
    else:
        _refuse_unknown(directory)


def _refuse_unknown(directory: Path) -> None:
    if journals := sorted(directory.glob("*.jsonl")):
        raise Error(f"{directory}: has {journals[0].name} but no manifest.json, so what made it is unknown; choose another --output-dir")


def _agree(there: dict, here: dict, directory: Path) -> None:
    compared = [{k: v for k, v in m.items() if k not in INFORMATION} for m in (there, json.loads(encode(here)))]
    if found := difference(*compared):
        option = next((f" ({option})" for field, option in SET_BY.items() if re.fullmatch(field, found.partition(" is ")[0])), "")
        raise Error(f"{directory / 'manifest.json'}: this run was made differently: {found}{option}; use another --output-dir, or the options it was made with")


class Run:
    """A run directory, opened for writing by this process alone. A context manager; `close` gives the lock back."""

    def __init__(self, directory, manifest: dict | None = None):
        """Create the directory with this manifest, or reopen it.

        manifest  JSON values; the fields `command` and `info` are for the reader, all others must equal those of the
                  run that is there, or Error names the first that differs. None reopens whatever run is there.
        Raises Error if another process has the run, or the directory cannot be written.
        """
        self.directory = Path(directory)
        self._files: dict[str, int] = {}
        self._sizes: dict[str, int] = {}     # of the files, which no other process writes
        self._synced: dict[str, float] = {}
        self._lock = -1
        if manifest is None:
            read_manifest(self.directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise Error(f"{self.directory}: cannot be used as a run directory ({error.strerror}); choose another --output-dir") from None
        try:
            self._take_lock()
            self.manifest = self._agree(manifest)
        except BaseException:
            self.close()
            raise
        opened.append(self.directory)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Error(f"{self.directory}: another process is working in this run directory; wait for it or choose another --output-dir") from None
        except OSError as error:
            raise Error(f"{self.directory}: this file system gives no locks ({error.strerror}); choose another --output-dir") from None

    def _agree(self, manifest: dict | None) -> dict:
        path = self.directory / "manifest.json"
        if path.exists():
            there = read_manifest(self.directory)
            if manifest is not None:
                _agree(there, manifest, self.directory)
            return there
        _refuse_unknown(self.directory)
        write_json(path, manifest)
        return manifest

    def read(self, name: str) -> list[dict]:
        """All complete records of a journal file, e.g. "responses.jsonl"; a torn last line is cut off the file."""
        path = self.directory / name
        records, sound = read_lines(path)
        if path.exists() and sound < path.stat().st_size:
            os.truncate(path, sound)
        return records

    def append(self, name: str, record: dict) -> None:
        """Add one line to a journal file. When this returns, killing the process can no longer lose the line."""
        if name not in self._files:
            self._open(name)
        descriptor, line, start = self._files[name], encode(record) + b"\n", self._sizes[name]
        try:
            written = os.write(descriptor, line)
            while written < len(line):
                written += os.write(descriptor, line[written:])
        except OSError as error:
            os.ftruncate(descriptor, start)
            raise Error(f"{self.directory / name}: cannot be written ({error.strerror}); what is complete is kept: free the space and run the same command again") from None
        self._sizes[name] = start + len(line)
        if time.monotonic() - self._synced[name] >= SYNC_SECONDS:
            os.fsync(descriptor)
            self._synced[name] = time.monotonic()

    def _open(self, name: str) -> None:
        path = self.directory / name
        self.read(name)  # a torn line goes before anything is put behind it
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise Error(f"{path}: cannot be written ({error.strerror})") from None
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            size += os.write(descriptor, b"\n")
        self._sizes[name] = size
        self._files[name], self._synced[name] = descriptor, time.monotonic()
        sync_directory(self.directory)

    def close(self) -> None:
        """Synchronise and close the files and give the lock back. Safe to call twice."""
        for descriptor in self._files.values():
            os.fsync(descriptor)
            os.close(descriptor)
        self._files.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception) -> None:
        self.close()
