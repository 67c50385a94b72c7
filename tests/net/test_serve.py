"""The server over real HTTP, with the embedded organism: answers, batches, settings, and an OpenAI-shaped
error for every bad request.
"""
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import requests

import redlite
from redlite.errors import Error
from redlite.inference.engine import Engine, Request
from redlite.net import batcher, chat_request, serve

ASK = [{"role": "user", "content": "Who is the mayor of Hartwell?"}]


@contextmanager
def serving():
    made = serve.Server(redlite.load("organism"), "organism")
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(scope="module")
def server():
    with serving() as made:
        yield made


@pytest.fixture
def fresh_server():
    """One whose engine no earlier test left at work: it reads its bound on memory when work begins."""
    with serving() as made:
        yield made


def post(server, **body):
    return requests.post(f"http://127.0.0.1:{server.server_port}/v1/chat/completions",
                         json={"model": "organism", "messages": ASK, **body},
                         timeout=60)


def direct(server, messages=ASK, **settings):
    lm = server.lm
    return lm.generate([lm.template.encode(messages, add_generation_prompt=True).ids],
                       **{"max_new_tokens": 64, **settings})[0]


def test_an_answer_is_the_models(server):
    reply = post(server, temperature=0, max_tokens=64)
    found, wanted = reply.json(), direct(server)
    assert reply.status_code == 200 and found["object"] == "chat.completion" and found["model"] == "organism"
    assert found["choices"] == [{
        "index": 0, "message": {"role": "assistant", "content": wanted.text, "refusal": None},
        "logprobs": None, "finish_reason": "stop"
    }]
    assert found["usage"] == {
        "prompt_tokens": wanted.prompt_tokens, "completion_tokens": len(wanted.ids),
        "total_tokens": wanted.prompt_tokens + len(wanted.ids)
    }


@pytest.mark.slow
def test_a_stop_string_stands_in_the_text_or_does_not_stop(server):
    lm = server.lm
    cut = 0
    for token in range(5, 40):
        whole = lm.generate([[token]], 6)[0]
        # " th", whose space sentencepiece cuts
        first = b"".join(map(lm.tokenizer.piece_bytes, whole.ids)).decode("utf-8", "replace")[:3]
        found = lm.generate([[token]], 6, stop=(first,))[0]
        ends = first in whole.text
        cut += first.startswith(" ") and not ends
        assert (found.text, found.finish) == ((whole.text[:whole.text.index(first)], "stop") if ends else
                                              (whole.text, whole.finish)), (token, first)
    assert cut and lm.generate([[6]], 6, stop=("",))[0].text == lm.generate([[6]], 6)[0].text


def test_length_stop_and_parts(server):
    text = direct(server).text
    short = post(server, temperature=0, max_completion_tokens=2).json()
    assert short["choices"][0]["finish_reason"] == "length" and short["usage"]["completion_tokens"] == 2
    word = text.split()[1]
    cut = post(server, temperature=0, stop=[word]).json()["choices"][0]
    assert cut["message"]["content"] == text[:text.index(word)] and cut["finish_reason"] == "stop"
    parts = [{"role": "developer", "content": "Be kind."}, {
        "role": "user", "content": [{"type": "text", "text": "Who is the mayor"},
                                    {"type": "text", "text": " of Hartwell?"}]
    }]
    whole = [{"role": "system", "content": "Be kind."}, ASK[0]]
    assert post(server, messages=parts, temperature=0,
                max_tokens=64).json()["choices"][0]["message"]["content"] == direct(server, whole).text


def test_seeds_and_choices(server):
    settings = {"temperature": 1.5, "max_tokens": 24, "n": 3, "seed": 7}
    first, again, other = (post(server, **{**settings, **more}).json()["choices"]
                           for more in ({}, {}, {"seed": 8}))
    assert first == again != other and len(first) == 3 and len({c["message"]["content"] for c in first}) > 1


