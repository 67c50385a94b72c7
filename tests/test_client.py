"""The client over real HTTP against a server that misbehaves on purpose (fault_server.py)."""
import os
import subprocess
import sys
import textwrap

import fault_server
import pytest

from redlite import client, journal
from redlite.client import Ask, Budget, BudgetSpent, Client
from redlite.errors import Error

KEY = "sk-test-not-a-real-key-0123456789"


def ask(text, sample=0, **parameters):
    return Ask([{"role": "user", "content": text}], {"max_tokens": 10, **parameters}, sample)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv(client.KEY_VARIABLE, KEY)


def patient(server, directory=None, **settings):
    return Client("echo-1", server.url, directory, **{"first_wait": 0.01, "connect_timeout": 5, "read_timeout": 0.5, "tries": 30, **settings})


def test_answers_of_every_shape():
    kinds = ["ok", "null", "filter-error", "filter-finish", "duplicate-headers", "tool-calls", "no-usage", "parts"]
    with fault_server.running(script=kinds) as server:
        asking = patient(server, concurrency=1)
        found = [next(iter(asking.complete([ask(kind)])))[1] for kind in kinds]
        assert [(a.text, a.finish) for a in found] == [
            ("echo: ok", "stop"), ("", "stop"), ("", "refused_by_api"), ("", "refused_by_api"), ("echo: duplicate-headers", "stop"), ("", "stop"),
            ("echo: no-usage", "stop"), ("echo: parts", "stop")]
        assert (found[0].prompt_tokens, found[0].completion_tokens, found[6].prompt_tokens) == (7, 3, 0)
        assert server.counts()["requests"] == len(kinds)  # nothing was asked twice


@pytest.mark.parametrize("fault", ["429", "429-after", "500", "503", "hang", "reset", "cut", "bad-json", "bad-utf8", "wrong-length"])
def test_what_may_pass_is_tried_again(fault):
    with fault_server.running(script=[fault, fault, "ok"]) as server:
        assert [a.text for _, a in patient(server).complete([ask("x")])] == ["echo: x"]
        assert server.counts()["requests"] == 3


@pytest.mark.parametrize("status,message", [(401, "OPENAI_API_KEY right"), (403, "right"), (404, "model's name right"), (307, "redirects are not followed")])
def test_what_will_not_pass_ends_the_run_at_once(status, message):
    body = {"error": {"message": f"no, not with {KEY}", "code": None}}
    with fault_server.running(script=[{"status": status, "headers": [["Location", "http://127.0.0.1:9/"]], "body": body}] * 3) as server:
        with pytest.raises(Error, match=message) as caught:
            list(patient(server).complete([ask("x")]))
        assert KEY not in str(caught.value) and "[key]" in str(caught.value) and server.counts()["requests"] == 1


def test_a_bad_request_is_an_error_of_its_own():
    with fault_server.running(script=[{"status": 400, "headers": [], "body": {"error": {"message": f"bad {KEY}"}}}]) as server:
        found = dict(patient(server, concurrency=1).complete([ask("x"), ask("y")]))
        assert found[0].finish == "error" and found[0].text == "HTTP 400: bad [key]" and found[1].text == "echo: y" and server.counts()["requests"] == 2


def test_giving_up(tmp_path):
    with fault_server.running(faults={"500": 1}) as server, journal.Run(tmp_path / "run", {}) as directory:
        found = [a for _, a in patient(server, directory, tries=3).complete([ask("x")])]
        assert found[0].finish == "error" and "500" in found[0].text and server.counts()["requests"] == 3
        assert directory.read(client.FILE) == []  # it is asked again by the next run


def test_nothing_is_asked_twice(tmp_path):
    with fault_server.running() as server:
        for wanted in (4, 4, 5):
            with journal.Run(tmp_path / "run", {}) as directory:
                asks = [ask("a"), ask("a"), ask("a", sample=1), ask("b"), ask("a", temperature=1)] + ([ask("c")] if wanted == 5 else [])
                found = dict(patient(server, directory).complete(asks))
            assert sorted(found) == list(range(len(asks))) and found[0] == found[1] and server.counts()["requests"] == wanted


