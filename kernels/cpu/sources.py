"""The digest of the C sources: setup.py puts it into the library, library.py checks it. Imports no torch."""
import hashlib
from pathlib import Path


def digest(folder: Path) -> str:
    """SHA-256, in hex, of the C files in `folder`: names, lengths and bytes, in the order of the names."""
    total = hashlib.sha256()
    for path in sorted(folder.glob("*.[ch]")):
        content = path.read_bytes()
        total.update(f"{path.name} {len(content)}\n".encode() + content)
    return total.hexdigest()
