"""Finds, checks and loads the C library that setup.py built, or says in one line why not, and what to do."""
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, Literal

from . import structs
from .sources import digest

KERNELS = Path(__file__).parents[1]
MEND = "run 'pip install .' again (in a checkout: 'python setup.py build_ext --inplace')"
# function → result, arguments; each is declared in kernels/c
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "rl_isa": (c_char_p, []),
    "rl_isas": (c_char_p, []),
    "rl_use": (c_int, [c_char_p]),
    "rl_loops": (c_void_p, []),
    "rl_product_loop": (c_void_p, [c_int]),
    "rl_packed_bytes": (c_size_t, [c_int, c_int64, c_int64]),
    "rl_pack_float": (None, [c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64]),
    "rl_unpack_rows": (None, [c_int, c_void_p, c_void_p, c_int64, c_int64, c_void_p]),
    "rl_unpack_panels": (None, [c_int, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int]),
    "rl_linear": (c_int, [c_void_p, c_void_p, c_void_p, c_int64, c_int]),
    "rl_read_tensor": (c_int, [c_int, c_int64, c_int, c_int64, c_int64, c_void_p, c_int, c_void_p, c_int]),
    "rl_read_packed": (c_int, [c_int, c_int64, c_int, c_int64, c_int64, c_void_p, c_int, c_int, c_void_p,
                               c_int]),
    "rl_before_attention": (c_int, [*[c_void_p] * 6, c_int64, c_int]),
    "rl_after_attention": (c_int, [*[c_void_p] * 4, c_int64, c_int]),
    "rl_cached_attention": (c_int, [c_void_p, c_int]),
    "rl_sequence_attention": (c_int, [c_void_p, c_int]),
    "rl_layers": (c_int, [c_void_p, c_int64, *[c_void_p] * 4, c_int]),
    "rl_nll_statistics": (c_int, [c_void_p, c_int]),
    "rl_nll_gradient": (c_int, [c_void_p, c_int]),
    "rl_adamw": (None, [c_void_p, c_int]),
    "rl_squares": (None, [c_void_p, c_int]),
    "rl_training": (None, [c_void_p, c_int]),
}


def load(folder: Path) -> tuple[ctypes.CDLL | None, str]:
    """(library, ""), or (None, reason): the library for this Python in `folder`, built from the sources in
    folder/c.

    A library of other sources may take other arguments and crash the process. So nothing in it is called
    before its digest is known to be that of the sources here. No other folder is searched.
    """
    found = [path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_c{suffix}").exists()]
    if not found:
        return None, f"the C kernels were not built for this Python; install gcc or clang, then {MEND}"
    if not _is_whole(found[0]):
        return None, f"{found[0]} is cut off; {MEND}"
    try:
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return None, f"the C kernels do not load ({error}); {MEND}"
    built, here = _built_from(library), digest(folder / "c")
    if built != here:
        return None, (f"{found[0]} was built from other C sources ({built[:12]}) "
                      f"than {folder / 'c'} ({here[:12]}); {MEND}")
    declare(library)
    if _layouts(library) != structs.layouts():
        return None, (f"the structs in {found[0]} differ from those of {structs.__file__}; "
                      f"make them equal, then {MEND}")
    return library, ""


def _is_whole(path: Path) -> bool:
    """False for an ELF file that is shorter than its header says: mapping it would end the process.

    The table of sections lies at the end: 64-bit e_shoff at byte 40, e_shentsize and e_shnum at 58.
    """
    try:
        with path.open("rb") as file:
            header = file.read(64)
            size = file.seek(0, 2)
    except OSError:
        return True  # loading says why it cannot be read
    if header[:5] != b"\x7fELF\x02":
        return True
    order: Literal["little", "big"] = "little" if header[5:6] == b"\x01" else "big"
    place, width, count = (int.from_bytes(header[a:b], order) for a, b in ((40, 48), (58, 60), (60, 62)))
    return len(header) == 64 and place + width * count <= size


def _built_from(library: ctypes.CDLL) -> str:
    if not hasattr(library, "rl_sources"):
        return "no digest"
    library.rl_sources.restype = c_char_p
    return str(library.rl_sources().decode())


def _layouts(library: ctypes.CDLL) -> dict[str, int]:
    library.rl_layouts.restype = ctypes.POINTER(structs.Layout)
    return {layout.name.decode(): layout.bytes for layout in library.rl_layouts()[:library.rl_layout_count()]}


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the arguments and results of the functions. Returns the library."""
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@cache
def find() -> tuple[ctypes.CDLL | None, str]:
    """`load` for this copy of redlite, once a process."""
    return load(KERNELS)


def missing() -> str:
    """Why there is no C library, and how to get one; "" if there is."""
    return find()[1]


def library() -> ctypes.CDLL:
    """The C library. Raises RuntimeError if there is none."""
    found, reason = find()
    if found is None:
        raise RuntimeError(reason)
    return found


def isa() -> str:
    """The instruction set that the C kernels use; "" without the library.

    One of "amx-bf16", "avx512-bf16", "avx512-vnni", "avx2", "neon-dotprod", "neon" and "portable".
    """
    return "" if missing() else str(library().rl_isa().decode())


def isas() -> tuple[str, ...]:
    """Those that can be used here, widest first: the first one is used, unless `using` says otherwise."""
    return () if missing() else tuple(library().rl_isas().decode().split())


def force(name: str) -> None:
    """Use the instruction set `name` from now on, one of `isas()`. Raises ValueError where it is none."""
    if missing():
        raise ValueError(f"REDLITE_ISA={name!r} needs the C library: {missing()}")
    if library().rl_use(name.encode()):
        raise ValueError(f"REDLITE_ISA={name!r}: this processor and build have {', '.join(isas())}; "
                         "use one of them, or leave it unset")


@contextmanager
def using(name: str) -> Iterator[None]:
    """Within it all threads use the instruction set `name`, one of `isas()`. For proofs and tests."""
    before = isa()
    if name not in isas():
        raise ValueError(f"no instruction set {name!r} here: {', '.join(isas()) or 'no library'}")
    library().rl_use(name.encode())
    try:
        yield
    finally:
        library().rl_use(before.encode())
