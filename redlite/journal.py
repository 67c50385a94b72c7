"""Run directories: an append-only journal that survives being killed, a manifest that guards it, files written whole.

What redeval, collect and safealign have in common on disk. A run directory belongs to one process at a time (a lock),
to one set of inputs (manifest.json), and loses nothing that was appended: after a kill, even SIGKILL, the next process
finds every complete line. Only this module writes into run directories.

Durability: a line is one write() to a file opened for appending, so a killed process leaves at most its last line
torn. The file is synchronised to the disk at most once a second and when it is closed, so a power cut may cost the
lines of the last second; what it leaves torn is dropped and done again like any other torn line.
"""
import fcntl
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from redlite.errors import Error

INFORMATION = ("command", "info")  # manifest fields that are kept for the reader and never compared
# What sets a manifest's field, for those whose name does not say it: pattern of the field → options.
SET_BY = {r"(questions|tasks\..+)\.n": "--limit or --quick", r"tasks\.[^.]+": "--tasks", "chat": "--apply-chat-template", "refusal_tokens": "--xstest-tokens", r"topics(\..+)?": "--topics or --limit"}
SYNC_SECONDS = 1.0
opened: list[Path] = []            # the run directories that this process has opened, in order: what an interrupted program may say is kept


def encode(record) -> bytes:
    """One JSON text in UTF-8, without newlines; a lone surrogate becomes its \\u escape, which JSON allows."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


def sha256_json(value) -> str:
    """SHA-256 of a value's canonical JSON: sorted keys, no spaces, ASCII."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
    except OSError as error:
        raise Error(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


class Hashing(threading.Thread):
    """`sha256_file` in a thread beside what else there is to do; hashing leaves Python's lock to others. It ends with the program."""

    def __init__(self, path):
        super().__init__(daemon=True)
        self._path, self._found, self._fault = path, "", None
        self.start()

    def run(self) -> None:
        try:
            self._found = sha256_file(self._path)
        except Exception as error:  # raised where the result is asked for
            self._fault = error

    def result(self) -> str:
        """The hash, when it is there. Raises what `sha256_file` raised."""
        self.join()
        if self._fault:
            raise self._fault
        return self._found


@contextmanager
def replacing(path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` whole, when the block ends well, or not at all: hidden beside it, synchronised, then renamed."""
    path = Path(path)
    hidden = path.with_name(f".{path.name}.tmp")
    try:
        with open(hidden, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise Error(f"{path}: cannot be written ({error.strerror}); free the space or choose another --output-dir") from None
    finally:
        hidden.unlink(missing_ok=True)


def write_atomic(path, data: str | bytes) -> None:
    """Write a file whole or not at all; see `replacing`."""
    with replacing(path) as file:
        file.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)


def write_json(path, value) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n")


def read_json(path, where: str = ""):
    """The value in a JSON file. Raises Error naming file and place if it is missing or malformed, or names a field twice; where: for "--config FILE"."""
    where = where or str(path)
    try:
        return loads(Path(path).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise Error(f"{where}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise Error(f"{where}: is not valid JSON in UTF-8 ({error})") from None


def loads(text: str):
    """The value of one JSON text from a user's file. Raises ValueError for whatever is wrong with it: its form (JSONDecodeError, which says where),
    a field that an object names twice, a number of thousands of digits, nesting beyond Python's recursion."""
    def unique(pairs: list[tuple[str, object]]) -> dict:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"one object names the field {next(n for n in names if names.count(n) > 1)!r} twice; keep one")
        return found
    try:
        return json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:                 # Python's own hint after the ";" is no mend for a user
        raise ValueError(str(error).partition("; use sys")[0]) from None


def half_surrogate(text: str) -> bool:
    """Whether a text from JSON holds half of a surrogate pair, which is no character and has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parse(line: bytes) -> dict | None:
    """The object on a line, None if there is none."""
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def read_lines(path) -> tuple[list[dict], int]:
    """The objects of a journal file, and the number of bytes of it that are sound; ([], 0) if it does not exist.

    The last line may be torn: what does not parse there is left out of both. (No proper beginning of an object's text
    is an object, so a last line that parses is complete even without its newline.) A bad line anywhere else did not
    come from a crash and raises Error with file and line.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise Error(f"{path}: cannot be read ({error.strerror})") from None
    lines = data.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    records, sound = [], 0
    for number, line in enumerate(lines, 1):
        record = _parse(line)
        if record is None:
            if number == len(lines):
                return records, sound
            raise Error(f"{path}, line {number}: is not a JSON object; restore the line from a copy, or delete it to have it done again")
        records.append(record)
        sound = min(sound + len(line) + 1, len(data))
    return records, sound


def read_manifest(directory) -> dict:
    """The manifest of an existing run."""
    path = Path(directory) / "manifest.json"
    if not path.exists():
        raise Error(f"{directory}: is not a run directory (it has no manifest.json)")
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise Error(f"{path}: must hold a JSON object")
    return manifest


def require(value, fields: dict[str, type | tuple[type, ...]], path, mend: str) -> dict:
    """`value`, an object that was read from `path`, if each field ("a.b": b of a) is there and of its kind; else Error naming it. True is no number."""
    for field, kind in fields.items():
        found = value
        for name in field.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        if not isinstance(found, kind) or isinstance(found, bool) and kind is not bool:
            raise Error(f"{path}: field {field!r} is missing or not of its kind; {mend}")
    return value


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
        _sync_directory(self.directory)

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
