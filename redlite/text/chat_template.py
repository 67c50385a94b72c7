"""A model's own chat template: messages → text → token ids, and which of them are trained.

The template is rendered as written (template.py), as transformers' apply_chat_template does, with the
contents of messages marked. Control tokens are cut out where the template's own characters spell them, the
longest first; contents of messages never become one. The text between two control tokens is encoded as inside
one whole string. BOS stands where the template writes it, and nowhere else.

Trained is what stands in the template's `{% generation %}` blocks. Without such blocks, each
assistant message is trained from the end of the generation prompt to the end token behind its content. If
the rendered conversation does not begin with the rendered prompt (one that opens <think>, say), training
starts at the content's first character. So it does where another message's text stands between the two. If
no end token follows, it ends with the content's last character. Contents of other messages are never trained.
"""
from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from redlite.errors import Error
from redlite.store.text import short
from redlite.text.chat import PROBE, Encoded, Part, join
from redlite.text.marked import GENERATED, TEMPLATE, Marked, concat, marked, runs_of
from redlite.text.template_values import TemplateRefusal
from redlite.text.tokenizer import Tokenizer

# The date that templates are told is today's, unless another is given. It is Llama 3.1's own default.
FIXED_DATE = datetime(2024, 7, 26)
CONTENT = "\uffff"                      # stands for a content's character where control tokens are looked for
ASKED = [{"role": "user", "content": "u 1"}, {"role": "assistant", "content": "a 2"}]
SAMPLE = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"},
          {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Bye"}]
ROLES = ("system", "user", "assistant")


class Span(NamedTuple):
    """A control token in the text.

    start, end  of the token together with the white space that it strips
    at          where the token itself begins
    """
    start: int
    end: int
    id: int
    at: int


class Renderer(Protocol):
    """A template.Template or a `Frames` (below)."""
    source: str
    where: str

    def render(self, variables: dict[str, Any], now: datetime) -> str: ...


class ChatTemplate:
    """A chat template for one tokenizer.

    name          "template " and the beginning of its SHA-256
    date          what the template is told when it asks for today's date, if it does; else None
    stop_ids      ids that end an answer: the tokenizer's EOS, and the control tokens that the template puts
                  behind an answer
    stop_strings  texts that end an answer: none
    """
    stop_strings: tuple[str, ...] = ()

    def __init__(self, template: Renderer, tokenizer: Tokenizer, date: datetime | None = None):
        self.template, self.tokenizer = template, tokenizer
        self.name = f"template {hashlib.sha256(template.source.encode()).hexdigest()[:12]}"
        self._now = date or FIXED_DATE
        self.date = self._now.strftime("%d %b %Y") if "strftime_now" in template.source else None
        texts = sorted(tokenizer.special, key=lambda text: (-len(text), text))
        self._controls = re.compile("|".join(map(re.escape, texts)) or "(?!)")
        of_id = {id: text for text, id in tokenizer.special.items()}
        named = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eos_id, "pad_token": tokenizer.pad_id}
        asked = {name: text for name, text in tokenizer.named.items() if name in template.source}
        self._tokens = {**asked, **{name: of_id[id] for name, id in named.items() if id in of_id}}
        self._ends = self._end_tokens()
        eos = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        self.stop_ids = tuple(dict.fromkeys([*self._ends, *eos]))

    def render(self, messages: list[dict], add_generation_prompt: bool = False) -> Marked:
        """The text of a conversation; message i has the mark i + 1, the template's own words 0.

        Raises TemplateRefusal with the template's own words where it refuses the conversation, TemplateError
        where it uses what template.py does not support.
        """
        given = []
        for i, message in enumerate(messages):
            given.append({**message, "content": Marked.of(message["content"], i + 1)})
        variables = {"messages": given, "tools": None, "documents": None,
                     "add_generation_prompt": add_generation_prompt, **self._tokens}
        return marked(self.template.render(variables, self._now))

    def encode(self, messages: list[dict], add_generation_prompt: bool = False) -> Encoded:
        """Ids and mask of a conversation.

        messages               {"role": "system" | "user" | "assistant", "content": text}, in an order that
                               the template takes
        add_generation_prompt  end where the assistant's answer begins; the last message must then not be
                               the assistant's
        Raises Error for messages that are malformed, that the template refuses or whose contents it drops.
        """
        _check(messages, add_generation_prompt)
        text = self.render(messages, add_generation_prompt)
        self._check_kept(messages, text)
        controls = self._spans(text)
        trained = self._trained(messages, text, controls)
        parts, place = list[Part](), 0
        for control in [*controls, None]:
            start = control.start if control else len(text)
            while place < start:    # a run of characters that are trained alike
                last = trained.find(1 - trained[place], place, start)
                last = start if last < 0 else last
                parts.append(Part(str(text[place:last]), bool(trained[place])))
                place = last
            if control:
                parts.append(Part(control.id, bool(trained[control.at])))
                place = control.end
        return join(self.tokenizer, parts, "start")

    def fingerprint(self) -> str:
        """SHA-256 of what decides the ids: the template, the date it is told, its tokens, and a sample."""
        settings = [self.template.source, self.date, self._tokens, self.stop_ids, self._sample_ids()]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def _sample_ids(self) -> list[int] | str:
        try:
            return self.encode(PROBE, True).ids
        except Error as error:
            return str(error)

    def _spans(self, text: Marked) -> list[Span]:
        """The control tokens that the template itself spells."""
        own = "".join(str.__getitem__(text, slice(start, end)) if mark in (TEMPLATE, GENERATED)
                      else CONTENT * (end - start) for start, end, mark in runs_of(text.marks))
        found: list[Span] = []
        for match in self._controls.finditer(own):
            start, end = match.span()
            left, right = self.tokenizer.trims.get(match[0], (False, False))
            while left and start > (found[-1].end if found else 0) and text[start - 1].isspace():
                start -= 1
            while right and end < len(text) and text[end].isspace():
                end += 1
            found.append(Span(start, end, self.tokenizer.special[match[0]], match.start()))
        return found

    def _end_tokens(self) -> tuple[int, ...]:
        """The control tokens behind an answer, at the end of a conversation and before another message.

        There are none where the template refuses both; `encode` then raises the reason.
        """
        found: list[int] = []
        for messages in (ASKED, [*ASKED, {"role": "user", "content": "u 3"}]):
            try:
                text = self.render(messages)
            except TemplateRefusal:
                continue
            place = text.marks.rfind(chr(2)) + 1
            for span in self._spans(text):
                behind = span.at >= place > 0 and not str(text[place:span.at]).strip()
                if behind and span.id != self.tokenizer.bos_id:
                    found.append(span.id)
                    break
        return tuple(dict.fromkeys(found))

    def _trained(self, messages: list[dict], text: Marked, controls: list[Span]) -> bytearray:
        """For each character 1 if it is trained, else 0."""
        trained = bytearray(len(text))
        if any(ord(mark) & GENERATED for mark in set(text.marks)):
            for start, end, mark in runs_of(text.marks):
                trained[start:end] = bytes([mark & GENERATED != 0]) * (end - start)
            return trained
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                start, end = self._answer(messages, i, text, controls)
                for left, right, mark in runs_of(text.marks[start:end]):
                    if mark in (TEMPLATE, i + 1):       # some templates put a system text before an answer
                        trained[start + left:start + right] = bytes([1]) * (right - left)
        return trained

    def _answer(self, messages: list[dict], i: int, text: Marked, controls: list[Span]) -> tuple[int, int]:
        """(start, end) in the text of what the assistant produces for message i; equal if nothing."""
        own = chr(i + 1)
        first, last = text.marks.find(own), text.marks.rfind(own) + 1
        try:
            prompt = self.render(messages[:i], True) if i else marked("")
        except Error:       # a template that does not take the beginning alone
            prompt = marked("")
        begins = bool(prompt) and text.startswith(str(prompt)) and text.marks.startswith(prompt.marks)
        lead = text.marks[len(prompt):max(first, 0)]
        if begins and (first < 0 or len(prompt) <= first) and lead == chr(TEMPLATE) * len(lead):
            first = len(prompt)
            last = max(last, first)
        if first < 0:
            return 0, 0
        later = (last + start for start, _, mark in runs_of(text.marks[last:]) if chr(mark) > own)
        limit = next(later, len(text))
        behind = [span for span in controls if last <= span.at < limit]
        for n, span in enumerate(behind):
            if span.id in self.stop_ids:
                end = span.end
                for more in behind[n + 1:]:     # a run of control tokens that ends with EOS
                    if more.start != end:
                        break
                    end = more.end
                    if more.id == self.tokenizer.eos_id:
                        return first, end
                return first, span.end
        return first, last

    def _check_kept(self, messages: list[dict], text: Marked) -> None:
        """Raises Error for a message that the template leaves out, or for part of a user's message."""
        found: Counter[int] = Counter()
        for start, end, mark in runs_of(text.marks):
            found[mark & ~GENERATED] += _visible_count(str.__getitem__(text, slice(start, end)))
        for i, message in enumerate(messages):
            given, kept = _visible_count(message["content"]), found[i + 1]
            if given and (not kept or message["role"] == "user" and kept < given):
                what = "drops" if not kept else "drops part of"
                raise Error(f"{self.template.where} {what} message {i}, of the {message['role']}: "
                            f"{short(message['content'][:40])}; leave the message out, "
                            "or give another template", "template")


