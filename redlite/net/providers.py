"""The providers whose own APIs are spoken: where a model lies, how it is asked, and what its reply says.

Every reply is turned into a chat completion's form, which reply.py reads. Sources: the providers' API
references (OpenAI chat completions, Azure OpenAI, Anthropic Messages, Gemini generateContent).
"""
import urllib.parse
from collections.abc import Callable
from typing import Any, NamedTuple

Messages = list[dict[str, str]]
OPENAI = ("max_tokens", "temperature", "top_p", "stop", "seed", "logprobs", "top_logprobs",
          "presence_penalty", "frequency_penalty", "n", "reasoning_effort")
MOST_STOPS = 4              # stop texts that endpoints take
AZURE_VERSION = "2024-10-21"
ANTHROPIC_PROMPT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


class Provider(NamedTuple):
    """One API.

    base_url       the vendor's own address, which needs a key; "" where each user has another
    variable       the environment's name for another base address
    keys           the environment's names for the key, in the order of trial
    key_header     (header, what stands before the key in it)
    headers        others that the API asks for
    path           (path of the base address, model) → path of the request
    names          parameter → its name in the request; others are not sent
    body           (model, messages, parameters by their names there) → the request's JSON
    read           the reply's JSON → a chat completion's
    known          (path of the base address, model) → path at which a GET says whether there is the model
    """
    base_url: str
    variable: str
    keys: tuple[str, ...]
    key_header: tuple[str, str]
    headers: dict[str, str]
    path: Callable[[str, str], str]
    names: dict[str, str]
    body: Callable[[str, Messages, dict[str, Any]], dict]
    read: Callable[[dict], dict]
    known: Callable[[str, str], str]


def _quoted(model: str) -> str:
    return urllib.parse.quote(model, safe="")


def _openai_body(model: str, messages: Messages, fields: dict[str, Any]) -> dict:
    return {"model": model, "messages": messages, **fields}


def _as_it_is(value: dict) -> dict:
    return value


# Azure: the deployment stands in the path

def _azure_path(base: str, model: str) -> str:
    if base.endswith("/openai/v1") or "/deployments/" in base:
        return base + "/chat/completions"
    return f"{base.removesuffix('/openai')}/openai/deployments/{_quoted(model)}/chat/completions"


# Anthropic's Messages API

def _anthropic_base(base: str) -> str:
    return base if base.endswith("/v1") else base + "/v1"


def _anthropic_body(model: str, messages: Messages, fields: dict[str, Any]) -> dict:
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    turns = [m for m in messages if m["role"] != "system"]
    if fields.get("top_p") == 1:        # no restriction; newer models refuse it beside a temperature
        fields = {name: value for name, value in fields.items() if name != "top_p"}
    if stops := [text for text in fields.get("stop_sequences", []) if text.strip()]:
        fields = {**fields, "stop_sequences": stops}
    return {"model": model, **({"system": system} if system else {}), "messages": turns, **fields}


def _anthropic_read(value: dict) -> dict:
    """Blocks of text and of thought; thoughts come apart, as `reasoning_content`."""
    blocks = value.get("content")
    if not isinstance(blocks, list):
        return value
    message: dict[str, Any] = {"content": _joined(blocks, "text", "text")}
    if thought := _joined(blocks, "thinking", "thinking"):
        message["reasoning_content"] = thought
    choice = {"message": message, "finish_reason": value.get("stop_reason"),
              "stop_details": value.get("stop_details")}
    return {"choices": [choice], "usage": _anthropic_usage(value.get("usage")), "model": value.get("model")}


def _anthropic_usage(used: object) -> dict:
    """The tokens of a reply, with a cache's; what `iterations` holds beyond the total is paid as well."""
    if not isinstance(used, dict):
        return {}
    rounds = used.get("iterations")
    rounds = [r for r in rounds if isinstance(r, dict)] if isinstance(rounds, list) else []
    prompt, new = (max((_sum(used, names), sum(_sum(r, names) or 0 for r in rounds)), key=lambda n: n or 0)
                   for names in (ANTHROPIC_PROMPT, ("output_tokens",)))
    return {"prompt_tokens": prompt, "completion_tokens": new}


def _sum(counts: dict, names: tuple[str, ...]) -> int | None:
    """The sum of those counts that are there; None where none is."""
    found = [n for name in names if type(n := counts.get(name)) is int]
    return sum(found) if found else None