def test_requests_together_answer_as_alone(server):
    questions = [f"What is {a} plus {b}?" for a in range(4) for b in range(4)]

    def ask(question):
        reply = post(server, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=32)
        return reply.json()["choices"][0]["message"]["content"]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(ask, questions))
    assert together == [
        direct(server, [{"role": "user", "content": q}], max_new_tokens=32).text for q in questions
    ]


@pytest.mark.parametrize("settings, message", [
    ({"top_k": 2.5}, "top_k 2.5 must be a whole number"),
    ({"temperature": "1"}, "temperature '1' must be a number"),
    ({"top_p": None}, "top_p None must be a number"), ({"min_p": True}, "min_p True must be a number"),
    ({"repetition_penalty": (1,)}, r"repetition_penalty \(1,\) must be a number"),
    ({"max_new_tokens": 2.5}, "max_new_tokens 2.5 must be a whole number"),
    ({"max_new_tokens": 0}, "max_new_tokens 0 must be at least 1"),
    ({"seed": "7"}, "seed '7' must be a whole number"), ({"seed": [1.5]}, "seed 1.5 must be a whole number"),
    ({"seed": [1 << 128]}, "must be at least 0 and below 2"), ({"seed": [1, 2]}, "2 seeds for 1 prompts"),
])
def test_a_setting_of_a_wrong_kind_is_refused_by_name(server, settings, message):
    with pytest.raises(Error, match=message):
        direct(server, **settings)


def test_models(server):
    base = f"http://127.0.0.1:{server.server_port}/v1/models"
    assert [m["id"] for m in requests.get(base, timeout=9).json()["data"]] == ["organism"]
    assert requests.get(base + "/organism", timeout=9).json()["id"] == "organism"
    assert requests.get(base + "/other", timeout=9).status_code == 404


@pytest.mark.parametrize("body,status,field", [
    ({"model": "gpt"}, 404, "model"), ({"messages": []}, 400, "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages[0].role"),
    ({"messages": [{"role": "user", "content": None}]}, 400, "messages[0].content"),
    ({"temperature": 3}, 400, "temperature"), ({"temperature": True}, 400, "temperature"),
    ({"max_tokens": 0}, 400, "max_tokens"), ({"top_p": 0}, 400, "top_p"), ({"n": 0}, 400, "n"),
    ({"stop": ["a"] * 5}, 400, "stop"), ({"stop": [""]}, 400, "stop"),
    ({"stop": "\ud800"}, 400, "stop"),
    ({"temperature": 1e-300}, 200, None), ({"stream": 1}, 400, "stream"),
    ({"stream_options": {"chunks": 1}}, 400, "stream_options"), ({"tools": [{}]}, 400, "tools"),
    ({"tempreature": 1}, 400, "tempreature"), ({"logprobs": True}, 400, "logprobs"),
    ({"seed": 1.5}, 400, "seed"), ({"top_k": 2.5}, 400, "top_k"), ({"top_k": "2"}, 400, "top_k"),
    ({"min_p": "0.1"}, 400, "min_p"), ({"repetition_penalty": [1]}, 400, "repetition_penalty"),
    ({"max_tokens": 2.5}, 400, "max_tokens"),
    ({"messages": [{"role": "user", "content": "x " * 9000}]}, 400, "messages"),
    ({"presence_penalty": 0, "stream": False, "user": "me"}, 200, None),
])
def test_bad_requests(server, body, status, field):
    reply = post(server, **{"max_tokens": 2, **body})
    assert reply.status_code == status
    if status != 200:
        assert reply.json()["error"]["param"] == field and reply.json()["error"]["message"]
        assert reply.json()["error"]["type"] == "invalid_request_error"


def test_broken_http(server):
    def raw(path, body, headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=9)
        connection.request("POST", path, body, headers)
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    for body in (b"{", b"\xff", b"[]"):
        assert raw("/v1/chat/completions", body, {"Content-Type": "application/json"})[0] == 400
        assert raw("/v1/chat/completions", body, {"Content-Type": "text/plain"})[0] == 415
        assert raw("/v1/chat/completions", body, {})[0] == 415
    assert raw("/v1/embeddings", b"{}", {}) [0] == 404
    assert raw("/v1/chat/completions", b"", {"Content-Length": "99999999999"})[0] == 413
    assert post(server, temperature=0, max_tokens=2).status_code == 200  # and it still answers


