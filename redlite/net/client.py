"""Chat completions from any OpenAI-compatible endpoint, over requests. The only file of redlite that opens a connection.

Every answer is in the journal, flushed, before anything else happens with it, under a key made of endpoint, model,
messages, parameters and sample number; what the journal holds is never asked for again. The key also travels as
Idempotency-Key. An endpoint that honours that header never makes (or bills) the same answer twice; with one that does
not, an answer that was made and then lost on its way (a cut connection, a kill) is made again, and no client can help it.

Retried: 408, 409, 429, 5xx, time-outs, broken connections, bodies that are cut off or no valid completion. Not retried:
every other status. A refusal by the provider's content filter is an answer, "refused_by_api". Redirects are never
followed, so the API key goes to the endpoint's host alone (or through the proxy of the environment, as requests does).
"""
import json
import os
import queue
import threading
import time
import urllib.parse
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import requests

from redlite import __version__
from redlite.errors import Error, Incomplete
from redlite.net import rate_limit
from redlite.net.endpoints import VENDOR, Endpoint, Limits
from redlite.net.reply import GIVEN_UP, Answer, completion, filtered, recall
from redlite.store.files import sha256_json
from redlite.store.run_directory import Run

JOURNAL = "api.jsonl"
RETRIED = {408, 409, 429}
LARGEST_BODY = 64 << 20


@dataclass(frozen=True)
class Call:
    """One completion to ask for. `parameters`: temperature, top_p, max_tokens, seed, stop; `sample` tells apart repeated draws of the same."""
    messages: list[dict]
    parameters: dict = field(default_factory=dict)
    sample: int = 0


def tokens_at_most(call: Call) -> tuple[int, int | None]:
    """(prompt, completion) tokens that a call can cost: a token is a byte at least, and a message has a few of its own."""
    prompt = sum(len(m["content"].encode("utf-8", "surrogatepass")) + 16 for m in call.messages) + 16
    return prompt, call.parameters.get("max_tokens")


class _Retry(Exception):
    """An attempt that may be made again; wait: seconds the server asks for; limited: too many requests."""

    def __init__(self, reason: str, wait: float | None = None, limited: bool = False):
        super().__init__(reason)
        self.wait, self.limited = wait, limited


