"""Answers from an endpoint: many requests at once, each answer kept as it comes.

An answer is in the journal, flushed, before anything else happens with it. Its key is made of endpoint,
model, messages, parameters and sample number. What the journal holds is never asked for again. The key also
travels as Idempotency-Key. An endpoint that honours that header never makes (or bills) the same answer twice.
With one that does not, an answer that was made and then lost on its way is made again; no client can help it.

retry.py says which requests are made again, rate_limit.py when the next may start, api_journal.py what is
kept and what may be spent; providers.py and template.py how requests and replies look; transport.py sends.
A refusal by the provider is an answer, "refused_by_api". A parameter that the endpoint refuses by name is
left out from then on, or renamed; the journal remembers it.
"""
import json
import queue
import re
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from redlite.answer import Answer
from redlite.errors import Error, Incomplete
from redlite.net import parameters, rate_limit, refusals, reply, retry
from redlite.net.api_journal import GIVEN_UP, ApiJournal
from redlite.net.endpoints import Endpoint, Limits
from redlite.net.transport import HttpReply, Transport
from redlite.store.files import sha256_json
from redlite.store.run_directory import Run
from redlite.store.text import printable

PARTING = 3.0       # seconds for answers that are on their way, and paid for, when the caller goes away
GLANCE = 0.2        # seconds between two looks at whether to stop
CHECK_SECONDS = 5.0
OWN = (403, 451)    # statuses that may be about one request alone
REFUSALS = 5        # requests that an endpoint refuses, with none that it takes, before the run ends


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


class _Adapted(Exception):
    """The endpoint refused a parameter by name; the call goes out again without it."""


def say(text: str) -> None:
    """One line on stderr."""
    print(f"redlite: {printable(text)}", file=sys.stderr, flush=True)


def tokens_at_most(call: Call) -> tuple[int, int | None]:
    """(prompt, completion) tokens that a call can cost.

    A token has a byte at least, a message a few of its own.
    """
    prompt = 16
    for message in call.messages:
        prompt += len(message["content"].encode("utf-8", "surrogatepass")) + 16
    return prompt, call.parameters.get("max_tokens")


