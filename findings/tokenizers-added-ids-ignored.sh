#!/usr/bin/env bash
# tokenizers 0.23.3, transformers 5.24.0: the ids that tokenizer.json gives its added tokens are not used.
#
# Each entry of added_tokens has an id and a content. The library takes the entries as the file lists them, and
# numbers the tokens that the vocabulary lacks from the vocabulary's size on. Where the ids leave a gap, or
# are listed in another order, the tokens get other ids than the file states. transformers does the same,
# even when added_tokens_decoder in tokenizer_config.json states the ids once more.
#
# Surprise: a field that states the id is not the id, and nothing is said.
# For evaluation: an end token or a role's token may stand for another row of the embedding than the file
# says, and a program that reads the file disagrees with the library.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q tokenizers==0.23.3 transformers==5.24.0
"$work/venv/bin/python" - "$work" <<'PYTHON'
import json
import pathlib
import sys

import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

print("tokenizers", tokenizers.__version__, "transformers", transformers.__version__)
base = Tokenizer(models.BPE())
base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
base.train_from_iterator(["hello there"] * 9, trainers.BpeTrainer(
    vocab_size=260, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
core = json.loads(base.to_str())
size = len(core["model"]["vocab"])
flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
for name, stated in {"in order": {"<|user|>": size, "<|end|>": size + 1},
                     "a gap": {"<|user|>": size, "<|end|>": size + 5},
                     "the higher id first": {"<|end|>": size + 1, "<|user|>": size}}.items():
    folder = pathlib.Path(sys.argv[1]) / name.replace(" ", "-")
    folder.mkdir()
    core["added_tokens"] = [dict(id=i, content=text, **flags) for text, i in stated.items()]
    (folder / "tokenizer.json").write_text(json.dumps(core))
    decoder = {str(i): dict(content=text, **flags) for text, i in stated.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": decoder}))
    one = Tokenizer.from_file(str(folder / "tokenizer.json"))
    two = AutoTokenizer.from_pretrained(folder)
    got = {text: one.token_to_id(text) for text in stated}
    auto = {text: two.convert_tokens_to_ids(text) for text in stated}
    print(f"seen: {name}: stated {stated}, tokenizers {got}, transformers {auto}")
    assert got == auto
    assert (got == stated) == (name == "in order"), "stated ids are honoured now"
print("one would expect: the stated ids, or an error")
PYTHON
