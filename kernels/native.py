"""Finds and loads the C library that setup.py built; says in one line why there is none."""
import ctypes
import sys
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
    lib.rl_isa.restype = ctypes.c_char_p
    return lib, ""


def isa():
    """The instruction set that the C kernels use here: "avx2", "neon" or "portable"; "" without the library."""
    lib, _ = library()
    return lib.rl_isa().decode() if lib else ""