def test_budgets(tmp_path):
    prices = {"input": 1e6, "output": 2e6}  # a dollar a prompt token, two a new one
    with fault_server.running() as server:
        for bound, fits in ((Budget(requests=3), 3), (Budget(tokens=client.prompt_bound(ask("0").messages) + 10 + 2 * 10), 3), (Budget(cost=2 * 13 + 37, prices=prices), 3)):
            asking = patient(server, budget=bound, concurrency=1)
            before, found = server.counts()["requests"], []
            with pytest.raises(BudgetSpent, match="might be passed"):
                for _, a in asking.complete([ask(str(i)) for i in range(9)]):
                    found.append(a)
            assert len(found) == fits == server.counts()["requests"] - before
        with journal.Run(tmp_path / "run", {}) as directory:
            list(patient(server, directory, budget=Budget(requests=2)).complete([ask("x"), ask("y")]))
            with pytest.raises(BudgetSpent):
                list(patient(server, directory, budget=Budget(requests=2)).complete([ask("z")]))  # spent by the run before


def test_limits_are_kept_to():
    with fault_server.running(at_once=4, delay=0.02) as server:
        found = dict(patient(server, concurrency=32).complete([ask(str(i)) for i in range(120)]))
        counts = server.counts()
        assert all(a.finish == "stop" for a in found.values()) and counts["requests"] - 120 < 120  # the refusals slowed it down


def test_headers_that_say_when():
    assert client.retry_after({"Retry-After": "3"}) == 3 and client.retry_after({"Retry-After": "1, junk"}) == 1 and client.retry_after({"retry-after-ms": "250"}) == 0.25
    assert client.retry_after({}) is None and client.retry_after({"Retry-After": "soon"}) is None
    assert client.retry_after({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert [client.duration(t) for t in ("6m0s", "1.5s", "20ms", "3", "1h2m", "x", "")] == [360, 1.5, 0.02, 3, 3720, None, None]


def test_the_key_goes_to_the_endpoint_only(tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    with fault_server.running() as server, journal.Run(tmp_path / "run", {}) as directory:
        list(patient(server, directory).complete([ask(KEY)]))
        assert list(server.counts()["authorizations"]) == [f"Bearer {KEY}"]
    assert client._Bearer(KEY, "here")(type("R", (), {"url": "http://there/x", "headers": {}})()).headers == {}
    for url in ("ftp://x", "http://", "http://me:pass@x/v1", "http://x/v1?a=b"):
        with pytest.raises(Error, match="--base-url"):
            client.endpoint(url)


def test_killed_again_and_again(tmp_path):
    """A process that asks 300 things of an unreliable server, killed at random moments: every answer once in the journal, none made twice, no key on disk."""
    script = textwrap.dedent("""
        import sys
        from redlite import journal
        from redlite.client import Ask, Client
        with journal.Run(sys.argv[2], {}) as directory:
            asking = Client("echo-1", sys.argv[1], directory, concurrency=8, tries=60, first_wait=0.01, read_timeout=0.4)
            asks = [Ask([{"role": "user", "content": f"q{i}"}], {"max_tokens": 5}) for i in range(300)]
            assert all(a.finish != "error" for _, a in asking.complete(asks))
        """)
    faults = {"ok": 80, "429": 2, "429-after": 1, "500": 3, "503": 2, "hang": 1, "reset": 3, "cut": 2, "bad-json": 2, "bad-utf8": 2, "null": 2, "filter-error": 1,
              "filter-finish": 1, "duplicate-headers": 2}
    with fault_server.running(faults=faults, seed=3, delay=0.01) as server:
        finished = False
        for wait in (0.6, 0.8, 1.0, 0.7, 60):
            process = subprocess.Popen([sys.executable, "-c", script, server.url, str(tmp_path / "run")], env={**os.environ, client.KEY_VARIABLE: KEY})
            try:
                finished = process.wait(wait) == 0
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        counts = server.counts()
    with journal.Run(tmp_path / "run", {}) as directory:
        keys = [r["key"] for r in directory.read(client.FILE)]
    assert finished and len(keys) == len(set(keys)) == 300 and set(counts["made"].values()) == {1} and len(counts["made"]) == 300
    assert not any(KEY.encode() in p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file())
