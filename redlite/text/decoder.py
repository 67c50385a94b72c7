"""The `decoder` of tokenizer.json: tokens → text, as in github.com/huggingface/tokenizers 0.23.3."""
from collections.abc import Callable
from typing import Any

from redlite.text.pretokenizer import SPACE, Steps, fields, replacing

Step = Callable[[list[str]], list[str]]
BYTE_NAMES = {f"<0x{byte:02X}>": byte for byte in range(256)}
# Where a file has none: what all files of such vocabularies say.
USUAL = {"type": "Sequence", "decoders": [
    {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
    {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}


class Decoder:
    """The decoder of a vocabulary whose tokens are characters.

    Raises ValueError for a step that is not known.
    """

    def __init__(self, entry: Any):
        self._steps: list[Step] = []
        self._own: list[Step] = []      # those that change a token by itself
        self._bytes = fused = False
        for step in Steps(USUAL if entry is None else entry, "decoders").found:
            kind = step["type"]
            run = _step(step)
            self._steps.append(run)
            fused = fused or kind == "Fuse"
            self._bytes = self._bytes or kind == "ByteFallback"
            if kind in ("Replace", "Strip") and not fused:
                self._own.append(run)
            if kind == "Metaspace":
                self._own.append(lambda tokens: [token.replace(SPACE, " ") for token in tokens])

    def text(self, tokens: list[str]) -> str:
        for step in self._steps:
            tokens = step(tokens)
        return "".join(tokens)

    def token_bytes(self, token: str) -> bytes:
        """What one token adds to a text, the space before the first one included."""
        if self._bytes and token in BYTE_NAMES:
            return bytes([BYTE_NAMES[token]])
        for step in self._own:
            (token,) = step([token])
        return token.encode("utf-8", "replace")


def byte_level(entry: Any) -> None:
    """Raises ValueError unless the decoder of a byte-level vocabulary is the one that it needs, or absent."""
    if entry is None:
        return
    kinds = [step["type"] for step in Steps(entry, "decoders").found]
    if [kind for kind in kinds if kind != "Fuse"] != ["ByteLevel"] or kinds[0] == "Fuse":
        raise ValueError(f"{', '.join(kinds)[:80]} does not fit a byte-level vocabulary")


def _step(step: dict[str, Any]) -> Step:
    kind = step["type"]
    if kind == "Fuse":
        fields(step)
        return lambda tokens: ["".join(tokens)]
    if kind == "ByteFallback":
        fields(step)
        return _byte_fallback
    if kind == "Replace":
        change = replacing(step)
        return lambda tokens: list(map(change, tokens))
    if kind == "Strip":
        content, start, stop = fields(step, content=" ", start=0, stop=0)
        if len(content) != 1:
            raise ValueError("Strip.content is no single character")
        return lambda tokens: [_strip(token, content, start, stop) for token in tokens]
    if kind == "Metaspace":
        replacement, scheme, prefix, _ = fields(step, replacement=SPACE, prepend_scheme=None,
                                                add_prefix_space=None, split=True)
        if replacement != SPACE or scheme not in (None, "always", "first", "never"):
            raise ValueError("Metaspace has a value that is not known")
        never = scheme == "never" or scheme is None and prefix is False
        lead = " " if never else ""
        return lambda tokens: [token.replace(SPACE, " " if i else lead) for i, token in enumerate(tokens)]
    raise ValueError(f"{kind} is not known")


def _strip(token: str, content: str, start: int, stop: int) -> str:
    first, end = 0, len(token)
    while first < min(start, len(token)) and token[first] == content:
        first += 1
    while len(token) - end < stop and end > first and token[end - 1] == content:
        end -= 1
    return token[first:end]


def _byte_fallback(tokens: list[str]) -> list[str]:
    """Runs of byte tokens become the text that they spell, or one U+FFFD a byte where they spell none."""
    if BYTE_NAMES.keys().isdisjoint(tokens):
        return tokens
    found: list[str] = []
    run: list[int] = []
    for token in [*tokens, ""]:
        byte = BYTE_NAMES.get(token)
        if byte is not None:
            run.append(byte)
            continue
        if run:
            try:
                found.append(bytes(run).decode())
            except UnicodeDecodeError:
                found.append("\ufffd" * len(run))
            run = []
        found.append(token)
    return found
