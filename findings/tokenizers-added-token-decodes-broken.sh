#!/usr/bin/env bash
# tokenizers 0.23.3: an added word with an accent does not come back from byte-level BPE.
#
# Byte-level vocabularies write each byte as a printable character; "ü" is the name of the byte 0xFC. Added
# tokens are kept as plain text, but the decoder takes them for such names as well, if every character is
# one. "Müller" then becomes the bytes 4D FC 6C 6C 65 72, which are no UTF-8. A word with a space, or with a
# character beyond the table, is decoded as it is.
#
# Surprise: the same word decodes well if it is not an added token, and the ids are right throughout. Only
# some words break: Latin-1 letters do, a Chinese word or one with a space does not.
# For evaluation: a model whose vocabulary was extended for German or French shows broken answers, which
# judges of words then misread.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q tokenizers==0.23.3
"$work/venv/bin/python" - <<'PYTHON'
import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

print("tokenizers", tokenizers.__version__)


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=280, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    tokenizer.train_from_iterator(["the model answers the question"] * 9, trainer)
    return tokenizer


words = ["M\u00fcller", "tr\u00e8s", "na\u00efve", "\u00fcber uns", "\u6771\u4eac"]
plain, extended = byte_level(), byte_level()
extended.add_tokens(words)
broken = []
for word in words:
    usual = plain.decode(plain.encode(word).ids)
    ids = extended.encode(word).ids
    back = extended.decode(ids)
    assert usual == word and len(ids) == 1
    print(f"seen: {word!r} decodes to {usual!r}; as an added token, one id, to {back!r}")
    if back != word:
        broken.append(word)
print("one would expect: every word comes back")
assert broken == words[:3], "added tokens are decoded differently now"
PYTHON