class Client:
    """Asks one endpoint. Safe against kills at any moment: make another on the same run directory and ask again.

    run          the run directory whose journal keeps the answers
    concurrency  requests at once, at most
    tries        attempts a request, before it is given up as "error"
    timeouts     (connect, read) seconds; reading also ends after twice the second in all
    """

    def __init__(self, endpoint: Endpoint, run: Run, concurrency: int = 16, limits: Limits | None = None, tries: int = 8,
                 timeouts: tuple[float, float] = (10.0, 300.0), first_delay: float = rate_limit.FIRST_DELAY, longest_wait: float = 900.0):
        self.endpoint, self.run, self.limits, self.tries = endpoint, run, limits or Limits(), tries
        self.timeouts, self.first_delay, self.longest_wait = timeouts, first_delay, longest_wait
        self.pace, self.retries = rate_limit.Pace(concurrency), Counter()
        self._secrets = _secrets()
        self._concurrency, self._lock, self._halt, self._successes, self._closed = concurrency, threading.Lock(), None, 0, False
        self._prepare()
        self._answers: dict[str, Answer] = {}
        self.spent = Counter()     # requests, prompt, completion; of all runs on this journal
        self._dollars, self._prices = 0.0, {endpoint.model: self.limits.prices}
        self._open: dict[str, tuple[int, int, str]] = {}  # what is under way: tokens at most, and the model
        for record in run.read(JOURNAL):
            self._remember(record, recall(record, run.directory / JOURNAL))
        for bound in self._open.values():  # sent by a process that was killed: they may have been paid for
            self._pay(*bound)
        self._open.clear()

    def _prepare(self) -> None:
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not key and self.endpoint.base_url.rstrip("/") == VENDOR:
            raise Error(f"the environment variable OPENAI_API_KEY is not set; {VENDOR} needs it")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise Error("the environment variable OPENAI_API_KEY holds characters that no key has")
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": f"redlite/{__version__}"}
        self._prepared = requests.Request("POST", self.endpoint.url, headers=headers).prepare()  # no session, so nothing from .netrc
        if key:
            self._prepared.headers["Authorization"] = f"Bearer {key}"
        session = requests.Session()
        self._settings = {k: v for k, v in session.merge_environment_settings(self._prepared.url, {}, None, None, None).items() if k in ("proxies", "verify", "cert")}
        bundle = self._settings["verify"]
        if isinstance(bundle, str) and not os.path.exists(bundle):
            raise Error(f"REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names {bundle}, which does not exist; name your CA file, or unset it")
        self._adapter = requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=self._concurrency, max_retries=0)

    # The journal

    def _remember(self, record: dict, answer: Answer | None) -> None:
        key = record["key"]
        if "sent" in record:
            self.spent["requests"] += 1
            if key in self._open:
                self._pay(*self._open[key])
            self._open[key] = (*record["sent"], record.get("model", self.endpoint.model))
        elif "unpaid" in record:
            self._open.pop(key, None)
        else:
            prompt, completion, model = self._open.pop(key, (0, 0, self.endpoint.model))
            self._pay(prompt if answer.prompt_tokens is None else answer.prompt_tokens, completion if answer.completion_tokens is None else answer.completion_tokens, model)
            self._answers[key] = answer

    def _pay(self, prompt: int, completion: int, model: str) -> None:
        self.spent.update(prompt=prompt, completion=completion)
        self._dollars += self._price(prompt, completion, model)

    def _price(self, prompt: int, completion: int, model: str) -> float:
        """Dollars of these tokens of a model; 0 without a price file."""
        if self.limits.prices is None:
            return 0.0
        if model not in self._prices:
            self._prices[model] = self.limits.prices_of(model) if self.limits.prices_of else self.limits.prices
        return sum(n * p for n, p in zip((prompt, completion), self._prices[model])) / 1e6

    def _note(self, record: dict, answer: Answer | None = None) -> None:
        """Write a record and count it. Under the lock."""
        if self._closed:  # a straggler, after its caller went away and with it the run directory
            return
        self.run.append(JOURNAL, record)
        self._remember(record, answer)

    def key(self, call: Call) -> str:
        """What identifies a call in the journal."""
        return sha256_json([self.endpoint.base_url, self.endpoint.model, call.messages, call.parameters, call.sample])

    @property
    def cost(self) -> float | None:
        """Dollars spent, by the price file."""
        return None if self.limits.prices is None else self._dollars

    def _reserve(self, key: str, call: Call) -> None:
        """Write down that a request goes out; raises Incomplete where it could pass a limit. Under the lock."""
        prompt, completion = tokens_at_most(call)
        limits = self.limits
        if completion is None and (limits.tokens is not None or limits.cost is not None):
            raise Error("a budget of tokens or cost needs a bound on the answer's tokens (max_tokens)")
        held = [sum(v[i] for v in self._open.values()) for i in (0, 1)]
        total = self.spent["prompt"] + held[0] + prompt, self.spent["completion"] + held[1] + (completion or 0)
        passed = None
        if limits.requests is not None and self.spent["requests"] + 1 > limits.requests:
            passed = f"--max-requests {limits.requests}"
        elif limits.tokens is not None and sum(total) > limits.tokens:
            passed = f"--max-tokens-total {limits.tokens}"
        elif limits.cost is not None and self._dollars + sum(self._price(*bound) for bound in [*self._open.values(), (prompt, completion, self.endpoint.model)]) > limits.cost:
            passed = f"--max-cost {limits.cost:g}"
        if passed:
            raise Incomplete(f"{passed} could be passed by the next request; what is finished is kept: the same command with a higher limit goes on")
        self._note({"key": key, "sent": [prompt, completion or 0], "model": self.endpoint.model})

    # Asking

    def ask(self, calls: list[Call]) -> Iterator[tuple[int, Answer]]:
        """Yield (index, Answer) as each call is answered, known answers first; equal calls are asked once.

        Raises Incomplete, when all that was under way has come in, at a limit or where the endpoint cannot be used
        any more, and Error for what the user must mend (key, model, address).
        """
        places: dict[str, list[int]] = {}
        for i, call in enumerate(calls):
            places.setdefault(self.key(call), []).append(i)
        todo = deque()
        for key, indices in places.items():
            if key in self._answers:
                for i in indices:
                    yield i, self._answers[key]
            else:
                todo.append((key, calls[indices[0]]))
        done: queue.SimpleQueue = queue.SimpleQueue()
        self._halt, self._successes = None, 0
        threads = [threading.Thread(target=self._work, args=(todo, done), daemon=True) for _ in range(min(self._concurrency, len(todo)))]
        for thread in threads:
            thread.start()
        left = len(threads)
        try:
            while left:
                item = done.get()
                if item is None:
                    left -= 1
                    continue
                for i in places[item[0]]:
                    yield i, item[1]
        except BaseException as error:
            self._stop(error)
            deadline = time.monotonic() + 3  # answers that are on their way are paid for: give them a moment
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            with self._lock:
                self._closed = True
            raise
        if self._halt:
            raise self._halt

    def _stop(self, error: BaseException) -> None:
        with self._lock:
            self._halt = self._halt or error
        self.pace.wake()

    def _work(self, todo: deque, done: queue.SimpleQueue) -> None:
        """One thread: takes calls until there are none, or the client was halted."""
        try:
            while not self._halt:
                try:
                    key, call = todo.popleft()
                except IndexError:
                    return
                answer = self._answer(key, call)
                if answer is not None:
                    done.put((key, answer))
        except BaseException as error:
            self._stop(error)
        finally:
            done.put(None)

    def _answer(self, key: str, call: Call) -> Answer | None:
        """One call with its retries; None when halted."""
        value = {"model": self.endpoint.model, "messages": call.messages, **call.parameters}
        if self.endpoint.base_url.rstrip("/") == VENDOR and "max_tokens" in value:
            value["max_completion_tokens"] = value.pop("max_tokens")  # the vendor's newer models refuse the older name
        body, successes, began, failures = json.dumps(value).encode(), self._successes, time.monotonic(), 0
        while self.pace.start(lambda: self._halt):
            outcome = {}  # what the pace has to know
            try:
                return self._attempt(key, call, body, outcome)
            except _Retry as error:
                reason = str(error)
                self.retries[reason.partition(":")[0]] += 1
                if error.wait and error.wait + time.monotonic() - began > self.longest_wait:
                    raise Incomplete(f"{self.endpoint.base_url} asks for more patience than {self.longest_wait:.0f} s ({reason}); run the same command again later") from None
                failures += not error.wait  # doing as one is told is no failure
                outcome.update(limited=error.limited, wait=error.wait or 0.0)
            finally:
                self.pace.end(**outcome)
            if failures == self.tries:
                break
            if not outcome["wait"]:
                self._sleep(rate_limit.backoff(failures, self.first_delay))
        if self._halt:
            return None
        if self._successes == successes:
            raise Incomplete(f"{self.endpoint.base_url} could not be used, {self.tries} times in a row ({reason}); what is finished is kept, and the same command goes on from there")
        return Answer("", "error", None, None, 0.0, f"{GIVEN_UP} after {self.tries} tries: {reason}")

    def _attempt(self, key: str, call: Call, body: bytes, outcome: dict) -> Answer:
        """One request, written down before it goes out and when its answer is in."""
        with self._lock:
            self._reserve(key, call)
        answer = self._send(key, body, time.monotonic(), outcome)
        with self._lock:
            if answer.finish == "error":
                self._note({"key": key, "unpaid": answer.detail})
                if not self._answers:  # nothing ever worked here, so it is not this one request
                    raise Error(f"{self.endpoint.base_url} refuses the request: {answer.detail}")
            else:
                self._note({"key": key, **vars(answer)}, answer)
                self._successes += 1
        outcome["ok"] = True
        return answer

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._halt and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))

    def _send(self, key: str, body: bytes, started: float, outcome: dict) -> Answer:
        """One HTTP request. Raises _Retry, or Error for what no retry mends."""
        prepared = self._prepared.copy()
        prepared.body = body
        prepared.headers["Content-Length"], prepared.headers["Idempotency-Key"] = str(len(body)), f"redlite-{key}"
        try:
            response = self._adapter.send(prepared, stream=True, timeout=self.timeouts, **self._settings)
            try:
                data = self._read(response, started)
            finally:
                response.close()
        except requests.exceptions.SSLError as error:
            if "EOF" in str(error):  # the other side hung up; a certificate or a version that does not fit says so
                raise _Retry(f"SSLError: {self.redact(error)}") from None
            raise Error(f"{self.endpoint.base_url}: no secure connection ({self.redact(error)}); name your CA file in REQUESTS_CA_BUNDLE") from None
        except (requests.exceptions.RequestException, requests.packages.urllib3.exceptions.HTTPError, OSError) as error:
            raise _Retry(f"{type(error).__name__}: {self.redact(error)}") from None
        return self._read_answer(response, data, started, outcome, key)

    def _read(self, response, started: float) -> bytes:
        pieces, size = [], 0
        read = getattr(response.raw, "read1", response.raw.read)  # whatever came, so that drops of it do not pass for progress (urllib3 2)
        while piece := read(1 << 16, decode_content=True):
            pieces.append(piece)
            size += len(piece)
            if size > LARGEST_BODY or time.monotonic() - started > 2 * self.timeouts[1]:
                raise _Retry("too long: the body is too large or too slow")
        return b"".join(pieces)

    def _read_answer(self, response, data: bytes, started: float, outcome: dict, key: str) -> Answer:
        headers, status = response.headers, response.status_code
        left, reset = (rate_limit.count(headers.get("x-ratelimit-remaining-requests")), rate_limit.seconds(headers.get("x-ratelimit-reset-requests")))
        if rate_limit.count(headers.get("x-ratelimit-remaining-tokens")) == 0:
            left, reset = 0, max(reset or 0, rate_limit.seconds(headers.get("x-ratelimit-reset-tokens")) or 0)
        if left is not None and reset is not None and reset <= self.longest_wait:
            outcome.update(left=left, reset=reset)
        try:
            value = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError):
            value = None
        took = round(time.monotonic() - started, 3)
        if status == 200:
            answer = completion(value, took, self.redact)
            if answer is None:
                raise _Retry("invalid body: no chat completion in JSON")
            return answer
        failure = value.get("error") if isinstance(value, dict) else None
        failure = failure if isinstance(failure, dict) else {"message": str(failure or "")}
        detail = self.redact(f"status {status}: {failure.get('message') or self.redact(data.decode('utf-8', 'replace'))[:200]}")[:500]
        if filtered(failure):
            return Answer("", "refused_by_api", None, None, took, detail)
        if status in RETRIED or status >= 500:
            if failure.get("code") == "insufficient_quota":
                raise Incomplete(f"{self.endpoint.base_url}: {detail}")
            self._unpaid(key, status)
            raise _Retry(f"status {status}", rate_limit.seconds(headers.get("Retry-After")), limited=status in (429, 503))
        if status in (400, 413, 422):
            return Answer("", "error", None, None, took, detail)
        self._unpaid(key, status)
        if 300 <= status < 400:
            raise Error(f"{self.endpoint.base_url} redirects elsewhere (status {status}), which is not followed; give the address itself as --base-url")
        mend = {401: "check OPENAI_API_KEY", 403: "check what OPENAI_API_KEY may do", 404: "check --base-url and the model's name"}.get(status, "check --base-url")
        raise Error(f"{self.endpoint.base_url}: {detail}; {mend}")

    def _unpaid(self, key: str, status: int) -> None:
        with self._lock:
            self._note({"key": key, "unpaid": f"status {status}"})

    def redact(self, text) -> str:
        """A text without the API key and without the passwords of proxies."""
        text = str(text)
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return text


def _secrets() -> list[str]:
    """What must never be written: the API key, and the passwords in proxy addresses, also as they stand in URLs."""
    found = [os.environ.get("OPENAI_API_KEY", "").strip()]
    for address in requests.utils.getproxies().values():
        try:
            password = urllib.parse.urlsplit(address if "://" in address else f"http://{address}").password
        except ValueError:  # no address, but perhaps a password
            password = address
        found += [password, urllib.parse.unquote(password)] if password else []
    found += [urllib.parse.quote(s, safe="") for s in found if s]
    return sorted({s for s in found if len(s) >= 4}, key=len, reverse=True)
