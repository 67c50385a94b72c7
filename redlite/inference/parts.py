"""`Parts`: what a model is, without its weights and without torch."""
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from redlite.text import tokenizer
from redlite.text.adapted import of_adapter
from redlite.text.chat_choice import Format, NoFormat, choose, given
from redlite.text.tokenizer import Tokenizer
from redlite.weights.fingerprint import fingerprint
from redlite.weights.gguf import GGUF
from redlite.weights.source import Source, open_source, path_of

if TYPE_CHECKING:
    from redlite.inference.lm import LM
    from redlite.weights.adapter import Adapter


@dataclass(frozen=True)
class Parts:
    """A model without its weights: what a manifest or a count of tokens needs, had in a moment.

    chat     the chat format, or `NoFormat`; `template` is the format, and raises Error where there is none
    source   the model's directory, or its GGUF file, opened once for all that is read from it
    adapter  what is merged into the weights, or None
    """
    path: Path
    tokenizer: Tokenizer
    chat: Format | NoFormat
    source: Source
    adapter: "Adapter | None" = None

    @property
    def template(self) -> Format:
        """The chat format. Raises Error where the model has none, saying what to give."""
        return given(self.chat)


def parts(model: str | Path | GGUF, template: str | None = None, date: datetime | None = None,
          adapter: str | Path | None = None) -> Parts:
    """The parts of a model; arguments as for `redlite.load`, or its GGUF file opened.

    adapter  its own tokenizer and chat template, if its directory has them, go before the model's
    date     what a chat template is told that asks for today's; None: `chat_template.FIXED_DATE`
    """
    source = open_source(model)
    path = path_of(source)
    words = tokenizer.from_gguf(path, source.metadata) if isinstance(source, GGUF) else tokenizer.load(path)
    found, home = None, path
    if adapter is not None:
        from redlite.weights.adapter import read  # it needs torch
        found, own = read(adapter), of_adapter(words, Path(adapter))
        if own is not words:
            words, home = own, Path(adapter)
    return Parts(path, words, choose(words, home, template, date), source, found)


def fingerprints(model: "LM | Parts") -> dict[str, str]:
    """SHA-256 of what decides results: weights (every file, with the config), tokenizer, template, adapter.

    An adapter is there only where one is merged into the weights.
    """
    source = model.source if isinstance(model, Parts) else model.path
    found = {"weights": fingerprint(source), "tokenizer": model.tokenizer.fingerprint(),
             "template": model.chat.fingerprint()}
    return found | ({"adapter": model.adapter.sha256()} if model.adapter else {})
