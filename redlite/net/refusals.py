"""Whether an endpoint's error means that the provider refuses this content, not the request or the key.

Providers say it by a code, by a field, or in words alone. Words do not count where they mean the account.
"""
import re

from redlite.text.lazy_pattern import LazyPattern

# What providers write in code, type, status, reason or finish_reason; compared without case.
CODES = {
    "content_filter", "content_filtered", "content_policy_violation", "content_policy", "content_moderation",
    "content_blocked", "responsibleaipolicyviolation", "moderation_blocked", "data_inspection_failed",
    "datainspectionfailed", "invalid_prompt", "policy_violation", "prompt_blocked", "safety",
    "safety_violation", "prohibited_content", "blocklist", "spii", "recitation", "image_safety",
    "sensitive", "sensitive_words_detected", "guardrail_intervened", "guardrails_violation",
    "content_policy_violation_error", "contentpolicyviolationerror", "error_toxic", "refusal", "refused",
    "unsafe_content", "cyber_policy", "1301"
}
# The statuses with which a refusal may come in words alone.
WORDS_COUNT = {200, 400, 403, 406, 422, 451}
_FLAGS = re.IGNORECASE | re.DOTALL
_POLICY = LazyPattern(
    r"(?:violat|breach|contraven)\w*\b.{0,80}\b(?:polic|guideline|terms|safety)"
    r"|\b(?:polic(?:y|ies)|guidelines)\b.{0,40}\bviolat"
    r"|\bcontent (?:management|filter(?:ing)?|moderation|safety)\b|content exists risk"
    r"|\b(?:is|was|were|been|got) flagged\b|\bflagged (?:as|by|for|content|input|prompt)\b"
    r"|\b(?:block|reject|refus|filter|declin)ed\b.{0,60}\b(?:safety|polic|moderation|filter|guardrail)"
    r"|\b(?:inappropriate|unsafe|harmful|sensitive|prohibited|disallowed) (?:content|material|input|prompt"
    r"|words?|information)\b"
    r"|contentpolicyviolation|responsible ai\b|\bsafety (?:system|filter|check|settings|guard)"
    r"|SAFETY_CHECK|PROHIBITED_CONTENT"
    r"|不安全|敏感|违规|不合规", _FLAGS)
_ACCOUNT = LazyPattern(
    r"\b(?:your|this|the) (?:account|organi[sz]ation|project|team|user|api key|key|access)\b.{0,60}"
    r"\b(?:flagged|suspended|disabled|banned|deactivated|blocked|violat\w+|terminated|restricted)",
    _FLAGS)


def is_code(code: object) -> bool:
    """Whether a code, type or finish_reason means a refusal. "content_filter: SAFETY" does as well."""
    if isinstance(code, int) and not isinstance(code, bool):
        code = str(code)
    if not isinstance(code, str):
        return False
    first, _, second = code.strip().lower().partition(":")
    return first.strip() in CODES or second.strip() in CODES


def is_refusal(error: dict, status: int) -> bool:
    """Whether an error object, as providers write it, says that their policy or filter refused the content.

    status  of the reply; 401 is always about the key
    """
    if status == 401:
        return False
    inner = error.get("innererror") or error.get("inner_error")
    inner = inner if isinstance(inner, dict) else {}
    if any(map(is_code, (error.get("code"), error.get("type"), error.get("status"), inner.get("code")))):
        return True
    metadata = error.get("metadata")
    if isinstance(metadata, dict) and "flagged_input" in metadata:
        return True
    message = error.get("message")
    if status not in WORDS_COUNT or not isinstance(message, str):
        return False
    return bool(_POLICY.search(message)) and not _ACCOUNT.search(message)
