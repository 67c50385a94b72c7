"""What providers say in place of an answer, and what only looks like it: shapes from their documentation or
their users' reports, in our own words. Each refusal is recorded once; nothing else is taken for one.
"""
import json

import fault_server
import pytest

from redlite.answer import Answer
from redlite.errors import Error, Incomplete
from redlite.net import client, refusals, reply
from redlite.net.endpoints import Endpoint
from redlite.redteam.api import Network, Way
from redlite.store.run_directory import Run

OK = {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-not-a-real-key-0123456789")


def asked(tmp_path, replies, n=2, endpoint=None):
    """(answers in the order of the calls, requests that the server saw)"""
    script = [{"status": code, "body": body} for code, body in replies]
    calls = [client.Call([{"role": "user", "content": f"q{i}"}], {"max_tokens": 5}) for i in range(n)]
    with fault_server.running(script=script) as server, Run(tmp_path / "run", {}) as run:
        made = endpoint(server.url) if endpoint else Endpoint("m", server.url)
        c = client.Client(made, run, concurrency=1, first_delay=0.01, timeouts=(20, 20))
        got = dict(c.ask(calls))
        return [got[i] for i in range(n)], server.counts()["requests"]


def choice(finish="stop", content="x", **more):
    return {"choices": [{"message": {"content": content}, "finish_reason": finish, **more}]}


def error(message, **more):
    return {"error": {"message": message, **more}}


def base(code, said):
    return {"id": "x", "choices": None, "base_resp": {"status_code": code, "status_msg": said}}


RAW = json.dumps(error("Invalid prompt", code="invalid_prompt"))
REFUSED = {
    "Mistral": (403, {"object": "error", "message": {"detail": "Threshold exceeded"}, "code": "1900"}),
    "Mistral, a number": (403, {"object": "error", "message": "no", "type": "guardrail", "code": 1900}),
    "Portkey": (446, error("The guardrail checks defined in the config failed.", type="hooks_failed")),
    "Portkey, bare": (446, "denied"),
    "MiniMax, input": (200, base(1026, "input new_sensitive")),
    "MiniMax, output": (200, {**choice(), **base(1027, "output new_sensitive"), "choices": []}),
    "MiniMax by its gateway": (422, error("input new_sensitive (1026)", type="bad_request_error")),
    "MiniMax by another gateway": (500, error("input new_sensitive (1026)", type="api_error")),
    "Qianfan": (200, {"error_code": 336104, "error_msg": "no", "need_clear_history": True}),
    "Qianfan, v2": (200, choice("content_filter")),
    "Qianfan, flag": (200, choice("normal", flag=3)),
    "Qianfan, words": (200, {"error_code": 336003, "error_msg": "the message may contain sensitive content"}),
    "OpenAI, cyber": (400, error("no", code="cyber_policy_violation")),
    "OpenAI, cyber, 403": (403, error("This request was flagged for possible cybersecurity risk.",
                                      code="cyber_policy")),
    "OpenAI, parts": (200, choice(content=[{"type": "refusal", "refusal": "I can't."}])),
    "OpenRouter, raw": (400, error("Provider returned error", code=400,
                                   metadata={"raw": RAW, "provider_name": "OpenAI"})),
    "OpenRouter, raw object": (403, error("Provider returned error", code=403,
                                          metadata={"raw": json.loads(RAW)})),
    "OpenRouter, kind": (403, error("x", code=403, metadata={"error_type": "content_policy_violation"})),
    "OpenRouter, 200": (200, error("x", code=403, metadata={"reasons": ["violence"], "flagged_input": "q"})),
    "OpenRouter, in the choice": (200, {"choices": [
        {"finish_reason": "error", "native_finish_reason": "x", "message": {"content": ""},
         "error": {"code": 403, "message": "The model refused", "metadata": {"error_type": "refusal"}}}]}),
    "OpenRouter, native": (200, choice("stop", "", native_finish_reason="PROHIBITED_CONTENT")),
    "Gemini, Model Armor": (200, choice("MODEL_ARMOR")),
    "Gemini, prefix": (200, choice("FINISH_REASON_SAFETY")),
    "Gemini, image": (200, choice("IMAGE_PROHIBITED_CONTENT")),
    "Gemini, jailbreak": (200, {"promptFeedback": {"blockReason": "JAILBREAK"}}),
    "Vertex": (400, [error("This prompt contains words that violate Google's Responsible AI practices.",
                           code=400, status="INVALID_ARGUMENT")]),
    "Bedrock": (200, {**choice(content="Sorry."), "amazon-bedrock-guardrailAction": "INTERVENED"}),
    "DashScope, its own API": (400, {"code": "DataInspectionFailed", "message": "x", "request_id": "r"}),
    "DashScope, long code": (400, error("<400> x", code="InternalError.Algo.DataInspectionFailed")),
    "DashScope by a gateway": (500, error("<400> InternalError.Algo.DataInspectionFailed: x")),
    "Ark": (400, error("x", code="SensitiveContentDetected.SevereViolation")),
    "Ark, input": (400, error("The input text may contain sensitive information.",
                              code="InputTextSensitiveContentDetected")),
    "StepFun": (451, error("It was considered high risk", type="censorship_blocked")),
    "451 in words": (451, error("Unavailable For Legal Reasons: content blocked", code=451)),
    "Cloudflare": (424, {"success": False, "error": [
        {"code": 2016, "message": "Prompt blocked due to security configurations"}]}),
    "a list of errors": (400, {"errors": [{"code": 1, "message": "the prompt was flagged as unsafe"}]}),
    "GigaChat": (200, choice("blacklist")),
    "Databricks": (200, choice("input_guardrail_triggered")),
    "litellm's guardrail": (400, error("{'error': 'Violated guardrail policy'}", type="None", code="400")),
    "litellm's filter": (403, error("Content blocked: keyword 'dragon' detected", code="403")),
}


def test_each_refusal_is_known_and_asked_once(tmp_path):
    answers, requests = asked(tmp_path, [*REFUSED.values(), (200, OK)], len(REFUSED) + 1)
    *found, last = [a.finish for a in answers]
    assert dict(zip(REFUSED, found, strict=True)) == dict.fromkeys(REFUSED, "refused_by_api")
    assert last == "stop" and requests == len(answers) and all(a.detail for a in answers[:-1])


NOT_REFUSED = {
    "rate": (429, error("Rate limit policy exceeded; see our content policy")),
    "rate, flagged": (429, error("Your traffic was flagged as unsafe content by our safety system")),
    "key": (401, error("The key was blocked by our content policy", code="content_policy")),
    "model": (404, error("No endpoints found matching your data policy (Free model publication)", code=404)),
    "server": (500, error("Failed to load content filter policy")),
    "server, words": (503, error("The safety system is not available; content moderation failed")),
    "network": (403, error("Access blocked by network security policy")),
    "organisation": (403, error("This model is blocked by your organization's policy")),
    "country": (403, error("Country, region, or territory not supported; blocked by our export policy")),
    "account": (403, error("Your resource has been temporarily blocked because its content may violate our "
                           "policy", code="x")),
    "Chinese account": (403, error("账号违规，已被封禁")),
    "rights": (403, error("Project lacks access to this model; accept the Responsible AI terms", code="x")),
    "setting": (400, error("Safety settings are not supported by this model")),
    "filter's name": (400, error("The content filter 'strict' does not exist")),
    "parameter": (400, error("Unknown parameter: 'content_moderation' of content moderation")),
    "Gemini's setting": (400, error("Invalid value at 'safety_settings[0].category'", code=400)),
    "MiniMax, rate": (200, base(1002, "rate limit triggered")),
    "MiniMax, key": (200, base(1004, "login fail: carry the API secret key")),
    "MiniMax, credit": (200, base(1008, "insufficient balance")),
    "MiniMax, server": (200, base(1000, "unknown error")),
    "Qianfan, quota": (200, {"error_code": 17, "error_msg": "Open api daily request limit reached"}),
    "Qianfan, fine": (200, {**choice("normal", flag=0), "need_clear_history": False}),
    "MiniMax, fine": (200, {**choice(), "base_resp": {"status_code": 0, "status_msg": ""},
                            "input_sensitive": False}),
    "Azure, filters that failed": (200, choice(content_filter_results={
        "error": {"code": "content_filter_error", "message": "The contents are not filtered"}})),
    "Azure, filters that passed": (200, {**choice(content_filter_results={"hate": {"filtered": False}}),
                                         "prompt_filter_results": [{"prompt_index": 0}]}),
    "Bedrock, passed": (200, {**choice(), "amazon-bedrock-guardrailAction": "NONE"}),
    "Portkey, passed with a warning": (246, {**choice(), "hook_results": {"before_request_hooks": []}}),
    "Gemini, passed": (200, {**choice(), "promptFeedback": {"safetyRatings": []}}),
    "limit of tokens": (400, error("too many tokens; see the usage policy", code="context_length_exceeded")),
}


@pytest.mark.parametrize("name", NOT_REFUSED)
def test_what_only_sounds_alike_is_no_refusal(name):
    status, body = NOT_REFUSED[name]
    said = refusals.status_of(status, body)
    if said == 200 or status == 246:
        answer = reply.completion(body, 0.0, str)
        assert answer is None or answer.finish == "stop" and answer.text == "x"
        assert (answer is None) == ("choices" not in body or not body["choices"])
    else:
        found = reply.failed(said, body, b"", 0.0, str)
        assert not isinstance(found, Answer) or found.finish == "error"


@pytest.mark.parametrize("status", [400, 403, 451])
@pytest.mark.parametrize("body, refused", [
    ("Content violates usage guidelines", True),
    ("<html><h1>403</h1><p>The prompt was flagged by our <b>content policy</b></p></html>", True),
    ('"Content violates usage guidelines"', True),
    ("<html><title>Access Denied</title>This violates the policy of your company's firewall</html>", False),
    ("<html>Web page blocked: content filtering, category Chat</html>", False),
    ("blocked by network security policy", False), ("Forbidden", False), ("", False)])
def test_a_refusal_in_plain_text_or_html(status, body, refused):
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    found = reply.failed(status, value, body.encode(), 0.0, str)
    assert (isinstance(found, Answer) and found.finish == "refused_by_api") == refused


@pytest.mark.parametrize("usage, expected", [
    ({"input_tokens": 21, "output_tokens": 5}, (21, 5)),
    ({"input_tokens": 21, "output_tokens": 5, "total_tokens": 426}, (21, 405)),
    ({"promptTokenCount": 21, "candidatesTokenCount": 5, "totalTokenCount": 426}, (21, 405)),
    ({"inputTokens": 21, "outputTokens": 5}, (21, 5)),
    ({"prompt_tokens": 21, "total_tokens": 426}, (21, 405)),
    ({"completion_tokens": 5, "total_tokens": 26}, (None, 26)),
    ({"prompt_tokens": "21", "completion_tokens": 5.0, "total_tokens": "426"}, (21, 405)),
    ({"prompt_tokens": "²", "completion_tokens": 5.5, "total_tokens": True}, (None, None)),
    ({"total_tokens": 26}, (0, 26)), ({}, (None, None)), (None, (None, None))])
def test_usage_is_read_in_every_common_spelling(usage, expected):
    """Both parts together are the total, where one is given."""
    assert reply.tokens_used(usage) == expected


@pytest.mark.parametrize("code, status", [(1002, 429), (1039, 429), (1004, 401), (2049, 401), (1008, 402),
                                          (2013, 400), (1000, 500), (1024, 500), (0, 200)])
def test_the_codes_of_minimax_mean_statuses(code, status):
    """After its table of error codes."""
    assert refusals.status_of(200, base(code, "x")) == status


def test_a_rate_limit_that_comes_with_status_200_is_waited_for(tmp_path):
    answers, requests = asked(tmp_path, [(200, base(1002, "rate limit triggered"))] * 3 + [(200, OK)], 1)
    assert answers[0].text == "fine" and requests == 4


def test_an_empty_account_that_comes_with_status_200_breaks_the_run_off(tmp_path):
    with pytest.raises(Incomplete, match="insufficient balance.*goes on when there is credit"):
        asked(tmp_path, [(200, OK), (200, base(1008, "insufficient balance"))])


@pytest.mark.parametrize("status", [403, 451])
def test_one_blocked_request_is_its_own_even_as_the_first(tmp_path, status):
    answers, requests = asked(tmp_path, [(status, "<html>Request blocked</html>"), (200, OK)])
    assert [a.finish for a in answers] == ["error", "stop"] and requests == 2


def test_a_key_without_rights_ends_the_run_after_few_requests(tmp_path):
    denied = (403, error("You have no permission to use this model"))
    with pytest.raises(Error, match="no permission.*check what OPENAI_API_KEY may do") as caught:
        asked(tmp_path, [denied] * 30, 30)
    assert not isinstance(caught.value, Incomplete) and not (tmp_path / "run").exists()


def test_marks_beside_an_answer_count_with_an_endpoint_file_too(tmp_path):
    """ERNIE's older API and Bedrock's Converse, whose answers stand at places of their own."""
    def made(answer, finish):
        file = tmp_path / "own.json"
        file.write_text(json.dumps({"url": "URL/x", "body": {"q": "{{prompt}}"}, "answer": answer,
                                    "finish": finish}))
        def endpoint(url):
            file.write_text(file.read_text().replace("URL", url))
            return Network(Way("")).endpoint(f"endpoint:{file}")
        return endpoint
    told = {"result": "Let us talk of something else.", "finish_reason": "normal",
            "need_clear_history": True, "ban_round": -1, "usage": {}}
    fine = {"result": "fine", "finish_reason": "normal", "need_clear_history": False}
    [first, second], _ = asked(tmp_path / "a", [(200, told), (200, fine)],
                               endpoint=made("result", "finish_reason"))
    assert (first.finish, first.text) == ("refused_by_api", told["result"]) and second.finish == "stop"
    passed = {"output": {"message": {"content": [{"text": "Blocked."}]}}, "stopReason": "end_turn"}
    blocked = {**passed, "stopReason": "guardrail_intervened"}
    [first, second], _ = asked(tmp_path / "b", [(200, blocked), (200, passed)],
                               endpoint=made("output.message.content.0.text", "stopReason"))
    assert [first.finish, second.finish] == ["refused_by_api", "stop"]


def test_codes_are_compared_whole():
    assert refusals.is_code("Content_Filter") and refusals.is_code(1301) and refusals.is_code("a.SAFETY")
    others = (True, None, "stop", "safety_identifier", "13010", "connection.refused", "content_filter_error",
              {"code": "safety"}, 0)
    assert not any(map(refusals.is_code, others))
