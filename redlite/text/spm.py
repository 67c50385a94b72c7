"""Sentencepiece: model files read with suspicion, or built, and the library behind one small class.

The library trusts its files. So a model is taken apart here and checked. Only what decides the ids is put
together again and given to the library. Format: github.com/google/sentencepiece,
src/sentencepiece_model.proto.
"""
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
SPACE = "▁"
UNKNOWN_TEXT = " \u2047 "  # what the library decodes an unknown piece to
BYTE_NAME = re.compile("<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class Model:
    """What decides the ids.

    pieces scores kinds  one a token id; kinds are the constants above
    algorithm            BPE or UNIGRAM
    space_prefix         a space goes before every text
    squeeze_spaces       runs of spaces become one
    named                the pieces that are BOS, EOS and PAD
    """
    pieces: list[str]
    scores: list[float]
    kinds: list[int]
    algorithm: int = BPE
    space_prefix: bool = True
    squeeze_spaces: bool = False
    named: tuple[str, str, str] = ("<s>", "</s>", "<pad>")

    def id(self, role: int) -> int | None:
        """The id of BOS (0), EOS (1) or PAD (2), if that piece is there and a control piece."""
        for i, (piece, kind) in enumerate(zip(self.pieces, self.kinds, strict=True)):
            if kind == CONTROL and piece == self.named[role]:
                return i
        return None


def controls(model: Model) -> dict[str, int]:
    """text → id of the pieces that never come from text: control pieces and the unknown piece."""
    pieces = enumerate(zip(model.pieces, model.kinds, strict=True))
    return {piece: i for i, (piece, kind) in pieces if kind in (CONTROL, UNKNOWN)}


# ---- the wire format of protocol buffers ----

VARINT, LENGTH, FLOAT = 0, 2, 5  # wire types: a number; a length with its bytes; 4 bytes
FIXED = {1: 8, FLOAT: 4}         # bytes of the wire types of one size


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | LENGTH) + _varint(len(value)) + value


