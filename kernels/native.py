"""Finds and loads the C library that setup.py built; says in one line why there is none."""
import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path


def _candidates():
    """The built library beside this file, or in another installed copy of redlite on the path."""
    folders = [Path(__file__).parent] + [Path(entry) / "redlite" / "kernels" for entry in sys.path]
    return [so for folder in folders for so in sorted(folder.glob("_c*.so"))]


@lru_cache(maxsize=None)
def library():
    """(library, reason): the loaded `ctypes.CDLL` and "", or None and why there is none."""
    found = _candidates()
    if not found:
        return None, "the C kernels were not built (no C compiler at install time?); install gcc, then redlite again"
    try:
        lib = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return None, f"the C kernels in {found[0]} do not load ({error}); install redlite again on this machine"
    lib.rl_isa.restype = lib.rl_isas.restype = ctypes.c_char_p
    return lib, ""


def isa() -> str:
    """The instruction set that the C kernels use: "avx512-vnni", "avx2", "neon-dotprod", "neon" or "portable"; "" without the library."""
    lib, _ = library()
    return lib.rl_isa().decode() if lib else ""


def isas() -> tuple[str, ...]:
    """Those that this processor has and the library has code for, widest first; the first is used unless `using` says otherwise."""
    lib, _ = library()
    return tuple(lib.rl_isas().decode().split()) if lib else ()


@contextmanager
def using(name: str) -> Iterator[None]:
    """Within it the C kernels of this process, in all threads, use the instruction set `name`, one of `isas()`: for proofs and tests."""
    lib, before = library()[0], isa()
    if name not in isas():
        raise ValueError(f"no instruction set {name!r} here: {', '.join(isas()) or 'no library'}")
    lib.rl_use(name.encode())
    try:
        yield
    finally:
        lib.rl_use(before.encode())
