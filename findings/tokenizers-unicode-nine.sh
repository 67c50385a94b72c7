#!/usr/bin/env bash
# tokenizers 0.23.3: its normal forms are those of Unicode 9 (2016), whatever Python's are.
#
# NFC, NFD, NFKC and NFKD leave characters alone that Unicode has had since: they neither decompose nor compose,
# and combining marks among them do not change places. U+32FF, the square name of the Japanese era since 2019,
# stays under NFKC, where its 2016 neighbour U+337B becomes two letters.
#
# Surprise: a pre-processing in Python with unicodedata, or another implementation of the same tokenizer.json,
# gives other text, so other ids, and the difference grows with each version of Python.
# For evaluation: NFC stands in the tokenizers of Qwen, NFKC in many others; ids of one text may differ between
# engines that load the same file, and a filter in Python sees other text than the model.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q tokenizers==0.23.3
"$work/venv/bin/python" - <<'PYTHON'
import unicodedata
from importlib.metadata import version

from tokenizers import normalizers

print("tokenizers", version("tokenizers"), "beside Unicode", unicodedata.unidata_version, "of Python")
forms = {"NFC": normalizers.NFC(), "NFKC": normalizers.NFKC()}
# form, text, what it is
cases = [("NFKC", "\u337b", "an era's name, in Unicode since 1.1"),
         ("NFKC", "\u32ff", "an era's name, in Unicode since 12.1"),
         ("NFC", "x\u0301\u0323", "two marks in the wrong order, in Unicode since 1.1"),
         ("NFC", "x\u0301\u1abf", "the same, the second mark in Unicode since 13")]
same = []
for form, text, what in cases:
    seen, python = forms[form].normalize_str(text), unicodedata.normalize(form, text)
    same.append(seen == python)
    print(f"seen: {form} of {ascii(text)} ({what}): {ascii(seen)}, by Python {ascii(python)}")
print("one would expect: the two alike in every line")
assert same == [True, False, True, False], "normal forms are of another Unicode version now"
PYTHON
