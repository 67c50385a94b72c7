"""Thousands of damaged tokenizer files: each loads and works, or ends in one short line, soon.

    python tests/beside/fuzz_tokenizers.py [COUNT [SEED]]

Damages, as JSON and as bytes: tokenizer.json of every kind in tests/golden/pipelines.json, tekken.json,
tokenizer_config.json, added_tokens.json and special_tokens_map.json.
"""
import copy
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from redlite.errors import Error
from redlite.text import chat_choice, tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "pipelines.json"
PROBES = ("Hello, 12 worlds.\n\n <s> [INST] <L>  <R> <B>é日本\U0001f600\ud800", " ▁a▁▁b ", "aAb" * 40,
          " \n" * 300, "")
LONGEST, SECONDS = 300, 2.0
VALUES = (None, True, False, -1, 0, 1, 3, 300, 1 << 40, 0.5, 1e308, float("nan"), "", " ", "▁", "a", "<s>",
          "é", "\ud800", "x" * 5000, [], [[]], {}, ["a"], [["a", 1.0]], {"a": 0}, {"type": "Sequence"},
          {"type": "NFC"}, {"type": "ByteLevel"}, {"type": "Metaspace", "replacement": "▁"}, {"String": " "},
          {"Regex": r"\s*[\r\n]+|(\p{L}+)?|\p{N}{1,3}"}, {"Regex": "(a|b)*c"}, {"Regex": "a**"},
          {"Regex": "["}, {"Regex": r"[^\P{L}a-"}, {"Regex": "(?=a)|$"}, {"Regex": "(" * 300},
          r"\p{L}+", "(?i:a)", "first", "always", "Removed", "MergedWithNext", "Unigram", "BPE", "Split",
          "Strip", "Replace", "Prepend")
CONFIG = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}, "pad_token": None,
          "add_bos_token": True, "legacy": True, "add_prefix_space": True,
          "additional_special_tokens": ["[INST]"], "chat_template": [{"name": "default", "template": "x"}],
          "added_tokens_decoder": {"900": {"content": "<z>", "special": False, "lstrip": True}}}
MAP = {"bos_token": "<s>", "eos_token": {"content": "</s>"},
       "additional_special_tokens": ["[INST]", {"content": "<z>"}]}


def sources() -> list[dict[str, Any]]:
    """File name → its JSON value, for each directory that is damaged."""
    golden = json.loads(GOLDEN.read_text())
    beside = {"tokenizer_config.json": CONFIG, "added_tokens.json": {"<pad>": 901},
              "special_tokens_map.json": MAP}
    found = [{"tokenizer.json": kind["core"], **beside} for kind in golden["small"].values()]
    tekken = golden["tekken"]["core"] | {"special_tokens": golden["tekken"]["special_tokens"]}
    return [*found, {"tekken.json": tekken, **beside}, {"tekken.json": tekken, **beside}]


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The places of a JSON value; of long lists and objects the first few."""
    found = [path]
    inner: list[tuple] = list(value.items()) if isinstance(value, dict) else []
    if isinstance(value, list):
        inner = list(enumerate(value))
    for key, part in inner[:12]:
        found += places(part, (*path, key))
    return found


def damaged(value: Any, rng: random.Random) -> Any:
    """A copy with one to three values replaced, left out, doubled or renamed."""
    made = [copy.deepcopy(value)]       # a list, so that the top can be replaced too
    for _ in range(rng.choice((1, 1, 2, 3))):
        path = (0, *rng.choice(places(made[0])))
        holder: Any = made
        for key in path[:-1]:
            holder = holder[key]
        kind = rng.randrange(5)
        if kind == 0 and isinstance(holder, dict):
            del holder[path[-1]]
        elif kind == 1 and isinstance(holder, list) and holder is not made:
            holder.append(copy.deepcopy(holder[path[-1]]))
        elif kind == 2 and isinstance(holder, dict):
            name = rng.choice(("type", "pattern", "content", "a", "vocab", "prepend_scheme"))
            holder[name] = holder.pop(path[-1])
        elif kind == 3 and isinstance(holder[path[-1]], str):
            text = holder[path[-1]]
            at = rng.randrange(len(text) + 1)
            mark = rng.choice(("", "*", "+", "(", "]", "\\", "{", "|", "▁", "\0"))
            holder[path[-1]] = text[:at] + mark + text[at + 1:]
        else:
            holder[path[-1]] = copy.deepcopy(rng.choice(VALUES))
    return made[0]


def outcome(directory: Path) -> str:
    """"loaded" or "refused"; anything that is no Error of one short line escapes."""
    try:
        words = tokenizer.load(directory)
        for text in PROBES:
            ids = words.encode(text)
            words.decode([*ids, -1, 1 << 40])
            for id in ids:
                words.piece_bytes(id)
        words.encode_parts(["a b", " <L> c", "é"], False)
        chat_choice.choose(words, directory, None)
    except Error as error:
        line = str(error).replace(str(directory), "DIR")
        if "\n" in line or len(line) > LONGEST or not line.isprintable():
            raise AssertionError(f"not one short line: {line!r}") from None
        return "refused"
    return "loaded"


def main(count: int, seed: int) -> Counter:
    rng, found, slowest, of_all = random.Random(seed), Counter[str](), 0.0, sources()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        for number in range(count):
            files = dict(rng.choice(of_all))
            name = rng.choice([*files, *list(files)[:1] * 4])       # most often the first
            contents = {other: json.dumps(value).encode() for other, value in files.items()}
            if rng.random() < 0.15:
                data = bytearray(contents[name])
                for _ in range(rng.choice((1, 1, 4))):
                    at = rng.randrange(len(data) + 1)
                    data[at:at + rng.choice((0, 1, 40))] = rng.randbytes(rng.choice((0, 1, 3)))
                contents[name] = bytes(data)
            else:
                contents[name] = json.dumps(damaged(files[name], rng)).encode()
            for old in directory.iterdir():
                old.unlink()
            for other, content in contents.items():
                (directory / other).write_bytes(content)
            started = time.process_time()
            try:
                found[outcome(directory)] += 1
            except BaseException:
                print(f"number {number}, {name}: {contents[name][:3000]!r}")
                raise
            slowest = max(slowest, time.process_time() - started)
    print(dict(found), f"slowest {slowest:.2f} s")
    assert slowest < SECONDS
    return found


if __name__ == "__main__":
    main(int((sys.argv[1:2] or ["3000"])[0]), int((sys.argv[2:3] or ["1"])[0]))
