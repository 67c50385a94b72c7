"""Sentencepiece: the library behind one small class, and model files built from a vocabulary.

Source of the file format: github.com/google/sentencepiece, src/sentencepiece_model.proto.
"""
import struct

import sentencepiece

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BPE = 2


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


def build(pieces: list[str], scores: list[float], kinds: list[int], space_prefix: bool = True, unknown: int | None = None) -> bytes:
    """A serialized sentencepiece BPE model with the identity normalization of the LLaMA models.

    pieces, scores, kinds  one a token id; kinds as above. One piece must be UNKNOWN: `unknown` where none is marked.
    space_prefix           text gets a space before it
    """
    parts = []
    for piece, score, kind in zip(pieces, scores, kinds):
        body = _bytes(1, piece.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind)
        parts.append(_bytes(1, body))
    fallback = sum(k == BYTE for k in kinds) == 256
    trainer = _number(3, BPE) + _number(35, fallback) + _number(40, unknown if unknown is not None else kinds.index(UNKNOWN))
    normalizer = _bytes(1, b"identity") + _number(3, space_prefix) + _number(4, 0) + _number(5, 1)
    return b"".join(parts) + _bytes(2, trainer) + _bytes(3, normalizer)


class SentencePiece:
    """Text to ids, with and without the space that the model puts before text.

    Raises RuntimeError for a model that the library does not accept.
    """

    def __init__(self, model: bytes):
        self.model = sentencepiece.SentencePieceProcessor()
        self.model.LoadFromSerializedProto(model)
        self.bare = sentencepiece.SentencePieceProcessor()
        # Serialized messages that follow one another are merged: this one says normalizer_spec.add_dummy_prefix = false.
        self.bare.LoadFromSerializedProto(model + _bytes(3, _number(3, 0)))
        self.size = self.model.GetPieceSize()

    def kind(self, id: int) -> int:
        for test, kind in ((self.model.IsControl, CONTROL), (self.model.IsUnknown, UNKNOWN), (self.model.IsByte, BYTE)):
            if test(id):
                return kind
        return NORMAL

    def encode(self, text: str, space_prefix: bool = True) -> list[int]:
        return (self.model if space_prefix else self.bare).EncodeAsIds(text)

    def decode(self, ids: list[int], space_prefix: bool = True) -> str:
        return (self.model if space_prefix else self.bare).DecodeIds(ids)

    def piece_bytes(self, id: int) -> bytes | None:
        if id >= self.size:
            return None
        kind, piece = self.kind(id), self.model.IdToPiece(id)
        if kind == BYTE:
            return bytes([int(piece[3:5], 16)])
        return b"" if kind == CONTROL else b" \xe2\x81\x87 " if kind == UNKNOWN else piece.replace("▁", " ").encode()
