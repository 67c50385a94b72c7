"""A chat completions server that misbehaves on purpose, over real HTTP, and counts what it did.

    with fault_server.running(faults={"ok": 5, "reset": 1}, seed=1) as server:
        … server.url … server.counts()

It runs in a process of its own, so that a client under test can be killed while it goes on counting. Options
(JSON):

faults   name → weight of how a request is answered, see FAULTS; default all "ok"
script   a list of fault names, or of {"status", "headers": [[name, value], …], "body"}, for the first
         requests
delay    seconds before an answer
seed     of the choice among faults
dedupe   whether a request with an Idempotency-Key that was answered before gets that answer again without
         being made anew
rate     answers a second that are allowed; beyond it 429, and x-ratelimit-* on every answer
at_once  requests that are allowed at the same time; beyond it 429
refuses  parameters that are refused with 400, by their names in the body
by_key   count what is made by Idempotency-Key, so that samples of one call are told apart
"""
import asyncio
import atexit
import functools
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager

import provider_shapes

# the answer counts
FINAL = ("ok", "null", "filter-error", "filter-finish", "duplicate-headers", "tool-calls", "no-usage",
         "parts", "invalid-prompt", "policy-403", "empty-choices", "anthropic-refusal", "max-tokens",
         "goes-on")
SPOILED = ("cut", "bad-json", "bad-utf8", "wrong-length")        # made, and then damaged on the way
REFUSED = ("429", "429-after", "500", "503", "hang", "reset")    # never made
# Status 200 without an answer, or with a part of one: asked again once or twice, then an error.
HALF = {
    "html": "<html><title>Sign in</title></html>", "sse": 'data: {"choices": []}\n\ndata: [DONE]\n\n',
    "error-200": {"error": {"message": "the worker went away", "code": None}},
    "error-beside": {"error": {"message": "cut"}, "choices": [{"message": {"content": "half"}}]},
    "abort": {"choices": [{"message": {"content": "half"}, "finish_reason": "abort"}]},
    "finish-null": {"choices": [{"message": {"content": "half"}, "finish_reason": None}]}}
FAULTS = (*FINAL, *SPOILED, *REFUSED)
REASONS = {
    200: "OK", 307: "Temporary Redirect", 400: "Bad Request", 401: "Unauthorized", 429: "Too Many Requests",
    500: "Internal Server Error", 503: "Service Unavailable"
}


def completion(content, kind: str = "ok") -> tuple[int, list, dict]:
    """(status, headers, body) of a final answer that echoes `content`."""
    if kind == "filter-error":
        return 400, [], {
            "error": {
                "message": "The prompt was filtered by our policy", "type": None, "param": "prompt",
                "code": "content_filter"
            }
        }
    if kind == "invalid-prompt":
        return 400, [], {"error": {"message": "no", "code": "invalid_prompt"}}
    if kind == "policy-403":
        return 403, [], {"code": "forbidden", "error": "Content violates usage guidelines"}
    message = {"role": "assistant", "content": f"echo: {content}"}
    finish = "stop"
    if kind == "null":
        message["content"] = None
    if kind == "parts":
        message["content"] = [{"type": "text", "text": "echo: "}, {"type": "text", "text": content}]
    if kind == "filter-finish":
        message["content"], finish = "", "content_filter"
    if kind == "anthropic-refusal":
        message["content"], finish = "", "refusal"
    if kind == "max-tokens":
        finish = "MAX_TOKENS"
    if kind == "goes-on":
        message["content"] += "\nUser: and then?"
    if kind == "tool-calls":
        message.update(
            content=None,
            tool_calls=[{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}])
        finish = "tool_calls"
    body = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "echo-1",
            "choices": [{"index": 0, "message": message, "finish_reason": finish}]}
    if kind == "empty-choices":
        body["choices"] = []
    if kind != "no-usage":
        body["usage"] = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    headers = [("Content-Type", "application/json")]
    if kind == "duplicate-headers":
        headers += [("Content-Type", "application/json"), ("x-ratelimit-remaining-requests", "9"),
                    ("x-ratelimit-remaining-requests", "9"), ("Retry-After", "1"), ("Retry-After", "junk"),
                    ("X-Request-Id", "a"), ("X-Request-Id", "b")]
    return 200, headers, body