def _read_varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("it ends inside a number")


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a message: an int, 4 or 8 bytes, or (start, end) of a text or message."""
    while at < end:
        tag, at = _read_varint(data, at, end)
        wire = tag & 7
        if wire == VARINT:
            value, at = _read_varint(data, at, end)
            yield tag >> 3, value
            continue
        if wire == LENGTH:
            size, at = _read_varint(data, at, end)
        elif wire in FIXED:
            size = FIXED[wire]
        else:
            raise ValueError(f"it has the unknown wire type {wire}")
        if size > end - at:
            raise ValueError("a field goes past its end")
        yield tag >> 3, (at, at + size) if wire == LENGTH else data[at:at + size]
        at += size


def _message(data: bytes, span: object) -> dict[int, Any]:
    """The fields of an inner message; of a repeated field the last."""
    if not isinstance(span, tuple):
        raise ValueError("an inner message is a number")
    return dict(_fields(data, *span))


def _text(data: bytes, span: object) -> str:
    if not isinstance(span, tuple):
        raise ValueError("a text is a number")
    return data[span[0]:span[1]].decode("utf-8")


# ---- model files ----

def parse(data: bytes) -> Model:
    """A tokenizer.model.

    Raises ValueError for one that is damaged, or does what no model of the LLaMA family does.
    """
    pieces: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for field, value in _fields(data, 0, len(data)):
        if field == 1:
            piece = _message(data, value)
            score = piece.get(2, b"\0\0\0\0")
            if not isinstance(score, bytes) or len(score) != 4:
                raise ValueError(f"piece {len(pieces)} has a score that is no float")
            pieces.append(_text(data, piece.get(1, (0, 0))))
            scores.append(struct.unpack("<f", score)[0])
            kinds.append(piece.get(3, NORMAL))
        elif field == 2:
            trainer.update(_message(data, value))
        elif field == 3:
            normalizer.update(_message(data, value))
        elif field == 5 and _message(data, value).get(2, (0, 0)) != (0, 0) and value[0] != value[1]:
            raise ValueError("it has a denormalizer, which redlite does not know")
    if not pieces:
        raise ValueError("it has no pieces")
    charsmap = normalizer.get(2, (0, 0))
    if not isinstance(charsmap, tuple) or charsmap[0] != charsmap[1]:
        raise ValueError("its text normalization is not the identity, "
                         "which all models of the LLaMA family have")
    if trainer.get(24):
        raise ValueError("it puts spaces behind words (treat_whitespace_as_suffix), "
                         "which redlite does not know")
    if normalizer.get(5, 1) != 1:
        raise ValueError("it keeps spaces as they are (escape_whitespaces false), "
                         "which redlite does not know")
    bos, eos, pad = (_text(data, trainer[field]) if field in trainer else usual
                     for field, usual in ((46, "<s>"), (47, "</s>"), (48, "<pad>")))
    return checked(Model(pieces, scores, kinds, algorithm=trainer.get(3, UNIGRAM),
                         space_prefix=normalizer.get(3, 1) != 0, squeeze_spaces=normalizer.get(4, 1) != 0,
                         named=(bos, eos, pad)))


def checked(model: Model) -> Model:
    """The model itself. Raises ValueError if the library should not be given it."""
    if model.algorithm not in (UNIGRAM, BPE):
        raise ValueError(f"its model type is {model.algorithm}; "
                         f"BPE ({BPE}) and unigram ({UNIGRAM}) are known")
    seen: set[str] = set()
    for i, (piece, score, kind) in enumerate(zip(model.pieces, model.scores, model.kinds, strict=True)):
        if piece in seen:
            raise ValueError(f"piece {i} is there twice")
        if not piece or "\0" in piece:
            raise ValueError(f"piece {i} is empty or holds a NUL")
        if not math.isfinite(score):
            raise ValueError(f"piece {i} has a score that is not finite")
        if kind not in (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE):
            raise ValueError(f"piece {i} has the unknown type {kind}")
        if kind == BYTE and not BYTE_NAME.fullmatch(piece):
            raise ValueError(f"piece {i} is marked as a byte and has no byte's name")
        seen.add(piece)
    unknown, count = model.kinds.count(UNKNOWN), model.kinds.count(BYTE)
    if unknown != 1 or count not in (0, 256):
        raise ValueError(f"it has {unknown} unknown pieces and {count} byte pieces; "
                         "1 and 256 (or none) are needed")
    return model


def serialized(model: Model) -> bytes:
    """The content of a tokenizer.model that holds the model and nothing more."""
    parts = []
    for piece, score, kind in zip(model.pieces, model.scores, model.kinds, strict=True):
        number = _varint(2 << 3 | FLOAT) + struct.pack("<f", score)
        parts.append(_bytes(1, _bytes(1, piece.encode()) + number + _number(3, kind)))
    unknown = model.pieces[model.kinds.index(UNKNOWN)]
    trainer = _number(3, model.algorithm) + _number(35, BYTE in model.kinds) + _bytes(45, unknown.encode())
    trainer += b"".join(_bytes(46 + i, name.encode()) for i, name in enumerate(model.named))
    normalizer = _bytes(1, b"identity") + _number(3, model.space_prefix) + _number(4, model.squeeze_spaces)
    normalizer += _number(5, 1)  # escape_whitespaces
    return b"".join(parts) + _bytes(2, trainer) + _bytes(3, normalizer)


class SentencePiece:
    """Text to ids, with and without the space that the model puts before text.

    Raises ValueError where the library does not take the model.
    """

    def __init__(self, model: Model):
        import sentencepiece  # only here: byte-level models do without
        self.model, self.size = checked(model), len(model.pieces)
        content = serialized(model)
        try:
            self._with = sentencepiece.SentencePieceProcessor()
            self._bare = sentencepiece.SentencePieceProcessor()
            self._with.LoadFromSerializedProto(content)
            # Serialized messages that follow one another are merged: this one says add_dummy_prefix = false.
            self._bare.LoadFromSerializedProto(content + _bytes(3, _number(3, 0)))
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:100]
            raise ValueError(f"sentencepiece does not take it ({reason})") from None

    def encode(self, text: str, space_prefix: bool = True) -> list[int]:
        return (self._with if space_prefix else self._bare).EncodeAsIds(text)

    def decode(self, ids: list[int], space_prefix: bool = True) -> str:
        """Text of ids, without the space before it where the model puts one."""
        return (self._with if space_prefix else self._bare).DecodeIds(ids)

    def piece_bytes(self, id: int) -> bytes | None:
        """The bytes that a token adds to the text; None for an id that is not there."""
        if not 0 <= id < self.size:
            return None
        kind, piece = self.model.kinds[id], self.model.pieces[id]
        if kind == BYTE:
            return bytes([int(piece[3:5], 16)])
        if kind == CONTROL:
            return b""
        return UNKNOWN_TEXT.encode() if kind == UNKNOWN else piece.replace(SPACE, " ").encode()
