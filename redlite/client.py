"""Chat completions from any OpenAI-compatible endpoint, over plain `requests`: the only module that opens a connection.

Every answer is journalled before anyone sees it, under a key of endpoint, model, messages, parameters and sample number,
so nothing is asked, or paid for, a second time: not after a kill, not by another run in the same directory. The key is also
sent as Idempotency-Key, for servers that remember. Requests run on threads whose number follows the server's limits.

The API key comes from the environment, goes to the endpoint's host only (redirects are refused), and is cut out of
everything that is written or shown.
"""
import email.utils
import json
import os
import queue
import random
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import requests

from redlite import journal
from redlite.errors import Error

FILE = "api.jsonl"
VENDOR = "https://api.openai.com/v1"
KEY_VARIABLE = "OPENAI_API_KEY"
RETRIED = {408, 409, 429}      # and every 5xx
FATAL = {401, 403, 404}        # would be the same for every request
LONGEST_WAIT = 120.0           # seconds that one Retry-After or back-off may ask for
LARGEST_BODY = 32 << 20        # bytes


@dataclass(frozen=True)
class Ask:
    """One request. parameters: of the protocol (max_tokens, temperature, …); sample: the number among equal requests."""
    messages: list[dict]
    parameters: dict
    sample: int = 0


@dataclass(frozen=True)
class Answer:
    """finish: "stop", "length", "refused_by_api" (a content filter), or "error" (text then says what; never journalled)."""
    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class BudgetSpent(Error):
    """The next request might pass the budget."""


@dataclass
class Budget:
    """What may be spent in a run directory, all runs together; None: no bound. prices: dollars per million tokens, {"input", "output"}."""
    requests: int | None = None
    tokens: int | None = None
    cost: float | None = None
    prices: dict | None = None
    spent_requests: int = 0
    spent_tokens: int = 0
    spent_cost: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Dollars."""
        return (prompt_tokens * self.prices["input"] + completion_tokens * self.prices["output"]) / 1e6 if self.prices else 0.0

    def reserve(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Set aside the most that a request may take. Raises BudgetSpent if that would pass a bound."""
        with self._lock:
            tokens, cost = prompt_tokens + completion_tokens, self.price(prompt_tokens, completion_tokens)
            for name, bound, would in (("--max-requests", self.requests, self.spent_requests + 1), ("--max-tokens-total", self.tokens, self.spent_tokens + tokens),
                                       ("--max-cost", self.cost, self.spent_cost + cost)):
                if bound is not None and would > bound:
                    raise BudgetSpent(f"{name} {bound:g} might be passed by the next request; what is answered is kept, raise the bound to go on")
            self.spent_requests, self.spent_tokens, self.spent_cost = self.spent_requests + 1, self.spent_tokens + tokens, self.spent_cost + cost

    def settle(self, reserved: tuple[int, int], used: tuple[int, int] | None) -> None:
        """Replace what was set aside by what was used; None: the request came to nothing."""
        with self._lock:
            now = used or (0, 0)
            self.spent_requests -= used is None
            self.spent_tokens += sum(now) - sum(reserved)
            self.spent_cost += self.price(*now) - self.price(*reserved)


class Gate:
    """How many requests may be under way: halved by a 429, grown again answer by answer; and not before a time the server named."""

    def __init__(self, most: int):
        self.most, self.limit, self.under_way, self.not_before = most, float(most), 0, 0.0
        self.changed = threading.Condition()

    def __enter__(self) -> None:
        with self.changed:
            while True:
                wait = self.not_before - time.monotonic()
                if wait <= 0 and self.under_way < max(1, int(self.limit)):
                    self.under_way += 1
                    return
                self.changed.wait(wait if wait > 0 else None)

    def __exit__(self, *exception) -> None:
        with self.changed:
            self.under_way -= 1
            self.changed.notify_all()

    def slow_down(self, wait: float) -> None:
        """The server said that it is too much."""
        with self.changed:
            self.limit = max(1.0, min(self.limit, self.under_way) / 2)
            self.not_before = max(self.not_before, time.monotonic() + wait)
            self.changed.notify_all()

    def hold(self, wait: float) -> None:
        """The server's window is used up for so many seconds."""
        with self.changed:
            self.not_before = max(self.not_before, time.monotonic() + wait)

    def speed_up(self) -> None:
        with self.changed:
            self.limit = min(float(self.most), self.limit + 1 / self.limit)
            self.changed.notify()


