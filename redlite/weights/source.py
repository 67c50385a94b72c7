"""Where a model comes from: a directory, or a GGUF file that is opened once and handed on.

It needs no torch.
"""
from pathlib import Path

from redlite import data
from redlite.errors import Error
from redlite.store.files import read_json
from redlite.store.text import short
from redlite.weights.gguf import GGUF

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")  # of a model, and not of an adapter
EMBEDDED = ("organism",)  # models that come with redlite
Source = Path | GGUF


def resolve(name: str | Path) -> Path:
    """The directory or file that a model's name or path means. Raises Error where there is none."""
    if str(name) in EMBEDDED:
        return Path(data.__file__).parent / str(name)
    path = Path(name)
    if not path.exists():
        raise Error(f"model {str(name)!r}: there is no such file or directory, and no embedded model of that "
                    f"name ({', '.join(EMBEDDED)}); nothing is downloaded")
    return path


def open_source(model: str | Path | GGUF, without: tuple[str, ...] = ()) -> Source:
    """A model's directory, or its opened .gguf file. without: as for `GGUF`.

    Raises Error for a path that is neither, and for an adapter's directory, saying what to give.
    """
    if isinstance(model, GGUF):
        return model
    path = resolve(model)
    if path.is_file():
        if (path.parent / CONFIG).is_file() and not _begins_as_gguf(path):
            raise Error(f"{path}: is one file of a model; give its directory {path.parent}")
        return GGUF(path, without)
    is_whole = (path / CONFIG).is_file() and any(any(path.glob(pattern)) for pattern in WEIGHTS)
    if (path / ADAPTER_CONFIG).is_file() and not is_whole:
        raw = read_json(path / ADAPTER_CONFIG)
        base = raw.get("base_model_name_or_path") if isinstance(raw, dict) else None
        known = short(base).strip("'") if isinstance(base, str) and base else "BASE"
        raise Error(f"{path}: is an adapter of {known}: give --model {known} --adapter {path}")
    if not (path / CONFIG).is_file():
        raise Error(f"{path}: has no {CONFIG}; {_instead(path)}")
    return path


def _begins_as_gguf(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return True  # reading it as such says why it cannot be read


def _instead(path: Path) -> str:
    """What to give instead of a directory that holds no model."""
    if ggufs := sorted(path.glob("*.gguf")):
        return f"to use {ggufs[0].name}, name that file itself"
    if (path / "params.json").is_file():
        return ("it has a layout of Meta's or Mistral's own (params.json): fetch the files of Hugging Face's "
                "layout, or convert them")
    if below := sorted(path.glob(f"snapshots/*/{CONFIG}")) or sorted(path.glob(f"*/{CONFIG}")):
        return f"did you mean {below[0].parent}?"
    return "give a directory in Hugging Face's layout, or a .gguf file"


def path_of(source: Source) -> Path:
    """The directory or file itself."""
    return source.path if isinstance(source, GGUF) else source
