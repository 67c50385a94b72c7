"""What endpoints say in place of an answer, in the shapes that providers use: each by its own documentation
or by what its users reported, in our own words."""
import json

import fault_server
import pytest

from redlite.errors import Error, Incomplete
from redlite.net import client, parameters, reply
from redlite.net.endpoints import Endpoint, Limits
from redlite.store.run_directory import Run
from redlite.store.text import printable

OK = {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-not-a-real-key-0123456789")


def asked(tmp_path, script, n=1, parameters=None, **options):
    """(answers in the order of the calls, the server's counts, the client)"""
    given = {"max_tokens": 5, **(parameters or {})}
    calls = [client.Call([{"role": "user", "content": f"q{i}"}], given) for i in range(n)]
    with fault_server.running(script=script) as server, Run(tmp_path / "run", {}) as run:
        c = client.Client(Endpoint("m", server.url), run, **{
            "concurrency": 1, "timeouts": (2, 0.5), "first_delay": 0.01, **options})
        got = dict(c.ask(calls))
        return [got[i] for i in range(n)], server.counts(), c


def status(code, error):
    return {"status": code, "body": error}


REFUSALS = {
    "OpenAI": (400, {"error": {"code": "invalid_prompt", "type": "invalid_request_error", "message": "no"}}),
    "Azure": (400, {"error": {"code": "content_filter", "message": "x", "innererror": {
        "code": "ResponsibleAIPolicyViolation", "content_filter_result": {}}}}),
    "Azure, inner code alone": (400, {"error": {"code": None, "message": "x", "innererror": {
        "code": "ResponsibleAIPolicyViolation"}}}),
    "xAI": (403, {"code": "no permission", "error": "Content violates usage guidelines. Team: t, key ID: k"}),
    "OpenRouter": (403, {"error": {"code": 403, "message": "x", "metadata": {"flagged_input": "q"}}}),
    "Anthropic": (400, {"type": "error", "error": {
        "type": "invalid_request_error", "message": "Output blocked by content filtering policy"}}),
    "DashScope": (400, {"error": {"code": "data_inspection_failed", "message": "x"}}),
    "DeepSeek": (400, {"error": {"message": "Content Exists Risk", "type": "invalid_request_error"}}),
    "a list of one": (400, [{"error": {"code": 400, "message": "the prompt was flagged", "status": "X"}}]),
    "plain detail": (422, {"detail": "Your prompt was rejected by our safety system."}),
    "Chinese": (400, {"error": {"code": "1301", "message": "x"}}),
    "legal": (451, {"error": {"message": "This request contains prohibited content"}}),
    "litellm": (400, {"error": {"message": "litellm.ContentPolicyViolationError: x", "code": "400"}}),
    "500 with a code": (500, {"error": {"code": "content_filter", "message": "x"}}),
    "200 Gemini": (200, {"object": "chat.completion", "choices": [], "usage": {"prompt_tokens": 4}}),
    "200 Gemini, null": (200, {"choices": None, "model": "g"}),
    "200 Gemini, feedback": (200, {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}),
    "200 finish": (200, {"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}),
    "200 Gemini finish": (200, {"choices": [{"message": None, "finish_reason": "content_filter: SAFETY"}]}),
    "200 upper case": (200, {"choices": [{"message": {}, "finish_reason": "PROHIBITED_CONTENT"}]}),
    "200 Anthropic": (200, {"choices": [{"message": {"content": ""}, "finish_reason": "refusal"}]}),
    "200 OpenAI": (200, {"choices": [{"message": {"content": None, "refusal": "I can't."},
                                      "finish_reason": "stop"}]}),
    "200 with an error": (200, {"error": {"code": "content_policy_violation", "message": "x"}}),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_recorded_once(tmp_path, name):
    answers, counts, c = asked(tmp_path, [status(*REFUSALS[name]), status(200, OK)], 2)
    assert [a.finish for a in answers] == ["refused_by_api", "stop"] and counts["requests"] == 2
    assert answers[0].detail and c.journal.run.directory.exists()
    with Run(tmp_path / "run") as run:      # another process asks for nothing
        again = client.Client(c.endpoint, run)
        assert [a.finish for a in again.journal.answers.values()] == ["refused_by_api", "stop"]


NOT_REFUSALS = {
    "key": (401, {"error": {"message": "Incorrect API key; see our content policy, flagged content"}}),
    "rights": (403, {"error": {"message": "You have no permission to use this model"}}),
    "account": (403, {"error": {"message": "Your account was flagged for violating our usage policies"}}),
    "Gemini's key": (400, {"error": {"code": 400, "message": "API key not valid. Please pass a valid one."}}),
    "litellm's key": (400, {"error": {"message": "No connected db.", "type": "no_db_connection"}}),
    "length": (400, {"error": {"message": "maximum context length is 4 tokens", "code": "too_long"}}),
    "model": (404, {"error": {"message": "no such model", "code": "model_not_found"}}),
}


@pytest.mark.parametrize("name", NOT_REFUSALS)
def test_what_is_no_refusal_ends_the_run_and_leaves_no_directory(tmp_path, name):
    with pytest.raises(Error) as caught:
        asked(tmp_path, [status(*NOT_REFUSALS[name])] * 9)
    assert not isinstance(caught.value, Incomplete) and not (tmp_path / "run").exists()
    assert ("OPENAI_API_KEY" in str(caught.value)) == (name not in ("length", "model"))


def test_one_request_that_cannot_be_taken_is_its_own_even_as_the_first(tmp_path):
    script = [status(400, {"error": {"message": "too long"}}), status(200, OK)]
    answers, counts, _ = asked(tmp_path, script, 2)
    assert [a.finish for a in answers] == ["error", "stop"] and counts["requests"] == 2


@pytest.mark.parametrize("reply_", [
    status(402, {"error": {"message": "Insufficient Balance"}}),
    status(400, {"error": {"message": "Your credit balance is too low", "type": "invalid_request_error"}})])
def test_an_empty_account_breaks_the_run_off(tmp_path, reply_):
    with pytest.raises(Incomplete, match="goes on when there is credit"):
        asked(tmp_path, [status(200, OK), reply_], 3)
    assert (tmp_path / "run" / "api.jsonl").read_text().count('"fine"') == 1


@pytest.mark.parametrize("code, body", [(201, OK), (200, "\ufeff" + json.dumps(OK))])
def test_a_reply_is_read_with_any_2xx_and_a_mark_of_its_order(tmp_path, code, body):
    [answer], _, _ = asked(tmp_path, [status(code, body)])
    assert answer.text == "fine"


def test_thoughts_among_the_parts_of_a_content(tmp_path):
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "A dragon?"}]},
             {"type": "text", "text": "With care."}]
    body = {"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]}
    [answer], _, _ = asked(tmp_path, [status(200, body)])
    assert answer.text == "<think>\nA dragon?\n</think>\n\nWith care."


def test_an_endpoint_that_takes_nothing_is_not_asked_for_ever(tmp_path):
    with fault_server.running(script=[status(400, {"error": {"message": "bad"}})] * 40) as server:
        with Run(tmp_path / "run", {}) as run, pytest.raises(Error, match="refuses the request: status 400"):
            c = client.Client(Endpoint("m", server.url), run, concurrency=1)
            list(c.ask([client.Call([{"role": "user", "content": str(i)}]) for i in range(30)]))
        assert server.counts()["requests"] == client.REFUSALS


def test_403_after_answers_is_this_requests_own(tmp_path):
    answers, counts, _ = asked(tmp_path, [status(200, OK), status(403, "<html>blocked</html>"),
                                          status(200, OK)], 3)
    assert [a.finish for a in answers] == ["stop", "error", "stop"] and counts["requests"] == 3


@pytest.mark.parametrize("finish, ended", [
    ("MAX_TOKENS", "length"), ("max_tokens", "length"), ("FINISH_REASON_MAX_TOKENS", "length"),
    ("model_length", "length"), ("eos", "stop"), ("end_turn", "stop"), ("STOP", "stop"),
    ("tool_calls", "stop")])
def test_ends_in_other_words(tmp_path, finish, ended):
    body = {"choices": [{"message": {"content": "x"}, "finish_reason": finish}]}
    [answer], _, _ = asked(tmp_path, [status(200, body)])
    assert (answer.text, answer.finish) == ("x", ended)


@pytest.mark.parametrize("choice, beside", [
    ({"finish_reason": "error"}, {}), ({"finish_reason": "abort"}, {}), ({"finish_reason": None}, {}),
    ({"finish_reason": "insufficient_system_resource"}, {}),
    ({"finish_reason": "stop"}, {"error": {"message": "upstream went away", "code": "x"}}),
    ({"finish_reason": "stop", "error": {"message": "upstream went away"}}, {})])
def test_an_answer_that_is_broken_off_is_asked_for_again(tmp_path, choice, beside):
    broken = status(200, {"choices": [{"message": {"content": "half"}, **choice}], **beside})
    answers, counts, c = asked(tmp_path, [broken, status(200, OK), *[broken] * 3], 2)
    assert [a.finish for a in answers] == ["stop", "error"] and counts["requests"] == 5
    assert answers[1].detail.startswith("given up after 3 tries: broken off: ")
    assert len(c.journal.answers) == 1
    keys = [h["idempotency-key"] for h in counts["headers"]]
    assert len(set(keys)) == 5      # an endpoint that keeps answers by key would give the broken one again


@pytest.mark.parametrize("body, reason", [
    ("<!DOCTYPE html><title>Sign in</title>", "HTML, no JSON; check the address .*Sign in"),
    ('data: {"choices": []}\n\ndata: [DONE]\n', "a stream of events"),
    ({"error": {"message": "the model is\x1b[31m loading\u202e", "code": None}},
     r"an error: the model is\\x1b\[31m loading\\u202e"),
    ({"error": "out of memory"}, "an error: out of memory"), ({"detail": "Not Found"}, "no chat completion"),
    ("", "no chat completion: nothing")])
def test_a_200_without_an_answer_is_explained_after_two_tries(tmp_path, body, reason):
    with pytest.raises(Incomplete, match=f"2 times in a row.*{reason}") as caught:
        asked(tmp_path, [status(200, body)] * 9)
    assert "\x1b" not in str(caught.value) and "\u202e" not in str(caught.value)


def test_a_200_that_means_another_status_is_that_status(tmp_path):
    limited = {"error": {"code": 429, "message": "slow down"}}
    [answer], counts, c = asked(tmp_path, [status(200, limited)] * 3 + [status(200, OK)])
    assert answer.text == "fine" and counts["requests"] == 4 and c.retries == {"status 429": 3}
    with pytest.raises(Error, match="status 401: bad key; check OPENAI_API_KEY"):
        asked(tmp_path / "b", [status(200, {"error": {"code": 401, "message": "bad key"}})])


@pytest.mark.parametrize("usage, counted", [
    # By hand: the total says 426, so 405 are not the prompt's.
    ({"prompt_tokens": 21, "completion_tokens": 5, "total_tokens": 426,
      "completion_tokens_details": {"reasoning_tokens": 400}}, (21, 405)),
    ({"prompt_tokens": 21, "completion_tokens": 5, "reasoning_tokens": 400}, (21, 405)),
    ({"prompt_tokens": 21, "completion_tokens": 405, "total_tokens": 426,
      "completion_tokens_details": {"reasoning_tokens": 400}}, (21, 405)),
    ({"prompt_tokens": 21, "completion_tokens": 5, "total_tokens": 26}, (21, 5)),
    ({"prompt_tokens": 21, "completion_tokens": 5, "total_tokens": 3}, (21, 5))])
def test_thinking_is_counted_wherever_it_stands(tmp_path, usage, counted):
    assert reply.tokens_used(usage) == counted
    _, _, c = asked(tmp_path, [status(200, {**OK, "usage": usage})])
    assert c.spent["prompt"] + c.spent["completion"] == sum(counted)


def test_thinking_outside_max_tokens_does_not_pass_the_budget(tmp_path):
    """Each answer uses 10 + 400 tokens though 5 are allowed; the second is let out by what the first was."""
    used = {**OK, "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 410}}
    with pytest.raises(Incomplete, match="limit of 900 tokens"):
        asked(tmp_path, [status(200, used)] * 9, 9, limits=Limits(tokens=900))
    sent = (tmp_path / "run" / "api.jsonl").read_text().count('"sent"')
    assert sent == 2        # 410 + 410, and a third could take 34 + 400 more


@pytest.mark.parametrize("message, param, name", [
    ("Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is "
     "supported.", "temperature", "temperature"),
    ("`temperature` is deprecated for this model.", None, "temperature"),
    ("`temperature` and `top_p` cannot both be specified for this model.", None, "top_p"),
    ("Unsupported parameter: 'stop' is not supported with this model.", None, "stop"),
    ("Unrecognized request argument supplied: top_p", None, "top_p"),
    ("Argument not supported on this model: stop", None, "stop"),
    ("Unsupported value: the server is to stop", None, None),
    ("Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
     "instead.", "max_tokens", "max_tokens"),
    ("max_tokens is too large: 500. This model supports at most 400 tokens", "max_tokens", None),
    ("The request must stop before 5 tokens", None, None), ("Bad request", None, None)])
def test_the_refused_parameter_is_found(message, param, name):
    sent = {field: field for field in ("max_tokens", "temperature", "top_p", "stop")}
    assert parameters.refused({"error": {"message": message, "param": param}}, sent) == name


def refuses(name, message=None):
    return status(400, {"error": {"message": message or f"Unsupported parameter: '{name}' is not supported",
                                  "param": name, "code": "unsupported_parameter"}})


def test_a_refused_parameter_is_left_out_once_and_remembered(tmp_path, capsys):
    given = {"temperature": 0.0, "top_p": 1.0, "stop": ["\nRed-LM:"]}
    script = [refuses("max_tokens", "'max_tokens' is not supported. Use 'max_completion_tokens' instead."),
              refuses("temperature"), refuses("top_p"), refuses("stop"),
              status(200, {"choices": [{"message": {"content": "yes\nRed-LM: and then?"},
                                        "finish_reason": "length"}]})]
    answers, counts, c = asked(tmp_path, script, 2, given)
    assert (answers[0].text, answers[0].finish) == ("yes", "stop") and counts["requests"] == 6
    last = json.loads(counts["bodies"][-1])
    assert last == {"model": "m", "messages": [{"role": "user", "content": "q1"}], "max_completion_tokens": 5}
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4 and "'max_tokens'" in said[0] and "sent as max_completion_tokens" in said[0]
    assert "left out from now on" in said[3]
    with Run(tmp_path / "run") as run:      # another process knows it without a request
        known = client.Client(c.endpoint, run).journal.refused
    assert known == {(c.endpoint.base_url, "m"): {
        "max_tokens": "max_completion_tokens", "temperature": None, "top_p": None, "stop": None}}


def test_many_at_once_learn_of_a_refused_parameter_together(tmp_path, capsys):
    script = [refuses("temperature")] * 4
    with fault_server.running(script=script, delay=0.3) as server, Run(tmp_path, {}) as run:
        c = client.Client(Endpoint("m", server.url), run, concurrency=4)
        calls = [client.Call([{"role": "user", "content": str(i)}], {"max_tokens": 5, "temperature": 0.0})
                 for i in range(4)]
        assert {a.finish for _, a in c.ask(calls)} == {"stop"}
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_parameter_that_is_refused_under_both_names_is_an_error(tmp_path):
    with pytest.raises(Error, match="refuses the request"):
        asked(tmp_path, [refuses("max_tokens"), refuses("max_completion_tokens")] * 5)


@pytest.mark.parametrize("text, cut", [
    ("yes\nRed-LM: more", "yes"), ("no stop", "no stop"),
    ("<think>a\nRed-LM: b</think>yes\nRed-LM: more", "<think>a\nRed-LM: b</think>yes"),
    ("<think>a\nRed-LM: b", "<think>a\nRed-LM: b")])
def test_an_endpoint_that_ignores_stop_is_cut_here(tmp_path, text, cut):
    body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    [answer], _, _ = asked(tmp_path, [status(200, body)], parameters={"stop": ["\nRed-LM:"]})
    assert answer.text == cut


def test_another_model_behind_the_same_name_is_said_once(tmp_path, capsys):
    def by(name, print_):
        return status(200, {**OK, "model": name, "system_fingerprint": print_})
    script = [by("m-1", "fp_a"), by("m-1", "fp_a"), by("m-1", "fp_b"), by("m-2", "fp_b")]
    answers, _, c = asked(tmp_path, script, 4)
    assert [a.served for a in answers] == ["m-1 fp_a", "m-1 fp_a", "m-1 fp_b", "m-2 fp_b"]
    [said] = capsys.readouterr().err.splitlines()
    assert "'m-1 fp_b'" in said and "'m-1 fp_a'" in said
    with Run(tmp_path / "run") as run:
        assert client.Client(c.endpoint, run).journal.served == {"m": "m-2 fp_b"}


@pytest.mark.parametrize("header, least", [("retry-after-ms", "300"), ("Retry-After", "0.3")])
def test_waits_in_milliseconds_are_kept(tmp_path, header, least):
    limit = {"status": 429, "headers": [[header, least]], "body": "{}"}
    _, counts, _ = asked(tmp_path, [limit])
    assert 0.3 <= counts["times"][1] - counts["times"][0] < 2


def test_what_steers_a_terminal_is_escaped():
    assert printable("a\x1b[2Jb\r\nc\u202ed\u200be\x07") == r"a\x1b[2Jb c\u202ed\u200be\x07"
    assert printable("Größe 好") == "Größe 好"
