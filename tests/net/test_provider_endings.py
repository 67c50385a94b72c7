"""Replies of every ending, kind of block and count of tokens that the providers' own packages know.

tests/beside/agreement_endpoints.py holds the lists against those packages.
"""
import provider_endings
import pytest

from redlite.net import reply
from redlite.net.endpoints import Endpoint

ROWS = [(provider, reason, finish) for provider, endings in provider_endings.ENDINGS.items()
        for reason, finish in endings.items()]


def read(provider, value):
    """The answer in a reply's JSON."""
    address = "http://h.example/v1"
    answer = reply.completion(Endpoint("m", address, provider).read(value), 0.0, str)
    assert answer is not None
    return answer


@pytest.mark.parametrize("provider, reason, finish", ROWS)
def test_every_ending_is_told_apart(provider, reason, finish):
    answer = read(provider, provider_endings.reply(provider, reason))
    assert (answer.finish, answer.text) == (finish, "half")
    assert (answer.prompt_tokens, answer.completion_tokens) == (5, 2)
    assert answer.detail if finish in ("error", "refused_by_api") else not answer.detail


@pytest.mark.parametrize("reason", provider_endings.BLOCKED)
def test_every_reason_for_a_blocked_prompt_is_a_refusal(reason):
    feedback = {"blockReason": reason, "blockReasonMessage": "By policy.", "safetyRatings": []}
    answer = read("gemini", {"promptFeedback": feedback, "usageMetadata": {"promptTokenCount": 5}})
    assert (answer.finish, answer.detail) == ("refused_by_api", f"{reason}: By policy.")
    assert (answer.text, answer.prompt_tokens) == ("", 5)


@pytest.mark.parametrize("category", provider_endings.CATEGORIES)
@pytest.mark.parametrize("explanation", ["By policy.", None])
def test_the_details_of_a_refusal_are_kept(category, explanation):
    value = {**provider_endings.reply("anthropic", "refusal", ""),
             "stop_details": {"type": "refusal", "category": category, "explanation": explanation}}
    answer = read("anthropic", value)
    wanted = ": ".join(part for part in (category, explanation) if part) or "finish_reason refusal"
    assert (answer.finish, answer.detail) == ("refused_by_api", wanted)


OTHERS = ["redacted_thinking", "tool_use", "server_tool_use", "web_search_tool_result", "container_upload",
          "web_fetch_tool_result", "code_execution_tool_result", "compaction", "fallback", "mcp_tool_use"]


@pytest.mark.parametrize("kind", OTHERS)
def test_blocks_that_are_no_text_are_left_out(kind):
    block = {"type": kind, "data": "x", "content": "y", "name": "z", "input": {}, "text": "not said"}
    value = provider_endings.reply("anthropic", "end_turn")
    value["content"] = [{"type": "thinking", "thinking": "", "signature": "s"}, block, *value["content"]]
    assert read("anthropic", value).text == "half"
    assert read("anthropic", {**value, "content": [block]}).text == ""


@pytest.mark.parametrize("part", [
    {"functionCall": {"name": "f", "args": {}}}, {"inlineData": {"mimeType": "image/png", "data": "x"}},
    {"executableCode": {"language": "PYTHON", "code": "1"}}, {"codeExecutionResult": {"output": "2"}},
    {"thoughtSignature": "c2ln"}, {"text": "", "thoughtSignature": "c2ln"}, {"toolCall": {}}])
def test_parts_that_are_no_text_are_left_out(part):
    value = provider_endings.reply("gemini", "STOP")
    value["candidates"][0]["content"]["parts"].insert(0, part)
    assert read("gemini", value).text == "half"


@pytest.mark.parametrize("provider, usage, wanted", [
    ("anthropic", {"input_tokens": 5, "cache_creation_input_tokens": 7, "cache_read_input_tokens": 11,
                   "output_tokens": 40, "output_tokens_details": {"thinking_tokens": 30}}, (23, 40)),
    ("anthropic", {"input_tokens": 5, "output_tokens": 9, "iterations": [
        {"type": "compaction", "input_tokens": 100, "output_tokens": 20, "cache_read_input_tokens": 3},
        {"type": "message", "input_tokens": 5, "output_tokens": 9}]}, (108, 29)),
    ("anthropic", {"input_tokens": 5, "output_tokens": 9, "iterations": None}, (5, 9)),
    ("gemini", {"promptTokenCount": 5, "candidatesTokenCount": 3, "thoughtsTokenCount": 40,
                "toolUsePromptTokenCount": 100, "cachedContentTokenCount": 4, "totalTokenCount": 148},
     (105, 43)),
    ("gemini", {"promptTokenCount": 5, "candidatesTokenCount": 3, "thoughtsTokenCount": 40}, (5, 43)),
    ("gemini", {"promptTokenCount": 5, "candidatesTokenCount": None, "totalTokenCount": 45}, (5, 40)),
    ("gemini", {"totalTokenCount": 45}, (0, 45)), ("gemini", {}, (None, None)),
    ("openai", {"prompt_tokens": 5, "completion_tokens": 40, "total_tokens": 45,
                "completion_tokens_details": {"reasoning_tokens": 30, "rejected_prediction_tokens": 7},
                "prompt_tokens_details": {"cached_tokens": 4}}, (5, 40))])
def test_every_token_that_is_paid_for_is_counted(provider, usage, wanted):
    value = provider_endings.reply(provider, {"gemini": "STOP", "openai": "stop"}.get(provider, "end_turn"))
    value["usageMetadata" if provider == "gemini" else "usage"] = usage
    answer = read(provider, value)
    assert (answer.prompt_tokens, answer.completion_tokens) == wanted


@pytest.mark.parametrize("model, path", [
    ("gemini-x", "/v1beta/models/gemini-x"), ("models/gemini-x", "/v1beta/models/gemini-x"),
    ("tunedModels/mine", "/v1beta/tunedModels/mine"), ("a b", "/v1beta/models/a%20b"),
    ("publishers/google/models/gemini-x", "/v1beta/models/publishers/google/models/gemini-x")])
def test_geminis_names_are_paths(model, path):
    made = Endpoint(model, "http://h.example", "gemini")
    assert made.url == f"http://h.example{path}:generateContent"
