"""What an endpoint's reply says went wrong, and whether the provider refuses this content with it.

A refusal is told apart from what is wrong with the request or the key. Providers say it by a code, by a field
beside the answer, or in words alone. Words do not count where they mean the account, a network or a setting.
"""
import json
import re
from typing import Any

from redlite.text.lazy_pattern import LazyPattern

# What providers write in code, type, status, reason or finish_reason; compared without case.
CODES = {
    "content_filter", "content_filtered", "content_policy_violation", "content_policy", "content_moderation",
    "content_blocked", "contentfilter", "responsibleaipolicyviolation", "moderation_blocked",
    "data_inspection_failed", "datainspectionfailed", "invalid_prompt", "policy_violation", "prompt_blocked",
    "safety", "safety_violation", "prohibited_content", "blocklist", "blacklist", "spii", "recitation",
    "image_safety", "image_prohibited_content", "image_recitation", "model_armor", "jailbreak",
    "sensitive", "sensitive_words_detected", "sensitivecontentdetected", "inputtextsensitivecontentdetected",
    "outputtextsensitivecontentdetected", "guardrail_intervened", "guardrails_violation", "hooks_failed",
    "input_guardrail_triggered", "output_guardrail_triggered", "censorship_blocked",
    "content_policy_violation_error", "contentpolicyviolationerror", "error_toxic", "refusal",
    "unsafe_content", "cyber_policy", "cyber_policy_violation",
    # numbers of Zhipu, Mistral, MiniMax (input, output) and Cloudflare (prompt, response)
    "1301", "1900", "1026", "1027", "2016", "2017"
}
# Reasons for an answer's end that mean a refusal, and elsewhere something else.
ENDINGS = {"language", "escalation"}
WRONG = ("base_resp", "error", "error_code", "error_msg")   # fields of a reply that something went wrong with
GUARDRAIL = 446     # Portkey's status for what its guardrails deny; it means nothing else
# The statuses with which a refusal may come in words alone.
WORDS_COUNT = {200, 400, 403, 406, 422, 424, 451}
# Codes that MiniMax gives with status 200, and the statuses they mean; others mean 500.
BASE_RESP = {1002: 429, 1039: 429, 1004: 401, 2049: 401, 1008: 402, 2013: 400, 2056: 429}
_PREFIX = re.compile(r"^(?:finish_reason|alternative_status)_")
_FLAGS = re.IGNORECASE | re.DOTALL
_POLICY = LazyPattern(
    r"(?:violat|breach|contraven)\w*\b.{0,80}\b(?:polic|guideline|terms|safety|practices)"
    r"|\b(?:polic(?:y|ies)|guidelines)\b.{0,40}\bviolat"
    r"|\bcontent (?:management|filter(?:ing)?|moderation|safety)\b|content exists risk"
    r"|\b(?:is|was|were|been|got) flagged\b|\bflagged (?:as|by|for|content|input|prompt)\b"
    r"|\b(?:block|reject|refus|filter|declin)ed\b.{0,60}\b(?:safety|polic|moderation|filter|guardrail)"
    r"|\b(?:prompt|input|output|response|completion|content)s? (?:(?:is|was|were|has been) )?blocked\b"
    r"|\b(?:inappropriate|unsafe|harmful|sensitive|prohibited|disallowed) (?:content|material|input|prompt"
    r"|words?|information)\b"
    r"|\bsafety (?:system|filter|check|guard)|considered high risk|PROHIBITED_CONTENT"
    r"|不安全|敏感|违规|不合规", _FLAGS)
# Words that nothing but a refusal holds, with whatever status.
_CERTAIN = LazyPattern(r"new_sensitive|DataInspectionFailed|ContentPolicyViolation|SAFETY_CHECK"
                       r"|ResponsibleAIPolicyViolation", _FLAGS)
PAGE = 10_000       # bytes of a page that are read
_TAG = LazyPattern(r"<(script|style)\b.*?</\1>|<[^<>]*>", _FLAGS)
# What a firewall, a proxy or a filter of web pages says, before the endpoint.
_WALL = LazyPattern(
    r"access (?:is |was |to this \w+ )?(?:denied|blocked|forbidden)|\b(?:web ?page|web ?site|web filter\w*"
    r"|proxy|firewall|waf|url|administrator|cloudflare|ray id|incident id|support id|security rules?"
    r"|categor(?:y|ies)|it department|acceptable use|network)\b", _FLAGS)
