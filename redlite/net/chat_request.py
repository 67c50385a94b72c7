"""A chat-completions request's body, read and checked: what `net/serve.py` is asked for.

What the protocol has and this server has not is refused by name (github.com/openai/openai-openapi).
"""
import json
import os
from dataclasses import dataclass
from typing import Any

from redlite.errors import Error
from redlite.inference import sampling
from redlite.inference.engine import Request
from redlite.inference.lm import LM
from redlite.store.files import half_surrogate
from redlite.store.records import is_kind

LONGEST_ANSWER = 1024    # tokens of an answer, unless the request says how many
MOST_WHOLE = 1 << 31
READ = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p",
        "repetition_penalty", "n", "seed", "stop", "stream", "stream_options"}
# Fields that change nothing here.
HARMLESS = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
            "parallel_tool_calls"}
# Fields that may only have a value that does nothing.
ONLY: dict[str, tuple] = {
    "frequency_penalty": (0, None), "presence_penalty": (0, None),
    "logprobs": (False, None), "top_logprobs": (None, 0), "tools": (None, []), "functions": (None, []),
    "tool_choice": (None, "none", "auto"), "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}), "modalities": (None, ["text"])
}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class Refusal(Exception):
    """A request that gets an error: HTTP status, message, the field at fault, a code."""

    def __init__(self, status: int, message: str, field: str | None = None, code: str | None = None):
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": field, "code": code}}


def _invalid(field: str, message: str) -> Refusal:
    return Refusal(400, message, field, "invalid_value")


@dataclass(frozen=True)
class Asked:
    """What a request's body asks for. usage: whether a stream ends with what was used."""
    prompt: Request
    choices: int
    stream: bool
    usage: bool


def parse(body: bytes, lm: LM, name: str) -> Asked:
    """What a request's body asks for. name: the model's. Raises Refusal."""
    asked = _fields(body)
    if asked.get("model") != name:
        raise Refusal(404, f"the model {asked.get('model')!r} does not exist; this server has {name!r}",
                      "model", "model_not_found")
    try:
        ids = lm.template.encode(_messages(asked.get("messages")), add_generation_prompt=True).ids
    except Error as error:
        raise _invalid("messages", str(error)) from None
    limit = lm.engine.context_limit()
    room = limit - len(ids)
    if room < 1:
        raise Refusal(400, f"the messages have {len(ids)} tokens; the model's context is {limit}", "messages",
                      "context_length_exceeded")
    newer = asked.get("max_completion_tokens") is not None
    longest = _whole(asked, "max_completion_tokens" if newer else "max_tokens", LONGEST_ANSWER, 1,
                     MOST_WHOLE)
    rule = sampling.Rule(
        _number(asked, "temperature", 1.0, 0, 2), _number(asked, "top_p", 1.0, 1e-9, 1),
        _whole(asked, "top_k", 0, 0, MOST_WHOLE), _number(asked, "min_p", 0.0, 0, 1),
        _number(asked, "repetition_penalty", 1.0, 0.01, 100))
    seed = _whole(asked, "seed", int.from_bytes(os.urandom(7), "little"), -(1 << 63), 1 << 63)
    prompt = Request(ids, min(longest, room), rule, seed, _stop(asked.get("stop")))
    needs, has = lm.engine.bytes_at_most(prompt), lm.engine.cache_bytes
    if has and needs > has:
        raise Refusal(400, f"{len(ids)} tokens of messages and {prompt.max_new_tokens} of an answer may take "
                      f"{needs / 1e9:.3g} GB of keys and values; this server has {has / 1e9:.3g} GB for "
                      "them: ask for a shorter answer", "max_tokens", "cache_memory_exceeded")
    stream, options = asked.get("stream") or False, asked.get("stream_options") or {}
    if not is_kind(stream, bool):
        raise _invalid("stream", "stream must be true or false")
    if not is_kind(options, dict) or options.keys() - {"include_usage"}:
        raise _invalid("stream_options", "stream_options must be an object with include_usage at most")
    return Asked(prompt, _whole(asked, "n", 1, 1, 128), stream, bool(options.get("include_usage")))


def _fields(body: bytes) -> dict:
    """A request's fields, each of which this server knows."""
    try:
        asked = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not valid JSON in UTF-8: {error}") from None
    if not isinstance(asked, dict):
        raise Refusal(400, "the body must be a JSON object")
    for field, value in asked.items():
        if field not in READ and field not in HARMLESS and field not in ONLY:
            raise Refusal(400, f"the field {field!r} is not known to this server", field, "unknown_parameter")
        if field in ONLY and value not in ONLY[field]:
            raise Refusal(400,
                          f"{field} {json.dumps(value)[:60]} is not supported by this server; leave it out",
                          field, "unsupported_value")
    return asked


def _number(asked: dict, field: str, default: float, least: float, most: float) -> float:
    value = asked.get(field)
    if value is None:
        return default
    if not is_kind(value, (int, float)) or not least <= value <= most:
        raise _invalid(field, f"{field} must be a number from {least} to {most}")
    return float(value)


def _whole(asked: dict, field: str, default: int, least: int, most: int) -> int:
    value = asked.get(field)
    if value is None:
        return default
    if not is_kind(value, int) or not least <= value <= most:
        raise _invalid(field, f"{field} must be a whole number from {least} to {most}")
    return value


def _stop(given: object) -> tuple[str, ...]:
    """The texts at which an answer ends."""
    texts: Any = [given] if given and isinstance(given, str) else given or []
    fine = is_kind(texts, [str]) and len(texts) <= 4
    if fine and all(text and not half_surrogate(text) for text in texts):
        return tuple(texts)
    raise _invalid("stop", "stop must be a text or up to four of them")


def _messages(given: object) -> list[dict[str, str]]:
    """Messages as chat formats take them: texts only."""
    if not isinstance(given, list) or not given:
        raise _invalid("messages", "messages must be a list of at least one message")
    out = []
    for n, message in enumerate(given):
        where = f"messages[{n}]"
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise _invalid(f"{where}.role", f"{where} needs a role: {', '.join(ROLES)}")
        content = message.get("content")
        if isinstance(content, list) and all(map(_is_text_part, content)):
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            raise _invalid(f"{where}.content",
                           f"{where}.content must be a text, or a list of parts of type text")
        out.append({"role": ROLES[role], "content": content})
    return out


def _is_text_part(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
