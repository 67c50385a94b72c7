"""JSON, hashes and files written whole or not at all."""
import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from redlite.errors import Error, Incomplete

# What is no fault of the command line: a full disk or quota, a file size limit, a disk that fails.
BAD_LUCK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
GO_ON = "what is finished is kept: free the space, or see to the disk, and run the same command again"


def unwritable(path: str | Path, error: OSError) -> Error:
    """The Error for a file that cannot be written; Incomplete where the disk is to blame."""
    if error.errno in BAD_LUCK:
        return Incomplete(f"{path}: cannot be written ({error.strerror}); {GO_ON}")
    return Error(f"{path}: cannot be written ({error.strerror}); make it writable, or choose another "
                 "directory", "output_dir")


def unreadable(path: object, error: OSError) -> Error:
    """The Error for a file that cannot be read; Incomplete where the disk is to blame."""
    if error.errno == errno.EIO:
        return Incomplete(f"{path}: cannot be read ({error.strerror}); see to the disk, and run the same "
                          "command again")
    return Error(f"{path}: cannot be read ({error.strerror})")


def encode(record: object) -> bytes:
    """One JSON text in UTF-8, without newlines.

    Half of a surrogate pair becomes its \\u escape, as JSON allows.
    """
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


def canonical(value: object) -> str:
    """A value's canonical JSON: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_json(value: object) -> str:
    """SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def sha256_file(path: str | Path, descriptor: int | None = None) -> str:
    """SHA-256 of a file's bytes, read in pieces.

    descriptor  the file, where it is open already; it is not closed, and `path` only names it in errors
    """
    digest = hashlib.sha256()
    try:
        with open(path if descriptor is None else descriptor, "rb", closefd=descriptor is None) as file:
            file.seek(0)
            while piece := file.read(1 << 22):
                digest.update(piece)
    except OSError as error:
        raise unreadable(path, error) from None
    return digest.hexdigest()


class Hashing(threading.Thread):
    """`sha256_file` in a thread. Hashing leaves Python's lock to other threads.

    The thread ends with the program.
    """

    def __init__(self, path: str | Path, descriptor: int | None = None):
        super().__init__(daemon=True)
        self._path, self._found = path, ""
        self._fault: Exception | None = None
        # Its owner may close the descriptor meanwhile.
        self._descriptor = None if descriptor is None else os.dup(descriptor)
        self.start()

    def run(self) -> None:
        try:
            self._found = sha256_file(self._path, self._descriptor)
        except Exception as error:  # raised where the result is asked for
            self._fault = error
        finally:
            if self._descriptor is not None:
                os.close(self._descriptor)

    def result(self) -> str:
        """The hash, when it is there. Raises what `sha256_file` raised."""
        self.join()
        if self._fault:
            raise self._fault
        return self._found


def check_fetched(path: Path, start: bytes) -> None:
    """Raises Error for a file that begins as the pointers do that Git LFS leaves where it fetches nothing."""
    if start.startswith(b"version https://git-lfs"):
        raise Error(f"{path}: is a pointer of Git LFS and not the file itself; run git lfs pull there, "
                    "or download the file")


def _is_no_file(path: Path) -> bool:
    folder = str(path.absolute().parent)
    return folder == "/dev" or folder.startswith(("/dev/fd", "/proc/")) or (
        path.exists() and not path.is_file() and not path.is_dir())


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that becomes `path` when the block ends well, and is removed when it does not.

    It lies hidden beside `path` meanwhile, and is synchronised to the disk before it is renamed. A device, a
    pipe, or an open file's name such as /dev/stdout is written to as it is: a file must never take its place.
    """
    path = Path(path)
    if _is_no_file(path):
        try:
            with open(path, "wb") as file:
                yield file
        except BrokenPipeError:     # whoever reads it went away
            raise
        except OSError as error:
            raise unwritable(path, error) from None
        return
    hidden = path.with_name(f".{path.name}.tmp")
    try:
        with open(hidden, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(hidden, path)
        sync_directory(path.parent)
    except OSError as error:
        raise unwritable(path, error) from None
    finally:
        hidden.unlink(missing_ok=True)


def write_atomic(path: str | Path, data: str | bytes) -> None:
    """Write a file whole or not at all; see `replacing`."""
    with replacing(path) as file:
        file.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)


def write_json(path: str | Path, value: object) -> None:
    """`write_atomic` of indented JSON."""
    write_atomic(path, json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n")


def read_bytes(path: str | Path, where: str = "") -> bytes:
    """The bytes of a file. Raises Error naming it, or `where`, if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise unreadable(where or path, error) from None


def read_json(path: str | Path, where: str = "") -> Any:
    """The value in a JSON file.

    where  what errors name in place of the path, such as "--config FILE"
    Raises Error if the file is missing or malformed, or an object in it names a field twice.
    """
    where = where or str(path)
    try:
        return loads(read_bytes(path, where).decode("utf-8-sig"))
    except ValueError as error:
        raise Error(f"{where}: is not valid JSON in UTF-8 ({error})") from None


def loads(text: str) -> Any:
    """The value of one JSON text from a user's file.

    Raises ValueError for whatever is wrong with it: its form (JSONDecodeError, which says where), a field
    that an object names twice, a number of thousands of digits, nesting beyond Python's recursion.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # Python's own hint after the ";" does not help a user
        raise ValueError(str(error).partition("; use sys")[0]) from None


def _unique(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"one object names the field {twice!r} twice; keep one")
    return found


def half_surrogate(text: str) -> bool:
    """Whether a text from JSON holds half of a surrogate pair, which UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def sync_directory(directory: Path) -> None:
    """Have the disk hold a directory's entries before anything else happens."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
