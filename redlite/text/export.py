"""The tokenizer of a GGUF file as Hugging Face files, so that a model that came from one can be saved whole.

A sentencepiece vocabulary becomes tokenizer.model, a byte-level one tokenizer.json; tokenizer_config.json goes with
either. redlite and transformers make the same ids of both. (transformers' own reading of a GGUF file does not: it
drops SmolLM2's splitting of digits.)
"""
import json
from pathlib import Path

from redlite.store.files import write_atomic, write_json
from redlite.text import gguf_vocabulary, spm
from redlite.text.vocabulary import SPLITS, Vocabulary
from redlite.weights.gguf import GGUF

BYTES_ONLY = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def write(source: Path, directory: Path) -> None:
    """Write the tokenizer files of the GGUF file `source` into `directory`, each atomically. Raises Error for a tokenizer that redlite does not know."""
    found = gguf_vocabulary.read(source)
    with GGUF(source) as file:
        metadata = file.metadata
    tokens = metadata["tokenizer.ggml.tokens"]
    named = {f"{role}_token": None if id is None else tokens[id] for role, id in (("bos", found.bos_id), ("eos", found.eos_id), ("pad", found.pad_id))}
    more = {"add_bos_token": found.add_bos, "add_eos_token": False, "clean_up_tokenization_spaces": False}
    if found.chat_template is not None:
        more["chat_template"] = found.chat_template
    if isinstance(found.core, spm.SentencePiece):
        write_atomic(directory / "tokenizer.model", spm.serialized(found.core.model))
        more |= {"tokenizer_class": "LlamaTokenizer", "legacy": found.legacy, "add_prefix_space": found.space_prefix,
                 "unk_token": tokens[found.core.model.kinds.index(spm.UNKNOWN)]}
    else:
        content = json.dumps(_tokenizer_json(found, metadata), ensure_ascii=False, separators=(",", ":"))
        write_atomic(directory / "tokenizer.json", content)
        more["tokenizer_class"] = "PreTrainedTokenizerFast"  # any class with a model's name would rebuild the splitting by its own rule
    write_json(directory / "tokenizer_config.json", named | more)


def _tokenizer_json(found: Vocabulary, metadata: dict[str, object]) -> dict:
    """The file of the tokenizers library (github.com/huggingface/tokenizers) for a byte-level vocabulary."""
    pattern = gguf_vocabulary.PATTERNS[metadata["tokenizer.ggml.pre"]]
    if pattern == "smollm":
        split = [{"type": "Digits", "individual_digits": True}, BYTES_ONLY | {"use_regex": True}]
    else:
        expression = next(e for e, name in SPLITS.items() if name == pattern)
        split = [{"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}, BYTES_ONLY]
    tokens = metadata["tokenizer.ggml.tokens"]
    added = sorted((id, text, text in found.special) for text, id in (found.special | found.defined).items())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    text_id = {"Sequence": {"id": "A", "type_id": 0}}
    bos = [] if not found.add_bos else [{"SpecialToken": {"id": tokens[found.bos_id], "type_id": 0}}]
    specials = {} if not found.add_bos else {tokens[found.bos_id]: {"id": tokens[found.bos_id], "ids": [found.bos_id], "tokens": [tokens[found.bos_id]]}}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": id, "content": text, **flags, "special": special} for id, text, special in added],
        "normalizer": {"type": "NFC"} if pattern == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": split},
        "post_processor": {"type": "TemplateProcessing", "single": [*bos, text_id], "pair": [*bos, text_id, {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": specials},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                  "byte_fallback": False, "ignore_merges": pattern == "llama-bpe", "vocab": {t: i for i, t in enumerate(tokens)},
                  "merges": metadata["tokenizer.ggml.merges"]}}
