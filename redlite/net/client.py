"""Chat completions from any OpenAI-compatible endpoint: many requests at once, each answer kept as it comes.

An answer is in the journal, flushed, before anything else happens with it. Its key is made of endpoint,
model, messages, parameters and sample number. What the journal holds is never asked for again. The key also
travels as Idempotency-Key. An endpoint that honours that header never makes (or bills) the same answer twice.
With one that does not, an answer that was made and then lost on its way is made again; no client can help it.

retry.py says which requests are made again, rate_limit.py when the next may start, api_journal.py what is
kept and what may be spent; transport.py sends. A refusal by the provider's content filter is an answer,
"refused_by_api".
"""
import json
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from redlite.answer import Answer
from redlite.errors import Error, Incomplete
from redlite.net import rate_limit, reply, retry
from redlite.net.api_journal import GIVEN_UP, ApiJournal
from redlite.net.endpoints import VENDOR, Endpoint, Limits
from redlite.net.transport import HttpReply, Transport
from redlite.store.files import sha256_json
from redlite.store.run_directory import Run

PARTING = 3.0       # seconds for answers that are on their way, and paid for, when the caller goes away
GLANCE = 0.2        # seconds between two looks at whether to stop


@dataclass(frozen=True)
class Call:
    """One completion to ask for.

    messages    dicts of role and content
    parameters  temperature, top_p, max_tokens, seed, stop
    sample      tells apart repeated draws of the same
    """
    messages: list[dict[str, str]]
    parameters: dict = field(default_factory=dict)
    sample: int = 0


def tokens_at_most(call: Call) -> tuple[int, int | None]:
    """(prompt, completion) tokens that a call can cost.

    A token has a byte at least, a message a few of its own.
    """
    prompt = 16
    for message in call.messages:
        prompt += len(message["content"].encode("utf-8", "surrogatepass")) + 16
    return prompt, call.parameters.get("max_tokens")


