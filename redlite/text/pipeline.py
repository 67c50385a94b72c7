"""A tokenizer that is run here: normalizer, pre-tokenizer, model and decoder, as tokenizer.json has them."""
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Protocol

from redlite.text.bpe import token_bytes
from redlite.text.decoder import Decoder
from redlite.text.patterns import Cut
from redlite.text.pretokenizer import Normalize, Split

CACHED_WORDS = 1 << 17  # remembered words; all are forgotten when there are so many
CACHED_LENGTH = 40      # characters; longer words are not remembered
UNKNOWN = "\ufffd"


class Model(Protocol):
    """Makes ids of one word; see bpe.BPE and unigram.Unigram."""

    def word(self, word: str) -> list[int]: ...


class Pipeline:
    """Text to ids and back. A word is encoded the same way wherever it stands, so each is remembered.

    tokens     id → token; of byte-level vocabularies without the added ones
    size       one more than the highest id that is no added token's
    model      makes ids of words
    split      cuts text into words
    normalize  what is done to text before; None: nothing. The caller does it (see Tokenizer), since added
               tokens are looked for before and after
    decoder    None for byte-level vocabularies
    texts      the bytes of added tokens, by id, which no decoder changes
    """

    def __init__(self, tokens: dict[int, str], size: int, model: Model, split: Split,
                 normalize: Normalize | None = None,
                 decoder: Decoder | None = None, texts: Mapping[int, bytes] = MappingProxyType({})):
        self.tokens, self.size = tokens, size
        self.normalize, self.decoder = normalize, decoder
        self._model, self._split = model, split
        self._bytes = dict(texts)           # and those of the tokens that were asked for
        self._words: dict[str, list[int]] = {}

    def encode(self, text: str, first: bool) -> list[int]:
        """Token ids of valid, normalized text. first: it stands at the very start."""
        ids: list[int] = []
        words = self._words
        for word in self._split(text, first):
            ids += words[word] if word in words else self._word(word)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; broken UTF-8 and ids that are not there show as U+FFFD."""
        if self.decoder is None:
            found = (self.piece_bytes(id) for id in ids)
            return b"".join(UNKNOWN.encode() if b is None else b for b in found).decode("utf-8", "replace")
        return self.decoder.text([self.tokens.get(id, UNKNOWN) for id in ids])

    def piece_bytes(self, id: int) -> bytes | None:
        """The bytes that a token adds to the text; None for an id that is not there."""
        found = self._bytes.get(id)
        if found is None and id in self.tokens:
            of = token_bytes if self.decoder is None else self.decoder.token_bytes
            found = self._bytes[id] = of(self.tokens[id])
        return found

    def _word(self, word: str) -> list[int]:
        """Ids of a word that is not remembered yet."""
        found = self._model.word(word)
        if len(word) <= CACHED_LENGTH:
            if len(self._words) >= CACHED_WORDS:
                self._words.clear()
            self._words[word] = found
        return found


def anywhere(cut: Cut) -> Split:
    """A way of cutting to which it does not matter where the text stands."""
    return lambda text, first: cut(text)
