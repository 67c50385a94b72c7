"""The tokenizer and chat template of an adapter's directory, which are those that it was trained with.

Trainers put the tokenizer's files beside an adapter. What they add or change counts, or is refused.
"""
from pathlib import Path

from redlite.errors import Error
from redlite.store.text import short
from redlite.text import tokenizer
from redlite.text.tokenizer import Tokenizer
from redlite.text.tokenizer_files import TokenizerFiles

VOCABULARIES = ("tokenizer.json", "tokenizer.model", "tekken.json")


def of_adapter(base: Tokenizer, path: Path) -> Tokenizer:
    """The tokenizer to use with an adapter: its own if its directory has one, else the base's.

    base  the base model's
    path  the adapter's directory

    Where the directory has no chat template, the base's stays. Where it has no vocabulary, but a template,
    the base's tokenizer gets the template. Raises Error where the two give one id to two texts, or where the
    directory names added tokens that no vocabulary has.
    """
    files = TokenizerFiles(path)
    if any(files.has(name) for name in VOCABULARIES):
        found = tokenizer.load(path)
        _check(base, found, path)
        found.chat_template = found.chat_template or base.chat_template
        return found
    for id, (text, _) in files.added({}).items():
        if base.special.get(text) != id and base.encode(text) != [id]:
            raise Error(f"{path}: its files name the added token {short(text)} with id {id}, which the "
                        "base's tokenizer does not have; copy the tokenizer.json that the adapter was "
                        "trained with there")
    base.chat_template = files.chat_template() or base.chat_template
    return base


def _check(base: Tokenizer, own: Tokenizer, path: Path) -> None:
    """Raises Error where one id has two texts. Either may have tokens that the other lacks."""
    if base.fingerprint() == own.fingerprint():
        return
    controls = {*base.special.values(), *own.special.values()}
    for text, id in base.special.items():
        if own.special.get(text, id) != id:
            raise Error(f"{path}: its tokenizer gives {short(text)} the id {own.special[text]}, and the "
                        f"base's {id}; give the base that the adapter was trained on")
    for id in range(min(base.base_size, own.base_size)):    # GGUF files pad the vocabulary
        if id not in controls and own.piece_bytes(id) != base.piece_bytes(id):
            raise Error(f"{path}: its tokenizer gives the id {id} to "
                        f"{short(own.piece_bytes(id).decode('utf-8', 'replace'))}, and the base's to "
                        f"{short(base.piece_bytes(id).decode('utf-8', 'replace'))}; give the base that the "
                        "adapter was trained on")
