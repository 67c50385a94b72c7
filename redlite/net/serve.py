"""A model on this machine behind the OpenAI chat-completions protocol, for programs on this machine.

`POST /v1/chat/completions` and `GET /v1/models` (github.com/openai/openai-openapi), over the standard
library's HTTP server. Requests that are waiting when the engine becomes free run as one batch. What the
protocol has and this server has not is refused by name, never ignored.
"""
import json
import os
import queue
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn

from redlite.answer import Answer
from redlite.errors import Error
from redlite.inference import sampling
from redlite.inference.engine import Request
from redlite.inference.lm import LM
from redlite.store.files import half_surrogate
from redlite.store.records import is_kind

LARGEST_BODY = 16 << 20  # bytes
GATHER_SECONDS = 0.005   # how long a batch waits for requests that arrive together
BODY_SECONDS = 30        # for a client to send what it announced
MOST_WHOLE = 1 << 31
READ = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p",
        "repetition_penalty", "n", "seed", "stop"}
# Fields that change nothing here.
HARMLESS = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
            "parallel_tool_calls", "stream_options"}
# Fields that may only have a value that does nothing.
ONLY: dict[str, tuple] = {
    "stream": (False, None), "frequency_penalty": (0, None), "presence_penalty": (0, None),
    "logprobs": (False, None), "top_logprobs": (None, 0), "tools": (None, []), "functions": (None, []),
    "tool_choice": (None, "none", "auto"), "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}), "modalities": (None, ["text"])
}
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class Refusal(Exception):
    """A request that gets an error: HTTP status, message, the field at fault, a code."""

    def __init__(self, status: int, message: str, field: str | None = None, code: str | None = None):
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": field, "code": code}}


def _invalid(field: str, message: str) -> Refusal:
    return Refusal(400, message, field, "invalid_value")


class Batcher:
    """One thread that owns the model.

    It runs what is waiting as a batch and hands each answer back as it ends.
    """

    def __init__(self, lm: LM):
        self.lm = lm
        self.waiting: queue.Queue[tuple[Request, Future[Answer]]] = queue.Queue()
        threading.Thread(target=self._work, daemon=True, name="model").start()

    def submit(self, prompt: Request) -> "Future[Answer]":
        """The answer to come, or what went wrong."""
        future: Future[Answer] = Future()
        self.waiting.put((prompt, future))
        return future

    def _work(self) -> None:
        while True:
            batch = [self.waiting.get()]
            time.sleep(GATHER_SECONDS)
            while len(batch) < 4 * self.lm.engine.max_batch:
                try:
                    batch.append(self.waiting.get_nowait())
                except queue.Empty:
                    break
            try:
                for i, answer in self.lm.run([prompt for prompt, _ in batch]):
                    batch[i][1].set_result(answer)
            except Exception as error:  # the thread must live on, and every client must hear of it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)


def parse(body: bytes, lm: LM, name: str) -> tuple[Request, int]:
    """(prompt, number of choices) of a request's body. name: the model's. Raises Refusal."""
    asked = _fields(body)
    if asked.get("model") != name:
        raise Refusal(404, f"the model {asked.get('model')!r} does not exist; this server has {name!r}",
                      "model", "model_not_found")
    try:
        ids = lm.template.encode(_messages(asked.get("messages")), add_generation_prompt=True).ids
    except Error as error:
        raise _invalid("messages", str(error)) from None
    limit = lm.engine.context_limit()
    room = limit - len(ids)
    if room < 1:
        raise Refusal(400, f"the messages have {len(ids)} tokens; the model's context is {limit}", "messages",
                      "context_length_exceeded")
    newer = asked.get("max_completion_tokens") is not None
    longest = _whole(asked, "max_completion_tokens" if newer else "max_tokens", room, 1, MOST_WHOLE)
    rule = sampling.Rule(
        _number(asked, "temperature", 1.0, 0, 2), _number(asked, "top_p", 1.0, 1e-9, 1),
        _whole(asked, "top_k", 0, 0, MOST_WHOLE), _number(asked, "min_p", 0.0, 0, 1),
        _number(asked, "repetition_penalty", 1.0, 0.01, 100))
    seed = _whole(asked, "seed", int.from_bytes(os.urandom(7), "little"), -(1 << 63), 1 << 63)
    prompt = Request(ids, min(longest, room), rule, seed, _stop(asked.get("stop")))
    return prompt, _whole(asked, "n", 1, 1, 128)


def _fields(body: bytes) -> dict:
    """A request's fields, each of which this server knows."""
    try:
        asked = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not valid JSON in UTF-8: {error}") from None
    if not isinstance(asked, dict):
        raise Refusal(400, "the body must be a JSON object")
    for field, value in asked.items():
        if field not in READ and field not in HARMLESS and field not in ONLY:
            raise Refusal(400, f"the field {field!r} is not known to this server", field, "unknown_parameter")
        if field in ONLY and value not in ONLY[field]:
            raise Refusal(400,
                          f"{field} {json.dumps(value)[:60]} is not supported by this server; leave it out",
                          field, "unsupported_value")
    return asked


