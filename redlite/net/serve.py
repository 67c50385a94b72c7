"""A model on this machine behind the OpenAI chat-completions protocol, for programs on this machine.

`POST /v1/chat/completions`, whole or as server-sent events, and `GET /v1/models`
(github.com/openai/openai-openapi), over the standard library's HTTP server. A request joins the batch that is
running as soon as a slot is free, and leaves it at once when its client has gone.

A web page may make its reader's browser send requests to loopback. So a request must name a loopback host and
come from no page of another host. Its content type must be JSON, which a page cannot send elsewhere unasked.
"""
import io
import ipaddress
import json
import queue
import select
import socket
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn

from redlite.answer import Answer
from redlite.inference import sampling
from redlite.inference.lm import LM
from redlite.net.batcher import Batcher, Growing, Job
from redlite.net.chat_request import Asked, Refusal, parse

LARGEST_BODY = 16 << 20  # bytes
LOOK_SECONDS = 0.1       # between looks whether a client is still there
REQUEST_SECONDS = 30     # for a client to send a whole request, however slowly

Events = Iterator[tuple[int, list[int] | Answer]]   # (choice, ids so far), and at last (choice, Answer)


def listener(address: str, port: int) -> socket.socket:
    """A socket that has a loopback address and does not listen yet; no name is looked up for it.

    It is made apart from `Server`, so that a program can have the kernel refuse all others before it loads a
    model. Raises OSError where the address cannot be had.
    """
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
    except OSError:
        made.close()
        raise
    return made


class Server(ThreadingHTTPServer):
    """The HTTP server of one model.

    name       the model's, for clients
    listening  what `listener` made; None: a free port of 127.0.0.1. `server_port` is the port
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, lm: LM, name: str, listening: socket.socket | None = None):
        self.lm, self.name, self.started = lm, name, int(time.time())
        listening = listening or listener("127.0.0.1", 0)
        super().__init__(listening.getsockname()[:2], Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening
        self.server_name, self.server_port = listening.getsockname()[:2]
        self.server_activate()
        self.batcher = Batcher(lm)

    def server_close(self) -> None:
        """Stop listening, and give up what is running."""
        super().server_close()
        self.batcher.end()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that breaks off is no fault, and answers are errors in the protocol's form."""


class _Incoming(socket.SocketIO):
    """What a client sends. Each request must have come by a deadline; a timeout of each read would not do."""

    def __init__(self, connection: socket.socket):
        super().__init__(connection, "rb")
        self.connection, self.until = connection, 0.0

    def readinto(self, buffer: Any) -> int | None:
        """Read what has come. Raises TimeoutError at the deadline."""
        left, before = self.until - time.monotonic(), self.connection.gettimeout()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)
        try:
            return super().readinto(buffer)
        finally:
            self.connection.settimeout(before)


