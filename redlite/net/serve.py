"""A model on this machine behind the OpenAI chat-completions protocol, for programs on this machine (github.com/openai/openai-openapi).

`POST /v1/chat/completions` and `GET /v1/models`, over the standard library's HTTP server. Requests that are waiting when the
engine becomes free run as one batch. What the protocol has and this server has not is refused by name, never ignored.
"""
import json
import os
import queue
import threading
import time
import urllib.parse
import uuid
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from redlite.errors import Error
from redlite.inference import sampling
from redlite.inference.lm import LM, Prompt
from redlite.store.files import half_surrogate

LARGEST_BODY = 16 << 20  # bytes
GATHER_SECONDS = 0.005   # how long a batch waits for requests that arrive together
BODY_SECONDS = 30        # for a client to send what it announced
# Fields that change nothing here, and those whose only value is the one that does nothing.
HARMLESS = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls", "stream_options"}
ONLY = {"stream": (False, None), "frequency_penalty": (0, None), "presence_penalty": (0, None), "logprobs": (False, None), "top_logprobs": (None, 0), "tools": (None, []),
        "functions": (None, []), "tool_choice": (None, "none", "auto"), "logit_bias": (None, {}), "response_format": (None, {"type": "text"}), "modalities": (None, ["text"])}


class Refusal(Exception):
    """A request that gets an error: HTTP status, message, the field at fault, a code."""

    def __init__(self, status: int, message: str, field: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.body = status, {"error": {"message": message, "type": "invalid_request_error" if status < 500 else "server_error", "param": field, "code": code}}


class Batcher:
    """One thread that owns the model: takes what is waiting, runs it as a batch, hands each answer back as it ends."""

    def __init__(self, lm: LM):
        self.lm, self.waiting = lm, queue.Queue()
        threading.Thread(target=self._work, daemon=True, name="model").start()

    def submit(self, prompt: Prompt) -> Future:
        """The answer to come: a `Completion`, or what went wrong."""
        future = Future()
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
                for i, completion in self.lm.run([prompt for prompt, _ in batch]):
                    batch[i][1].set_result(completion)
            except Exception as error:  # the thread must live on, and every client must hear of it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)


def parse(body: bytes, lm: LM, names: tuple[str, ...]) -> tuple[Prompt, int]:
    """(prompt, number of choices) of a request's body. Raises Refusal."""
    try:
        asked = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not valid JSON in UTF-8: {error}") from None
    if not isinstance(asked, dict):
        raise Refusal(400, "the body must be a JSON object")
    known = {"model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "n", "seed", "stop", *HARMLESS, *ONLY}
    for field, value in asked.items():
        if field not in known:
            raise Refusal(400, f"the field {field!r} is not known to this server", field, "unknown_parameter")
        if field in ONLY and value not in ONLY[field]:
            raise Refusal(400, f"{field} {json.dumps(value)[:60]} is not supported by this server; leave it out", field, "unsupported_value")
    if asked.get("model") not in names:
        raise Refusal(404, f"the model {asked.get('model')!r} does not exist; this server has {names[0]!r}", "model", "model_not_found")

    def number(field: str, default, kind: type, least, most):
        value = asked.get(field)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int,) if kind is int else (int, float)) or not least <= value <= most:
            raise Refusal(400, f"{field} must be {'a whole number' if kind is int else 'a number'} from {least} to {most}", field, "invalid_value")
        return kind(value)
    try:
        ids = lm.template.encode(_messages(asked.get("messages")), add_generation_prompt=True).ids
    except Error as error:
        raise Refusal(400, str(error), "messages", "invalid_value") from None
    room = lm.engine.context_limit() - len(ids)
    if room < 1:
        raise Refusal(400, f"the messages have {len(ids)} tokens; the model's context is {lm.engine.context_limit()}", "messages", "context_length_exceeded")
    longest = number("max_completion_tokens" if asked.get("max_completion_tokens") is not None else "max_tokens", room, int, 1, 1 << 31)
    rule = sampling.Rule(number("temperature", 1.0, float, 0, 2), number("top_p", 1.0, float, 1e-9, 1), number("top_k", 0, int, 0, 1 << 31),
                         number("min_p", 0.0, float, 0, 1), number("repetition_penalty", 1.0, float, 0.01, 100))
    stop = asked.get("stop") or ()
    stop = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stop, (list, tuple)) or len(stop) > 4 or any(not isinstance(s, str) or not s or half_surrogate(s) for s in stop):
        raise Refusal(400, "stop must be a text or up to four of them", "stop", "invalid_value")
    seed = number("seed", int.from_bytes(os.urandom(7), "little"), int, -(1 << 63), 1 << 63)
    return Prompt(ids, min(longest, room), rule, seed, tuple(stop)), number("n", 1, int, 1, 128)


