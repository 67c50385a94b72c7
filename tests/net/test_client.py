"""The API client over real HTTP, against a server that misbehaves on purpose."""
import base64
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter

import fault_server
import kill_client
import pytest

from redlite.cli import collect as command
from redlite.errors import Error, Incomplete
from redlite.net import client, rate_limit
from redlite.net.endpoints import Endpoint, Limits
from redlite.store.run_directory import Run

KEY = "sk-test-not-a-real-key-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def calls(n: int, **parameters) -> list[client.Call]:
    return [
        client.Call([{"role": "user", "content": f"q{i}"}], {"max_tokens": 5, **parameters}) for i in range(n)
    ]


def made(run, server, **options) -> client.Client:
    return client.Client(Endpoint("m", server.url), run,
                         **{"concurrency": 8, "timeouts": (2, 0.5), "first_delay": 0.01, **options})


def one(tmp_path, script, call=None, **options):
    """(the answer to one call, the server's counts, the client) with these first answers of the server."""
    with fault_server.running(script=script) as server, Run(tmp_path / "run", {}) as run:
        c = made(run, server, **options)
        [(_, answer)] = c.ask([call or calls(1)[0]])
        return answer, server.counts(), c


def test_every_fault_is_survived_and_nothing_made_twice(tmp_path):
    faults = {**dict.fromkeys(fault_server.FAULTS, 1), "ok": 16, "hang": 0.2}
    with fault_server.running(faults=faults, seed=3) as server, Run(tmp_path, {}) as run:
        c = made(run, server, tries=12, concurrency=16)
        got = dict(c.ask(calls(200)))
        counts = server.counts()
        assert sorted(got) == list(range(200)) and Counter(counts["made"].values()) == {1: 200}
        texts = {i for i, a in got.items() if a.text.startswith(f"echo: q{i}")}
        assert all(a.finish in ("stop", "length", "refused_by_api") for a in got.values())
        assert len(texts) > 100 and all(got[i].text == "" for i in got.keys() - texts)
        assert {"429", "503", "hang", "reset", "cut", "bad-utf8", "duplicate-headers",
                "filter-error"} <= counts["kinds"].keys()
        before = counts["requests"]
        assert dict(c.ask(calls(200))) == got and server.counts()["requests"] == before
    with Run(tmp_path, {}) as run:   # another process, another day
        assert dict(client.Client(Endpoint("m", server.url), run).ask(calls(200))) == got


@pytest.mark.parametrize(
    "fault, text, finish, detail",
    [("null", "", "stop", "no text"), ("tool-calls", "", "stop", "tool calls"),
     ("parts", "echo: q0", "stop", ""), ("duplicate-headers", "echo: q0", "stop", ""),
     ("filter-finish", "", "refused_by_api", "finish_reason content_filter"),
     ("filter-error", "", "refused_by_api", "status 400: The prompt was filtered by our policy")])
def test_unusual_answers_are_answers(tmp_path, fault, text, finish, detail):
    answer, counts, _ = one(tmp_path, [fault])
    assert (answer.text, answer.finish, answer.detail) == (text, finish, detail) and counts["requests"] == 1


