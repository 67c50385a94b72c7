"""Vocabularies from tekken.json, the file of mistral-common (github.com/mistralai/mistral-common, 1.13.1).

It lists tokens as bytes by rank. Ids begin with the special tokens, so a token's id is its rank and their
number. Two tokens merge if they make a token together, as in tiktoken.
"""
import base64
import binascii
from typing import Any

from redlite.store.text import short
from redlite.text import bpe
from redlite.text.patterns import Translated, isolated
from redlite.text.pipeline import anywhere
from redlite.text.tokenizer_files import MAX_IDS, Added, TokenizerFiles
from redlite.text.vocabulary import Vocabulary, byte_level

NAME = "tekken.json"
# The special tokens of files that list none, which are of version v7 at most.
OLD_SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
               "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]",
               "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]",
               "[TOOL_CONTENT]")
OLD_VERSIONS = ("v1", "v2", "v3", "v7")
FILLER = "<SPECIAL_{}>"


def from_tekken(files: TokenizerFiles) -> Vocabulary:
    """From tekken.json and the files beside it. Raises Error."""
    core = files.json(NAME)
    config = files.an_object(NAME, core, "config")
    size = _number(files, config, "default_vocab_size")
    count = _number(files, config, "default_num_special_tokens")
    special = _special(files, core, config, count)
    vocab = _tokens(files, core, size - count, count)
    pattern = config.get("pattern")
    try:
        if not isinstance(pattern, str):
            raise ValueError("a text is needed")
        split = anywhere(isolated(Translated(pattern)))
    except ValueError as error:
        raise files.fail(NAME, f"config.pattern: {error}") from None
    texts = {text: id for id, text in enumerate(special)}
    ids = texts.get("<s>"), texts.get("</s>"), texts.get("<pad>")
    if ids[0] is None or ids[1] is None:
        raise files.fail(NAME, "special_tokens lacks <s> or </s>")
    added: Added = {id: (text, True) for id, text in enumerate(special)}
    return byte_level(vocab, None, added, ids, split, ignore_merges=True,
                      add_bos=files.flag("add_bos_token", True), chat_template=files.chat_template(),
                      fingerprint=files.fingerprint())


def _number(files: TokenizerFiles, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 0 < value < MAX_IDS:
        raise files.fail(NAME, f"config.{key} is {short(value)}; a number from 1 to {MAX_IDS - 1} is needed")
    return value


def _special(files: TokenizerFiles, core: dict[str, Any], config: dict[str, Any], count: int) -> list[str]:
    """The texts of the special tokens, by id, filled up to `count`."""
    if core.get("special_tokens") is None:
        if config.get("version") not in OLD_VERSIONS:
            raise files.fail(NAME, "special_tokens is missing, which only versions up to v7 may leave out")
        found = list(OLD_SPECIAL)
    else:
        found = []
        for i, entry in enumerate(files.a_list(NAME, core, "special_tokens")):
            text = entry.get("token_str") if isinstance(entry, dict) else None
            if not isinstance(text, str) or not text or entry.get("rank") != i:
                raise files.fail(NAME, f"special_tokens, entry {i}: a text token_str and rank {i} are needed")
            found.append(text)
    found += [FILLER.format(i) for i in range(len(found), count)]
    if len(found) != count or len(set(found)) != count:
        raise files.fail(NAME, f"special_tokens has more than {count} tokens, or one of them twice")
    return found


def _tokens(files: TokenizerFiles, core: dict[str, Any], size: int, first: int) -> dict[str, int]:
    """Token in the byte alphabet → id, of the first `size` tokens. The first 256 are the bytes."""
    entries = files.a_list(NAME, core, "vocab")
    if not 256 <= size <= len(entries):
        raise files.fail(NAME, f"vocab has {len(entries)} tokens, and config asks for {size}; "
                               "at least 256 are needed")
    vocab: dict[str, int] = {}
    for i, entry in enumerate(entries[:size]):
        try:
            data = base64.b64decode(entry["token_bytes"], validate=True)
            if entry["rank"] != i or not data or i < 256 and data != bytes([i]):
                raise ValueError
        except (LookupError, TypeError, ValueError, binascii.Error):
            raise files.fail(NAME, f"vocab, entry {i}: rank {i} and its bytes in base64 are needed") from None
        vocab[bpe.in_alphabet(data)] = first + i
    if len(vocab) != size:
        raise files.fail(NAME, "vocab holds a token twice")
    return vocab