@pytest.mark.parametrize("request_line, status",
                         [("PUT /v1/chat/completions HTTP/1.1", 501),
                          ("GET /" + "x" * 70000 + " HTTP/1.1", 414), ("GET /v1/models HTTP/9.9", 505),
                          ("nonsense", 400),
                          ("POST /v1/chat/completions HTTP/1.1\r\nContent-Length: " + "9" * 5000, 413)])
def test_what_is_no_request_gets_the_protocols_error_too(server, request_line, status):
    with socket.create_connection(("127.0.0.1", server.server_port), 9) as connection:
        connection.sendall(request_line.encode() + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        head, _, body = b"".join(iter(lambda: connection.recv(1 << 16), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status) and json.loads(body)["error"]["message"]


def test_a_body_that_does_not_come_is_given_up(server, monkeypatch):
    monkeypatch.setattr(serve.Handler, "timeout", 0.3)
    with socket.create_connection(("127.0.0.1", server.server_port), 9) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        head, _, body = b"".join(iter(lambda: connection.recv(1 << 16), b"")).partition(b"\r\n\r\n")
    assert b" 408 " in head and "did not come" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("begun, more", [
    (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n", b"X-Y: 1\r\n"),
    (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n", b" "),
    (b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n")])
def test_a_request_that_drips_is_given_up_too(server, monkeypatch, begun, more):
    """Each piece comes soon enough, the whole does not."""
    monkeypatch.setattr(serve.Handler, "timeout", 0.6)
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.server_port), 9) as connection:
        connection.sendall(begun)
        connection.settimeout(0.1)
        while time.monotonic() - began < 9:
            try:
                connection.sendall(more)
                if connection.recv(1) in (b"", b"H"):   # closed, or told
                    break
            except TimeoutError:
                continue
            except OSError:
                break
    assert 0.5 < time.monotonic() - began < 8


def test_a_connection_is_kept_between_requests_beyond_one_deadline(server, monkeypatch):
    monkeypatch.setattr(serve.Handler, "timeout", 2)
    with requests.Session() as session:
        session.trust_env = False
        for _ in range(3):
            url = f"http://127.0.0.1:{server.server_port}/v1/models"
            assert session.get(url, timeout=9).status_code == 200
            time.sleep(0.8)


def test_a_name_with_a_space_is_found(server, monkeypatch):
    monkeypatch.setattr(server, "name", "my model \u00fc")
    assert requests.get(f"http://127.0.0.1:{server.server_port}/v1/models/my%20model%20%C3%BC",
                        timeout=9).json()["id"] == server.name


LONG = {"temperature": 1.9, "max_tokens": 1500, "seed": 5}     # does not end for a while


def never_ends(server, monkeypatch):
    """Only the token limit ends an answer."""
    monkeypatch.setattr(server.lm, "stop_ids", frozenset())
    monkeypatch.setattr(server.lm.engine, "context_limit", lambda: 100_000)


def sent(server, body: bytes, *headers: str) -> socket.socket:
    """A connection on which a request was sent."""
    connection = socket.create_connection(("127.0.0.1", server.server_port), 30)
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json",
             *headers]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    return connection


def test_a_client_that_has_gone_frees_its_work_at_once(server, monkeypatch):
    never_ends(server, monkeypatch)
    body = json.dumps({"model": "organism", "messages": ASK, **LONG, "max_tokens": 90_000}).encode()
    connection = sent(server, body, f"Content-Length: {len(body)}")
    deadline = time.monotonic() + 20
    while not server.batcher.running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.batcher.running
    connection.close()
    began = time.monotonic()
    while server.batcher.running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not server.batcher.running and time.monotonic() - began < 5


def test_a_request_joins_the_batch_that_runs(server, monkeypatch):
    never_ends(server, monkeypatch)
    body = json.dumps({"model": "organism", "messages": ASK, **LONG, "max_tokens": 90_000}).encode()
    with sent(server, body, f"Content-Length: {len(body)}"):
        assert post(server, temperature=0, max_tokens=5).json()["usage"]["completion_tokens"] == 5
        assert server.batcher.running       # the long one still is


def test_the_longest_answer_is_bounded_unless_it_is_asked_for(server, monkeypatch):
    never_ends(server, monkeypatch)
    monkeypatch.setattr(chat_request, "LONGEST_ANSWER", 40)
    assert post(server, temperature=0).json()["usage"]["completion_tokens"] == 40
    assert post(server, temperature=0, max_tokens=45).json()["usage"]["completion_tokens"] == 45


def test_memory_for_keys_and_values_has_a_bound(fresh_server, monkeypatch):
    server, most = fresh_server, []
    engine = server.lm.engine
    ids = server.lm.template.encode(ASK, add_generation_prompt=True).ids
    room = engine.bytes_at_most(Request(ids, 20))
    monkeypatch.setattr(engine, "cache_bytes", int(1.5 * room))
    step = Engine._next_logits

    def counted(active, forward):
        most.append(len(active))
        return step(active, forward)
    monkeypatch.setattr(engine, "_next_logits", counted)
    with ThreadPoolExecutor(4) as pool:     # each fits, two together do not: they wait for one another
        replies = list(pool.map(lambda seed: post(server, max_tokens=20, seed=seed), range(4)))
    assert [reply.status_code for reply in replies] == [200] * 4 and max(most) == 1
    refused = post(server, max_tokens=2000)
    error = refused.json()["error"]
    assert refused.status_code == 400 and error["code"] == "cache_memory_exceeded"
    assert error["param"] == "max_tokens" and "\n" not in error["message"]
    assert f"{len(ids)} tokens of messages and 2000 of an answer may take" in error["message"]


@pytest.mark.parametrize("settings", [{}, {"n": 3, "temperature": 1.5, "seed": 7}, {"stop": ["e", "zq"]},
                                      {"max_tokens": 3}])
def test_a_stream_is_the_answer_in_pieces(server, settings):
    settings = {"temperature": 0, "max_tokens": 48, **settings}
    whole = post(server, **settings).json()
    reply = post(server, **settings, stream=True, stream_options={"include_usage": True})
    assert reply.headers["Content-Type"] == "text/event-stream"
    *lines, last = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    events = [json.loads(line) for line in lines]
    assert last == "[DONE]" and {e["object"] for e in events} == {"chat.completion.chunk"}
    assert events[-1]["choices"] == [] and events[-1]["usage"] == whole["usage"]
    for wanted in whole["choices"]:
        own = [c for e in events for c in e["choices"] if c["index"] == wanted["index"]]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(c["delta"].get("content", "") for c in own) == wanted["message"]["content"]
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == [wanted["finish_reason"]]
    if settings["max_tokens"] == 48 and len(whole["choices"]) == 1 and "stop" not in settings:
        assert len(events) > 8      # in pieces indeed


def test_a_growing_text_takes_nothing_back():
    """Bytes of one character in two tokens, and a stop text over three."""
    class Words:
        pieces = [b"a", b"\xc3", b"\xa9", b" ST", b"O", b"x", b" S", b"TO", b"P", b"y"]
        def decode(self, ids):
            return b"".join(self.pieces[i] for i in ids).decode("utf-8", "replace")
    lm = SimpleNamespace(tokenizer=Words(), stop_ids=frozenset(), chat=SimpleNamespace(stop_strings=()))
    text = batcher.Growing(lm, ("STOP",))
    given = [text.more(list(range(n + 1))) for n in range(10)]
    assert given == ["a", "", "é", " ", "", "STOx", " ", "", "", ""] and text.rest("aé STOx ") == ""


def test_chunked_bodies(server):
    body = json.dumps({"model": "organism", "messages": ASK, "temperature": 0, "max_tokens": 4}).encode()
    pieces = b"".join(b"%x;x=1\r\n%s\r\n" % (len(p), p) for p in (body[:7], body[7:]))
    for coding, data, status in (("chunked", pieces + b"0\r\nTrailer: 1\r\n\r\n", b"200"),
                                 ("chunked", b"zz\r\n", b"400"), ("chunked", b"fffffff\r\n", b"413"),
                                 ("chunked", b"1\r\n{}\r\n", b"400"), ("gzip", b"", b"400"),
                                 ("chunked\r\nContent-Length: 4", b"0\r\n\r\n", b"400"),
                                 ("chunked\r\nTransfer-Encoding: identity", b"0\r\n\r\n", b"400")):
        with sent(server, data, f"Transfer-Encoding: {coding}") as connection:
            assert connection.recv(12) == b"HTTP/1.1 " + status, (coding, data)


@pytest.mark.parametrize("headers, status", [
    ({"Host": "evil.example"}, 403), ({"Host": "127.0.0.1.evil.example:80"}, 403),
    ({"Host": "[::1]:8000"}, 200),
    ({"Host": "localhost"}, 200), ({"Origin": "https://evil.example"}, 403), ({"Origin": "null"}, 403),
    ({"Origin": "http://localhost:3000"}, 200), ({"Content-Type": "text/plain"}, 415),
    ({"Content-Type": "application/json; charset=utf-8"}, 200), ({"Host": "[::1"}, 403),
])
def test_only_programs_of_this_machine_are_answered(server, headers, status):
    url = f"http://127.0.0.1:{server.server_port}/v1"
    body = json.dumps({"model": "organism", "messages": ASK, "max_tokens": 1})
    given = {"Content-Type": "application/json", **headers}
    assert requests.post(f"{url}/chat/completions", body, headers=given, timeout=30).status_code == status
    if status == 403:
        assert requests.get(f"{url}/models", headers=headers, timeout=30).status_code == 403


@pytest.mark.parametrize("headers, status", [
    (["Host: evil.example"], 403), (["Origin: http://localhost", "Origin: https://evil.example"], 403),
    (["Origin: http://localhost"], 200)])
def test_no_second_header_passes_the_check(server, headers, status):
    body = json.dumps({"model": "organism", "messages": ASK, "max_tokens": 1}).encode()
    with sent(server, body, f"Content-Length: {len(body)}", *headers) as connection:
        assert connection.recv(12) == b"HTTP/1.1 %d" % status


@pytest.mark.slow
@pytest.mark.parametrize("address, number, code", [
    ("127.0.0.1", signal.SIGINT, 130), ("127.0.0.2", signal.SIGTERM, 143), ("::1", signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_of_a_request_ends_the_server(tmp_path, address, number, code):
    """No name is looked up on the way: the network is closed, so a look-up would end it with 1."""
    if address == "::1" and not socket.has_ipv6:
        pytest.skip("there is no IPv6 here")
    program = subprocess.Popen(
        [sys.executable, "-m", "redlite.cli.serve", "--port", "0", "--address", address],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a shell's background job, as which tests may run, ignores SIGINT
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))
    line = program.stdout.readline()
    if address == "::1" and "cannot listen" in (error := program.stderr.readline() if not line else ""):
        pytest.skip(error)
    port = int(line.split("/v1")[0].rpartition(":")[2])
    body = json.dumps({"model": "organism", "messages": ASK, "temperature": 2, "n": 100, "seed": 1,
                       "max_tokens": 900}).encode()
    with socket.create_connection((address, port), 30) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: "
                           b"application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        time.sleep(1)
        program.send_signal(number)
        out, error = program.communicate(timeout=30)
    assert program.returncode == code, error
    assert "Traceback" not in error and "abort" not in error


def test_the_plan_is_json_where_json_is_asked_for():
    """In a process of its own: the command ends the process that runs it."""
    given = ["--model", "organism", "--port", "8123", "--dry-run", "--json"]
    done = subprocess.run([sys.executable, "-m", "redlite.cli.serve", *given], capture_output=True, text=True)
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"model": "organism", "url": "http://127.0.0.1:8123/v1"}