class Faults:
    """Decides how each request is answered, and counts."""

    def __init__(self, faults=None, script=(), delay=0.0, seed=0, dedupe=True, rate=None, at_once=None,
                 refuses=(), by_key=False):
        self.refuses, self.by_key = refuses, by_key
        self.faults, self.script, self.delay, self.dedupe = faults or {"ok": 1}, list(script), delay, dedupe
        self.random = random.Random(seed)
        self.rate, self.at_once, self.window = rate, at_once, []
        self.stored: dict[str, tuple] = {}
        self.made, self.delivered, self.replayed, self.kinds = Counter(), Counter(), Counter(), Counter()
        self.requests = self.now = self.most = 0
        self.authorizations, self.headers, self.bodies, self.times = Counter(), [], [], []

    def counts(self) -> dict:
        return {
            "requests": self.requests, "most": self.most, "kinds": self.kinds, "made": self.made,
            "delivered": self.delivered, "replayed": self.replayed, "authorizations": self.authorizations,
            "headers": self.headers, "bodies": self.bodies, "times": self.times
        }

    def answer(self, headers: dict, body: bytes):
        """(how, status, headers, bytes): how is "send", "cut", "hang" or "reset"."""
        self.requests += 1
        self.times.append(time.time())
        path = headers[":path"]
        self.authorizations[provider_shapes.key(headers)] += 1
        if len(self.headers) < 50:
            self.headers.append(headers)
            self.bodies.append(body.decode())
        limited = self._limited()
        if limited:
            return limited
        given = provider_shapes.parameters(path, json.loads(body)) if self.refuses else {}
        refused = [name for name in self.refuses if name in given]
        if refused:
            self.kinds["parameter"] += 1
            message = f"Unsupported parameter: '{refused[0]}' is not supported with this model"
            error = {"message": message, "param": refused[0], "code": "unsupported_parameter"}
            return "send", 400, [], json.dumps(provider_shapes.shaped(path, 400, {"error": error})).encode()
        fault = self.script.pop(0) if self.script else self.random.choices(list(self.faults),
                                                                           list(self.faults.values()))[0]
        if isinstance(fault, dict):
            self.kinds[str(fault["status"])] += 1
            text = fault["body"] if isinstance(fault["body"], str) else json.dumps(fault["body"])
            return "send", fault["status"], fault.get("headers", []), text.encode("utf-8", "surrogateescape")
        self.kinds[fault] += 1
        if fault in REFUSED:
            return self._refuse(fault)
        if fault in HALF:
            half = provider_shapes.shaped(path, 200, HALF[fault])
            return "send", 200, [], (half if isinstance(half, str) else json.dumps(half)).encode()
        content = provider_shapes.asked(path, json.loads(body))
        # behind the call's own 64 digits the client says how it asks
        key = (headers.get("idempotency-key") or "")[:len("redlite-") + 64]
        counted = key if self.by_key else content
        known = self.stored.get(key) if self.dedupe else None
        if known:
            self.replayed[counted] += 1
        else:
            self.made[counted] += 1
            known = self.stored[key] = completion(content, fault if fault in FINAL else "ok")
        status, more, value = known
        data = json.dumps(provider_shapes.shaped(path, status, value)).encode()
        if fault in SPOILED:
            if fault == "bad-json":
                data = data[:-9] + b"!"
            if fault == "bad-utf8":
                data = data.replace(b"echo", b"ec\xff\xfe")
            if fault == "wrong-length":
                more = [*more, ("Content-Length", "3"), ("Content-Length", "9")]
            return "cut" if fault == "cut" else "send", status, more, data
        self.delivered[counted] += 1
        return "send", status, [*more, *self._rate_headers()], data

    def _refuse(self, fault: str):
        if fault in ("hang", "reset"):
            return fault, 0, [], b""
        status = int(fault[:3])
        after = [("Retry-After", self.random.choice(["0.02", "0", "junk"])),
                 ("x-ratelimit-reset-requests", "20ms")] if fault == "429-after" else []
        return "send", status, after, json.dumps(
            {"error": {"message": f"try again ({status})", "type": "server", "code": None}}).encode()

    def _limited(self):
        now = time.monotonic()
        self.window = [t for t in self.window if now - t < 1]
        over = self.rate and len(self.window) >= self.rate
        if over or (self.at_once and self.now > self.at_once):
            self.kinds["limited"] += 1
            headers = [("Retry-After",
                        f"{1 - (now - self.window[0]):.3f}"), *self._rate_headers()] if over else []
            return "send", 429, headers, b'{"error": {"message": "slow down", "code": "rate_limit_exceeded"}}'
        self.window.append(now)

    def _rate_headers(self) -> list:
        if not self.rate:
            return []
        reset = 1 - (time.monotonic() - self.window[0]) if self.window else 0
        return [("x-ratelimit-limit-requests", str(self.rate)),
                ("x-ratelimit-remaining-requests", str(self.rate - len(self.window))),
                ("x-ratelimit-reset-requests", f"{reset * 1000:.0f}ms")]


