"""What an endpoint's reply says: the answer in a chat completion, or what went wrong. Opens nothing."""
from collections.abc import Callable
from typing import Any, NamedTuple

from redlite.answer import Answer
from redlite.net.refusals import error_of, is_ending, is_refusal, said_in_text, went_wrong
from redlite.store.text import printable
from redlite.text.lazy_pattern import LazyPattern
from redlite.text.reasoning import split_thoughts

MOST_TOKENS = 1 << 40   # no answer has more; a server that says so says nothing
# How endpoints and gateways name the counts of tokens.
PROMPT = ("prompt_tokens", "input_tokens", "promptTokenCount", "promptTokens", "inputTokens",
          "inputTokenCount", "prompt_token_count", "input_token_count")
COMPLETION = ("completion_tokens", "output_tokens", "candidatesTokenCount", "completionTokens",
              "outputTokens", "outputTokenCount", "candidates_token_count", "output_token_count")
TOTAL = ("total_tokens", "totalTokenCount", "totalTokens", "total_token_count")
EXCERPT = 200           # characters of a body that is quoted
DETAIL = 500            # characters of a message that is kept
# Why an answer ended, as endpoints say it without case. What is in no list counts as "stop".
CUT = {"length", "max_tokens", "max_output_tokens", "max_length", "max_new_tokens", "model_length",
       "token_limit", "tokens_limit", "incomplete", "model_context_window_exceeded",
       "context_length_exceeded", "continuation", "pause_turn", "compaction"}
BROKEN = {"error", "abort", "aborted", "cancelled", "canceled", "timeout", "time_out", "failed", "failure",
          "insufficient_system_resource", "network_error", "server_error", "internal_error", "unavailable",
          "malformed_response", "malformed_function_call", "other", "user_cancel", "error_limit",
          "unexpected_tool_call", "too_many_tool_calls", "missing_thought_signature", "image_other",
          "no_image", "pup_limited_disabled", "unspecified"}
_BAD_KEY = LazyPattern(r"(?i)api[ _-]?key\b.{0,40}\b(?:not valid|invalid|incorrect|expired|missing)"
                       r"|(?:invalid|incorrect|missing|no)\b.{0,20}\bapi[ _-]?key"
                       r"|\bno connected db\b")      # litellm's proxy, of a key that it does not know

_NO_CREDIT = LazyPattern(r"(?i)\bcredit balance\b|\binsufficient (?:funds|balance|quota|credits?)\b"
                         r"|\bout of credits?\b|exceeded your current quota|\bbilling hard limit\b")

Redact = Callable[[object], str]    # takes secrets out of a text


class Failure(NamedTuple):
    """What a reply without an answer says: its status, the provider's code, and a message fit for people."""
    status: int
    code: object
    detail: str


def completion(value: object, took: float, redact: Redact, stop: tuple[str, ...] = ()) -> Answer | None:
    """The answer in the JSON body of a reply with status 200; None if there is none.

    A text that is missing or null is "", and the answer's `detail` says what came instead. An answer that the
    endpoint broke off has finish "error".
    took  seconds, for the answer
    stop  texts at which the answer ends, whatever the endpoint made of them
    """
    if not isinstance(value, dict):
        return None
    error = went_wrong(value)
    if error and is_refusal(error, 200):    # some providers say it with status 200
        return _refused(error.get("message") or "content filter", took, redact)
    choices = value.get("choices")
    if not choices and not error and _is_completion(value):
        return _without_choices(value, took, redact)
    try:
        choice = choices[0]     # type: ignore[index]
        finish, message = choice.get("finish_reason", "stop"), choice.get("message")
        refused = _refusal(choice)
        if refused:
            message = message or {}
        content = _text(message.get("content"))
    except (TypeError, KeyError, IndexError, AttributeError):
        return None
    prompt, new = tokens_used(value.get("usage"))
    ended, detail = _ended(choice, finish, error)
    own = _own_refusal(message)
    if refused or (own and not content):
        ended, detail = "refused_by_api", _detail(own or refused, redact)
    elif ended == "error":
        detail = _detail(detail, redact)
    elif not content:
        called = message.get("tool_calls") or message.get("function_call")
        detail = "tool calls" if called else "no text"
    content, was_cut = _cut(content, stop)
    if was_cut and ended == "length":
        ended = "stop"
    text = redact(_with_thought(message, content, ended))
    return Answer(text, ended, prompt, new, took, detail=detail, served=_served(value))


