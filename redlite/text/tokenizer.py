"""Tokenizers: sentencepiece models and the pipelines of pipeline.py behind one class, read from a model's
directory or a GGUF's metadata.

`encode` never makes a control token from text: `</s>` or `<|im_end|>` in a question are encoded as plain
characters. Only chat.py puts control tokens in, by id.

The space before text (sentencepiece models). Sentencepiece puts one before every text that it encodes.
Control tokens cut a conversation into segments, for which there are two conventions:
- the older one (`legacy`: Meta's code, llama.cpp, tokenizer_config.json with `legacy` true or absent) encodes
  each segment by itself, so each gets the space;
- the newer one (`legacy: false`) gives it to the first segment only.
`encode_segment` follows the model's own files.

Byte-level models: a byte without a token (SmolLM2 has 21 such values) is left out, as in llama.cpp; see
bpe.py.
"""
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from redlite.errors import Error
from redlite.text import gguf_vocabulary, spm, tekken, tokenizer_json
from redlite.text.added_tokens import PLAIN, AddedTokens
from redlite.text.pipeline import Pipeline
from redlite.text.tokenizer_files import TokenizerFiles
from redlite.text.vocabulary import Vocabulary, from_sentencepiece

MAX_DEFINED = 10_000  # added tokens that text may hold
REPLACEMENT = "\ufffd"


def load(directory: str | Path) -> "Tokenizer":
    """The tokenizer of a model's directory: from tokenizer.model, else tokenizer.json, else tekken.json.

    Where tokenizer.json has Mistral's vocabulary with the wrong splitting, tekken.json goes before it. A
    tokenizer.model that is a list of tokens and ranks (tiktoken's, as Meta's for Llama 3) is not read.
    Raises Error for files that are missing, damaged, or of a kind that redlite does not know.
    """
    path = Path(directory)
    if not path.is_dir():
        raise Error(f"{path}: there is no such model directory")
    try:
        files = TokenizerFiles(path)
        ranks = files.has("tokenizer.model") and _holds_ranks(path / "tokenizer.model")
        if files.has("tokenizer.model") and not ranks:
            return _tokenizer(path, replace(from_sentencepiece(files), rules=files.rules({})), files)
        if files.has("tokenizer.json") and not (files.has(tekken.NAME) and tokenizer_json.is_wrong(files)):
            return _tokenizer(path, tokenizer_json.from_tokenizer_json(files), files)
        if files.has(tekken.NAME):
            return _tokenizer(path, tekken.from_tekken(files), files)
    except RecursionError:
        raise Error(f"{path}: a JSON file of the tokenizer is nested too deeply") from None
    if ranks:
        raise Error(f"{path / 'tokenizer.model'}: is a list of tokens and ranks, which lacks the splitting; "
                    "copy the model's tokenizer.json there")
    raise Error(f"{path}: has neither tokenizer.model nor tokenizer.json nor tekken.json; "
                "copy the model's tokenizer there")


def _holds_ranks(path: Path) -> bool:
    """Whether the first line is a token in base64 and its rank, which begins no sentencepiece model."""
    with path.open("rb") as file:
        return re.fullmatch(rb"[A-Za-z0-9+/]+=* \d+\s*", file.readline(100)) is not None


def from_gguf(path: Path, metadata: dict[str, Any]) -> "Tokenizer":
    """The tokenizer in the metadata of a GGUF file. path: for errors. Raises Error as `load` does."""
    return _tokenizer(path, gguf_vocabulary.read(path, metadata))


def _tokenizer(path: Path, found: Vocabulary, files: TokenizerFiles | None = None) -> "Tokenizer":
    if len(found.defined) > MAX_DEFINED:
        raise Error(f"{path}: has {len(found.defined)} added tokens that text may hold; "
                    f"redlite takes {MAX_DEFINED} at most")
    return Tokenizer(replace(found, named=files.named()) if files else found)


