"""The journal of what was asked of endpoints: the answers, and what they cost.

api.jsonl of a run directory has four kinds of lines, each under the call's key:

    {key, sent: [prompt, completion tokens at most], model}     a request goes out
    {key, unpaid: why}                                          it came back without an answer to pay for
    {key, text, finish, …}                                      it came back with an answer
    {key, refused, instead, model, url}         the endpoint refuses a parameter; what is sent in its place

A request that never came back, since its process was killed, may have been paid for, and is counted so.
"""
from collections import Counter
from pathlib import Path
from types import NoneType
from typing import NamedTuple

from redlite.answer import Answer
from redlite.errors import Error, Incomplete
from redlite.net.endpoints import Limits
from redlite.store.records import Kind, require
from redlite.store.run_directory import Run

JOURNAL = "api.jsonl"
MEND = "restore the line from a copy, or delete it to have it asked again"
ANSWER: dict[str, Kind] = {
    "text": str, "finish": str, "prompt_tokens": (int, NoneType), "completion_tokens": (int, NoneType),
    "seconds": (int, float), "detail": str}
REFUSED: dict[str, Kind] = {"refused": str, "instead": (str, NoneType), "model": str, "url": str}
GIVEN_UP = "given up"       # how the detail begins of an error that says nothing about the request


def record_of(key: str, answer: Answer) -> dict:
    """The journal's line for an answer."""
    record = {"key": key, **{field: getattr(answer, field) for field in ANSWER}}
    return {**record, "served": answer.served} if answer.served else record


def recall(record: dict, path: Path) -> Answer | None:
    """The answer in a line of the journal; None if it is another line.

    Raises Error for one that was edited.
    """
    require(record, {"key": str}, path, MEND)
    if "sent" in record:
        require(record, {"sent": [int], "model": (str, NoneType)}, path, MEND)
        if len(record["sent"]) != 2 or min(record["sent"]) < 0:
            raise Error(f"{path}: field 'sent' is no pair of token counts; {MEND}")
        return None
    if "unpaid" in record:
        return None
    if "refused" in record:
        require(record, REFUSED, path, MEND)
        return None
    require(record, {**ANSWER, "served": (str, NoneType)}, path, MEND)
    return Answer(**{field: record[field] for field in ANSWER}, served=record.get("served") or "")


def may_pass(answer: Answer) -> bool:
    """Whether it is an error that says nothing about the request, so that a later run may have an answer."""
    return answer.finish == "error" and answer.detail.startswith(GIVEN_UP)


class Sent(NamedTuple):
    """A request that is under way: the tokens it can cost at most, and whose prices they have."""
    prompt: int
    completion: int
    model: str