def check(endpoint: Endpoint) -> None:
    """Raise Error where an endpoint's key is missing or refused, or where it says that it has no such model.

    It is asked by a GET, which costs nothing. An endpoint that does not answer it is not judged by that.
    """
    transport, url = Transport(endpoint, 1, (CHECK_SECONDS, CHECK_SECONDS)), endpoint.known_url
    received = transport.get(url, CHECK_SECONDS) if url else None
    if received is None or received.status not in (400, 401, 404):
        return
    try:
        error = refusals.error_of(json.loads(received.body.decode("utf-8")))
    except (ValueError, RecursionError):
        return
    found = reply.failed(received.status, {"error": error}, b"", 0.0, transport.redact)
    missing = error.get("code") == "model_not_found" or error.get("type") == "not_found_error"
    named = rf"(?<![\w/.-]){re.escape(endpoint.model)}(?![\w/-])"     # and not as a part of the address
    missing = missing or error.get("status") == "NOT_FOUND"
    missing = missing or bool(re.search(named, str(error.get("message"))))
    # a key may do everything but list models
    if isinstance(found, reply.Failure) and (
            found.status == 401 and "scope" not in found.detail or found.status == 404 and missing):
        raise retry.fault(found, None, endpoint.base_url, endpoint.key_variable)


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
        self._failures: list[str] = []      # of requests that the endpoint refused before it took any
        self._told = False

    def key(self, call: Call) -> str:
        """What identifies a call in the journal."""
        where = self.endpoint
        made = {name: value for name, value in where.identity.items() if name not in ("endpoint", "headers")}
        more = [where.provider, made] if made or where.provider != "openai" else []
        return sha256_json([where.base_url, where.model, call.messages, call.parameters, call.sample, *more])

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
        held: list[tuple[str, Answer]] = []     # refused requests, until the endpoint takes one
        try:
            while left:
                item = done.get()
                if item is None:
                    left -= 1
                    continue
                held.append(item)
                if self._worked:
                    yield from held
                    held.clear()
            if held and not self._halt and not self._worked:
                raise self._unusable()
            yield from held
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

    @property
    def _worked(self) -> bool:
        return self.endpoint.model in self.journal.worked

    def _unusable(self) -> Error:
        """What to raise where the endpoint refuses every request."""
        self._abandon()
        said, mend = self._failures[-1], ""
        if said.startswith("status 403"):
            mend = f"; check what {self.endpoint.key_variable} may do"
        return Error(f"{self.endpoint.base_url} refuses the request: {said}{mend}")

    def _abandon(self) -> None:
        """Leave no run directory behind, if this process made it and nothing came of it."""
        if not self.journal.answers:
            self.journal.run.abandon()

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
        successes, where = self._successes, self.endpoint.base_url
        attempts = retry.Attempts(where, self.tries, self.first_delay, self.longest_wait)
        while self.pace.start(lambda: self._halt):
            hints: rate_limit.Hints = {}
            try:
                return self._attempt(key, call, attempts.broken_off, hints)
            except _Adapted:
                continue
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
        # What comes back whole is about this call, where the endpoint answers others.
        if self._successes == successes and not (attempts.short and self._worked):
            raise Incomplete(
                f"{where} could not be used, {attempts.failures} times in a row ({attempts.reason}); "
                "what is finished is kept, and the same command goes on from there")
        detail = f"{GIVEN_UP} after {attempts.failures} tries: {attempts.reason}"
        return Answer("", "error", None, None, 0.0, detail=detail)

    def _attempt(self, key: str, call: Call, broken_off: int, hints: rate_limit.Hints) -> Answer:
        """One request, written down before it goes out and after it. hints: what the pace is to learn."""
        with self._lock:
            instead = dict(self.journal.refused.get(self._place, {}))
            self.journal.send(key, *tokens_at_most(call))
        names = self.endpoint.names(instead)
        body = self.endpoint.body(call.messages, call.parameters, call.sample, names)
        # Another body, or one asked anew since its answer was broken off, is another request to the endpoint.
        again = "-".join(["", *sorted(instead), *([str(broken_off)] if broken_off else [])])
        received = self.transport.post(body, f"redlite-{key}{again}")
        hints.update(rate_limit.window(received.headers, self.longest_wait))
        answer = self._read(key, call, received, names)
        with self._lock:
            before = self.journal.served.get(self.endpoint.model)
            self.journal.keep(key, answer)
            if answer.finish != "error":
                self._successes += 1
            elif not self._worked:  # perhaps it is not this one request
                self._failures.append(answer.detail)
                if len(self._failures) >= REFUSALS:
                    raise self._unusable()
        self._compare(before, answer.served)
        hints["ok"] = True
        return answer

    @property
    def _place(self) -> tuple[str, str]:
        return self.endpoint.base_url, self.endpoint.model

    def _compare(self, before: str | None, served: str) -> None:
        """Say once that another model answers than before."""
        if before and served and before != served and not self._told:
            self._told = True
            say(f"{self.endpoint.model} is now served by {served!r}, and was by {before!r} before; "
                "the journal says which answer came from which")

    def _read(self, key: str, call: Call, received: HttpReply, names: dict[str, str]) -> Answer:
        """The answer in a reply. Raises what `retry.fault` says of another.

        names  parameter → its name in the request
        """
        try:
            value = json.loads(received.body.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            value = None
        took, redact, status = round(received.seconds, 3), self.transport.redact, received.status
        if 200 <= status < 300:
            answer = self._completion(call, value, took)
            if answer is not None:
                return answer
            meant = refusals.status_of(status, value)
            if meant == status:
                reason, damaged = reply.no_completion(value, received.body, redact)
                raise retry.Retry(reason, most=None if damaged else retry.NO_ANSWER)
            status = meant
        found = reply.failed(status, value, received.body, took, redact)
        if isinstance(found, Answer):
            self._adapt(key, call, found, value, names)
            return found
        if found.status in OWN:     # perhaps a wall before the endpoint that blocks this one request
            return Answer("", "error", None, None, took, detail=found.detail)
        wait = rate_limit.asked_wait(received.headers)
        fault = retry.fault(found, wait, self.endpoint.base_url, self.endpoint.key_variable)
        if not isinstance(fault, Incomplete):
            with self._lock:
                self.journal.unpaid(key, f"status {found.status}")
                if isinstance(fault, Error):
                    self._abandon()
        raise fault

    def _completion(self, call: Call, value: object, took: float) -> Answer | None:
        """The answer in the JSON of a reply with status 200. Raises Retry for one that is broken off."""
        stop = tuple(call.parameters.get("stop", ()))
        answer = reply.completion(self.endpoint.read(value), took, self.transport.redact, stop)
        if answer is not None and (mark := refusals.mark(value)):
            answer = replace(answer, finish="refused_by_api", detail=mark)
        if answer is not None and answer.finish == "error":
            raise retry.Retry(answer.detail, most=retry.BROKEN_OFF)
        return answer

    def _adapt(self, key: str, call: Call, answer: Answer, value: object, names: dict[str, str]) -> None:
        """Learn which parameter the endpoint refuses. Raises _Adapted where the call is to go out without it.

        names  parameter → its name in the request that was refused
        """
        if answer.finish != "error":
            return
        sent = {name: new for name, new in names.items() if name in call.parameters}
        parameter = parameters.refused(value, sent)
        if parameter is None:
            return
        with self._lock:
            known = self.journal.refused.get(self._place, {})
            asked_before = sent[parameter] != self.endpoint.names(known).get(parameter)
            if not asked_before:
                if parameter in known:      # under both of its names
                    return
                instead = parameters.RENAMED.get(sent[parameter])
                self.journal.refuse(key, self.endpoint.base_url, parameter, instead)
            self.journal.unpaid(key, answer.detail)
        if not asked_before:
            what = f"sent as {instead}" if instead else "left out"
            say(f"{self.endpoint.base_url} refuses {sent[parameter]!r} ({answer.detail}); "
                f"it is {what} from now on")
        raise _Adapted

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._halt and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, GLANCE))
