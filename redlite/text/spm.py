"""Sentencepiece: model files read with suspicion, built from a vocabulary, and the library behind one small class.

The library trusts its files; so a model is taken apart here, checked, and only what decides the ids is put together again
and given to it. Source of the format: github.com/google/sentencepiece, src/sentencepiece_model.proto.
"""
import math
import struct
from dataclasses import dataclass

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
UNIGRAM, BPE = 1, 2
SPACE = "▁"


@dataclass(frozen=True)
class Model:
    """What decides the ids. pieces, scores, kinds: one a token id; kinds as above. named: the pieces that are BOS, EOS and PAD."""
    pieces: list[str]
    scores: list[float]
    kinds: list[int]
    algorithm: int = BPE
    space_prefix: bool = True
    squeeze_spaces: bool = False
    named: tuple[str, str, str] = ("<s>", "</s>", "<pad>")

    def id(self, role: int) -> int | None:
        """The id of BOS (0), EOS (1) or PAD (2), if that piece is there and a control piece."""
        found = [i for i, k in enumerate(self.kinds) if k == CONTROL and self.pieces[i] == self.named[role]]
        return found[0] if found else None


# ---- the wire format of protocol buffers ----

def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


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


def _fields(data: bytes, at: int, end: int):
    """(field number, value) of a message: an int, 4 or 8 bytes, or (start, end) of a text or inner message."""
    while at < end:
        tag, at = _read_varint(data, at, end)
        wire = tag & 7
        if wire == 0:
            value, at = _read_varint(data, at, end)
        elif wire in (1, 2, 5):
            size, at = (8, at) if wire == 1 else (4, at) if wire == 5 else _read_varint(data, at, end)
            if size > end - at:
                raise ValueError("a field goes past its end")
            value, at = (at, at + size) if wire == 2 else data[at:at + size], at + size
        else:
            raise ValueError(f"it has the unknown wire type {wire}")
        yield tag >> 3, value


def _message(data: bytes, span: object) -> dict[int, object]:
    """The fields of an inner message; of a repeated one the last."""
    if not isinstance(span, tuple):
        raise ValueError("an inner message is a number")
    return dict(_fields(data, *span))


def _text(data: bytes, span: object) -> str:
    if not isinstance(span, tuple):
        raise ValueError("a text is a number")
    return data[span[0]:span[1]].decode("utf-8")


def parse(data: bytes) -> Model:
    """A tokenizer.model. Raises ValueError for one that is damaged, or does what no model of the LLaMA family does."""
    pieces, scores, kinds, trainer, normalizer = [], [], [], {}, {}
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
        raise ValueError("its text normalization is not the identity, which all models of the LLaMA family have")
    if trainer.get(24):
        raise ValueError("it puts spaces behind words (treat_whitespace_as_suffix), which redlite does not know")
    if normalizer.get(5, 1) != 1:
        raise ValueError("it keeps spaces as they are (escape_whitespaces false), which redlite does not know")
    named = tuple(_text(data, trainer[f]) if f in trainer else default for f, default in ((46, "<s>"), (47, "</s>"), (48, "<pad>")))
    return checked(Model(pieces, scores, kinds, trainer.get(3, UNIGRAM), normalizer.get(3, 1) != 0, normalizer.get(4, 1) != 0, named))


def checked(model: Model) -> Model:
    """The model, or ValueError."""
    if model.algorithm not in (UNIGRAM, BPE):
        raise ValueError(f"its model type is {model.algorithm}; BPE ({BPE}) and unigram ({UNIGRAM}) are known")
    seen: set[str] = set()
    for i, (piece, score, kind) in enumerate(zip(model.pieces, model.scores, model.kinds, strict=True)):
        if not piece or "\0" in piece or piece in seen:
            raise ValueError(f"piece {i} is {'there twice' if piece in seen else 'empty or holds a NUL'}")
        if not math.isfinite(score):
            raise ValueError(f"piece {i} has a score that is not finite")
        if kind not in (NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE):
            raise ValueError(f"piece {i} has the unknown type {kind}")
        if kind == BYTE and not (len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">") and set(piece[3:5]) <= set("0123456789ABCDEF")):
            raise ValueError(f"piece {i} is marked as a byte and has no byte's name")
        seen.add(piece)
    unknown, count = model.kinds.count(UNKNOWN), model.kinds.count(BYTE)
    if unknown != 1 or count not in (0, 256):
        raise ValueError(f"it has {unknown} unknown pieces and {count} byte pieces; 1 and 256 (or none) are needed")
    return model


def serialized(model: Model) -> bytes:
    parts = []
    for piece, score, kind in zip(model.pieces, model.scores, model.kinds):
        parts.append(_bytes(1, _bytes(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind)))
    trainer = _number(3, model.algorithm) + _number(35, BYTE in model.kinds) + _bytes(45, model.pieces[model.kinds.index(UNKNOWN)].encode())
    trainer += b"".join(_bytes(46 + i, name.encode()) for i, name in enumerate(model.named))
    normalizer = _bytes(1, b"identity") + _number(3, model.space_prefix) + _number(4, model.squeeze_spaces) + _number(5, 1)
    return b"".join(parts) + _bytes(2, trainer) + _bytes(3, normalizer)


class SentencePiece:
    """Text to ids, with and without the space that the model puts before text. Raises ValueError where the library does not take the model."""

    def __init__(self, model: Model):
        import sentencepiece  # only here: byte-level models do without
        self.model, self.size = checked(model), len(model.pieces)
        content = serialized(model)
        try:
            self._with, self._bare = sentencepiece.SentencePieceProcessor(), sentencepiece.SentencePieceProcessor()
            self._with.LoadFromSerializedProto(content)
            # Serialized messages that follow one another are merged: this one says normalizer_spec.add_dummy_prefix = false.
            self._bare.LoadFromSerializedProto(content + _bytes(3, _number(3, 0)))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"sentencepiece does not take it ({' '.join(str(error).split())[:100]})") from None

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
        return b"" if kind == CONTROL else " \u2047 ".encode() if kind == UNKNOWN else piece.replace(SPACE, " ").encode()