class Tokenizer:
    """Text ↔ token ids.

    kind           "sentencepiece" or "byte-level"
    vocab_size     one more than the highest id
    base_size      the same without the added tokens: the rows that a model must have for text
    special        text of each control token → its id
    bos_id eos_id pad_id  int or None
    add_bos        whether the model's files want bos_id before a text (`encode` itself never adds it)
    legacy         see the module's docstring; False for byte-level models, which have no such space
    chat_template  the template text of the model's files, or None
    end_ids        tokens that end an answer beside eos_id
    named          the tokens that the model's files name, for chat templates: bos_token and so on → text
    trims          added tokens that take white space beside them along → (on the left, on the right)
    """

    def __init__(self, v: Vocabulary):
        byte_level = isinstance(v.core, Pipeline) and v.core.decoder is None
        self.kind = "byte-level" if byte_level else "sentencepiece"
        self.special, self.bos_id, self.eos_id, self.pad_id = v.special, v.bos_id, v.eos_id, v.pad_id
        self.add_bos, self.legacy, self.chat_template = v.add_bos, v.legacy, v.chat_template
        self.end_ids, self.named = v.end_ids, v.named
        self.trims = {text: rule[:2] for text, rule in v.rules.items() if any(rule[:2])}
        self._core, self._texts = v.core, v.texts
        self._fingerprint, self._space_prefix = v.fingerprint, v.space_prefix
        self.base_size = v.core.size
        self.vocab_size = max([v.core.size - 1, *v.texts, *v.special.values(), *v.defined.values()]) + 1
        self._controls = frozenset(v.special.values())
        self._normalize = v.core.normalize if isinstance(v.core, Pipeline) else None
        late = [text for text in v.defined if self._normalize and v.rules.get(text, PLAIN).normalized]
        early: dict[str, int | None] = {text: id for text, id in v.defined.items() if text not in late}
        # A control token is text here, all of it: no added token within it counts.
        self._early = AddedTokens(early | dict.fromkeys(v.special) if early else {}, v.rules)
        changed = {text: self._normalize(text) for text in late} if self._normalize else {}
        self._late = AddedTokens({new: v.defined[old] for old, new in changed.items() if new},
                                 {new: v.rules[old] for old, new in changed.items()})

    def encode(self, text: str) -> list[int]:
        """Ids of a whole text, without BOS or EOS. Lone surrogates become U+FFFD."""
        return self.encode_segment(text, True)

    def encode_segment(self, text: str, first: bool) -> list[int]:
        """Ids of a text between control tokens. first: no other text comes before it (BOS is no text)."""
        ids: list[int] = []
        start = True    # nothing was found yet
        for part, added in self._early.cut(_valid(text)):
            if added is not None:
                ids.append(added)
            else:
                ids += self._between(part, first and start)
            start = False
        return ids

    def _between(self, text: str, first: bool) -> list[int]:
        """Ids of a text between those added tokens that are found in text as it is given."""
        if isinstance(self._core, spm.SentencePiece):
            return self._core.encode(text, self._space_prefix and (first or self.legacy))
        if self._normalize:
            text = self._normalize(text)
        ids: list[int] = []
        start = True
        for part, added in self._late.cut(text):
            if added is not None:
                ids.append(added)
            else:
                ids += self._core.encode(part, first and start)
            start = False
        return ids

    def encode_parts(self, parts: list[str], first: bool) -> list[list[int]]:
        """Ids of the parts' whole text as one segment; each token goes to the part in which it begins."""
        whole = self.encode_segment("".join(parts), first)
        shared, at = [], 0
        for i in range(1, len(parts)):
            lead = self.encode_segment("".join(parts[:i]), first)
            if whole[:len(lead)] == lead:
                end = len(lead)
            else:  # a token spans the border
                end = self._tokens_within(whole, sum(len(self.piece_bytes(t)) for t in lead))
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
        """The text of ids.

        Control tokens are left out; broken UTF-8 and ids outside the vocabulary show as U+FFFD.
        """
        ids = [i for i in ids if i not in self._controls]
        if isinstance(self._core, Pipeline):
            return self._core.decode(ids)
        out: list[str] = []
        run: list[int] = []  # ids that sentencepiece decodes together
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
        """The bytes that a token adds to the text, with sentencepiece's first space; none if it is
        control.
        """
        if id in self._controls:
            return b""
        found = self._texts.get(id)
        if found is None:
            found = self._core.piece_bytes(id)
        return REPLACEMENT.encode() if found is None else found

    def fingerprint(self) -> str:
        """SHA-256 of the files or tables that decide the ids."""
        return self._fingerprint


def _valid(text: str) -> str:
    """The text with surrogates mended: a pair becomes its character, a lone one U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