def _number(asked: dict, field: str, default: float, least: float, most: float) -> float:
    value = asked.get(field)
    if value is None:
        return default
    if not is_kind(value, (int, float)) or not least <= value <= most:
        raise _invalid(field, f"{field} must be a number from {least} to {most}")
    return float(value)


def _whole(asked: dict, field: str, default: int, least: int, most: int) -> int:
    value = asked.get(field)
    if value is None:
        return default
    if not is_kind(value, int) or not least <= value <= most:
        raise _invalid(field, f"{field} must be a whole number from {least} to {most}")
    return value


def _stop(given: object) -> tuple[str, ...]:
    """The texts at which an answer ends."""
    texts: Any = [given] if given and isinstance(given, str) else given or []
    fine = is_kind(texts, [str]) and len(texts) <= 4
    if fine and all(text and not half_surrogate(text) for text in texts):
        return tuple(texts)
    raise _invalid("stop", "stop must be a text or up to four of them")


def _messages(given: object) -> list[dict[str, str]]:
    """Messages as chat formats take them: texts only."""
    if not isinstance(given, list) or not given:
        raise _invalid("messages", "messages must be a list of at least one message")
    out = []
    for n, message in enumerate(given):
        where = f"messages[{n}]"
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in ROLES:
            raise _invalid(f"{where}.role", f"{where} needs a role: {', '.join(ROLES)}")
        content = message.get("content")
        if isinstance(content, list) and all(map(_is_text_part, content)):
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            raise _invalid(f"{where}.content",
                           f"{where}.content must be a text, or a list of parts of type text")
        out.append({"role": ROLES[role], "content": content})
    return out


def _is_text_part(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


class Server(ThreadingHTTPServer):
    """The HTTP server of one model.

    name     the model's, for clients
    address  a loopback address
    port     0 takes a free one, which `server_port` then is
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, lm: LM, name: str, address: str = "127.0.0.1", port: int = 0):
        self.lm, self.name, self.batcher, self.started = lm, name, Batcher(lm), int(time.time())
        super().__init__((address, port), Handler)


class Handler(BaseHTTPRequestHandler):
    """One connection; kept open between requests, as clients expect."""

    server: Server
    protocol_version, server_version, timeout = "HTTP/1.1", "redlite", BODY_SECONDS
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Answer a GET request."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer a POST request."""
        self._answer(self._post)

    def _answer(self, work: Callable[[], dict]) -> None:
        try:
            status, body = 200, work()
        except Refusal as refusal:
            status, body = refusal.status, refusal.body
        except Exception as error:  # a bug must reach the client as an error, not as a hang
            status, body = 500, Refusal(500, f"the server failed: {error}").body
        data = json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace")
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except ConnectionError:
            self.close_connection = True  # the client went away

    def _get(self) -> dict:
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

    def _post(self) -> dict:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or len(length) > 18 or int(length) > LARGEST_BODY:
            self.close_connection = True
            raise Refusal(413 if length.isdigit() else 411,
                          f"a Content-Length of at most {LARGEST_BODY} bytes is needed")
        try:
            body = self.rfile.read(int(length))
        except TimeoutError:
            self.close_connection = True
            raise Refusal(408, f"the body did not come within {self.timeout} seconds") from None
        if len(body) < int(length):
            self.close_connection = True
            raise Refusal(400, "the body is shorter than its Content-Length")
        if self.path.partition("?")[0].rstrip("/") != "/v1/chat/completions":
            raise self._unknown()
        prompt, n = parse(body, self.server.lm, self.server.name)
        seeds = [prompt.seed]
        if n > 1:
            seeds = [sampling.request_seed(prompt.seed, prompt.ids, i) for i in range(n)]
        futures = [self.server.batcher.submit(replace(prompt, seed=seed % (1 << 128))) for seed in seeds]
        return self._completion(prompt, [future.result() for future in futures])

    def _completion(self, prompt: Request, answers: list[Answer]) -> dict:
        choices = []
        for i, answer in enumerate(answers):
            message = {"role": "assistant", "content": answer.text, "refusal": None}
            choices.append({"index": i, "message": message, "logprobs": None, "finish_reason": answer.finish})
        used = sum(len(answer.ids) for answer in answers)
        usage = {"prompt_tokens": len(prompt.ids), "completion_tokens": used,
                 "total_tokens": len(prompt.ids) + used}
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time()),
            "model": self.server.name, "system_fingerprint": None, "choices": choices, "usage": usage
        }

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library finds wrong (a method, headers), in the protocol's form too."""
        self.close_connection = True
        self.request_version = self.protocol_version  # a line that names no version would get no headers

        def refuse() -> NoReturn:
            raise Refusal(int(code), message or f"status {int(code)}")
        self._answer(refuse)

    def log_message(self, format: str, *values: object) -> None:
        """Nothing: requests hold what nobody should find in a terminal's history."""
