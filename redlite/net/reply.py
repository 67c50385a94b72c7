"""What an endpoint's reply says: the answer in a chat completion, or what went wrong. Opens nothing."""
from collections.abc import Callable
from typing import NamedTuple

from redlite.answer import Answer

# What providers say in code, type or innererror.code when their filter refuses. Messages are not looked at.
FILTERED = {
    "content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation", "moderation_blocked",
    "data_inspection_failed"
}
MOST_TOKENS = 1 << 40   # no answer has more; a server that says so says nothing
EXCERPT = 200           # characters of a body that is quoted
DETAIL = 500            # characters of a message that is kept

Redact = Callable[[object], str]    # takes secrets out of a text


class Failure(NamedTuple):
    """What a reply without an answer says: its status, the provider's code, and a message fit for people."""
    status: int
    code: object
    detail: str


def completion(value: object, took: float, redact: Redact) -> Answer | None:
    """The answer in the JSON body of a reply with status 200; None if there is none.

    A text that is missing or null is "", and the answer's `detail` says what came instead.
    took  seconds, for the answer
    """
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    if isinstance(error, dict) and filtered(error):  # some providers say it with status 200
        why = redact(error.get("message") or "content filter")[:DETAIL]
        return Answer("", "refused_by_api", None, None, took, detail=why)
    try:
        choice = value["choices"][0]
        finish, message = choice.get("finish_reason"), choice.get("message")
        if finish == "content_filter":
            message = message or {}
        content = _text(message.get("content"))
    except (TypeError, KeyError, IndexError, AttributeError):
        return None
    used = value.get("usage")
    prompt, new = (_tokens(used, name) for name in ("prompt_tokens", "completion_tokens"))
    refusal, detail = message.get("refusal"), ""
    ended = "length" if finish == "length" else "stop"
    if finish == "content_filter" or (refusal and not content):
        ended, detail = "refused_by_api", redact(refusal or "finish_reason content_filter")[:DETAIL]
    elif not content:
        called = message.get("tool_calls") or message.get("function_call")
        detail = "tool calls" if called else "no text"
    text = redact(_with_thought(message, content, ended))
    return Answer(text, ended, prompt, new, took, detail=detail)


def _with_thought(message: dict, content: str, finish: str) -> str:
    """The content behind the thought that an endpoint gives in a field of its own, in reasoning tags.

    A thought that the limit cut before any content stays open, as a model's own would: text/reasoning.py.
    """
    thought = message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(thought, str) or not thought.strip():
        return content
    if finish == "length" and not content.strip():
        return f"<think>\n{thought}"
    return f"<think>\n{thought}\n</think>\n\n{content}"


def _text(content: object) -> str:
    """The text of a message's content, whose parts are joined. Raises TypeError where it is no content."""
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(text for text in parts if isinstance(text, str))
    if not isinstance(content, str):
        raise TypeError("content is no text")
    return content


def _tokens(usage: object, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value < MOST_TOKENS else None


def failed(status: int, value: object, body: bytes, took: float, redact: Redact) -> Failure | Answer:
    """What a reply with another status says; an answer where it is final for this request alone.

    value  the body's JSON, None if it is none
    The content filter's refusal is an answer, and so is a request that the endpoint cannot take ("error").
    """
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        error = {"message": str(error or "")}
    said = error.get("message") or redact(body.decode("utf-8", "replace"))[:EXCERPT]
    detail = redact(f"status {status}: {said}")[:DETAIL]
    if filtered(error):
        return Answer("", "refused_by_api", None, None, took, detail=detail)
    if status in (400, 413, 422):
        return Answer("", "error", None, None, took, detail=detail)
    return Failure(status, error.get("code"), detail)


def filtered(error: dict) -> bool:
    """Whether an error's code or type, as providers write them, says that their content filter refused."""
    inner, metadata = error.get("innererror"), error.get("metadata")
    codes = [error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    if any(isinstance(code, str) and code in FILTERED for code in codes):
        return True
    return isinstance(metadata, dict) and "flagged_input" in metadata