class Client:
    """Asks one endpoint. After a kill at any moment, another on the same run directory goes on.

    run          the run directory whose journal keeps the answers
    concurrency  requests at once, at most
    limits       what may be spent
    tries        attempts at a call, before it is given up as "error"
    timeouts     (connect, read) seconds; reading also ends after twice the second in all
    first_delay, longest_wait  seconds; see `retry.Attempts`
    """

    def __init__(self, endpoint: Endpoint, run: Run, concurrency: int = 16, limits: Limits | None = None,
                 tries: int = 8, timeouts: tuple[float, float] = (10.0, 300.0),
                 first_delay: float = retry.FIRST_DELAY, longest_wait: float = 900.0):
        self.endpoint, self.tries = endpoint, tries
        self.first_delay, self.longest_wait = first_delay, longest_wait
        self.transport = Transport(endpoint, concurrency, timeouts)
        self.journal = ApiJournal(run, endpoint.model, limits or Limits())
        self.pace, self.retries = rate_limit.Pace(concurrency), Counter[str]()
        self._concurrency = concurrency
        self._lock = threading.Lock()       # of the journal, and of what follows
        self._halt: BaseException | None = None
        self._successes = 0

    def key(self, call: Call) -> str:
        """What identifies a call in the journal."""
        where = self.endpoint
        return sha256_json([where.base_url, where.model, call.messages, call.parameters, call.sample])

    @property
    def spent(self) -> Counter[str]:
        """Requests, prompt and completion tokens, of all processes that wrote this journal."""
        return self.journal.spent

    @property
    def cost(self) -> float | None:
        """Dollars spent; None without prices."""
        return self.journal.cost

    def ask(self, calls: list[Call]) -> Iterator[tuple[int, Answer]]:
        """Yield (index, Answer) as each call is answered, known answers first; equal calls are asked once.

        Raises Incomplete at a limit, or where the endpoint cannot be used any more, when all that was under
        way has come in; and Error for what the user must mend (key, model, address).
        """
        places: dict[str, list[int]] = {}
        for i, call in enumerate(calls):
            places.setdefault(self.key(call), []).append(i)
        todo: deque[tuple[str, Call]] = deque()
        for key, indices in places.items():
            if key in self.journal.answers:
                for i in indices:
                    yield i, self.journal.answers[key]
            else:
                todo.append((key, calls[indices[0]]))
        for key, answer in self._ask(todo):
            for i in places[key]:
                yield i, answer

    def _ask(self, todo: deque[tuple[str, Call]]) -> Iterator[tuple[str, Answer]]:
        """Answers of calls by their keys, from as many threads as there may be requests at once."""
        done: queue.SimpleQueue[tuple[str, Answer] | None] = queue.SimpleQueue()
        self._halt, self._successes = None, 0
        threads = [threading.Thread(target=self._work, args=(todo, done), daemon=True)
                   for _ in range(min(self._concurrency, len(todo)))]
        for thread in threads:
            thread.start()
        left = len(threads)
        try:
            while left:
                item = done.get()
                if item is None:
                    left -= 1
                else:
                    yield item
        except BaseException as error:
            self._stop(error)
            deadline = time.monotonic() + PARTING
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            with self._lock:
                self.journal.close()
            raise
        if self._halt:
            raise self._halt

    def _stop(self, error: BaseException) -> None:
        with self._lock:
            self._halt = self._halt or error
        self.pace.wake()

    def _work(self, todo: deque[tuple[str, Call]], done: queue.SimpleQueue) -> None:
        """One thread: takes calls until there are none, or the client was halted.

        None says that it has ended.
        """
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
        body, successes, where = self._body(call), self._successes, self.endpoint.base_url
        attempts = retry.Attempts(where, self.tries, self.first_delay, self.longest_wait)
        while self.pace.start(lambda: self._halt):
            hints: rate_limit.Hints = {}
            try:
                return self._attempt(key, call, body, hints)
            except retry.Retry as error:
                self.retries[str(error).partition(":")[0]] += 1
                hints["limited"], hints["wait"] = error.limited, error.wait or 0.0
                delay = attempts.failed(error)
            finally:
                self.pace.end(**hints)
            if attempts.over:
                break
            self._sleep(delay)
        if self._halt:
            return None
        if self._successes == successes:
            raise Incomplete(f"{where} could not be used, {self.tries} times in a row ({attempts.reason}); "
                             "what is finished is kept, and the same command goes on from there")
        detail = f"{GIVEN_UP} after {self.tries} tries: {attempts.reason}"
        return Answer("", "error", None, None, 0.0, detail=detail)

    def _body(self, call: Call) -> bytes:
        value = {"model": self.endpoint.model, "messages": call.messages, **call.parameters}
        if self.endpoint.base_url.rstrip("/") == VENDOR and "max_tokens" in value:
            # The vendor's newer models refuse the older name.
            value["max_completion_tokens"] = value.pop("max_tokens")
        return json.dumps(value).encode()

    def _attempt(self, key: str, call: Call, body: bytes, hints: rate_limit.Hints) -> Answer:
        """One request, written down before it goes out and after it. hints: what the pace is to learn."""
        with self._lock:
            self.journal.send(key, *tokens_at_most(call))
        received = self.transport.post(body, f"redlite-{key}")
        hints.update(rate_limit.window(received.headers, self.longest_wait))
        answer = self._read(key, received)
        with self._lock:
            self.journal.keep(key, answer)
            if answer.finish != "error":
                self._successes += 1
            elif not self.journal.answers:  # nothing ever worked here, so it is not this one request
                raise Error(f"{self.endpoint.base_url} refuses the request: {answer.detail}")
        hints["ok"] = True
        return answer

    def _read(self, key: str, received: HttpReply) -> Answer:
        """The answer in a reply. Raises what `retry.fault` says of another."""
        try:
            value = json.loads(received.body.decode("utf-8"))
        except (ValueError, RecursionError):
            value = None
        took, redact = round(received.seconds, 3), self.transport.redact
        if received.status == 200:
            answer = reply.completion(value, took, redact)
            if answer is None:
                raise retry.Retry("invalid body: no chat completion in JSON")
            return answer
        found = reply.failed(received.status, value, received.body, took, redact)
        if isinstance(found, Answer):
            return found
        wait = rate_limit.seconds(received.headers.get("Retry-After"))
        fault = retry.fault(found, wait, self.endpoint.base_url)
        if not isinstance(fault, Incomplete):
            with self._lock:
                self.journal.unpaid(key, f"status {found.status}")
        raise fault

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._halt and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, GLANCE))
