"""Requests and replies of the providers' own APIs and of endpoint files, on a loopback server.

The shapes are those of the providers' public references; the texts are our own.
"""
import json

import fault_server
import pytest

from redlite.answer import Answer
from redlite.errors import Error
from redlite.net import client
from redlite.net.providers import merged
from redlite.net.template import load
from redlite.redteam.api import Network, Way
from redlite.store.run_directory import Run

MESSAGES = [{"role": "system", "content": "Be brief."},
            {"role": "user", "content": "How do I wake a dragon?"}]
GIVEN = {"max_tokens": 9, "temperature": 0.0, "top_p": 1.0, "stop": ["\nUser:"]}
KEYS = {"OPENAI_API_KEY": "sk-openai-0001", "AZURE_OPENAI_API_KEY": "azure-key-0002",
        "ANTHROPIC_API_KEY": "sk-ant-0003", "GEMINI_API_KEY": "gemini-key-0004"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    for name in ("JUDGE_API_KEY", "OPENAI_API_VERSION", "GOOGLE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def asked(tmp_path, spec, replies, path="", role="model", **way):
    """(the last answer, the headers and the JSON body of the last request)"""
    script = [{"status": code, "body": body} for code, body in replies]
    with fault_server.running(script=script) as server, Run(tmp_path / "run", {}) as run:
        base_url = server.url.removesuffix("/v1") + path
        reach = Network(Way(base_url, **way), concurrency=1)
        if spec.startswith("endpoint:"):
            file = tmp_path / spec.removeprefix("endpoint:")
            file.write_text(file.read_text().replace("URL", base_url))
            spec = f"endpoint:{file}"
        c = reach.client(spec, run, role)
        [(_, answer)] = c.ask([client.Call(MESSAGES, GIVEN)])
        counts = server.counts()
    kept = b"".join(p.read_bytes() for p in tmp_path.joinpath("run").rglob("*") if p.is_file())
    assert not any(key.encode() in kept for key in KEYS.values())
    return answer, counts["headers"][-1], json.loads(counts["bodies"][-1])


@pytest.mark.parametrize("path, version, wanted", [
    ("", "", "/openai/deployments/gpt%20four/chat/completions?api-version=2024-10-21"),
    ("/openai", "2025-01-01", "/openai/deployments/gpt%20four/chat/completions?api-version=2025-01-01"),
    ("/openai/deployments/d", "", "/openai/deployments/d/chat/completions?api-version=2024-10-21"),
    ("/openai/v1", "", "/openai/v1/chat/completions")])
def test_azure(tmp_path, path, version, wanted):
    reply = {"choices": [{"message": {"content": "Softly."}, "finish_reason": "stop"}],
             "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}}
    answer, headers, body = asked(tmp_path, "azure:gpt four", [(200, reply)], path, version=version)
    assert headers[":path"] == wanted and headers["api-key"] == KEYS["AZURE_OPENAI_API_KEY"]
    assert "authorization" not in headers and body["messages"] == MESSAGES
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("Softly.", 5, 2)


def test_anthropic(tmp_path):
    reply = {"type": "message", "model": "claude-x", "stop_reason": "max_tokens", "content": [
        {"type": "thinking", "thinking": "A dragon?"}, {"type": "text", "text": "With "},
        {"type": "text", "text": "care."}],
        "usage": {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 9}}
    answer, headers, body = asked(tmp_path, "anthropic:claude-x", [(200, reply)])
    assert headers[":path"] == "/v1/messages" and headers["x-api-key"] == KEYS["ANTHROPIC_API_KEY"]
    assert headers["anthropic-version"] == "2023-06-01" and "authorization" not in headers
    assert body == {"model": "claude-x", "max_tokens": 9, "temperature": 0.0, "system": "Be brief.",
                    "stop_sequences": ["\nUser:"], "messages": MESSAGES[1:]}
    assert answer.text == "<think>\nA dragon?\n</think>\n\nWith care." and answer.finish == "length"
    assert (answer.prompt_tokens, answer.completion_tokens, answer.served) == (8, 9, "claude-x")


def test_anthropics_refusal_and_its_refusal_of_a_temperature(tmp_path):
    no = {"type": "error", "error": {"type": "invalid_request_error",
                                     "message": "`temperature` is deprecated for this model."}}
    refusal = {"content": [], "stop_reason": "refusal", "stop_details": {"explanation": "By policy."},
               "usage": {"input_tokens": 5, "output_tokens": 1}}
    answer, _, body = asked(tmp_path, "anthropic:claude-x", [(400, no), (200, refusal)], "/v1")
    assert "temperature" not in body
    assert (answer.finish, answer.detail, answer.completion_tokens) == ("refused_by_api", "By policy.", 1)


def test_gemini(tmp_path):
    reply = {"modelVersion": "gemini-x-001", "candidates": [{"finishReason": "STOP", "content": {"parts": [
        {"text": "A dragon?", "thought": True}, {"text": "With care."}], "role": "model"}}],
        "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 3, "thoughtsTokenCount": 40,
                          "totalTokenCount": 48}}
    answer, headers, body = asked(tmp_path, "gemini:gemini-x", [(200, reply)], "/v1beta")
    assert headers[":path"] == "/v1beta/models/gemini-x:generateContent"
    assert headers["x-goog-api-key"] == KEYS["GEMINI_API_KEY"]
    assert body == {
        "contents": [{"role": "user", "parts": [{"text": "How do I wake a dragon?"}]}],
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "generationConfig": {"maxOutputTokens": 9, "temperature": 0.0, "topP": 1.0,
                             "stopSequences": ["\nUser:"]}}
    assert answer.text == "<think>\nA dragon?\n</think>\n\nWith care." and answer.finish == "stop"
    assert (answer.prompt_tokens, answer.completion_tokens, answer.served) == (5, 43, "gemini-x-001")


@pytest.mark.parametrize("reply, detail", [
    ({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 5}},
     "PROHIBITED_CONTENT"),
    ({"usageMetadata": {"promptTokenCount": 5}, "candidates": []}, "no choices"),
    ({"candidates": [{"finishReason": "SAFETY", "safetyRatings": []}]}, "finish_reason SAFETY")])
def test_geminis_refusals(tmp_path, reply, detail):
    answer, _, _ = asked(tmp_path, "gemini:gemini-x", [(200, reply)])
    assert answer.finish == "refused_by_api" and answer.detail.startswith(detail) and answer.text == ""


def template(tmp_path, **fields):
    value = {"url": "URL/generate", "headers": {"X-Key": "Bearer {{env:DRAGON_KEY}}"},
             "body": {"inputs": "{{system}} {{prompt}}", "chat": "{{messages}}",
                      "options": {"limit": "{{max_tokens}}", "stop": "{{stop}}", "seed": "{{sample}}"}},
             "answer": "$.outputs[0].text", "finish": "outputs.0.why", "prompt_tokens": "used.in",
             "completion_tokens": "used.out", **fields}
    (tmp_path / "own.json").write_text(json.dumps({k: v for k, v in value.items() if v is not None}))
    return "endpoint:own.json"


def test_any_endpoint_by_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv("DRAGON_KEY", "dragon-secret-0005")
    reply = {"outputs": [{"text": "With dragon-secret-0005 care.\nUser: and?", "why": "MAX_TOKENS"}],
             "used": {"in": 5, "out": 9}}
    answer, headers, body = asked(tmp_path, template(tmp_path, method="put"), [(200, reply)])
    assert headers[":path"] == "/generate" and headers["x-key"] == "Bearer dragon-secret-0005"
    assert "authorization" not in headers
    assert body == {"inputs": "Be brief. How do I wake a dragon?", "chat": MESSAGES,
                    "options": {"limit": 9, "stop": ["\nUser:"], "seed": 0}}
    assert answer == Answer("With [redacted] care.", "stop", 5, 9, answer.seconds)


@pytest.mark.parametrize("spec, reply", [
    ("anthropic:m", {"content": [{"type": "text", "text": "half"}], "stop_reason": "end_turn"}),
    ("gemini:m", {"candidates": [{"finishReason": "STOP", "content": {"parts": [{"text": "half"}]}}]}),
    ("endpoint:own.json", {"outputs": [{"text": "half", "why": "stop"}]})])
def test_an_error_beside_an_answer_breaks_it_off(tmp_path, monkeypatch, spec, reply):
    monkeypatch.setenv("DRAGON_KEY", "dragon-secret-0005")
    template(tmp_path)
    broken = {**reply, "error": {"message": "the worker went away"}}
    answer, _, _ = asked(tmp_path, spec, [(200, broken), (200, reply)])
    assert answer.text == "half" and answer.finish == "stop"
    with Run(tmp_path / "run") as run:
        assert client.ApiJournal(run, "m", client.Limits()).spent["requests"] == 2


def test_a_reply_without_the_answer_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("DRAGON_KEY", "dragon-secret-0005")
    with pytest.raises(Error, match="2 times in a row .*no chat completion: .*result"):
        asked(tmp_path, template(tmp_path), [(200, {"result": "x"})] * 9)


@pytest.mark.parametrize("fields, wrong", [
    ({"answer": None}, "field 'answer' is missing"), ({"method": "GET"}, "method 'GET' sends no body"),
    ({"body": {"inputs": "{{promt}}"}}, "placeholder {{promt}} is not known"),
    ({"body": {"inputs": "x"}}, "must hold {{messages}} or {{prompt}}"),
    ({"bodies": {}}, "the field 'bodies' is not known"),
    ({"headers": {"a": 1}}, "'headers' must hold texts")])
def test_a_wrong_endpoint_file_is_named(tmp_path, fields, wrong):
    template(tmp_path, **fields)
    with pytest.raises(Error) as caught:
        load(tmp_path / "own.json")
    assert wrong in str(caught.value) and "own.json" in str(caught.value)


def test_headers_and_fields_of_the_user_win(tmp_path):
    reply = {"choices": [{"message": {"content": "my token is abc-secret-token"}, "finish_reason": "stop"}]}
    extra = {"temperature": None, "reasoning": {"effort": "low"}, "max_tokens": 7}
    answer, headers, body = asked(
        tmp_path, "openai:m", [(200, reply)], "/v1", extra=extra,
        headers=(("Authorization", "Token abc-secret-token"), ("X-Tier", "free"), ("User-Agent", "me")))
    assert headers["authorization"] == "Token abc-secret-token" and headers["x-tier"] == "free"
    assert headers["user-agent"] == "me" and answer.text == "my token is [redacted]"
    assert body == {"model": "m", "messages": MESSAGES, "top_p": 1.0, "stop": ["\nUser:"], "max_tokens": 7,
                    "reasoning": {"effort": "low"}}


def test_a_merge_patch_does_what_the_rfc_says():
    """Rows of RFC 7386, appendix A."""
    assert merged({"a": "b"}, {"a": "c"}) == {"a": "c"} and merged({"a": "b"}, {"a": None}) == {}
    assert merged({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}) == {"a": {"b": "d"}}
    assert merged({"a": [1, 2]}, {"a": "c"}) == {"a": "c"}
    assert merged({}, {"a": {"bb": {"ccc": None}}}) == {"a": {"bb": {}}}


def test_a_judge_has_its_own_key(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "judge-key-0006")
    reply = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}
    _, headers, _ = asked(tmp_path, "openai:m", [(200, reply)], role="judge")
    assert headers["authorization"] == "Bearer judge-key-0006"
    _, headers, _ = asked(tmp_path / "model", "openai:m", [(200, reply)])
    assert headers["authorization"] == f"Bearer {KEYS['OPENAI_API_KEY']}"