def _joined(blocks: list, kind: str, field: str) -> str:
    texts = [block.get(field) for block in blocks if isinstance(block, dict) and block.get("type") == kind]
    return "".join(text for text in texts if isinstance(text, str))


# Gemini's generateContent

def _gemini_path(base: str, model: str) -> str:
    """A name such as tunedModels/NAME is a path of its own."""
    place = model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"
    return f"{base or '/v1beta'}/{urllib.parse.quote(place)}"


def _gemini_body(model: str, messages: Messages, fields: dict[str, Any]) -> dict:
    system = [{"text": m["content"]} for m in messages if m["role"] == "system"]
    turns = [{"role": "model" if m["role"] == "assistant" else "user", "parts": [{"text": m["content"]}]}
             for m in messages if m["role"] != "system"]
    body: dict[str, Any] = {"contents": turns, "generationConfig": fields}
    if system:
        body["systemInstruction"] = {"parts": system}
    return body


def _gemini_read(value: dict) -> dict:
    """The first candidate; none, where the prompt was blocked: `promptFeedback` says why."""
    candidates, used = value.get("candidates"), value.get("usageMetadata")
    usage = {}
    if isinstance(used, dict):
        usage = {"prompt_tokens": _sum(used, ("promptTokenCount", "toolUsePromptTokenCount")),
                 "completion_tokens": _sum(used, ("candidatesTokenCount", "thoughtsTokenCount")),
                 "total_tokens": used.get("totalTokenCount")}
    shared = {"usage": usage, "model": value.get("modelVersion")}
    if not candidates or not isinstance(candidates, list) or not isinstance(candidates[0], dict):
        blocked = used is not None or value.get("promptFeedback")
        return {**shared, "choices": [], "promptFeedback": value.get("promptFeedback")} if blocked else value
    first = candidates[0]
    content = first.get("content")
    parts = content.get("parts") if isinstance(content, dict) else None
    said: list[str] = []
    thought: list[str] = []
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            (thought if part.get("thought") else said).append(part["text"])
    message = {"content": "".join(said), "reasoning_content": "".join(thought)}
    choice = {"message": message, "finish_reason": first.get("finishReason"),
              "stop_details": {"explanation": first.get("finishMessage")}}
    return {**shared, "choices": [choice]}


def _none(base: str, model: str) -> str:
    return ""


PROVIDERS = {
    "openai": Provider(
        "https://api.openai.com/v1", "OPENAI_BASE_URL", ("OPENAI_API_KEY",), ("Authorization", "Bearer "), {},
        lambda base, model: base + "/chat/completions", {name: name for name in OPENAI}, _openai_body,
        _as_it_is, lambda base, model: f"{base}/models/{_quoted(model)}"),
    "azure": Provider(
        "", "AZURE_OPENAI_ENDPOINT", ("AZURE_OPENAI_API_KEY", "OPENAI_API_KEY"), ("api-key", ""), {},
        _azure_path, {name: name for name in OPENAI}, _openai_body, _as_it_is, _none),
    "anthropic": Provider(
        "https://api.anthropic.com", "ANTHROPIC_BASE_URL", ("ANTHROPIC_API_KEY",), ("x-api-key", ""),
        {"anthropic-version": "2023-06-01"}, lambda base, model: _anthropic_base(base) + "/messages",
        {"max_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p",
         "stop": "stop_sequences"},
        _anthropic_body, _anthropic_read,
        lambda base, model: f"{_anthropic_base(base)}/models/{_quoted(model)}"),
    "gemini": Provider(
        "https://generativelanguage.googleapis.com/v1beta", "GEMINI_BASE_URL",
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"), ("x-goog-api-key", ""), {},
        lambda base, model: _gemini_path(base, model) + ":generateContent",
        {"max_tokens": "maxOutputTokens", "temperature": "temperature", "top_p": "topP",
         "stop": "stopSequences", "seed": "seed"},
        _gemini_body, _gemini_read, _gemini_path),
}


def merged(value: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7386): fields of `patch` replace those of `value`; null removes one."""
    if not isinstance(patch, dict):
        return patch
    found = dict(value) if isinstance(value, dict) else {}
    for name, part in patch.items():
        if part is None:
            found.pop(name, None)
        else:
            found[name] = merged(found.get(name), part)
    return found
