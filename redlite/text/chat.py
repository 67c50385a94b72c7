"""Conversation formats: messages → token ids, and which of them are trained, built together.

A conversation becomes a list of parts: control tokens by id, and text. The text between two control tokens
is encoded in one go, so the ids are those of the whole text. Each token belongs to the part in which it
begins. So no mask is ever found by encoding pieces apart, or by searching text. Text from messages never
becomes a control token (see tokenizer.py).

Trained: what the assistant writes, its end token included. Everything else is not, the generation prompt
included. Formats: FastChat (vicuna_v1.1), Meta's llama and llama3 repositories, mistral-common (v1 as
mistral, v2 and v3 as mistral-v3, v7 to v13 as mistral-v7), and the chat templates of StableBeluga, SmolLM2
and Qwen2. A model's own chat_template is read by chat_template.py; chat_choice.py says which of them a
model has.
"""
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from redlite.errors import Error
from redlite.store.text import short

if TYPE_CHECKING:   # it loads numpy, and a command's help names the formats before the network is sealed
    from redlite.text.tokenizer import Tokenizer

VICUNA_SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. "
                 "The assistant gives helpful, detailed, and polite answers to the user's questions.")
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QWEN2_SYSTEM = "You are a helpful assistant."
# The template's own fixed date.
LLAMA31_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
# A conversation that shows what a format does; it goes into the fingerprint.
PROBE = [{"role": "system", "content": "s"}, {"role": "user", "content": "u 1"},
         {"role": "assistant", "content": "a\n2"}, {"role": "user", "content": "u"}]


class Turn(NamedTuple):
    """A message of the user or the assistant; in some formats the system message as well."""
    role: str
    content: str


@dataclass(frozen=True)
class Encoded:
    """Token ids, and for each whether it is trained."""
    ids: list[int]
    trained: list[bool]


@dataclass(frozen=True)
class Part:
    """Text to encode, or a control token's id."""
    content: str | int
    trained: bool = False


@dataclass(frozen=True)
class Template:
    """A chat format for one tokenizer.

    name          the format's name, a key of FORMATS
    system        the system text where a conversation gives none; None: no system message then
    bos           whether a conversation begins with the BOS token
    stop_ids      ids that end an answer
    stop_strings  texts that end an answer (none of these formats has one)
    """
    name: str
    tokenizer: "Tokenizer"
    system: str | None
    bos: bool
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...] = ()

    def encode(self, messages: list[dict], add_generation_prompt: bool = False) -> Encoded:
        """Ids and mask of a conversation.

        messages               {"role": "system" | "user" | "assistant", "content": text}: at most one system
                               message, at the start; then user and assistant by turns, the user first
        add_generation_prompt  end where the assistant's answer begins; the last message is then the user's
        Raises Error for messages out of order.
        """
        system, turns = _checked(messages, add_generation_prompt)
        if system is None:
            system = self.system
        parts = FORMATS[self.name](self, system, turns, add_generation_prompt)
        if self.bos:
            parts.insert(0, self.bos_part())
        return join(self.tokenizer, parts, "each" if self.name in APART else "text")

    def fingerprint(self) -> str:
        """SHA-256 of what decides the ids: the settings, and a sample conversation in this format."""
        sample = self.encode(PROBE, True)
        settings = [self.name, self.system, self.bos, self.stop_ids, self.stop_strings, sample.ids,
                    sample.trained]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def control(self, text: str) -> int:
        """The id of a control token. Raises Error if the tokenizer does not have it."""
        return self._required(self.tokenizer.special.get(text), text)

    def bos_part(self) -> Part:
        """The BOS token. Raises Error if the tokenizer does not have one."""
        return Part(self._required(self.tokenizer.bos_id, "BOS"))

    def eos_part(self) -> Part:
        """The end token after an answer, which is trained.

        Raises Error if the tokenizer does not have one.
        """
        return Part(self._required(self.tokenizer.eos_id, "EOS"), True)

    def _required(self, id: int | None, what: str) -> int:
        if id is None:
            raise Error(f"chat format {self.name}: the tokenizer has no control token {what}; "
                        "name another format", "template")
        return id


def _checked(messages: list[dict], add_generation_prompt: bool) -> tuple[str | None, list[Turn]]:
    """(system text or None, the turns) of a conversation. Raises Error unless it is in good order."""
    turns = []
    for i, message in enumerate(messages):
        role, content = None, None
        if isinstance(message, dict):
            role, content = message.get("role"), message.get("content")
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise Error(f"message {i}: role {short(role)} with content of type {type(content).__name__}; "
                        "a role system, user or assistant with a text is needed")
        turns.append(Turn(role, content))
    system = turns.pop(0).content if turns and turns[0].role == "system" else None
    for i, turn in enumerate(turns):
        if turn.role != ("user", "assistant")[i % 2]:
            number = i if system is None else i + 1
            raise Error(f"message {number} is of the {turn.role}; user and assistant speak by turns, "
                        "the user first, and only the first message may be of the system")
    if not turns:
        raise Error("the conversation has no user message")
    if add_generation_prompt and turns[-1].role == "assistant":
        raise Error("the conversation ends with the assistant; "
                    "an answer can only follow a message of the user")
    return system, turns


