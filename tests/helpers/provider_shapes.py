"""Requests and replies of other APIs than OpenAI's, for fault_server.py: what a request asks, and a chat
completion's or an error's body in the form of the API that the request's path belongs to.
"""
REFUSED = "content_filter"


def api(path: str) -> str:
    """The API that a path belongs to; "openai" also for Azure's."""
    if path.endswith("/messages"):
        return "anthropic"
    if ":generateContent" in path:
        return "gemini"
    return "template" if path.endswith("/generate") else "openai"


def asked(path: str, body: dict) -> str:
    """The last message."""
    return {"openai": lambda: body["messages"][-1]["content"],
            "anthropic": lambda: body["messages"][-1]["content"],
            "gemini": lambda: body["contents"][-1]["parts"][0]["text"],
            "template": lambda: body["inputs"]}[api(path)]()


def parameters(path: str, body: dict) -> dict:
    """Where the parameters of a request stand."""
    return body["generationConfig"] if api(path) == "gemini" else body


def key(headers: dict) -> str:
    """The API key, wherever it stands."""
    for name in ("x-api-key", "x-goog-api-key", "api-key", "x-key"):
        if name in headers:
            return f"Bearer {headers[name]}"
    return headers.get("authorization", "")


def shaped(path: str, status: int, value: object) -> object:
    """A body in OpenAI's form as the path's API would write it."""
    form = api(path)
    if form == "openai" or not isinstance(value, dict) or "choices" not in value and status == 200:
        return value
    if status != 200:
        return _error(form, status, value)
    choice = value["choices"][0] if value["choices"] else None
    beside = {"error": value["error"]} if "error" in value else {}
    return {**{"anthropic": _anthropic, "gemini": _gemini, "template": _template}[form](choice), **beside}


def _error(form: str, status: int, value: dict) -> dict:
    error = value["error"] if isinstance(value.get("error"), dict) else {"message": value.get("error")}
    message, refused = error["message"], error.get("code") in ("invalid_prompt", REFUSED)
    if form == "anthropic":
        said = "Output blocked by content filtering policy" if refused else message
        return {"type": "error", "error": {"type": "invalid_request_error", "message": said}}
    if form == "gemini":
        said = "The prompt was blocked by the safety filter" if refused else message
        return {"error": {"code": status, "message": said, "status": "INVALID_ARGUMENT"}}
    return {"detail": message, "code": error.get("code")}


def _text(choice: dict) -> str | None:
    content = choice["message"]["content"]
    return content if content is None or isinstance(content, str) else "".join(p["text"] for p in content)


def _anthropic(choice: dict | None) -> dict:
    ends = {"stop": "end_turn", "MAX_TOKENS": "max_tokens", REFUSED: "refusal"}
    finish = choice.get("finish_reason", "stop") if choice else "refusal"
    text = _text(choice) if choice else None
    return {"type": "message", "model": "echo-1", "stop_reason": ends.get(finish, finish),
            "content": [{"type": "text", "text": text}] if text else [],
            "usage": {"input_tokens": 7, "output_tokens": 3}}


def _gemini(choice: dict | None) -> dict:
    used = {"promptTokenCount": 7, "candidatesTokenCount": 3, "totalTokenCount": 10}
    if choice is None:
        return {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": used}
    finish, text = choice.get("finish_reason", "stop"), _text(choice)
    candidate = {"finishReason": "SAFETY" if finish in (REFUSED, "refusal") else finish and finish.upper()}
    if text:
        candidate["content"] = {"role": "model", "parts": [{"text": text}]}
    return {"candidates": [candidate], "usageMetadata": used, "modelVersion": "echo-1"}


def _template(choice: dict | None) -> dict:
    finish = choice.get("finish_reason", "stop") if choice else REFUSED
    text = _text(choice) if choice else ""
    return {"outputs": [{"text": text, "why": finish}], "used": {"in": 7, "out": 3}}
