#!/usr/bin/env bash
# llama-cpp-python 0.3.36 (built from its own llama.cpp, which takes minutes) beside tokenizers 0.23.3: a GGUF of
# Qwen's tokenizer does not compose text.
#
# Qwen's tokenizer.json normalises to Unicode's form NFC before it splits. A GGUF keeps vocabulary, merges and the
# name of the splitting ("qwen2"), which has no such step.
#
# Surprise: the same vocabulary under the same name gives other ids for text whose accents are characters of their
# own, which is how some systems write file names, and Vietnamese or Korean text comes from them.
# For evaluation: such prompts reach the model as tokens that it hardly saw in training; results of the two engines
# differ for them, while plain text agrees.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q gguf==0.19.0 tokenizers==0.23.3 llama-cpp-python==0.3.36
"$work/venv/bin/python" - <<'PYTHON'
import tempfile
from importlib.metadata import version
from pathlib import Path

import gguf
import llama_cpp
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

print("llama-cpp-python", version("llama-cpp-python"), "and tokenizers", version("tokenizers"))
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")     # Qwen's, which llama.cpp calls "qwen2"
letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ca"]
qwen = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, [("c", "a")]))
qwen.normalizer = normalizers.NFC()        # as in the tokenizer.json of Qwen 1.5 to 3
qwen.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Split(Regex(SPLIT), "isolated"),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
qwen.decoder = decoders.ByteLevel()

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "words.gguf")
    out = gguf.GGUFWriter(path, "qwen2")
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    out.add_token_list([letter.encode() for letter in letters])
    out.add_token_types([1] * len(letters))
    out.add_token_merges(["c a"])
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    words = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    same = []
    for text in ("caf\u00e9", "cafe\u0301"):
        theirs, ids = qwen.encode(text).ids, words.tokenize(text.encode(), add_bos=False)
        same.append(theirs == ids)
        print(f"seen: {ascii(text)}: {theirs} by tokenizers, {ids} by llama.cpp")
print("one would expect: equal ids in both lines")
assert same == [True, False], "the texts are composed now"
PYTHON