class Handler(BaseHTTPRequestHandler):
    """One connection; kept open between requests, as clients expect."""

    server: Server
    protocol_version, server_version, timeout = "HTTP/1.1", "redlite", REQUEST_SECONDS
    disable_nagle_algorithm = True

    def setup(self) -> None:
        """Prepare a connection."""
        super().setup()
        self.rfile.close()
        self._incoming = _Incoming(self.connection)
        self.rfile = io.BufferedReader(self._incoming)

    def handle_one_request(self) -> None:
        """Read a request, and answer it."""
        self._incoming.until = time.monotonic() + self.timeout
        super().handle_one_request()

    def do_GET(self) -> None:
        """Answer a GET request."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer a POST request."""
        self._answer(self._post)

    def _answer(self, work: Callable[[], dict | None]) -> None:
        """Send what `work` returns; None if it has sent its answer itself."""
        try:
            status, body = 200, work()
        except Refusal as refusal:
            status, body = refusal.status, refusal.body
        except ConnectionError:
            self.close_connection = True  # the client went away
            return
        except Exception as error:  # a bug must reach the client as an error, not as a hang
            status, body = 500, Refusal(500, f"the server failed: {error}").body
        if body is None:
            return
        data = _encoded(body)
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except ConnectionError:
            self.close_connection = True

    def _get(self) -> dict:
        self._check_sender()
        model = {"id": self.server.name, "object": "model", "created": self.server.started,
                 "owned_by": "local"}
        path = urllib.parse.unquote(self.path.partition("?")[0]).rstrip("/")
        if path == "/v1/models":
            return {"object": "list", "data": [model]}
        if path == f"/v1/models/{self.server.name}":
            return model
        raise self._unknown()

    def _unknown(self) -> Refusal:
        return Refusal(404, f"{self.command} {self.path[:80]} is not known to this server; it has "
                       "POST /v1/chat/completions and GET /v1/models", None, "unknown_url")

    def _check_sender(self) -> None:
        """Raise Refusal for what a web page of another host had a browser send."""
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        if len(hosts) > 1 or not all(_is_loopback(f"//{host}") for host in hosts):
            raise Refusal(403, "the Host header names no loopback address; use localhost")
        if not all(map(_is_loopback, origins)):
            raise Refusal(403, "requests of web pages of other hosts are not answered (Origin header)")

    def _body(self) -> bytes:
        coding, length = self.headers.get("Transfer-Encoding"), self.headers.get("Content-Length")
        self.close_connection, keep = True, self.close_connection    # unless all of the body is read
        if any(len(self.headers.get_all(name, [])) > 1 for name in ("Transfer-Encoding", "Content-Length")):
            raise Refusal(400, "Content-Length and Transfer-Encoding may stand there once")
        if coding is not None and (coding.strip().lower() != "chunked" or length is not None):
            raise Refusal(400, "Transfer-Encoding must be chunked, without a Content-Length")
        length = length or ""
        if coding is None and not (length.isascii() and length.isdigit() and len(length) <= 18
                                   and int(length) <= LARGEST_BODY):
            raise Refusal(413 if length.isdigit() else 411,
                          f"a Content-Length of at most {LARGEST_BODY} bytes is needed, or chunks")
        try:
            body = self.rfile.read(int(length)) if coding is None else b"".join(self._chunks())
        except TimeoutError:
            raise Refusal(408, f"the body did not come within {self.timeout} seconds") from None
        if coding is None and len(body) < int(length):
            raise Refusal(400, "the body is shorter than its Content-Length")
        self.close_connection = keep
        return body

    def _chunks(self) -> Iterator[bytes]:
        """The chunks of a body (RFC 9112, section 7.1); trailers are read and left."""
        total = 0
        while True:
            size = self.rfile.readline(1 << 10).partition(b";")[0].strip()
            if not size or len(size) > 8 or size.strip(b"0123456789abcdefABCDEF"):
                raise Refusal(400, "the body's chunks are malformed")
            total += int(size, 16)
            if total > LARGEST_BODY:
                raise Refusal(413, f"a body of at most {LARGEST_BODY} bytes is taken")
            if int(size, 16) == 0:
                break
            chunk = self.rfile.read(int(size, 16))
            if len(chunk) < int(size, 16) or self.rfile.read(2) != b"\r\n":
                raise Refusal(400, "the body's chunks are malformed")
            yield chunk
        while self.rfile.readline(1 << 16).strip():
            pass

    def _post(self) -> dict | None:
        body = self._body()
        self._check_sender()
        if self.path.partition("?")[0].rstrip("/") != "/v1/chat/completions":
            raise self._unknown()
        if self.headers.get_content_type() != "application/json" or "Content-Type" not in self.headers:
            raise Refusal(415, "the Content-Type must be application/json")
        asked = parse(body, self.server.lm, self.server.name)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.server.name,
                "system_fingerprint": None}
        gone = threading.Event()
        try:
            events = self._events(asked, gone)
            if not asked.stream:
                return _completion(asked, head, events)
            self._stream(asked, head, events)
            return None
        finally:
            gone.set()      # whatever is still running has nobody to answer

    def _events(self, asked: Asked, gone: threading.Event) -> Events:
        """(choice, ids so far) and (choice, Answer), until all choices are answered.

        Raises ConnectionError when the client has gone.
        """
        prompt, events = asked.prompt, queue.SimpleQueue[Any]()
        for choice in range(asked.choices):
            seed = prompt.seed
            if asked.choices > 1:
                seed = sampling.request_seed(seed, prompt.ids, choice)
            one = replace(prompt, seed=seed % (1 << 128))
            self.server.batcher.submit(Job(one, choice, asked.stream, events, gone))
        left = asked.choices
        while left:
            try:
                found = events.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                if self._has_gone():
                    raise ConnectionAbortedError from None
                continue
            if isinstance(found, Exception):
                raise found
            left -= isinstance(found[1], Answer)
            yield found

    def _has_gone(self) -> bool:
        """Whether the client has closed its connection."""
        if not select.select([self.connection], [], [], 0)[0]:
            return False
        return not self.connection.recv(1, socket.MSG_PEEK)

    def _stream(self, asked: Asked, head: dict,
                events: Events) -> None:
        """Send the choices as server-sent events while they grow."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        if self.request_version == "HTTP/1.1":
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.close_connection = True    # the end of the connection is the end of the answer
        self.end_headers()
        head = {**head, "object": "chat.completion.chunk"}
        texts, answers = [Growing(self.server.lm, asked.prompt.stop) for _ in range(asked.choices)], []
        try:
            for i in range(asked.choices):
                self._event(_delta(head, i, {"role": "assistant", "content": ""}))
            for i, found in events:
                if isinstance(found, Answer):
                    answers.append(found)
                    self._event(_delta(head, i, {"content": texts[i].rest(found.text)}))
                    self._event(_delta(head, i, {}, found.finish))
                elif new := texts[i].more(found):
                    self._event(_delta(head, i, {"content": new}))
            if asked.usage:
                self._event({**head, "choices": [], "usage": _usage(asked, answers)})
        except ConnectionError:
            raise
        except Exception as error:  # the status is sent: the stream itself must say it
            self._event(Refusal(500, f"the server failed: {error}").body)
        self._send(b"data: [DONE]\n\n")
        if not self.close_connection:
            self.wfile.write(b"0\r\n\r\n")

    def _event(self, body: dict) -> None:
        self._send(b"data: " + _encoded(body) + b"\n\n")

    def _send(self, data: bytes) -> None:
        chunked = self.request_version == "HTTP/1.1"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library finds wrong (a method, headers), in the protocol's form too."""
        self.close_connection = True
        self.request_version = self.protocol_version  # a line that names no version would get no headers

        def refuse() -> NoReturn:
            raise Refusal(int(code), message or f"status {int(code)}")
        self._answer(refuse)

    def log_message(self, format: str, *values: object) -> None:
        """Nothing: requests hold what nobody should find in a terminal's history."""


def _is_loopback(url: str) -> bool:
    """Whether a URL's host is this machine, by its name or as an address."""
    try:
        host = urllib.parse.urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _encoded(body: dict) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _completion(asked: Asked, head: dict, events: Events) -> dict:
    """The body of a whole answer."""
    answers = {i: found for i, found in events if isinstance(found, Answer)}
    choices = []
    for i in range(asked.choices):
        message = {"role": "assistant", "content": answers[i].text, "refusal": None}
        choices.append({"index": i, "message": message, "logprobs": None,
                        "finish_reason": answers[i].finish})
    return {**head, "object": "chat.completion", "choices": choices,
            "usage": _usage(asked, list(answers.values()))}


def _delta(head: dict, i: int, delta: dict, finish: str | None = None) -> dict:
    return {**head, "choices": [{"index": i, "delta": delta, "logprobs": None, "finish_reason": finish}]}


def _usage(asked: Asked, answers: list[Answer]) -> dict[str, int]:
    prompt, used = len(asked.prompt.ids), sum(len(answer.ids) for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": used, "total_tokens": prompt + used}