def _refused(why: object, took: float, redact: Redact, value: dict | None = None) -> Answer:
    prompt, new = tokens_used((value or {}).get("usage"))
    return Answer("", "refused_by_api", prompt, new, took, detail=_detail(why, redact),
                  served=_served(value or {}))


def _detail(text: object, redact: Redact) -> str:
    return printable(redact(text))[:DETAIL]


def _is_completion(value: dict) -> bool:
    """Whether an object without choices is a completion nevertheless: Gemini's, where it refuses a prompt."""
    return "choices" in value and value["choices"] in ([], None) or any(
        name in value for name in ("promptFeedback", "prompt_feedback")) or (
        value.get("object") == "chat.completion")


def _without_choices(value: dict, took: float, redact: Redact) -> Answer:
    feedback = value.get("promptFeedback") or value.get("prompt_feedback")
    reason = feedback.get("blockReason") or feedback.get("block_reason") if isinstance(feedback, dict) else ""
    said = feedback.get("blockReasonMessage") if isinstance(feedback, dict) else ""
    why = ": ".join(str(part) for part in (reason, said) if part)
    return _refused(why or "no choices: the provider made no answer", took, redact, value)


def _refusal(choice: dict) -> str:
    """Why the provider refused this choice; "" where it did not.

    Anthropic writes beside it {"stop_details": {"explanation": …, "category": …}}, OpenRouter what the
    provider itself said.
    """
    error, details = choice.get("error"), choice.get("stop_details")
    if isinstance(error, dict) and is_refusal(error, 200):
        return str(error.get("message") or "content filter")
    for name in ("finish_reason", "native_finish_reason"):
        if is_ending(choice.get(name)):
            said = [details.get(part) for part in ("category", "explanation")] if isinstance(
                details, dict) else []
            return ": ".join(part for part in said if part and isinstance(part, str)) or (
                f"{name} {choice[name]}")
    return ""


def _own_refusal(message: dict) -> str:
    """The model's own refusal where it stands beside the content, or as a part of it; "" without one."""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    said = [message.get("refusal"), *(part.get("refusal") for part in parts if isinstance(part, dict))]
    return "".join(text for text in said if isinstance(text, str))


def _ended(choice: dict, finish: object, error: object) -> tuple[str, str]:
    """("stop", "length" or "error", why it is an error)."""
    own = choice.get("error") or error
    if own:
        said = own.get("message") if isinstance(own, dict) else own
        return "error", f"broken off: {said or 'an error beside the answer'}"
    if finish is None:
        return "error", "broken off: finish_reason null"
    name = str(finish).strip().lower().removeprefix("finish_reason_")
    if name in CUT:
        return "length", ""
    if name in BROKEN:
        return "error", f"broken off: finish_reason {finish}"
    return "stop", ""


