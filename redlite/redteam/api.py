"""API models where local ones go: an answerer and a judge behind an endpoint."""
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from redlite.answer import Answer
from redlite.errors import Error
from redlite.judges import formats
from redlite.judges.api import ApiJudge, Style, rubric
from redlite.judges.choice import JudgeChoice
from redlite.net import client as net_client
from redlite.net import endpoints
from redlite.net.client import Call, Client
from redlite.net.endpoints import VENDOR, Endpoint, Limits, model_name
from redlite.redteam.answerers import Decoding, Messages, ModelChoice
from redlite.store.files import sha256_json
from redlite.store.run_directory import Run

MOST_STOPS = 4  # stop texts that endpoints take


class ApiAnswerer:
    """Answers from an API model. Endpoints take no seeds here: a seed only tells a sample from others.

    So a sample is the same call in every process, whatever else is left to ask.
    """

    def __init__(self, client: Client):
        self.client = client

    def answer(self, conversations: list[Messages], decoding: Decoding, seeds: list[int],
               stop: tuple[str, ...]) -> Iterator[tuple[int, Answer]]:
        """See `redteam.answerers.Answerer`."""
        parameters: dict = {"max_tokens": decoding.max_new_tokens, "temperature": decoding.temperature,
                            "top_p": decoding.top_p}
        if stop:
            parameters["stop"] = list(stop)[:MOST_STOPS]
        drawn = decoding.temperature > 0
        calls = [Call(messages, parameters, seed if drawn else 0)
                 for messages, seed in zip(conversations, seeds, strict=True)]
        return self.client.ask(calls)


@dataclass
class Network:
    """An endpoint, and what may be spent on it. It makes one client for each model and run.

    base_url    None: the vendor's
    requests    how many may be paid for, at most; None: without bound
    tokens      how many may be paid for, at most; None: without bound
    cost        dollars, at most, by the prices of `price_file`; None: without bound
    """
    base_url: str | None = None
    requests: int | None = None
    tokens: int | None = None
    cost: float | None = None
    price_file: str | None = None
    concurrency: int = 16
    _clients: dict[tuple[str, Run], Client] = field(default_factory=dict, init=False, repr=False)

    def endpoint(self, name: str) -> Endpoint:
        """Where a model is served. Raises Error for a base URL that is none."""
        return Endpoint(name, self.base_url or VENDOR)

    def client(self, name: str, run: Run | None) -> Client:
        """The client of a model, which keeps what it pays for in the run's journal."""
        if run is None:
            raise ValueError("an API model keeps its answers in a run directory; give one")
        if (name, run) not in self._clients:
            prices = self._prices(name) if self.price_file else None
            limits = Limits(self.requests, self.tokens, self.cost, prices, self._prices)
            self._clients[name, run] = Client(self.endpoint(name), run, self.concurrency, limits)
        return self._clients[name, run]

    def _prices(self, name: str) -> tuple[float, float]:
        return endpoints.prices(self.price_file or "", name)

    def model(self, spec: str) -> ModelChoice:
        """The answerer that "openai:NAME" means."""
        name = model_name(spec)
        identity = {"name": spec, "endpoint": self.endpoint(name).base_url}
        return ModelChoice(spec, identity, lambda run: ApiAnswerer(self.client(name, run)),
                           count=lambda messages: net_client.tokens_at_most(Call(messages))[0])

    def judge(self, spec: str, judge_format: str | None = None,
              prompt_path: str | Path | None = None) -> JudgeChoice:
        """The judge that "openai:NAME" means.

        judge_format  None: it judges harm, by data/judges/api.txt; "refusal": refusal, by refusal.txt;
                      "strongreject": harm, by StrongREJECT's rubric, which gives a probability
        prompt_path   a prompt in place of the format's own
        """
        if judge_format not in (None, "refusal", "strongreject"):
            raise Error(
                f"judge {spec}: takes no format {judge_format}; leave it out, or use refusal or strongreject")
        name, kind = model_name(spec), judge_format or "api"
        prompt = formats.read_prompt(prompt_path or formats.JUDGES / f"{kind}.txt")
        style: str | Style = rubric(prompt) if kind == "strongreject" else prompt
        asked = prompt if isinstance(style, str) else [style.system, style.prompt]
        identity = {"format": kind, "prompt": sha256_json(asked), "endpoint": self.endpoint(name).base_url}
        called = f"strongreject:{spec}" if kind == "strongreject" else spec
        return JudgeChoice(called, identity, lambda run: ApiJudge(self.client(name, run), style, called))

    def bound(self, name: str, prompt_tokens: int, new_tokens: int) -> float | None:
        """Dollars at most; None without a price file."""
        if not self.price_file:
            return None
        prompt, completion = self._prices(name)
        return (prompt_tokens * prompt + new_tokens * completion) / 1e6
