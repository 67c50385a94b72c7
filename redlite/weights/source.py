"""Where a model comes from: a directory, or a GGUF file that is opened once and handed on.

It needs no torch.
"""
from pathlib import Path

from redlite import data
from redlite.errors import Error
from redlite.store.files import read_json
from redlite.store.text import short
from redlite.weights.gguf import GGUF

ADAPTER_CONFIG = "adapter_config.json"
EMBEDDED = ("organism",)  # models that come with redlite
Source = Path | GGUF


def resolve(name: str | Path) -> Path:
    """The directory or file that a model's name or path means. Raises Error where there is none."""
    if str(name) in EMBEDDED:
        return Path(data.__file__).parent / str(name)
    path = Path(name)
    if not path.exists():
        raise Error(f"model {str(name)!r}: there is no such file or directory, and no embedded model of that "
                    f"name ({', '.join(EMBEDDED)})")
    return path


def open_source(model: str | Path | GGUF, without: tuple[str, ...] = ()) -> Source:
    """A model's directory, or its opened .gguf file. without: as for `GGUF`.

    Raises Error for a path that is neither, and for an adapter's directory, saying what to give.
    """
    if isinstance(model, GGUF):
        return model
    path = resolve(model)
    if path.is_file():
        return GGUF(path, without)
    if (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file():
        raw = read_json(path / ADAPTER_CONFIG)
        base = raw.get("base_model_name_or_path") if isinstance(raw, dict) else None
        known = short(base).strip("'") if isinstance(base, str) and base else "BASE"
        raise Error(f"{path}: is an adapter of {known}: give --model {known} --adapter {path}")
    return path


def path_of(source: Source) -> Path:
    """The directory or file itself."""
    return source.path if isinstance(source, GGUF) else source