def _cut(content: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """(the content up to the first stop text behind its thoughts, whether it was cut)."""
    if not any(text in content for text in stop):
        return content, False
    answer = split_thoughts(content).answer
    begin = content.rfind(answer) if answer else len(content)
    places = [place for text in stop if text and (place := content.find(text, begin)) >= 0]
    return (content[:min(places)], True) if places else (content, False)


def _with_thought(message: dict, content: str, finish: str) -> str:
    """The content behind the thought that an endpoint gives in a field of its own, in reasoning tags.

    A thought that the limit cut before any content stays open, as a model's own would: text/reasoning.py.
    """
    thought = message.get("reasoning_content") or message.get("reasoning") or _thinking(
        message.get("content"))
    if not isinstance(thought, str) or not thought.strip():
        return content
    if finish == "length" and not content.strip():
        return f"<think>\n{thought}"
    return f"<think>\n{thought}\n</think>\n\n{content}"


def _thinking(content: object) -> str:
    """The thought among a content's parts: {"type": "thinking", "thinking": a text, or parts with texts}."""
    parts = content if isinstance(content, list) else []
    thoughts = [part.get("thinking") for part in parts if isinstance(part, dict)]
    return "".join(thought if isinstance(thought, str) else _text(thought) for thought in thoughts
                   if isinstance(thought, str | list))


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


def _served(value: dict) -> str:
    """The served model's name and fingerprint, as the reply gives them; "" where it does not."""
    parts = [value.get("model"), value.get("system_fingerprint")]
    return " ".join(printable(part)[:EXCERPT] for part in parts if isinstance(part, str) and part)


def tokens_used(usage: object) -> tuple[int | None, int | None]:
    """(prompt, completion) tokens that a reply says were used; None where it does not say.

    Some endpoints leave what a model thought out of completion_tokens. The larger sum counts then.
    """
    if not isinstance(usage, dict):
        return None, None
    prompt, new, total = (_first(usage, names) for names in (PROMPT, COMPLETION, TOTAL))
    thought = _tokens(usage, "reasoning_tokens")
    for name in ("completion_tokens_details", "output_tokens_details"):
        thought = thought if thought is not None else _tokens(usage.get(name), "reasoning_tokens")
    if thought is not None and new is not None and thought > new:
        new += thought      # it cannot be a part of them
    if total is not None and (new is not None or prompt is not None):
        new = max(new or 0, total - (prompt or 0))
    elif total is not None:
        prompt, new = 0, total      # it does not say of which kind; answers cost more
    return prompt, new


def _first(usage: dict, names: tuple[str, ...]) -> int | None:
    """The count under the first of the names that holds one."""
    return next((n for name in names if (n := _tokens(usage, name)) is not None), None)


def _tokens(usage: object, name: str) -> int | None:
    """A count under this name, also as a text or a float, as some gateways write it; else None."""
    value: Any = usage.get(name) if isinstance(usage, dict) else None
    digits = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20
    if digits or isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value < MOST_TOKENS else None


def failed(status: int, value: object, body: bytes, took: float, redact: Redact) -> Failure | Answer:
    """What a reply with another status says; an answer where it is final for this request alone.

    value  the body's JSON, None if it is none
    The content filter's refusal is an answer, and so is a request that the endpoint cannot take ("error").
    """
    error = error_of(value) or said_in_text(body)
    said = error_of(value).get("message") or redact(body.decode("utf-8", "replace"))[:EXCERPT]
    detail = _detail(f"status {status}: {said}", redact)
    if is_refusal(error, status):
        return Answer("", "refused_by_api", None, None, took, detail=detail)
    if status == 400 and _BAD_KEY.search(str(said)):
        return Failure(401, error.get("code"), detail)
    if status in (400, 403) and _NO_CREDIT.search(str(said)):
        return Failure(402, error.get("code"), detail)
    if status in (400, 413, 422):
        return Answer("", "error", None, None, took, detail=detail)
    return Failure(status, error.get("code"), detail)


def no_completion(value: object, body: bytes, redact: Redact) -> tuple[str, bool]:
    """(what a body with status 200 holds in place of a completion, whether it was damaged on its way)."""
    start = body.lstrip()[:EXCERPT].decode("utf-8", "replace")
    if value is None and start.startswith(("{", "[")):
        return "invalid body: no chat completion in JSON", True
    if start.startswith(("data:", "event:", ":")):
        what = "a stream of events, which was not asked for"
    elif start.startswith("<"):
        what = f"HTML, no JSON; check the address ({start})"
    elif isinstance(value, dict) and value.get("error"):
        what = f"an error: {error_of(value).get('message') or value['error']}"
    else:
        what = f"no chat completion: {start or 'nothing'}"
    return _detail(f"status 200 with {what}", redact), False