def _visible_count(text: str) -> int:
    """The number of characters that are not white space."""
    return len("".join(text.split()))


def _check(messages: list[dict], add_generation_prompt: bool) -> None:
    """Raises Error unless these are messages, and an answer can follow where one is asked for."""
    for i, message in enumerate(messages):
        role, content = None, None
        if isinstance(message, dict):
            role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise Error(f"message {i}: role {short(role)} with content of type {type(content).__name__}; "
                        "expected a role system, user or assistant, and content that is a string")
    if not any(message["role"] == "user" for message in messages):
        raise Error("the conversation has no user message")
    if add_generation_prompt and messages[-1]["role"] == "assistant":
        raise Error("the conversation ends with the assistant; "
                    "an answer can only follow a message of the user")


class Frames:
    """A template as a JSON object of role frames, for models whose format nobody has written in Jinja.

    system, user, assistant  texts with one {content} each; `assistant` must end with the token that ends
                             an answer
    prompt                   what stands before an answer; `assistant` must begin with it
    start                    what a conversation begins with, such as the BOS token (default: nothing)
    default_system           the system text where a conversation gives none (no system message then)

    Control tokens are written as their texts.
    """
    FIELDS = ("system", "user", "assistant", "prompt", "start", "default_system")

    def __init__(self, source: str, where: str):
        self.source, self.where = source, where
        try:
            given = json.loads(source)
        except (ValueError, RecursionError) as error:
            raise Error(f"{where}: is not JSON ({' '.join(str(error).split())[:80]})", "template") from None
        if not isinstance(given, dict) or not all(isinstance(value, str) for value in given.values()):
            raise Error(f"{where}: expected a JSON object of strings: {', '.join(self.FIELDS)}", "template")
        for name in given:
            if name not in self.FIELDS:
                raise Error(f"{where}: {short(name)} is not known; use {', '.join(self.FIELDS)}", "template")
        for name in ROLES:
            if (name in given or name != "system") and given.get(name, "").count("{content}") != 1:
                raise Error(f"{where}: {name} needs one {{content}}", "template")
        if not given["assistant"].startswith(given.get("prompt", "")):
            raise Error(f"{where}: assistant must begin with prompt, so that training fits asking",
                        "template")
        self._frames = given

    def render(self, variables: dict[str, Any], now: datetime) -> str:
        """The text of a conversation. Raises Error for a system message where there is no frame for one."""
        frames, messages = self._frames, variables["messages"]
        default = frames.get("default_system")
        if default is not None and (not messages or messages[0]["role"] != "system"):
            messages = [{"role": "system", "content": default}, *messages]
        parts: list[str] = [frames.get("start", "")]
        for message in messages:
            if message["role"] not in frames:
                raise TemplateRefusal(f"{self.where}: has no frame for the {message['role']}")
            lead, tail = frames[message["role"]].split("{content}")
            parts += [lead, message["content"], tail]
        if variables["add_generation_prompt"]:
            parts.append(frames.get("prompt", ""))
        return concat(parts)
