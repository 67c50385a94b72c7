"""What an endpoint's reply says: the answer in a chat completion, and whether an error is a refusal by the provider's filter. How the journal keeps both. Opens nothing."""
from collections.abc import Callable
from dataclasses import dataclass, fields

from redlite.errors import Error
from redlite.store.records import require

# What providers say when their filter refuses, in code, type or innererror.code; their messages are not looked at.
FILTERED = {"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation", "moderation_blocked", "data_inspection_failed"}

MOST_TOKENS = 1 << 40   # no answer has more; a server that says so says nothing

GIVEN_UP = "given up"


@dataclass(frozen=True)
class Answer:
    """finish: "stop", "length", "refused_by_api" or "error"; detail: why, or what came instead of text; tokens None where the endpoint does not say."""
    text: str
    finish: str
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float
    detail: str = ""
    opened = False

    @property
    def may_pass(self) -> bool:
        """Whether it is an error that says nothing about the request, so that a later run may have an answer."""
        return self.finish == "error" and self.detail.startswith(GIVEN_UP)


def recall(record: dict, path) -> Answer | None:
    """The answer in a journal's record; None in one of a request that was sent or not paid for. Raises Error where it is neither."""
    mend = "restore the line from a copy, or delete it to have it asked again"
    require(record, {"key": str}, path, mend)
    if "sent" in record:
        sent = record["sent"]
        if not isinstance(sent, list) or len(sent) != 2 or any(type(n) is not int or n < 0 for n in sent) or not isinstance(record.get("model", ""), str):
            raise Error(f"{path}: field 'sent' is no pair of token counts, or 'model' no text; {mend}")
        return None
    if "unpaid" in record:
        return None
    tokens = (int, type(None))
    require(record, {"text": str, "finish": str, "prompt_tokens": tokens, "completion_tokens": tokens, "seconds": (int, float), "detail": str}, path, mend)
    return Answer(**{field.name: record.get(field.name) for field in fields(Answer)})


def completion(value, took: float, redact: Callable[[str], str]) -> Answer | None:
    """The answer in a 200 body; None if there is none. Missing and null text is "", and `detail` says what came instead."""
    if isinstance(value, dict) and isinstance(value.get("error"), dict) and filtered(value["error"]):  # some providers say it with status 200
        return Answer("", "refused_by_api", None, None, took, redact(value["error"].get("message") or "content filter")[:500])
    try:
        choice = value["choices"][0]
        message = choice["message"] if choice.get("finish_reason") != "content_filter" else choice.get("message") or {}
        content, finish = message.get("content"), choice.get("finish_reason")
    except (TypeError, KeyError, IndexError, AttributeError):
        return None
    if isinstance(content, list):
        content = "".join(p["text"] for p in content if isinstance(p, dict) and isinstance(p.get("text"), str))
    if content is not None and not isinstance(content, str):
        return None
    usage = value.get("usage") if isinstance(value.get("usage"), dict) else {}
    used = [usage.get(k) if type(usage.get(k)) is int and 0 <= usage[k] < MOST_TOKENS else None for k in ("prompt_tokens", "completion_tokens")]
    refusal, detail = message.get("refusal"), ""
    if finish == "content_filter" or (refusal and not content):
        return Answer(redact(content or ""), "refused_by_api", *used, took, redact(refusal or "finish_reason content_filter")[:500])
    if not content:
        detail = "tool calls" if message.get("tool_calls") or message.get("function_call") else "no text"
    text, ended = redact(content or ""), "length" if finish == "length" else "stop"
    return Answer(with_thought(message, text, ended, redact), ended, *used, took, detail)


def with_thought(message: dict, content: str, finish: str, redact: Callable[[str], str]) -> str:
    """The content behind the thought that an endpoint gives in a field of its own, in reasoning tags.

    A thought that the limit cut before any content stays open, as a model's own would. See text/reasoning.py.
    """
    thought = message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(thought, str) or not thought.strip():
        return content
    if not content.strip() and finish == "length":
        return f"<think>\n{redact(thought)}"
    return f"<think>\n{redact(thought)}\n</think>\n\n{content}"


def filtered(failure: dict) -> bool:
    """Whether an error's code or type, as providers write them, says that their content filter refused."""
    inner, metadata = failure.get("innererror"), failure.get("metadata")
    codes = [failure.get("code"), failure.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    return any(isinstance(c, str) and c in FILTERED for c in codes) or (isinstance(metadata, dict) and "flagged_input" in metadata)
