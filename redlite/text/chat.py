"""Conversation formats: messages → token ids, and which of them are trained, built together.

A conversation becomes a list of parts: control tokens by id, and text. Text between two control tokens is encoded in one
go, so the ids are those of the whole text, and each token belongs to the part in which it begins; no mask is ever found by
encoding pieces apart or by searching text. Text from messages never becomes a control token (see tokenizer.py).

Trained: what the assistant writes, its end token included. Not trained: everything else, the generation prompt included.
Formats: FastChat (vicuna_v1.1), Meta's llama and llama3 repositories, mistral-common (v1), and the chat templates of
StableBeluga, SmolLM2 and Qwen2.
"""
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from redlite.errors import Error
from redlite.store.text import short
from redlite.text.tokenizer import Tokenizer

VICUNA_SYSTEM = ("A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite "
                 "answers to the user's questions.")
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
QWEN2_SYSTEM = "You are a helpful assistant."
LLAMA31_DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"  # the template's own fixed date
PROBE = [{"role": "system", "content": "s"}, {"role": "user", "content": "u 1"}, {"role": "assistant", "content": "a\n2"}, {"role": "user", "content": "u"}]


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
    stop_ids      ids that end an answer
    stop_strings  texts that end an answer (none of these formats has one)
    system        the system text where a conversation gives none; None: no system message then
    bos           whether a conversation begins with the BOS token
    """
    name: str
    tokenizer: Tokenizer
    system: str | None
    bos: bool
    stop_ids: tuple[int, ...]
    stop_strings: tuple[str, ...] = ()

    def encode(self, messages: list[dict], add_generation_prompt: bool = False) -> Encoded:
        """Ids and mask of a conversation.

        messages               {"role": "system" | "user" | "assistant", "content": text}: at most one system message, at
                               the start; then user and assistant by turns, the user first
        add_generation_prompt  end where the assistant's answer begins; the last message is then the user's
        Raises Error for messages out of order.
        """
        system, turns = _checked(messages, add_generation_prompt)
        parts = FORMATS[self.name](self, self.system if system is None else system, turns, add_generation_prompt)
        if self.bos:
            parts.insert(0, Part(_id(self.tokenizer, self.tokenizer.bos_id, "BOS", self.name)))
        return _join(self.tokenizer, parts)

    def fingerprint(self) -> str:
        """SHA-256 of what decides the ids: the settings, and a sample conversation in this format."""
        sample = self.encode(PROBE, True)
        settings = [self.name, self.system, self.bos, self.stop_ids, self.stop_strings, sample.ids, sample.trained]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def control(self, text: str) -> int:
        """The id of a control token that the format needs."""
        return _id(self.tokenizer, self.tokenizer.special.get(text), text, self.name)


def _id(tokenizer: Tokenizer, id: int | None, what: str, name: str) -> int:
    if id is None:
        raise Error(f"chat format {name}: the tokenizer has no control token {what}; choose another format with --template")
    return id


def _checked(messages: list[dict], add_generation_prompt: bool) -> tuple[str | None, list[tuple[str, str]]]:
    """(system text or None, [(role, content), …]) of a conversation in good order."""
    pairs = []
    for i, message in enumerate(messages):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise Error(f"message {i}: role {short(role)} with content of type {type(content).__name__}; a role system, user or assistant with a text is needed")
        pairs.append((role, content))
    system = pairs.pop(0)[1] if pairs and pairs[0][0] == "system" else None
    for i, (role, _) in enumerate(pairs):
        if role != ("user", "assistant")[i % 2]:
            raise Error(f"message {i + (system is not None)} is of the {role}; user and assistant speak by turns, the user first, and only the first "
                        "message may be of the system")
    if not pairs:
        raise Error("the conversation has no message of the user")
    if add_generation_prompt and pairs[-1][0] == "assistant":
        raise Error("the conversation ends with the assistant; an answer can only follow a message of the user")
    return system, pairs


def _join(tokenizer: Tokenizer, parts: list[Part]) -> Encoded:
    """Ids and mask of the parts; neighbouring texts are one text to the tokenizer."""
    ids, trained, first, i = [], [], True, 0
    while i < len(parts):
        end = i + 1
        if isinstance(parts[i].content, int):
            ids.append(parts[i].content)
            trained.append(parts[i].trained)
            i = end
            continue
        while end < len(parts) and isinstance(parts[end].content, str):
            end += 1
        run = parts[i:end]
        for part, own in zip(run, tokenizer.encode_parts([p.content for p in run], first)):
            ids += own
            trained += [part.trained] * len(own)
        first, i = first and not any(p.content for p in run), end
    return Encoded(ids, trained)


# ---- formats: (template, system text or None, turns, generation prompt?) → parts ----

def _vicuna(t: Template, system: str | None, turns: list[tuple[str, str]], generate: bool) -> list[Part]:
    """`{system} USER: {u} ASSISTANT: {a}</s>USER: …`; an empty system message leaves it out, with its space."""
    parts = [Part(system + " ")] if system else []
    for role, content in turns:
        if role == "user":
            parts.append(Part(f"USER: {content} ASSISTANT:"))
        else:
            parts += [Part(" " + content, True), _eos(t)]
    return parts if generate or turns[-1][0] == "assistant" else [*parts[:-1], Part(f"USER: {turns[-1][1]} ")]


def _stable_beluga(t: Template, system: str | None, turns: list[tuple[str, str]], generate: bool) -> list[Part]:
    """`### System:\\n{system}\\n\\n### User: {u}\\n\\n### Assistant:\\n{a}</s>`."""
    parts = [Part(f"### System:\n{system}\n\n")] if system else []
    for i, (role, content) in enumerate(turns):
        if role == "assistant":
            parts += [Part(content, True), _eos(t)]
        else:
            parts.append(Part(f"### User: {content}\n\n"))
            if generate or i + 1 < len(turns):
                parts.append(Part("### Assistant:\n"))
    return parts


def _llama2(t: Template, system: str | None, turns: list[tuple[str, str]], generate: bool) -> list[Part]:
    """`<s>[INST] <<SYS>>\\n{system}\\n<</SYS>>\\n\\n{u} [/INST] {a} </s><s>[INST] …`; contents stripped, as Meta's code does."""
    bos, parts = Part(_id(t.tokenizer, t.tokenizer.bos_id, "BOS", t.name)), []
    for i, (role, content) in enumerate(turns):
        if role == "assistant":
            parts += [Part(f" {content.strip()} ", True), _eos(t)]
        else:
            lead = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system is not None and i == 0 else ""
            parts += [bos, Part(f"[INST] {(lead + content).strip()} [/INST]")]
    return parts


