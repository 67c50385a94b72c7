"""The hash that names a model: of the files that decide what it computes; no torch."""
import hashlib
from pathlib import Path

from redlite.store.files import sha256_file
from redlite.weights.configuration import GENERATION_CONFIG
from redlite.weights.gguf import GGUF
from redlite.weights.headers import weight_files
from redlite.weights.source import open_source


def fingerprint(model: str | Path | GGUF) -> str:
    """SHA-256 over the names and hashes of the files that decide what the model computes.

    They are those of the configuration and the weights, not the tokenizer's. Raises Error for a file that
    cannot be read.
    """
    source, whole = open_source(model), hashlib.sha256()
    if isinstance(source, GGUF):
        hashes = source.hashes()
    else:
        hashes = {name: sha256_file(file) for name, file in files(source).items()}
    for name, digest in sorted(hashes.items()):
        whole.update(f"{name} {digest}\n".encode())
    return whole.hexdigest()


def files(folder: Path) -> dict[str, Path]:
    """name → path of a directory's files of configuration and weights."""
    configs = [folder / name for name in ("config.json", GENERATION_CONFIG) if (folder / name).exists()]
    return {path.name: path for path in (*configs, *weight_files(folder)[1])}
