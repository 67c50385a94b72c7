"""Any HTTP endpoint, by a file that says how a request looks and where the answer stands in the reply.

    {"url": "https://host/generate", "method": "POST", "headers": {"X-Key": "{{env:MY_KEY}}"},
     "body": {"inputs": "{{prompt}}", "options": {"limit": "{{max_tokens}}"}}, "answer": "outputs.0.text"}

A text that is one placeholder becomes the value itself: {{messages}} a list of role and content,
{{max_tokens}} and {{temperature}} numbers. Inside a longer text it becomes text. {{prompt}} is the last
message, {{system}} the system message. A field whose placeholder has no value, such as {{stop}}, is left out.
{{env:NAME}} is the environment's, and is never written anywhere.
"""
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from redlite.errors import Error
from redlite.store.files import read_json
from redlite.store.records import Kind, require
from redlite.text.lazy_pattern import LazyPattern

FIELDS: dict[str, Kind] = {
    "url": str, "method": (str, NoneType), "headers": (dict, NoneType), "body": dict, "answer": str,
    "finish": (str, NoneType), "prompt_tokens": (str, NoneType), "completion_tokens": (str, NoneType),
    "model": (str, NoneType)}
METHODS = ("POST", "PUT", "PATCH")
NAMES = ("messages", "prompt", "system", "model", "max_tokens", "temperature", "top_p", "stop", "sample")
_HOLE = LazyPattern(r"\{\{\s*(env:[A-Za-z_][A-Za-z0-9_]*|[A-Za-z_]+)\s*\}\}")
_MISSING = object()


@dataclass(frozen=True)
class Template:
    """An endpoint file, read and checked.

    answer, finish, prompt_tokens, completion_tokens  paths in the reply, such as "a.0.b"; "" for none
    """
    name: str
    url: str
    method: str
    headers: dict[str, str]
    body: dict
    answer: str
    finish: str = ""
    prompt_tokens: str = ""
    completion_tokens: str = ""
    model: str = ""

    def values(self, messages: list[dict[str, str]], parameters: dict[str, Any], sample: int) -> dict:
        """What the placeholders stand for in one request."""
        system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
        return {"messages": messages, "prompt": messages[-1]["content"], "system": system,
                "model": self.model or self.name, "sample": sample,
                **{name: parameters[name] for name in NAMES if name in parameters}}

    def request(self, messages: list[dict[str, str]], parameters: dict[str, Any], sample: int) -> dict:
        """The body of one request."""
        return _filled(self.body, self.values(messages, parameters, sample))

    def filled_headers(self) -> dict[str, str]:
        """The headers with what the environment holds. Raises Error for a variable that is not set."""
        return {name: str(_filled(value, {})) for name, value in self.headers.items()}

    def secrets(self) -> list[str]:
        """What the environment gives, which must not be written."""
        names = re.findall(r"\{\{\s*env:(\w+)\s*\}\}", json.dumps([self.headers, self.body]))
        return [os.environ[name] for name in names if os.environ.get(name)]

    def read(self, value: object) -> dict:
        """A reply's JSON as a chat completion's. Without an answer at its place it is given back as it is."""
        content = _at(value, self.answer)
        if content is _MISSING:
            return value if isinstance(value, dict) else {"error": None, "message": "no object"}
        choice: dict[str, Any] = {"message": {"content": content}}
        if self.finish:
            choice["finish_reason"] = _known(_at(value, self.finish))
        usage = {name: _known(_at(value, path)) for name, path in
                 (("prompt_tokens", self.prompt_tokens), ("completion_tokens", self.completion_tokens))
                 if path}
        return {"choices": [choice], "usage": usage}


def load(path: str | Path) -> Template:
    """Read an endpoint file. Raises Error naming the field that is missing, unknown or of another kind."""
    where = Path(path)
    mend = "give url, body and answer; see the README"
    found = require(read_json(where), FIELDS, where, mend)
    if unknown := sorted(set(found) - set(FIELDS)):
        raise Error(f"{where}: the field {unknown[0]!r} is not known; use {', '.join(FIELDS)}")
    method = (found.get("method") or "POST").upper()
    if method not in METHODS:
        raise Error(f"{where}: method {method!r} sends no body; use {', '.join(METHODS)}")
    headers = found.get("headers") or {}
    if not all(isinstance(value, str) for value in headers.values()):
        raise Error(f"{where}: field 'headers' must hold texts")
    holes = set(_HOLE.findall(json.dumps([found["body"], headers], ensure_ascii=False)))
    if unknown := sorted(hole for hole in holes if not hole.startswith("env:") and hole not in NAMES):
        raise Error(f"{where}: the placeholder {{{{{unknown[0]}}}}} is not known; use {', '.join(NAMES)} "
                    "or env:NAME")
    if not holes & {"messages", "prompt"}:
        raise Error(f"{where}: field 'body' must hold {{{{messages}}}} or {{{{prompt}}}}")
    optional = ("finish", "prompt_tokens", "completion_tokens", "model")
    texts = {name: found.get(name) or "" for name in optional}
    return Template(where.stem, found["url"], method, headers, found["body"], found["answer"], **texts)


def _filled(part: Any, values: dict) -> Any:
    if isinstance(part, dict):
        filled = {name: _filled(value, values) for name, value in part.items()}
        return {name: value for name, value in filled.items() if value is not _MISSING}
    if isinstance(part, list):
        return [value for value in (_filled(one, values) for one in part) if value is not _MISSING]
    if not isinstance(part, str):
        return part
    whole = _HOLE.fullmatch(part)
    if whole:
        return _value(whole[1], values)
    fill: Callable[[re.Match[str]], str] = lambda hole: _as_text(_value(hole[1], values))  # noqa: E731
    return _HOLE.sub(fill, part)


def _value(name: str, values: dict) -> Any:
    if name.startswith("env:"):
        found = os.environ.get(name[4:])
        if not found:
            raise Error(f"the environment variable {name[4:]} is not set; the endpoint's file needs it")
        return found
    return values.get(name, _MISSING)


def _as_text(value: Any) -> str:
    if value is _MISSING:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _at(value: Any, path: str) -> Any:
    """What stands at a path such as "choices.0.text" or "$.choices[0].text"; _MISSING where nothing does."""
    for step in re.findall(r"[^.\[\]]+", path.removeprefix("$")):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.lstrip("-").isdigit() and -len(value) <= int(step) < len(value):
            value = value[int(step)]
        else:
            return _MISSING
    return value


def _known(value: Any) -> Any:
    return None if value is _MISSING else value