def _mistral(t: Template, system: str | None, turns: list[tuple[str, str]], generate: bool) -> list[Part]:
    """`<s>[INST] {u} [/INST] {a}</s>[INST] …`; a system text goes before the first message with a blank line (v1 has no place for one)."""
    parts = []
    for i, (role, content) in enumerate(turns):
        if role == "assistant":
            parts += [Part(" " + content, True), _eos(t)]
        else:
            lead = f"{system}\n\n" if system and i == 0 else ""
            parts.append(Part(f"[INST] {lead}{content} [/INST]"))
    return parts


def _llama3(t: Template, system: str | None, turns: list[tuple[str, str]], generate: bool) -> list[Part]:
    """`<|start_header_id|>{role}<|end_header_id|>\\n\\n{content, stripped}<|eot_id|>` a message; llama-3.1 puts its dates before the system text."""
    start, end, eot = (t.control(f"<|{name}|>") for name in ("start_header_id", "end_header_id", "eot_id"))

    def header(role: str) -> list[Part]:
        return [Part(start), Part(role), Part(end), Part("\n\n")]
    messages = [] if system is None and t.name == "llama-3" else [("system", system or "")]
    parts = []
    for role, content in [*messages, *turns]:
        mine = role == "assistant"
        lead = LLAMA31_DATES if role == "system" and t.name == "llama-3.1" else ""
        parts += [*header(role), Part(lead + content.strip(), mine), Part(eot, mine)]
    return [*parts, *header("assistant")] if generate else parts


def _chatml(t: Template, system: str | None, turns: list[tuple[str, str]], generate: bool) -> list[Part]:
    """`<|im_start|>{role}\\n{content}<|im_end|>\\n` a message."""
    start, end = t.control("<|im_start|>"), t.control("<|im_end|>")
    parts = []
    for role, content in [*([] if system is None else [("system", system)]), *turns]:
        mine = role == "assistant"
        parts += [Part(start), Part(role + "\n"), Part(content, mine), Part(end, mine), Part("\n")]
    return [*parts, Part(start), Part("assistant\n")] if generate else parts