def test_a_key_that_is_a_word_is_not_cut_out_of_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    reply = {"choices": [{"message": {"content": "There is none."}, "finish_reason": "stop"}]}
    answer, headers, _ = asked(tmp_path, "openai:m", [(200, reply)])
    assert headers["authorization"] == "Bearer none" and answer.text == "There is none."


@pytest.mark.parametrize("code, body, why", [
    (401, {"error": {"message": "bad key"}}, "check OPENAI_API_KEY"),
    (404, {"error": {"message": "no model m", "code": "model_not_found"}}, "the model's name"),
    (404, {"detail": "The model `m` does not exist or is not accessible"}, "the model's name"),
    (404, {"message": "Cannot GET /v1/models/m"}, None),
    (401, {"error": {"message": "Missing scopes: api.model.read"}}, None),
    (404, {"detail": "Not Found"}, None), (405, "no", None), (500, "no", None), (200, "no", None)])
def test_a_key_and_a_model_are_checked_by_a_get(monkeypatch, code, body, why):
    class Gets:
        def __init__(self, *arguments):
            self.redact = str

        def get(self, url, seconds):
            assert url == "http://h.example/v1/models/m"
            text = body if isinstance(body, str) else json.dumps(body)
            return client.HttpReply(code, {}, text.encode(), 0.0)
    monkeypatch.setattr(client, "Transport", Gets)
    endpoint = Network(Way("http://h.example/v1")).endpoint("openai:m")
    if why is None:
        client.check(endpoint)
    else:
        with pytest.raises(Error, match=why):
            client.check(endpoint)