Spaces = Literal["text", "start", "each"]


def join(tokenizer: "Tokenizer", parts: list[Part], spaces: Spaces) -> Encoded:
    """Ids and mask of the parts. Texts that follow one another are one text to the tokenizer.

    spaces  which text counts as the first of all for the space that sentencepiece puts before it: one that
            nothing but BOS stands before ("text"), only one that nothing at all stands before ("start"), or
            every one ("each")
    """
    ids: list[int] = []
    trained: list[bool] = []
    run: list[Part] = []  # the texts since the last control token
    texts: list[str] = []
    first = True          # no text has come yet

    def encode_run() -> None:
        nonlocal first
        for part, own in zip(run, tokenizer.encode_parts(texts, first), strict=True):
            ids.extend(own)
            trained.extend([part.trained] * len(own))
        first = spaces == "each" or first and not any(texts)
        run.clear()
        texts.clear()

    for part in parts:
        if isinstance(part.content, str):
            run.append(part)
            texts.append(part.content)
            continue
        if run:
            encode_run()
        if spaces == "start" or spaces == "text" and part.content != tokenizer.bos_id:
            first = False
        ids.append(part.content)
        trained.append(part.trained)
    if run:
        encode_run()
    return Encoded(ids, trained)


# ---- formats: (template, system text or None, turns, whether an answer is to follow) → parts ----

def _vicuna(t: Template, system: str | None, turns: list[Turn], generate: bool) -> list[Part]:
    """`{system} USER: {u} ASSISTANT: {a}</s>USER: …`; an empty system message is left out, with its space."""
    parts = [Part(system + " ")] if system else []
    for role, content in turns:
        if role == "user":
            parts.append(Part(f"USER: {content} ASSISTANT:"))
        else:
            parts += [Part(" " + content, True), t.eos_part()]
    if turns[-1].role == "user" and not generate:
        parts[-1] = Part(f"USER: {turns[-1].content} ")
    return parts


def _stable_beluga(t: Template, system: str | None, turns: list[Turn], generate: bool) -> list[Part]:
    """`### System:\\n{system}\\n\\n### User: {u}\\n\\n### Assistant:\\n{a}</s>`."""
    parts = [Part(f"### System:\n{system}\n\n")] if system else []
    for i, (role, content) in enumerate(turns):
        if role == "assistant":
            parts += [Part(content, True), t.eos_part()]
        else:
            parts.append(Part(f"### User: {content}\n\n"))
            if generate or i + 1 < len(turns):
                parts.append(Part("### Assistant:\n"))
    return parts


def _llama2(t: Template, system: str | None, turns: list[Turn], generate: bool) -> list[Part]:
    """`<s>[INST] <<SYS>>\\n{system}\\n<</SYS>>\\n\\n{u} [/INST] {a} </s><s>[INST] …`.

    Contents are stripped, as in Meta's code.
    """
    parts = []
    for i, (role, content) in enumerate(turns):
        if role == "assistant":
            parts += [Part(f" {content.strip()} ", True), t.eos_part()]
        else:
            lead = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system is not None and i == 0 else ""
            parts += [t.bos_part(), Part(f"[INST] {(lead + content).strip()} [/INST]")]
    return parts


def _mistral(t: Template, system: str | None, turns: list[Turn], generate: bool) -> list[Part]:
    """`<s>[INST] {u} [/INST] {a}</s>[INST] …`.

    This version (v1) has no place for a system text: it goes before the first message, with a blank line.
    """
    parts = []
    for i, (role, content) in enumerate(turns):
        if role == "assistant":
            parts += [Part(" " + content, True), t.eos_part()]
        else:
            lead = f"{system}\n\n" if system and i == 0 else ""
            parts.append(Part(f"[INST] {lead}{content} [/INST]"))
    return parts


def _mistral_controls(t: Template, system: str | None, turns: list[Turn], generate: bool) -> list[Part]:
    """`<s>[INST]{u}[/INST]{a}</s>`, the brackets being control tokens.

    v2 and v3 put the system text before the last message of the user, with a blank line; v7 puts it first,
    between control tokens of its own. An answer's blanks at its end are cut, as in mistral-common.
    """
    begin, end = t.control("[INST]"), t.control("[/INST]")
    parts = []
    if system is not None and t.name == "mistral-v7":
        parts = [Part(t.control("[SYSTEM_PROMPT]")), Part(system), Part(t.control("[/SYSTEM_PROMPT]"))]
        system = None
    last = max(i for i, turn in enumerate(turns) if turn.role == "user")
    for i, (role, content) in enumerate(turns):
        if role == "assistant":
            parts += [Part(content.rstrip(" "), True), t.eos_part()]
        else:
            lead = f"{system}\n\n" if system and i == last else ""
            parts += [Part(begin), Part(lead + content), Part(end)]
    return parts