_ELSEWHERE = LazyPattern(
    r"\b(?:your|this|the) (?:account|organi[sz]ation|project|team|user|api key|key|access|resource"
    r"|subscription|ip)\b.{0,60}"
    r"\b(?:flagged|suspended|disabled|banned|deactivated|blocked|violat\w+|terminated|restricted)|账[号户]"
    r"|\b(?:network|security|organi[sz]ation(?:'s|al)?|company|admin\w*|access|privacy|data|retention|export"
    r"|region\w*|firewall|cors|iam|rate|quota) polic"
    r"|\b(?:does not exist|not found|not supported|unsupported|unrecogni[sz]ed)\b"
    r"|\bunknown (?:field|parameter|name|argument)|\b(?:request access|accept the)\b", _FLAGS)


def error_of(value: object) -> dict[str, Any]:
    """The error object in a body's JSON, of whatever shape; {} without one.

    Read are {"error": {…}}, {"error": "text", "code": …}, {"detail": …}, {"message": …}, a list of one, and
    MiniMax's base_resp and Qianfan's error_msg.
    """
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, dict):
        return {}
    error = value.get("error") or value.get("errors")
    if isinstance(error, list) and error:
        error = error[0]
    if isinstance(error, dict):
        return error
    if code := _base(value):
        return {"code": code, "message": value["base_resp"].get("status_msg")}
    said = error or value.get("detail") or value.get("message") or value.get("error_msg")
    return {**value, "message": said if isinstance(said, str) else str(said or "")}


def said_in_text(body: bytes) -> dict[str, Any]:
    """{"message": text} of a body in plain text or HTML; {} of JSON's objects, and of a wall's page."""
    text = " ".join(_TAG.sub(" ", body[:PAGE].decode("utf-8", "replace")).split())
    return {} if text.startswith(("{", "[")) or _WALL.search(text) else {"message": text}


def _base(value: object) -> int:
    """MiniMax's own code in a reply; 0 where nothing went wrong."""
    base = value.get("base_resp") if isinstance(value, dict) else None
    code = base.get("status_code") if isinstance(base, dict) else None
    return code if type(code) is int else 0


def went_wrong(value: dict) -> dict[str, Any]:
    """The error object of a reply with status 200; {} where nothing in it says that something went wrong."""
    return error_of(value) if any(map(value.get, WRONG[1:])) or _base(value) else {}


def status_of(status: int, value: object) -> int:
    """The status that a reply means. Some say only in the body of a status 200 what went wrong."""
    if not 200 <= status < 300:
        return status
    if code := _base(value):
        return BASE_RESP.get(code, 500)
    said = error_of(value).get("code")
    return said if type(said) is int and 400 <= said < 600 else status


def is_code(code: object) -> bool:
    """Whether a code, type or finish_reason means a refusal. "content_filter: SAFETY" does as well."""
    if isinstance(code, int) and not isinstance(code, bool):
        code = str(code)
    if not isinstance(code, str):
        return False
    return any(_PREFIX.sub("", part.strip()) in CODES for part in re.split("[:.]", code.lower()))


def is_ending(reason: object) -> bool:
    """Whether a finish_reason means that the provider refused or withheld the answer."""
    return is_code(reason) or isinstance(reason, str) and _PREFIX.sub("", reason.lower()) in ENDINGS


def is_refusal(error: dict, status: int) -> bool:
    """Whether an error object, as providers write it, says that their policy or filter refused the content.

    status  of the reply; 401 is always about the key
    """
    if status == 401:
        return False
    inner, metadata = error.get("innererror") or error.get("inner_error"), error.get("metadata")
    inner, metadata = (part if isinstance(part, dict) else {} for part in (inner, metadata))
    codes = (error.get("code"), error.get("type"), error.get("status"), inner.get("code"),
             metadata.get("error_type"), metadata.get("provider_code"))
    if status == GUARDRAIL or any(map(is_code, codes)):
        return True
    if "flagged_input" in metadata or error.get("need_clear_history") is True:
        return True
    if metadata.get("raw") and is_refusal(error_of(_parsed(metadata["raw"])), status):
        return True     # OpenRouter hands on what the provider said
    message = error.get("message")
    if not isinstance(message, str) or _ELSEWHERE.search(message):
        return False
    return bool(_CERTAIN.search(message) or status in WORDS_COUNT and _POLICY.search(message))


def _parsed(raw: object) -> object:
    try:
        return json.loads(raw) if isinstance(raw, str) else raw
    except (ValueError, RecursionError):
        return {"message": raw}


def mark(value: object) -> str:
    """The field beside an answer by which its provider says that it stands in for one that was refused.

    "" without one. Qianfan's flags from 2 on withhold the model's own text; 1 lets it through.
    """
    if not isinstance(value, dict):
        return ""
    if value.get("need_clear_history") is True:
        return "need_clear_history"
    if value.get("amazon-bedrock-guardrailAction") == "INTERVENED":
        return "amazon-bedrock-guardrailAction INTERVENED"
    choices = value.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else None
    flag = first.get("flag") if isinstance(first, dict) else None
    return f"flag {flag}" if type(flag) is int and flag >= 2 else ""
