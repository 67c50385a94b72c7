"""A model's tokenizer files in another directory: copied, or made from a GGUF file.

From a GGUF file, a sentencepiece vocabulary becomes tokenizer.model, a byte-level one tokenizer.json.
tokenizer_config.json goes with either. redlite and transformers make the same ids of them. (transformers' own
reading of a GGUF file does not: it drops SmolLM2's splitting of digits.)
"""
import json
from pathlib import Path
from typing import Any

from redlite.errors import Error
from redlite.store.files import write_atomic, write_json
from redlite.text import gguf_vocabulary, spm
from redlite.text.patterns import PATTERNS
from redlite.text.vocabulary import Vocabulary

FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "added_tokens.json", "tekken.json", "vocab.json", "merges.txt", "chat_template.jinja",
         "chat_template.json")
BYTES_ONLY = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def copy(source: Path, directory: Path) -> None:
    """Copy the tokenizer files of one directory into another, each atomically.

    Raises Error for an unreadable file.
    """
    for name in FILES:
        if not (source / name).exists() or (source / name).resolve() == (directory / name).resolve():
            continue
        try:
            content = (source / name).read_bytes()
        except OSError as error:
            raise Error(f"{source / name}: cannot be read ({error.strerror})") from None
        write_atomic(directory / name, content)


def write(path: Path, metadata: dict[str, Any], directory: Path) -> None:
    """Make tokenizer files from a GGUF file's metadata, each written atomically. path: the file, for errors.

    Raises Error for a tokenizer that redlite does not know.
    """
    found, tokens = gguf_vocabulary.read(path, metadata), metadata["tokenizer.ggml.tokens"]
    config: dict[str, object] = {}
    for role, id in (("bos", found.bos_id), ("eos", found.eos_id), ("pad", found.pad_id)):
        config[f"{role}_token"] = None if id is None else tokens[id]
    config |= {"add_bos_token": found.add_bos, "add_eos_token": False, "clean_up_tokenization_spaces": False}
    if found.chat_template is not None:
        config["chat_template"] = found.chat_template
    if isinstance(found.core, spm.SentencePiece):
        model = found.core.model
        write_atomic(directory / "tokenizer.model", spm.serialized(model))
        config |= {"tokenizer_class": "LlamaTokenizer", "legacy": found.legacy,
                   "add_prefix_space": found.space_prefix,
                   "unk_token": tokens[model.kinds.index(spm.UNKNOWN)]}
    else:
        content = json.dumps(_tokenizer_json(found, metadata), ensure_ascii=False, separators=(",", ":"))
        write_atomic(directory / "tokenizer.json", content)
        # Any class with a model's name would rebuild the splitting by its own rule.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(directory / "tokenizer_config.json", config)


def _tokenizer_json(found: Vocabulary, metadata: dict[str, Any]) -> dict:
    """The file of the tokenizers library (github.com/huggingface/tokenizers) for a byte-level vocabulary."""
    pre = metadata["tokenizer.ggml.pre"]
    if gguf_vocabulary.PATTERNS[pre] == "smollm":
        split = [{"type": "Digits", "individual_digits": True}, BYTES_ONLY | {"use_regex": True}]
    else:
        split = [{"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
                 for expression in PATTERNS[gguf_vocabulary.PATTERNS[pre]]]
        split.append(BYTES_ONLY)
    tokens = metadata["tokenizer.ggml.tokens"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": id, "content": text, **flags, "special": text in found.special}
             for text, id in sorted((found.special | found.defined).items(), key=lambda item: item[::-1])]
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    bos, specials = [], {}
    if found.add_bos:
        text = tokens[found.bos_id]
        bos = [{"SpecialToken": {"id": text, "type_id": 0}}]
        specials = {text: {"id": text, "ids": [found.bos_id], "tokens": [text]}}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre in gguf_vocabulary.NFC else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": split},
        "post_processor": {"type": "TemplateProcessing", "single": [*bos, first],
                           "pair": [*bos, first, second], "special_tokens": specials},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": pre in gguf_vocabulary.WHOLE,
                  "vocab": {t: i for i, t in enumerate(tokens)},
                  "merges": metadata["tokenizer.ggml.merges"]}}