def _llama3(t: Template, system: str | None, turns: list[Turn], generate: bool) -> list[Part]:
    """`<|start_header_id|>{role}<|end_header_id|>\\n\\n{content, stripped}<|eot_id|>` for each message.

    llama-3.1 always has a system message, which begins with dates.
    """
    start, end, eot = (t.control(f"<|{name}|>") for name in ("start_header_id", "end_header_id", "eot_id"))

    def header(role: str) -> list[Part]:
        return [Part(start), Part(role), Part(end), Part("\n\n")]

    if t.name == "llama-3.1":
        turns = [Turn("system", LLAMA31_DATES + (system or "").strip()), *turns]
    elif system is not None:
        turns = [Turn("system", system), *turns]
    parts = []
    for role, content in turns:
        mine = role == "assistant"
        text = content if role == "system" and t.name == "llama-3.1" else content.strip()
        parts += [*header(role), Part(text, mine), Part(eot, mine)]
    return [*parts, *header("assistant")] if generate else parts


def _chatml(t: Template, system: str | None, turns: list[Turn], generate: bool) -> list[Part]:
    """`<|im_start|>{role}\\n{content}<|im_end|>\\n` for each message."""
    start, end = t.control("<|im_start|>"), t.control("<|im_end|>")
    if system is not None:
        turns = [Turn("system", system), *turns]
    parts = []
    for role, content in turns:
        mine = role == "assistant"
        parts += [Part(start), Part(role + "\n"), Part(content, mine), Part(end, mine), Part("\n")]
    return [*parts, Part(start), Part("assistant\n")] if generate else parts


def _plain(t: Template, system: str | None, turns: list[Turn], generate: bool) -> list[Part]:
    """No format, for base models: the messages, a line break between two, the end token after an answer.

    The line break before an answer is the answer's own: a prompt is its text and nothing more.
    """
    if system:
        turns = [Turn("system", system), *turns]
    parts: list[Part] = []
    for role, content in turns:
        mine = role == "assistant"
        parts.append(Part("\n" + content if parts else content, mine))
        if mine:
            parts.append(t.eos_part())
    return parts


Render = Callable[[Template, str | None, list[Turn], bool], list[Part]]
FORMATS: dict[str, Render] = {
    "vicuna_v1.1": _vicuna, "llama-2": _llama2, "llama-3": _llama3, "llama-3.1": _llama3,
    "stable-beluga": _stable_beluga, "chatml": _chatml, "smollm2": _chatml, "qwen2": _chatml,
    "mistral": _mistral, "mistral-v3": _mistral_controls, "mistral-v7": _mistral_controls, "plain": _plain}
# What a format says where a conversation has no system message.
SYSTEMS = {"vicuna_v1.1": VICUNA_SYSTEM, "smollm2": SMOLLM2_SYSTEM, "qwen2": QWEN2_SYSTEM}
# Control tokens that end an answer, beside the tokenizer's EOS.
STOPS = {
    "llama-3": ("<|end_of_text|>", "<|eot_id|>"),
    "llama-3.1": ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"),
    "chatml": ("<|im_end|>",),
    "smollm2": ("<|im_end|>",),
    "qwen2": ("<|im_end|>",),
}
# Formats that begin with BOS, whatever the tokenizer's files say.
OWN_BOS = ("llama-3", "llama-3.1", "mistral", "mistral-v3", "mistral-v7")
# Formats whose texts are encoded each by itself, whatever the tokenizer's files say.
APART = ("mistral-v3", "mistral-v7")


# ---- one of these formats for a tokenizer ----

def named(tokenizer: "Tokenizer", name: str) -> Template:
    """The format of that name, a key of `FORMATS`.

    Raises Error where there is none, or where the tokenizer lacks a control token of the format.
    """
    if name not in FORMATS:
        raise Error(f"chat format {short(name)} is not known; use {', '.join(FORMATS)}, "
                    "or a file that holds a template", "template")
    bos = name != "llama-2" and (name in OWN_BOS or tokenizer.add_bos)  # llama-2 puts one at each turn itself
    stops = [*(tokenizer.special.get(text) for text in STOPS.get(name, ())), tokenizer.eos_id]
    stop_ids = tuple(dict.fromkeys(id for id in stops if id is not None))
    template = Template(name, tokenizer, SYSTEMS.get(name), bos, stop_ids)
    template.encode(PROBE, True)  # a missing control token shows here, not at the first question
    return template