@pytest.mark.parametrize("body", [{
    "choices": [{"index": 0, "finish_reason": "content_filter"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 0}
}, {"choices": [{"message": None, "finish_reason": "content_filter"}]}, {
    "error": {"message": "flagged", "code": "content_filter"}
}, {"error": {"message": "flagged", "code": 403, "metadata": {"flagged_input": "x"}}}])
def test_a_refusal_with_status_200_and_no_message_is_one(tmp_path, body):
    answer, counts, _ = one(tmp_path, [{"status": 200, "body": body}])
    assert (answer.text, answer.finish) == ("", "refused_by_api") and counts["requests"] == 1


@pytest.mark.parametrize("tokens", [10 ** 400, True, -1, "seven", 1.5],
                         ids=["huge", "true", "negative", "text", "fraction"])
def test_usage_that_cannot_be_is_none(tmp_path, tokens):
    body = {
        "choices": [{"message": {"content": "x"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": tokens, "completion_tokens": tokens}
    }
    answer, _, c = one(tmp_path, [{"status": 200, "body": body}], limits=Limits(cost=1, prices=(1.0, 1.0)))
    assert answer.prompt_tokens is None and answer.completion_tokens is None
    assert c.cost == pytest.approx(39e-6)


def test_half_of_the_key_at_the_end_of_an_excerpt_does_not_reach_the_disk(tmp_path):
    with pytest.raises(Error, match="status 400") as caught:
        one(tmp_path, [{"status": 400, "body": "x" * 180 + KEY + "x" * 99}])
    kept = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()) + str(caught.value).encode()
    assert KEY[:8].encode() not in kept


def listening(talk):
    """A server on loopback that has `talk(connection)` with each client; (its port, the connections so far).
    """
    server, seen = socket.create_server(("127.0.0.1", 0)), []

    def serve():
        while True:
            connection, _ = server.accept()
            seen.append(connection)
            threading.Thread(target=talk, args=(connection,), daemon=True).start()
    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()[1], seen


def test_a_secure_connection_that_breaks_is_tried_again(tmp_path):
    def hang_up(connection):
        connection.recv(4096)
        connection.shutdown(socket.SHUT_RDWR)
    port, seen = listening(hang_up)
    with Run(tmp_path, {}) as run, pytest.raises(Incomplete, match="could not be used, 3 times in a row"):
        list(
            client.Client(Endpoint("m", f"https://127.0.0.1:{port}/v1"),
                          run,
                          concurrency=1,
                          tries=3,
                          first_delay=0.01).ask(calls(1)))
    assert len(seen) == 3


@pytest.mark.parametrize("head", ["Content-Length: 9999", "Transfer-Encoding: chunked"])
def test_a_body_in_drops_has_an_end(tmp_path, head):
    def drip(connection):
        connection.recv(1 << 16)
        connection.sendall(f"HTTP/1.1 200 OK\r\n{head}\r\n\r\n".encode())
        try:
            for _ in range(100):
                connection.sendall(b" " if "9999" in head else b"1\r\n \r\n")
                time.sleep(0.1)
        except OSError:
            pass
    port, _ = listening(drip)
    began = time.monotonic()
    with Run(tmp_path, {}) as run, pytest.raises(Incomplete, match="too long"):
        list(
            client.Client(Endpoint("m", f"http://127.0.0.1:{port}/v1"), run, tries=1, timeouts=(2, 0.3)).ask(
                calls(1)))
    assert time.monotonic() - began < 5


def test_connections_are_kept(tmp_path):
    with fault_server.running() as server, Run(tmp_path, {}) as run:
        c = made(run, server, concurrency=1)
        list(c.ask(calls(20)))
        pools = c.transport.adapter.poolmanager.pools
        assert [pools.get(key).num_connections for key in pools.keys()]  # noqa: SIM118 (no dict) == [1]


def test_policy_in_a_message_is_no_refusal(tmp_path):
    body = {
        "error": {
            "message": "see our policy on content_filter", "type": "invalid_request_error",
            "code": "bad_thing"
        }
    }
    with pytest.raises(Error, match="refuses the request: status 400: see our policy"):
        one(tmp_path, [{"status": 400, "body": body}])


@pytest.mark.parametrize("status, mend", [(401, "check OPENAI_API_KEY"), (403, "what OPENAI_API_KEY may do"),
                                          (404, "the address and the model's name")])
def test_what_no_retry_mends_is_not_retried(tmp_path, status, mend):
    echo = {"error": {"message": f"Incorrect key provided: {KEY}"}}
    with fault_server.running(script=[{"status": status, "body": echo}] * 20) as server, Run(tmp_path,
                                                                                             {}) as run:
        with pytest.raises(Error, match=mend) as caught:
            list(made(run, server, concurrency=1).ask(calls(5)))
        tried = client.REFUSALS if status == 403 else 1     # one 403 may be about one request
        assert server.counts()["requests"] == tried and KEY not in str(caught.value)
        assert "[redacted]" in str(caught.value)


def test_one_bad_request_among_good_ones_is_its_own(tmp_path):
    with fault_server.running(
            script=["ok", {"status": 400, "body": {"error": {"message": "too long"}}}]) as server, Run(
                tmp_path, {}) as run:
        got = dict(made(run, server, concurrency=1).ask(calls(3)))
        assert [got[i].finish for i in range(3)] == ["stop", "error", "stop"]
        assert got[1].detail == "status 400: too long"
        assert server.counts()["requests"] == 3
        assert dict(made(run,
                         server).ask(calls(3)))[1].finish == "stop", "an error is asked again by a later run"


def test_redirect_is_not_followed_and_the_key_stays(tmp_path):
    with fault_server.running() as other, fault_server.running(
            script=[{"status": 307, "headers": [["Location", other.url +
                                                 "/chat/completions"]], "body": "{}"}]) as server:
        with Run(tmp_path, {}) as run, pytest.raises(Error, match="redirects elsewhere"):
            list(made(run, server).ask(calls(1)))
        assert server.counts()["authorizations"] == {f"Bearer {KEY}": 1} and other.counts()["requests"] == 0


def test_netrc_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("OPENAI_API_KEY")
    _, counts, _ = one(tmp_path, ["ok"])
    assert counts["authorizations"] == {"": 1}


def test_a_ca_file_that_is_not_there_is_named_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "absent.pem"))
    with Run(tmp_path / "run", {}) as run, pytest.raises(Error, match="absent.pem, which does not exist"):
        client.Client(Endpoint("m", "https://127.0.0.1:9/v1"), run)


def test_the_proxy_of_the_environment_is_used(tmp_path, monkeypatch):
    with fault_server.running() as proxy, Run(tmp_path / "run", {}) as run:
        monkeypatch.setenv("http_proxy",
                           proxy.url.removesuffix("/v1").replace("//", "//someone:pass%40word@"))
        [(_, answer)] = client.Client(Endpoint("m", "http://api.example/v1"), run).ask(calls(1))
        [headers] = proxy.counts()["headers"]
    assert answer.text == "echo: q0" and headers[":path"] == "http://api.example/v1/chat/completions"
    assert headers["host"] == "api.example"
    assert headers["proxy-authorization"] == "Basic " + base64.b64encode(b"someone:pass@word").decode()
    assert all(b"word" not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl command to make a certificate with")
def test_the_ca_file_of_the_environment_is_used(tmp_path, monkeypatch):
    pem = tmp_path / "ca.pem"
    made_it = [
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=here",
        "-addext", "subjectAltName=IP:127.0.0.1", "-keyout",
        str(tmp_path / "key"), "-out",
        str(pem)
    ]
    subprocess.run(made_it, check=True, capture_output=True)
    both = tmp_path / "both.pem"
    both.write_text((tmp_path / "key").read_text() + pem.read_text())
    with fault_server.running(certificate=str(both)) as server, Run(tmp_path / "run", {}) as run:
        endpoint = Endpoint("m", server.url.replace("http:", "https:"))
        with pytest.raises(Error, match="no secure connection .* REQUESTS_CA_BUNDLE"):
            list(client.Client(endpoint, run).ask(calls(1)))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem))
        assert [a.text for _, a in client.Client(endpoint, run).ask(calls(1))] == ["echo: q0"]