def _plain(t: Template, system: str | None, turns: list[tuple[str, str]], generate: bool) -> list[Part]:
    """No format, for base models: the messages, a line break between two, the end token after an answer.

    The line break before an answer is the answer's own: a prompt is its text and nothing more.
    """
    parts, lead = [], ""
    for role, content in [*([("system", system)] if system else []), *turns]:
        mine = role == "assistant"
        parts.append(Part(lead + content, mine))
        if mine:
            parts.append(_eos(t))
        lead = "\n"
    return parts


def _eos(t: Template) -> Part:
    return Part(_id(t.tokenizer, t.tokenizer.eos_id, "EOS", t.name), True)


Render = Callable[[Template, str | None, list[tuple[str, str]], bool], list[Part]]
FORMATS: dict[str, Render] = {"vicuna_v1.1": _vicuna, "llama-2": _llama2, "llama-3": _llama3, "llama-3.1": _llama3, "stable-beluga": _stable_beluga,
                              "chatml": _chatml, "smollm2": _chatml, "qwen2": _chatml, "mistral": _mistral, "plain": _plain}
SYSTEMS = {"vicuna_v1.1": VICUNA_SYSTEM, "smollm2": SMOLLM2_SYSTEM, "qwen2": QWEN2_SYSTEM}
STOPS = {"llama-3": ("<|end_of_text|>", "<|eot_id|>"), "llama-3.1": ("<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"),
         "chatml": ("<|im_end|>",), "smollm2": ("<|im_end|>",), "qwen2": ("<|im_end|>",)}
MARKERS = (("llama-3.1", ("<|start_header_id|>", "Cutting Knowledge Date")), ("llama-3", ("<|start_header_id|>",)), ("chatml", ("<|im_start|>",)),
           ("llama-2", ("[INST]", "<<SYS>>")), ("mistral", ("[INST]",)), ("stable-beluga", ("### User:", "### Assistant:")),
           ("vicuna_v1.1", ("USER:", "ASSISTANT:")))
NAMES = (("vicuna_v1.1", r"vicuna|starling|organism"), ("stable-beluga", r"stable-?beluga"), ("llama-2", r"llama-?2.*chat"),
         ("llama-3.1", r"llama-?3\.[123].*instruct"), ("llama-3", r"llama-?3.*instruct"), ("smollm2", r"smollm2.*instruct"),
         ("qwen2", r"qwen2.*instruct"), ("mistral", r"mistral.*instruct"))


def choose(tokenizer: Tokenizer, chat_template: str | None, model_name: str, override: str | None) -> Template:
    """The chat format of a model: `override` if given, else by the markers in its chat_template, else by its name.

    Raises Error where none of them says it, or where the tokenizer lacks a control token of the format.
    """
    name, system = override, None
    if override is not None and override not in FORMATS:
        raise Error(f"chat format {short(override)} is not known; use {', '.join(FORMATS)}")
    if name is None and chat_template:
        name = next((n for n, marks in MARKERS if all(m in chat_template for m in marks)), None)
        if name is None:
            raise Error(f"{model_name}: its chat_template has none of the marks of the known formats; choose one with --template ({', '.join(FORMATS)})")
        if name == "chatml":
            name, system = _chatml_kind(chat_template)
    if name is None:
        name = next((n for n, words in NAMES if re.search(words, model_name.lower())), None)
        if name is None:
            raise Error(f"{model_name}: has no chat_template and no known name; choose the format with --template ({', '.join(FORMATS)}; plain for a base model)")
    stops = [tokenizer.special.get(s) for s in STOPS.get(name, ())] + [tokenizer.eos_id]
    own = name in ("llama-3", "llama-3.1", "mistral")  # these formats contain BOS, and llama-2 puts one at each turn
    bos = name != "llama-2" and (own or ("bos_token" in chat_template if chat_template and override is None else tokenizer.add_bos))
    template = Template(name, tokenizer, system if system is not None else SYSTEMS.get(name), bos, tuple(dict.fromkeys(i for i in stops if i is not None)))
    try:
        template.encode(PROBE, True)  # a missing control token shows here, not at the first question
    except Error as error:
        raise Error(f"{model_name}: {error}") from None
    return template


def _chatml_kind(chat_template: str) -> tuple[str, str | None]:
    """The name, and the system text that a ChatML template puts where a conversation has none."""
    found = re.search(r"<\|im_start\|>system(?:\\n|\n)([^{}'\"|]+)<\|im_end\|>", chat_template)
    if found is None:
        return "chatml", None
    system = found[1]
    return "smollm2" if "SmolLM" in system else "qwen2" if "Qwen" in system or system.startswith(QWEN2_SYSTEM[:-1]) else "chatml", system