def _messages(given) -> list[dict]:
    """Messages as chat formats take them: texts only."""
    if not isinstance(given, list) or not given:
        raise Refusal(400, "messages must be a list of at least one message", "messages", "invalid_value")
    out = []
    for n, message in enumerate(given):
        where = f"messages[{n}]"
        if not isinstance(message, dict) or message.get("role") not in ("system", "developer", "user", "assistant"):
            raise Refusal(400, f"{where} needs a role: system, developer, user or assistant", f"{where}.role", "invalid_value")
        content = message.get("content")
        if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content):
            content = "".join(p["text"] for p in content)
        if not isinstance(content, str):
            raise Refusal(400, f"{where}.content must be a text, or a list of parts of type text", f"{where}.content", "invalid_value")
        out.append({"role": "system" if message["role"] == "developer" else message["role"], "content": content})
    return out


class Server(ThreadingHTTPServer):
    """The HTTP server of one model. `address`: a loopback address; port 0 takes a free one, then in `server_port`."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, lm: LM, name: str, address: str = "127.0.0.1", port: int = 0):
        self.lm, self.name, self.batcher, self.started = lm, name, Batcher(lm), int(time.time())
        super().__init__((address, port), Handler)


class Handler(BaseHTTPRequestHandler):
    """One connection; kept open between requests, as clients expect."""

    protocol_version, server_version, timeout = "HTTP/1.1", "redlite", BODY_SECONDS
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, work) -> None:
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
        model = {"id": self.server.name, "object": "model", "created": self.server.started, "owned_by": "local"}
        path = urllib.parse.unquote(self.path.partition("?")[0]).rstrip("/")
        if path == "/v1/models":
            return {"object": "list", "data": [model]}
        if path == f"/v1/models/{self.server.name}":
            return model
        raise self._unknown()

    def _unknown(self) -> Refusal:
        return Refusal(404, f"{self.command} {self.path[:80]} is not known to this server; it has POST /v1/chat/completions and GET /v1/models", None, "unknown_url")

    def _post(self) -> dict:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or len(length) > 18 or int(length) > LARGEST_BODY:
            self.close_connection = True
            raise Refusal(413 if length.isdigit() else 411, f"a Content-Length of at most {LARGEST_BODY} bytes is needed")
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
        prompt, n = parse(body, self.server.lm, (self.server.name,))
        seeds = [prompt.seed if n == 1 else sampling.request_seed(prompt.seed, prompt.ids, i) for i in range(n)]
        futures = [self.server.batcher.submit(Prompt(**{**vars(prompt), "seed": seed % (1 << 128)})) for seed in seeds]
        done = [future.result() for future in futures]
        used = sum(len(c.ids) for c in done)
        return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time()), "model": self.server.name, "system_fingerprint": None,
                "choices": [{"index": i, "message": {"role": "assistant", "content": c.text, "refusal": None}, "logprobs": None, "finish_reason": c.finish}
                            for i, c in enumerate(done)],
                "usage": {"prompt_tokens": len(prompt.ids), "completion_tokens": used, "total_tokens": len(prompt.ids) + used}}

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the standard library finds wrong (a method, a request line, headers), in the protocol's form too."""
        self.close_connection, self.request_version = True, self.protocol_version  # of a line that names no version it would answer without headers

        def refuse():
            raise Refusal(int(code), message or f"status {int(code)}")
        self._answer(refuse)

    def log_message(self, form: str, *values) -> None:
        """Nothing: requests hold what nobody should find in a terminal's history."""
