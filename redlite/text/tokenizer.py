"""Tokenizers: sentencepiece and byte-level BPE behind one class, read from a model's directory or GGUF file.

`encode` never makes a control token from text: `</s>` or `<|im_end|>` in a question are encoded as plain characters.
Only chat.py puts control tokens in, by id.

The space before text (sentencepiece models): sentencepiece puts one before every text it encodes. Where control tokens
cut a conversation into segments, the older convention (`legacy`: Meta's code, llama.cpp, tokenizer_config.json with
`legacy` true or absent) encodes each segment apart, so each gets the space; the newer one (`legacy: false`) gives it to
the first segment only. `encode_segment` follows the model's own files.

Byte-level models: a byte without a token (SmolLM2 has 21 such values) is left out, as in llama.cpp; see bpe.py.
"""
import re
from pathlib import Path

from redlite.errors import Error
from redlite.text import gguf_vocabulary, spm, vocabulary
from redlite.text.vocabulary import Vocabulary

MAX_DEFINED = 10_000  # each is tried at each place of a text


class Tokenizer:
    """Text ↔ token ids.

    kind           "sentencepiece" or "byte-level"
    vocab_size     one more than the highest id
    special        text of each control token → its id
    bos_id eos_id pad_id  int or None
    add_bos        whether the model's files want bos_id before a text (`encode` itself never adds it)
    legacy         see the module's docstring; False for byte-level models, which have no such space
    chat_template  the template text of the model's files, or None
    """

    def __init__(self, v: Vocabulary):
        self.kind = "sentencepiece" if isinstance(v.core, spm.SentencePiece) else "byte-level"
        self.special, self.bos_id, self.eos_id, self.pad_id = v.special, v.bos_id, v.eos_id, v.pad_id
        self.add_bos, self.legacy, self.chat_template = v.add_bos, v.legacy, v.chat_template
        self._core, self._texts, self._defined, self._fingerprint, self._space_prefix = v.core, v.texts, v.defined, v.fingerprint, v.space_prefix
        self.vocab_size = max([v.core.size - 1, *v.texts, *v.special.values(), *v.defined.values()]) + 1
        longest = sorted(v.defined, key=lambda t: (-len(t), t))
        self._cut = re.compile("(" + "|".join(map(re.escape, longest)) + ")").split if longest else None
        self._controls = frozenset(v.special.values())

    def encode(self, text: str) -> list[int]:
        """Ids of a whole text, without BOS or EOS. Lone surrogates become U+FFFD."""
        return self.encode_segment(text, True)

    def encode_segment(self, text: str, first: bool) -> list[int]:
        """Ids of a text that stands between control tokens; first: no other text comes before it (BOS does not count)."""
        text = _valid(text)
        if self._cut is None:
            return self._plain(text, first)
        ids: list[int] = []
        for i, part in enumerate(self._cut(text)):  # texts and added tokens by turns
            if i % 2:
                ids.append(self._defined[part])
            elif part:
                ids += self._plain(part, first and i == 0)
        return ids

    def _plain(self, text: str, first: bool) -> list[int]:
        if self.kind == "byte-level":
            return self._core.encode(text)
        return self._core.encode(text, self._space_prefix and (first or self.legacy))

    def encode_parts(self, parts: list[str], first: bool) -> list[list[int]]:
        """Ids of the parts' whole text as one segment, shared out: each token goes to the part in which it begins."""
        whole = self.encode_segment("".join(parts), first)
        shared, at = [], 0
        for i in range(1, len(parts)):
            lead = self.encode_segment("".join(parts[:i]), first)
            end = len(lead) if whole[:len(lead)] == lead else self._tokens_within(whole, sum(len(self.piece_bytes(t)) for t in lead))
            shared.append(whole[at:end])
            at = max(at, end)
        return [*shared, whole[at:]]

    def _tokens_within(self, ids: list[int], count: int) -> int:
        """How many tokens begin within the first `count` bytes."""
        for n, id in enumerate(ids):
            if count <= 0:
                return n
            count -= len(self.piece_bytes(id))
        return len(ids)

    def decode(self, ids: list[int]) -> str:
        """Text of ids; control tokens are left out, bytes that are not UTF-8 and ids outside the vocabulary show as U+FFFD."""
        ids = [i for i in ids if i not in self._controls]
        if self.kind == "byte-level":
            return b"".join(map(self.piece_bytes, ids)).decode("utf-8", "replace")
        out, run = [], []
        for i in [*ids, -1]:
            if 0 <= i < self._core.size:
                run.append(i)
                continue
            if run:
                out.append(self._core.decode(run, self._space_prefix and not out))
                run = []
            if i >= 0:
                out.append(self.piece_bytes(i).decode("utf-8", "replace"))
        return "".join(out)

    def piece_bytes(self, id: int) -> bytes:
        """The bytes that a token adds to the text (before sentencepiece's first space is cut); empty for control tokens."""
        if id in self._controls:
            return b""
        found = self._texts.get(id)
        if found is None:
            found = self._core.piece_bytes(id)
        return "\ufffd".encode() if found is None else found

    def fingerprint(self) -> str:
        """SHA-256 of the files or tables that decide the ids."""
        return self._fingerprint


def _valid(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # a pair of surrogates is one character, a lone one none
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def load(path) -> Tokenizer:
    """The tokenizer of a model: a directory (tokenizer.model, else tokenizer.json) or a .gguf file.

    Raises Error for files that are missing, damaged, or of a kind that redlite does not know.
    """
    path = Path(path)
    found = gguf_vocabulary.read(path) if path.is_file() else vocabulary.read(path)
    if len(found.defined) > MAX_DEFINED:
        raise Error(f"{path}: has {len(found.defined)} added tokens that text may hold; redlite takes {MAX_DEFINED} at most")
    return Tokenizer(found)
