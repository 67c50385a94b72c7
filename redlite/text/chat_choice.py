"""Which chat format a model has: the one that is named, else its own chat_template, else none."""
from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from redlite.errors import Error
from redlite.store.text import short
from redlite.text import chat
from redlite.text.chat_template import SAMPLE, ChatTemplate, Frames
from redlite.text.template import Template
from redlite.text.tokenizer import Tokenizer

Format = chat.Template | ChatTemplate
# A version of mistral-common's formats → a named format here.
MISTRAL = {"v1": "mistral", "v2": "mistral-v3", "v3": "mistral-v3", "v7": "mistral-v7", "v11": "mistral-v7",
           "v13": "mistral-v7"}


@dataclass(frozen=True)
class NoFormat:
    """A model that has no chat format: it scores and continues, but cannot be asked.

    why  the message of the Error that whoever asks for the format gets
    """
    why: str
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        return "none"


def given(found: Format | NoFormat) -> Format:
    """The format. Raises Error, saying what to give, where there is none."""
    if isinstance(found, NoFormat):
        raise Error(found.why, "template")
    return found


def choose(tokenizer: Tokenizer, path: Path, named: str | None,
           date: datetime | None = None) -> Format | NoFormat:
    """The chat format of a model.

    path   the model's directory or GGUF file
    named  the name of a format (`chat.FORMATS`), or a file: JSON role frames (*.json) or a Jinja template
    date   what a template is told that asks for today's date; None: `chat_template.FIXED_DATE`
    Raises Error for a named format that is not known, does not fit the tokenizer, or is malformed. A model's
    own template that cannot be read is `NoFormat`, since the model can be used without.
    """
    if named is not None:
        if named in chat.FORMATS or not Path(named).is_file():
            return chat.named(tokenizer, named)
        return _from_file(Path(named), tokenizer, date)
    try:
        if tokenizer.chat_template:
            template = Template(tokenizer.chat_template, f"{path.name}: chat_template")
            return ChatTemplate(template, tokenizer, date)
        if version := _mistral_version(path, tokenizer):
            return chat.named(tokenizer, MISTRAL[version])
    except Error as error:
        return NoFormat(f"{error}; name a format that fits ({', '.join(chat.FORMATS)}), "
                        "or a file with a template")
    return NoFormat(f"{path.name}: has no chat_template; name the model's format ({', '.join(chat.FORMATS)}; "
                    "plain for a base model), or a file with its template")


def _from_file(path: Path, tokenizer: Tokenizer, date: datetime | None) -> ChatTemplate:
    try:
        source = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"{path}: cannot be read as text ({error})", "template") from None
    where = path.name
    try:
        found = Frames(source, where) if path.suffix == ".json" else Template(source, where)
        return ChatTemplate(found, tokenizer, date)
    except Error as error:
        raise Error(str(error), "template") from None


def _mistral_version(path: Path, tokenizer: Tokenizer) -> str | None:
    """The version of mistral-common's format, by the files that Mistral puts beside a model; else None.

    tekken.json states it. A sentencepiece model shows it by its control tokens: [INST] since v2, whose format
    is v3's without tools, and [SYSTEM_PROMPT] since v7.
    """
    tekken = path / "tekken.json"
    if tekken.is_file():
        try:
            stated = json.loads(tekken.read_bytes())["config"]["version"]
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            raise Error(f"{tekken}: has no config.version") from None
        if stated not in MISTRAL:
            raise Error(f"{tekken}: is of version {short(stated)}; redlite knows {', '.join(MISTRAL)}")
        return stated
    if tokenizer.kind == "sentencepiece" and {"[INST]", "[/INST]"} <= set(tokenizer.special):
        return "v7" if "[SYSTEM_PROMPT]" in tokenizer.special else "v3"
    return None


def describe(found: Format) -> dict[str, Any]:
    """What a report says about a chat format, as a JSON object.

    name             of the format, or of the template with the beginning of its SHA-256
    date             what the template is told about today, where it asks; else None
    sample           a conversation with the generation prompt, ⟦ ⟧ around each control token; without a
                     system message where the format refuses one
    system           true if the format takes a system message, else the words of its refusal
    special_tokens   the control tokens of the sample
    stops            the texts of the ids, and the strings, that end an answer
    """
    tokenizer, refusal = found.tokenizer, ""
    of_id = {id: text for text, id in tokenizer.special.items()}
    try:
        ids = found.encode(SAMPLE, True).ids
    except Error as error:
        refusal, ids = str(error), found.encode(SAMPLE[1:], True).ids
    shown, run = list[str](), list[int]()
    for id in [*ids, None]:
        if id is not None and id not in of_id:
            run.append(id)
            continue
        shown.append(b"".join(map(tokenizer.piece_bytes, run)).decode("utf-8", "replace"))
        run.clear()
        if id is not None:
            shown.append(f"⟦{of_id[id]}⟧")
    return {"name": found.name, "date": getattr(found, "date", None), "sample": "".join(shown),
            "system": refusal or True, "special_tokens": sorted({of_id[id] for id in ids if id in of_id}),
            "stops": [*(of_id.get(id, str(id)) for id in found.stop_ids), *found.stop_strings]}