class ApiJournal:
    """What a run's journal holds, kept up as it grows. One thread at a time may use it.

    model    whose tokens are counted where the journal does not name another
    limits   what may be spent, over all processes that ever wrote this journal
    answers  the call's key → its answer
    spent    counts of "requests", "prompt" and "completion" tokens
    worked   models that have answered, or refused by their provider's policy
    served   model → what its last answer says it was served by
    refused  (address, model) → parameter that is refused → its name there, or None: it is left out
    sharing  the journals of one run, this one too: what one writes, all count
    """

    def __init__(self, run: Run, model: str, limits: Limits):
        self.run, self.model, self.limits = run, model, limits
        self.answers: dict[str, Answer] = {}
        self.spent: Counter[str] = Counter()
        self.worked: set[str] = set()
        self.served: dict[str, str] = {}
        self.refused: dict[tuple[str, str], dict[str, str | None]] = {}
        self._longest: dict[str, int] = {}      # completion tokens of a model's longest answer
        self._dollars = 0.0
        self._prices = {model: limits.prices} if limits.prices else {}
        self._open: dict[str, Sent] = {}
        self._closed = False
        self.sharing = [self]
        for record in run.read(JOURNAL):
            self._remember(record, recall(record, run.directory / JOURNAL))
        for sent in self._open.values():  # by a process that was killed
            self._pay(sent)
        self._open.clear()

    def share(self, other: "ApiJournal") -> None:
        """Count what another client of the same run spends. Only one of them asks at a time."""
        other.sharing.append(self)
        self.sharing = other.sharing

    @property
    def cost(self) -> float | None:
        """Dollars spent; None without prices."""
        return None if self.limits.prices is None else self._dollars

    def send(self, key: str, prompt: int, completion: int | None) -> None:
        """Write down that a request goes out, which may cost so many tokens.

        Raises Incomplete, and writes nothing, where it could pass a limit.
        """
        limits = self.limits
        if completion is None and (limits.tokens is not None or limits.cost is not None):
            raise Error("a limit of tokens or cost needs a bound on the answer's tokens (max_tokens)")
        # what a model thinks may not keep to max_tokens
        sent = Sent(prompt, max(completion or 0, self._longest.get(self.model, 0)), self.model)
        under_way = [*self._open.values(), sent]
        if limits.requests is not None and self.spent["requests"] + 1 > limits.requests:
            raise _passed("max_requests", f"{limits.requests} requests")
        tokens = self.spent["prompt"] + self.spent["completion"] + sum(s.prompt + s.completion
                                                                       for s in under_way)
        if limits.tokens is not None and tokens > limits.tokens:
            raise _passed("max_tokens_total", f"{limits.tokens} tokens")
        if limits.cost is not None and self._dollars + sum(map(self._price, under_way)) > limits.cost:
            raise _passed("max_cost", f"{limits.cost:g} dollars")
        self._write({"key": key, "sent": [sent.prompt, sent.completion], "model": sent.model})

    def keep(self, key: str, answer: Answer) -> None:
        """Write down an answer; an "error" is not kept, so a later run asks again, and was not paid for."""
        if answer.finish == "error":
            self.unpaid(key, answer.detail)
        else:
            self._write(record_of(key, answer), answer)

    def unpaid(self, key: str, why: str) -> None:
        """Write down that a request came back without an answer to pay for."""
        self._write({"key": key, "unpaid": why})

    def refuse(self, key: str, url: str, parameter: str, instead: str | None) -> None:
        """Write down that the endpoint refuses a parameter, and what is sent instead."""
        self._write({"key": key, "refused": parameter, "instead": instead, "model": self.model, "url": url})

    def close(self) -> None:
        """Write nothing any more: the run directory goes back to its owner, though requests may be under way.
        """
        self._closed = True

    def _write(self, record: dict, answer: Answer | None = None) -> None:
        if not self._closed:
            self.run.append(JOURNAL, record)
            for one in self.sharing:
                one._remember(record, answer)

    def _remember(self, record: dict, answer: Answer | None) -> None:
        key = record["key"]
        if "sent" in record:
            self.spent["requests"] += 1
            if key in self._open:       # sent again, after its reply was lost
                self._pay(self._open[key])
            prompt, completion = record["sent"]
            self._open[key] = Sent(prompt, completion, record.get("model") or self.model)
            return
        if "refused" in record:
            place = self.refused.setdefault((record["url"], record["model"]), {})
            place[record["refused"]] = record["instead"]
            return
        sent = self._open.pop(key, Sent(0, 0, self.model))
        if answer is not None:
            prompt, completion = answer.prompt_tokens, answer.completion_tokens
            self._pay(Sent(sent.prompt if prompt is None else prompt,
                           sent.completion if completion is None else completion, sent.model))
            self.answers[key] = answer
            self.worked.add(sent.model)
            self._longest[sent.model] = max(self._longest.get(sent.model, 0), completion or 0)
            if answer.served:
                self.served[sent.model] = answer.served

    def _pay(self, sent: Sent) -> None:
        self.spent.update(prompt=sent.prompt, completion=sent.completion)
        self._dollars += self._price(sent)

    def _price(self, sent: Sent) -> float:
        """Dollars; 0 without prices."""
        if self.limits.prices is None:
            return 0.0
        if sent.model not in self._prices:
            other = self.limits.prices_of
            self._prices[sent.model] = other(sent.model) if other else self.limits.prices
        prompt, completion = self._prices[sent.model]
        return (sent.prompt * prompt + sent.completion * completion) / 1e6


def _passed(setting: str, limit: str) -> Incomplete:
    return Incomplete(f"the limit of {limit} could be passed by the next request; what is finished is kept: "
                      "the same command with a higher limit goes on", setting)
