"""Why an answer ends and why a prompt is blocked, as the providers' packages list it, and what each means.

tests/beside/agreement_endpoints.py holds the lists against the packages.
"""
ENDINGS = {
    "anthropic": {
        "end_turn": "stop", "stop_sequence": "stop", "tool_use": "stop", "max_tokens": "length",
        "model_context_window_exceeded": "length", "pause_turn": "length", "compaction": "length",
        "refusal": "refused_by_api"},
    "openai": {
        "stop": "stop", "tool_calls": "stop", "function_call": "stop", "length": "length",
        "content_filter": "refused_by_api"},
    "gemini": {
        "STOP": "stop", "MAX_TOKENS": "length", "CONTINUATION": "length",
        **dict.fromkeys(
            ["SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY",
             "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "ESCALATION", "MODEL_ARMOR"], "refused_by_api"),
        **dict.fromkeys(
            ["OTHER", "MALFORMED_FUNCTION_CALL", "MALFORMED_RESPONSE", "UNEXPECTED_TOOL_CALL",
             "TOO_MANY_TOOL_CALLS", "MISSING_THOUGHT_SIGNATURE", "IMAGE_OTHER", "NO_IMAGE",
             "PUP_LIMITED_DISABLED", "FINISH_REASON_UNSPECIFIED"], "error")},
}
BLOCKED = ["BLOCKED_REASON_UNSPECIFIED", "SAFETY", "OTHER", "BLOCKLIST", "PROHIBITED_CONTENT", "IMAGE_SAFETY",
           "MODEL_ARMOR", "JAILBREAK"]
CATEGORIES = ["cyber", "bio", "frontier_llm", "reasoning_extraction", "general_harms", None]


def reply(provider: str, reason: object, text: str = "half") -> dict:
    """A whole reply with this ending."""
    if provider == "anthropic":
        return {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None,
                "stop_reason": reason, "content": [{"type": "text", "text": text}] if text else [],
                "usage": {"input_tokens": 5, "output_tokens": 2}}
    if provider == "gemini":
        return {"candidates": [{"content": {"role": "model", "parts": [{"text": text}]}, "index": 0,
                                "finishReason": reason}],
                "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2, "totalTokenCount": 7}}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text},
                         "finish_reason": reason}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}}