class _Bearer(requests.auth.AuthBase):
    """The key, for the endpoint's host alone; given as `auth`, so that no .netrc can put another in its place."""

    def __init__(self, key: str, host: str):
        self.key, self.host = key, host

    def __call__(self, request):
        if self.key and urlsplit(request.url).hostname == self.host:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request


class Again(Exception):
    """This attempt came to nothing, and another may do better: why, how long the server asks to wait (None: it did not say), and whether it was too much."""

    def __init__(self, why: str, wait: float | None = None, too_much: bool = False):
        super().__init__(why)
        self.wait, self.too_much = wait, too_much


def endpoint(base_url: str | None) -> str:
    """The base URL, checked. Raises Error."""
    url = (base_url or os.environ.get("OPENAI_BASE_URL") or VENDOR).rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise Error(f"--base-url {url}: must be http(s)://host[:port]/path, without user name, query or fragment")
    return url


class Client:
    """Asks one model at one endpoint.

    directory    a `journal.Run` that holds the answers; None keeps them for this process only
    concurrency  the most requests under way at once
    tries        attempts at one request before it counts as an error
    """

    def __init__(self, model: str, base_url: str | None = None, directory: journal.Run | None = None, budget: Budget | None = None, concurrency: int = 16,
                 tries: int = 8, connect_timeout: float = 10.0, read_timeout: float = 180.0, first_wait: float = 0.5):
        self.model, self.url, self.directory, self.budget = model, endpoint(base_url), directory, budget or Budget()
        self.tries, self.timeout, self.first_wait, self.concurrency = tries, (connect_timeout, read_timeout), first_wait, concurrency
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not self._key.isprintable() or not self._key.isascii():
            raise Error(f"{KEY_VARIABLE}: holds characters that no key has; set it again")
        self._auth, self._gate, self._lock, self._local = _Bearer(self._key, urlsplit(self.url).hostname), Gate(concurrency), threading.Lock(), threading.local()
        self._stop = threading.Event()
        self.answers: dict[str, Answer] = {}
        for record in directory.read(FILE) if directory else ():
            if not isinstance(record.get("key"), str) or not isinstance(record.get("text"), str):
                raise Error(f"{directory.directory / FILE}: a line has no key or text; restore it or delete it")
            self.answers[record["key"]] = Answer(record["text"], record["finish"], record["prompt_tokens"], record["completion_tokens"], record["seconds"])
            if record["endpoint"] == self.url and record["model"] == model:
                self.budget.spent_requests += 1
                self.budget.spent_tokens += record["prompt_tokens"] + record["completion_tokens"]
                self.budget.spent_cost += self.budget.price(record["prompt_tokens"], record["completion_tokens"])

    def redact(self, text: str) -> str:
        """The text without the key."""
        return text.replace(self._key, "[key]") if self._key else text

    def key(self, ask: Ask) -> str:
        """What an answer is kept under."""
        return journal.sha256_json([self.url, self.model, ask.messages, ask.parameters, ask.sample])

    def complete(self, asks: list[Ask]) -> Iterator[tuple[int, Answer]]:
        """Yield (index, Answer) as each comes, those already in the journal first; equal asks are sent once.

        Raises Error for what would fail for every request (a wrong key, an unknown model, a redirect) and BudgetSpent.
        """
        places: dict[str, list[int]] = {}
        for i, ask in enumerate(asks):
            places.setdefault(self.key(ask), []).append(i)
        for key in [k for k in places if k in self.answers]:
            for i in places.pop(key):
                yield i, self.answers[key]
        todo, done = queue.SimpleQueue(), queue.SimpleQueue()
        for key, (i, *_) in places.items():
            todo.put((key, asks[i]))
        self._stop.clear()
        threads = [threading.Thread(target=self._work, args=(todo, done), daemon=True) for _ in range(min(self.concurrency, len(places)))]
        for thread in threads:
            thread.start()
        try:
            for _ in range(len(places)):
                key, result = done.get()
                if isinstance(result, Exception):
                    raise result
                for i in places[key]:
                    yield i, result
        finally:
            self._stop.set()
            for thread in threads:  # what is under way is paid for: let it reach the journal
                thread.join()

    def _work(self, todo: queue.SimpleQueue, done: queue.SimpleQueue) -> None:
        while not self._stop.is_set():
            try:
                key, ask = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((key, self._one(key, ask)))
            except Exception as error:
                self._stop.set()
                done.put((key, error if isinstance(error, Error) else RuntimeError(self.redact(f"{type(error).__name__}: {error}"))))

    def _one(self, key: str, ask: Ask) -> Answer:
        reserved = prompt_bound(ask.messages), int(ask.parameters.get("max_tokens") or 0)
        self.budget.reserve(*reserved)
        used = None
        try:
            answer = self._insist(key, ask)
            used = (answer.prompt_tokens, answer.completion_tokens) if answer.finish != "error" else None
            if used is not None:
                self._keep(key, ask, answer)
            return answer
        finally:
            self.budget.settle(reserved, used)

    def _keep(self, key: str, ask: Ask, answer: Answer) -> None:
        with self._lock:
            self.answers[key] = answer
            if self.directory:
                self.directory.append(FILE, {"key": key, "endpoint": self.url, "model": self.model, "sample": ask.sample, "text": answer.text, "finish": answer.finish,
                                             "prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens, "seconds": answer.seconds})

    def _insist(self, key: str, ask: Ask) -> Answer:
        """Attempt after attempt, with growing pauses (full jitter), until there is an answer or nothing more to hope for."""
        why = ""
        for attempt in range(self.tries):
            if self._stop.is_set() and attempt:
                break
            try:
                with self._gate:
                    answer = self._attempt(key, ask)
                self._gate.speed_up()
                return answer
            except Again as again:
                why = str(again)
                pause = random.uniform(0, min(LONGEST_WAIT, self.first_wait * 2 ** attempt)) if again.wait is None else min(LONGEST_WAIT, again.wait) + random.uniform(0, 0.1)
                if again.too_much:
                    self._gate.slow_down(pause)
                if attempt + 1 < self.tries:
                    self._stop.wait(pause)
        return Answer(self.redact(why), "error", 0, 0, 0.0)

    def _session(self) -> requests.Session:
        if not hasattr(self._local, "session"):
            self._local.session = requests.Session()
        return self._local.session

    def _attempt(self, key: str, ask: Ask) -> Answer:
        start = time.monotonic()
        try:
            with self._session().post(self.url + "/chat/completions", json={"model": self.model, "messages": ask.messages, **ask.parameters}, auth=self._auth,
                                      headers={"Idempotency-Key": key}, timeout=self.timeout, allow_redirects=False, stream=True) as reply:
                # Of a redirect, requests has read the body already.
                body = reply.content if 300 <= reply.status_code < 400 else reply.raw.read(LARGEST_BODY + 1, decode_content=True)
                length = reply.headers.get("Content-Length", "")
                if "Content-Encoding" not in reply.headers and length.isdigit() and len(body) != int(length):
                    raise Again(f"the body has {len(body)} of {length} bytes")
        except (requests.RequestException, OSError, ValueError) as error:  # OSError: urllib3 lets some resets through
            raise Again(self.redact(f"{type(error).__name__}: {error}")) from None
        except Exception as error:
            if type(error).__module__.split(".")[0] in ("urllib3", "http"):  # raised while the body was read
                raise Again(self.redact(f"{type(error).__name__}: {error}")) from None
            raise
        if len(body) > LARGEST_BODY:
            raise Error(f"{self.url}: sent a body of more than {LARGEST_BODY} bytes; is it an OpenAI-compatible endpoint?")
        self._heed(reply.headers)
        return self._read(reply, body, time.monotonic() - start)

    def _heed(self, headers) -> None:
        """Wait for the next window when the server says that this one is used up."""
        if any(headers.get(f"x-ratelimit-remaining-{what}", "").split(",")[0].strip() == "0" for what in ("requests", "tokens")):
            waits = [duration(headers.get(f"x-ratelimit-reset-{what}", "")) for what in ("requests", "tokens")]
            self._gate.hold(min(LONGEST_WAIT, max([w for w in waits if w is not None], default=0.0)))

    def _read(self, reply, body: bytes, seconds: float) -> Answer:
        status, found = reply.status_code, None
        try:
            found = json.loads(body.decode("utf-8"))
        except (ValueError, RecursionError):
            if status == 200:
                raise Again("the body is not valid JSON in UTF-8") from None
        trouble = found.get("error") if isinstance(found, dict) else None
        trouble = trouble if isinstance(trouble, dict) else {"message": trouble} if isinstance(trouble, str) else {}
        said = self.redact(f"HTTP {status}: {str(trouble.get('message') or reply.reason)[:300]}")
        if status == 200 and not trouble:
            return _answer(found, seconds)
        if "content_filter" in (trouble.get("code"), trouble.get("type")) or trouble.get("code") == "content_policy_violation":
            return Answer("", "refused_by_api", 0, 0, round(seconds, 3))
        if status == 429 and trouble.get("code") == "insufficient_quota":
            raise Error(f"{self.url}: {said}; the account has nothing left")
        if status in RETRIED or status >= 500 or status == 200:
            raise Again(said, retry_after(reply.headers), status == 429)
        if status in FATAL or 300 <= status < 400:
            mend = f"is {KEY_VARIABLE} right?" if status in (401, 403) else "redirects are not followed; give the final --base-url" if status < 400 else "are --base-url and the model's name right?"
            raise Error(f"{self.url}, model {self.model}: {said}; {mend}")
        return Answer(said, "error", 0, 0, round(seconds, 3))


def _answer(found, seconds: float) -> Answer:
    """The answer in a body of the protocol. Raises Again where it is none."""
    try:
        choice = found["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        content = message.get("content")
        if isinstance(content, list):
            content = "".join(p.get("text", "") for p in content if isinstance(p, dict) and isinstance(p.get("text", ""), str))
        refusal = message.get("refusal")
        text = content if isinstance(content, str) and content else refusal if isinstance(refusal, str) else content or ""
        if not isinstance(text, str):
            raise TypeError
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Again("the body is no chat completion") from None
    usage = found.get("usage") if isinstance(found.get("usage"), dict) else {}
    prompt, completion = (usage.get(k) if type(usage.get(k)) is int and usage.get(k) >= 0 else 0 for k in ("prompt_tokens", "completion_tokens"))
    finish = "refused_by_api" if reason == "content_filter" else "length" if reason == "length" else "stop"
    return Answer(text, finish, prompt, completion, round(seconds, 3))


def prompt_bound(messages: list[dict]) -> int:
    """At most so many prompt tokens: no tokenizer makes more than one of a byte, and a message's frame takes a few."""
    return sum(len(str(m.get("content", "")).encode("utf-8", "replace")) + 8 for m in messages) + 8


def retry_after(headers) -> float | None:
    """Seconds that Retry-After (or retry-after-ms) asks for: a number or a date; None if it says nothing sensible."""
    try:
        if headers.get("retry-after-ms"):
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("Retry-After", "").split(",")[0].strip()
        if re.fullmatch(r"[0-9.]+", value):
            return float(value)
        date = headers.get("Retry-After", "")
        return max(0.0, email.utils.parsedate_to_datetime(date).timestamp() - time.time()) if date else None
    except (ValueError, TypeError):
        return None


def duration(text: str) -> float | None:
    """Seconds of "6m0s", "1.5s", "20ms", "3"; None for anything else."""
    text = text.split(",")[0].strip()
    if re.fullmatch(r"[0-9.]+", text):
        text += "s"
    if not re.fullmatch(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|h|m|s))+", text):
        return None
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    return sum(float(n) * units[u] for n, u in re.findall(r"([0-9]+(?:\.[0-9]+)?)(ms|h|m|s)", text))


def read_prices(path, model: str) -> dict:
    """{"input", "output"} of a model in a price file: {"MODEL": {"input": dollars per million tokens, "output": …}}. Raises Error."""
    table = journal.read_json(path)
    prices = table.get(model) if isinstance(table, dict) else None
    if not isinstance(prices, dict) or any(isinstance(prices.get(k), bool) or not isinstance(prices.get(k), (int, float)) or prices[k] < 0 for k in ("input", "output")):
        raise Error(f"{path}: has no prices of {model!r}; write {{\"{model}\": {{\"input\": DOLLARS, \"output\": DOLLARS}}}}, per million tokens")
    return prices