class Connection(asyncio.Protocol):
    """HTTP/1.1 by hand, so that it can be broken by hand."""

    def __init__(self, faults: Faults):
        self.faults, self.buffer = faults, b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        if len(rest) < length:
            return
        self.buffer = rest[length:]
        method, path, _ = first.split(" ")
        if method == "GET":
            self.send(200, [], json.dumps(self.faults.counts()).encode())
            return
        self.faults.now += 1
        self.faults.most = max(self.faults.most, self.faults.now)
        asyncio.get_running_loop().call_later(self.faults.delay, self.reply,
                                              *self.faults.answer({**headers, ":path": path}, rest[:length]))

    def reply(self, how, status, headers, data):
        if how != "hang":
            self.faults.now -= 1
        if how == "reset":
            self.transport.abort()
        elif how == "cut":
            self.send(status, [*headers, ("Content-Length", str(len(data)))], data[:len(data) // 2])
            self.transport.close()
        elif how == "send":
            self.send(status, headers, data)

    def connection_lost(self, error):
        self.reply = lambda how, *rest: self.left(how)

    def left(self, how):
        if how != "hang":
            self.faults.now -= 1

    def send(self, status, headers, data):
        if not any(name == "Content-Length" for name, _ in headers):
            headers = [*headers, ("Content-Length", str(len(data)))]
        lines = [
            f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}",
            *(f"{name}: {value}" for name, value in headers), "", ""
        ]
        self.transport.write("\r\n".join(lines).encode("latin-1") + data)


class Server:
    """A handle on the server's process."""

    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}/v1"

    def counts(self) -> dict:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.url + "/counts", timeout=30) as response:
            return json.load(response)


@functools.cache
def parent() -> subprocess.Popen:
    """The process that forks every server of this test run: a fork is ready much sooner than a new Python."""
    process = subprocess.Popen([sys.executable, __file__],
                               stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE,
                               text=True)
    atexit.register(process.stdin.close)    # ends it
    return process


@contextmanager
def running(**options):
    """A server process with these options; a `Server`."""
    process = parent()
    print(json.dumps(options), file=process.stdin, flush=True)
    pid, port = map(int, process.stdout.readline().split())
    try:
        yield Server(port)
    finally:
        os.kill(pid, signal.SIGKILL)


async def serve(listener: socket.socket, options: dict) -> None:
    context = None
    if certificate := options.pop("certificate", None):  # a PEM file with the key: the server speaks TLS
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
    faults = Faults(**options)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(faults),
                                                            sock=listener,
                                                            ssl=context)
    await server.serve_forever()


def main() -> None:
    """Fork a server for each line of options on stdin; print its process and port. End with stdin."""
    servers = []    # never waited for, so that their numbers stay theirs
    for line in sys.stdin:
        with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
            servers.append(os.fork())
            if not servers[-1]:
                try:
                    asyncio.run(serve(listener, json.loads(line)))
                finally:
                    os._exit(1)
            print(servers[-1], listener.getsockname()[1], flush=True)
    for process in servers:
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