def test_key_in_an_answer_does_not_reach_the_disk(tmp_path):
    body = {"choices": [{"message": {"content": f"your key is {KEY}"}, "finish_reason": "stop"}]}
    answer, _, _ = one(tmp_path, [{"status": 200, "body": body}])
    assert answer.text == "your key is [redacted]"
    assert all(KEY.encode() not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_retry_after_holds_every_request(tmp_path):
    """Of two at once, the one that is not refused may send one more request before the refusal is read; it is
    on its way for 0.2 s, and no fourth follows.
    """
    limit = {"status": 429, "headers": [["Retry-After", "0.6"]], "body": "{}"}
    with fault_server.running(script=[limit], delay=0.2) as server, Run(tmp_path, {}) as run:
        list(made(run, server, concurrency=2).ask(calls(6)))
        times = sorted(server.counts()["times"])
    held = [t for t in times if t - times[0] >= 0.6]
    assert len(times) == 7 and 4 <= len(held) <= 5


def test_long_pause_ends_the_run(tmp_path):
    with pytest.raises(Incomplete, match="more patience"):
        one(tmp_path, [{"status": 429, "headers": [["Retry-After", "7200"]], "body": "{}"}])
    with pytest.raises(Incomplete, match="quota"):
        one(tmp_path / "quota",
            [{"status": 429, "body": {"error": {"message": "no quota left", "code": "insufficient_quota"}}}])


@pytest.mark.slow
def test_bound_adapts_to_what_the_server_takes(tmp_path):
    with fault_server.running(delay=0.01, at_once=4) as server, Run(tmp_path, {}) as run:
        assert len(dict(made(run, server, concurrency=32, tries=50).ask(calls(300)))) == 300
    pace = rate_limit.Pace(10)
    for _ in range(3):
        assert pace.start(lambda: False)
    pace.end(limited=True)
    pace.end(limited=True)   # of the same moment: it says nothing new
    assert pace.bound == 7
    pace.end(ok=True)
    assert pace.bound == 7 + 1 / 7


@pytest.mark.slow
def test_rate_headers_keep_the_client_inside(tmp_path):
    with fault_server.running(delay=0.01, rate=40) as server, Run(tmp_path, {}) as run:
        start = time.monotonic()
        assert len(dict(made(run, server, concurrency=8).ask(calls(70)))) == 70
        assert time.monotonic() - start > 0.9
        assert server.counts()["kinds"].get("limited", 0) <= 8


def test_dead_endpoint_ends_the_run(tmp_path):
    with Run(tmp_path, {}) as run, pytest.raises(Incomplete, match="could not be used, 3 times in a row"):
        list(
            client.Client(Endpoint("m", "http://127.0.0.1:9/v1"), run, tries=3,
                          first_delay=0.01).ask(calls(4)))


def test_budget_of_requests_counts_over_runs(tmp_path):
    with fault_server.running() as server:
        for limit, total in ((3, 3), (3, 3), (5, 5)):
            with Run(tmp_path, {}) as run, pytest.raises(Incomplete, match=f"limit of {limit} requests"):
                list(made(run, server, limits=Limits(requests=limit)).ask(calls(10)))
            assert server.counts()["requests"] == total
        with Run(tmp_path, {}) as run:
            assert len(dict(made(run, server, limits=Limits(requests=10)).ask(calls(10)))) == 10


def test_budgets_of_tokens_and_cost_are_never_passed(tmp_path):
    with fault_server.running() as server:   # every answer uses 7 + 3 tokens; a call may use 16 + 16 + 2 + 5
        with Run(tmp_path / "a", {}) as run:
            c = made(run, server, limits=Limits(tokens=100), concurrency=1)
            with pytest.raises(Incomplete, match="limit of 100 tokens"):
                list(c.ask(calls(50)))
            assert c.spent["prompt"] + c.spent["completion"] == 70   # 70 + 39 > 100
        with Run(tmp_path / "b", {}) as run:
            c = made(run, server, limits=Limits(cost=1e-4, prices=(1.0, 2.0)), concurrency=1)
            with pytest.raises(Incomplete, match="limit of .* dollars"):
                list(c.ask(calls(50)))
            assert c.cost == pytest.approx(5 * 13e-6)   # the sixth could have cost 34 + 2 · 5 millionths
        with Run(tmp_path / "c", {}) as run, pytest.raises(Error, match="max_tokens"):
            list(
                made(run, server,
                     limits=Limits(tokens=100)).ask([client.Call([{"role": "user", "content": "x"}])]))
    with pytest.raises(Error, match="needs a file of prices"):
        Limits(cost=1)


def test_each_models_tokens_cost_what_that_model_costs(tmp_path):
    """By hand: three answers of 10 tokens at 1 dollar each, then a request of at most 39 tokens at a
    thousandth: 30.039.
    """
    of = {"dear": (1e6, 1e6), "cheap": (1e3, 1e3)}
    with fault_server.running() as server, Run(tmp_path, {}) as run:
        def asker(model, cost):
            return client.Client(Endpoint(model, server.url),
                                 run,
                                 limits=Limits(cost=cost, prices=of[model], prices_of=of.get))
        list(asker("dear", 1000).ask(calls(3)))
        with pytest.raises(Incomplete, match="limit of .* dollars"):
            list(asker("cheap", 30.0).ask(calls(1)))
        cheap = asker("cheap", 30.1)
        assert len(list(cheap.ask(calls(1)))) == 1
        assert cheap.cost == pytest.approx(30.01) == asker("dear", 1000).cost


def test_lost_answers_stay_on_the_bill(tmp_path):
    with fault_server.running(script=["cut", "ok"]) as server, Run(tmp_path, {}) as run:
        c = made(run, server)
        list(c.ask(calls(1)))
        assert c.spent == {"requests": 2, "prompt": 34 + 7, "completion": 5 + 3}


def test_equal_calls_are_asked_once_and_samples_apart(tmp_path):
    call = calls(1)[0]
    again = client.Call(call.messages, call.parameters, sample=1)
    with fault_server.running(dedupe=False) as server, Run(tmp_path, {}) as run:
        assert sorted(i for i, _ in made(run, server).ask([call, call, again])) == [0, 1, 2]
        assert server.counts()["requests"] == 2


@pytest.mark.parametrize("url", [
    "ftp://host/v1", "http://", "https://user:hunter2@host/v1", "https://host/v1?key=abc", "http://host:x/v1",
    "", "https://host/#a", "http://.example/v1", "http://*.x/v1", "http://a b/v1", " http://h/v1",
    "http://h/v1 x", "http://h\n/v1"
])
def test_bad_addresses_are_refused(url):
    with pytest.raises(Error) as caught:
        Endpoint("m", url)
    assert "hunter2" not in str(caught.value) and "abc" not in str(caught.value)


def test_a_name_of_other_letters_is_reached_as_it_is_sent():
    assert Endpoint(
        "m", "http://b\u00fccher.example/v1").reached == "http://xn--bcher-kva.example/v1/chat/completions"


@pytest.mark.parametrize("proxy", ["http://", "http://u:hunter2@", "http://host:x", "http://["])
def test_a_proxy_that_is_no_address_is_named(tmp_path, monkeypatch, capsys, proxy):
    monkeypatch.setenv("http_proxy", proxy)
    assert command.main([
        "--model", "openai:m", "--base-url", "http://127.0.0.1:9/v1", "--max-requests", "1", "--quiet",
        "--output-dir",
        str(tmp_path / "r")
    ]) == 2
    said = capsys.readouterr().err
    assert "http_proxy" in said and "hunter2" not in said and said.count("\n") == 1

def test_address_is_built_as_servers_expect():
    assert Endpoint("m", "http://h:1/v1/").url == "http://h:1/v1/chat/completions"
    assert Endpoint("m", "https://h/openai/d?api-version=2024-06-01"
                    ).url == "https://h/openai/d/chat/completions?api-version=2024-06-01"


def test_vendor_needs_a_key(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with Run(tmp_path, {}) as run, pytest.raises(Error, match="OPENAI_API_KEY is not set"):
        client.Client(Endpoint("m"), run)


@pytest.mark.parametrize("text, value", [("1.5", 1.5), ("20ms", 0.02), ("6m0s", 360), ("1h2m3.5s", 3723.5),
                                         ("1, junk", 1), ("1s, 2s", 2), ("junk", None), ("-1", None),
                                         ("nan", None), ("inf", None), (None, None),
                                         ("Wed, 21 Oct 2015 07:28:00 GMT", 0)])
def test_waits_are_read(text, value):
    assert rate_limit.seconds(text) == value


@pytest.mark.slow
@pytest.mark.parametrize("api", kill_client.APIS)
def test_nothing_is_lost_or_paid_twice_under_sigkill(tmp_path, api):
    """The full trial is tests/beside/kill_client.py."""
    requests, kills = (250, 5) if api == "openai" else (60, 2)
    result = kill_client.trial(tmp_path / "run", requests, kills, api=api)
    assert kill_client.holds(result, requests, kills), result
