"""API models where local ones go: an answerer and a judge behind an endpoint."""
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from redlite.answer import Answer
from redlite.errors import Error
from redlite.judges import formats
from redlite.judges.api import ApiJudge, rubric, tagged
from redlite.judges.choice import JudgeChoice
from redlite.net import client as net_client
from redlite.net import endpoints
from redlite.net.client import Call, Client
from redlite.net.endpoints import Endpoint, Limits, model_name
from redlite.net.names import OWN_KEYS
from redlite.net.providers import PROVIDERS
from redlite.net.template import load
from redlite.redteam.answerers import Decoding, Messages, ModelChoice
from redlite.store.files import sha256_json
from redlite.store.run_directory import Run


class ApiAnswerer:
    """Answers from an API model. Endpoints take no seeds here: a seed only tells a sample from others.

    So a sample is the same call in every process, whatever else is left to ask.
    """

    def __init__(self, client: Client):
        self.client = client

    def answer(self, conversations: list[Messages], decoding: Decoding, seeds: list[int],
               stop: tuple[str, ...], beside: list[Messages]) -> Iterator[tuple[int, Answer]]:
        """See `redteam.answerers.Answerer`."""
        parameters: dict = {"max_tokens": decoding.max_new_tokens, "temperature": decoding.temperature,
                            "top_p": decoding.top_p}
        if stop:
            parameters["stop"] = list(stop)
        drawn = decoding.temperature > 0
        calls = [Call(messages, parameters, seed if drawn else 0)
                 for messages, seed in zip(conversations, seeds, strict=True)]
        return self.client.ask(calls)


@dataclass(frozen=True)
class Way:
    """How an endpoint is reached.

    base_url  "": what the environment says, else the vendor's
    headers   (name, value) that go along with each request
    extra     a JSON merge patch of each request's body; None: nothing
    version   Azure's api-version; "": the default
    """
    base_url: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    extra: dict | None = None
    version: str = ""


@dataclass
class Network:
    """The ways to endpoints, and what may be spent on them. It makes one client for each model and run.

    way             of the model under test, and of who has no own way
    own_ways        of "judge" and "attacker"
    requests        how many may be paid for, at most; None: without bound
    tokens          how many may be paid for, at most; None: without bound
    cost            dollars, at most, by the prices of `price_file`; None: without bound
    timeout         seconds that a reply may take; None: the client's own
    retries         how often a request that failed is made again; None: the client's own
    """
    way: Way = Way()
    own_ways: Mapping[str, Way] = field(default_factory=dict)
    requests: int | None = None
    tokens: int | None = None
    cost: float | None = None
    price_file: str | None = None
    concurrency: int = 16
    timeout: float | None = None
    retries: int | None = None
    _clients: dict[tuple[str, str, Run], Client] = field(default_factory=dict, init=False, repr=False)

    def endpoint(self, spec: str, role: str = "model") -> Endpoint:
        """Where a model is served. Raises Error for a base URL that is none.

        spec  "openai:NAME" or alike
        role  "model", "judge" or "attacker"
        """
        way, scheme, name = self.own_ways.get(role, self.way), spec.partition(":")[0], model_name(spec)
        if scheme == "endpoint":
            template = load(name)
            called = template.model or template.name
            return Endpoint(called, template.url, headers=way.headers, extra=way.extra, template=template)
        provider = PROVIDERS[scheme]
        base_url = way.base_url or os.environ.get(provider.variable) or provider.base_url
        if not base_url:
            raise Error(f"{spec}: needs an address, https://…, or the environment variable "
                        f"{provider.variable}", "base_url")
        version = way.version or os.environ.get("OPENAI_API_VERSION", "") if scheme == "azure" else ""
        keys = (OWN_KEYS[role],) if role in OWN_KEYS else ()
        return Endpoint(name, base_url, scheme, way.headers, way.extra, version, keys=keys)

    def client(self, spec: str, run: Run | None, role: str = "model") -> Client:
        """The client of a model, which keeps what it pays for in the run's journal."""
        if run is None:
            raise ValueError("an API model keeps its answers in a run directory; give one")
        if (spec, role, run) not in self._clients:
            endpoint = self.endpoint(spec, role)
            prices = self._prices(endpoint.model) if self.price_file else None
            limits = Limits(self.requests, self.tokens, self.cost, prices, self._prices)
            settings: dict = {}
            if self.timeout is not None:
                settings["timeouts"] = (min(10.0, self.timeout), self.timeout)
            if self.retries is not None:
                settings["tries"] = self.retries + 1
            client = Client(endpoint, run, self.concurrency, limits, **settings)
            if others := [one for (_, _, its), one in self._clients.items() if its is run]:
                client.journal.share(others[0].journal)
            self._clients[spec, role, run] = client
        return self._clients[spec, role, run]

    def _prices(self, name: str) -> tuple[float, float]:
        return endpoints.prices(self.price_file or "", name)

    def model(self, spec: str, role: str = "model") -> ModelChoice:
        """The answerer that "openai:NAME" means."""
        identity = {"name": _called(spec), **self.endpoint(spec, role).identity}
        return ModelChoice(_called(spec), identity, lambda run: ApiAnswerer(self.client(spec, run, role)),
                           count=lambda messages: net_client.tokens_at_most(Call(messages))[0],
                           cost=lambda prompt, new: self.bound(spec, prompt, new, role))

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
        kind = judge_format or "api"
        prompt = formats.read_prompt(prompt_path or formats.JUDGE_FILES / f"{kind}.txt")
        style = rubric(prompt) if kind == "strongreject" else tagged(prompt)
        asked = prompt if style.system is None else [style.system, style.prompt]
        identity = {"format": kind, "prompt": sha256_json(asked), **self.endpoint(spec, "judge").identity}
        called = f"strongreject:{_called(spec)}" if kind == "strongreject" else _called(spec)

        def cost(pairs: Iterable[tuple[str, str]]) -> float | None:
            prompts, new = style.at_most(pairs)
            return self.bound(spec, prompts, new, "judge")

        def judge(run: Run | None) -> ApiJudge:
            return ApiJudge(self.client(spec, run, "judge"), style, called)
        return JudgeChoice(called, identity, judge, cost)

    def bound(self, spec: str, prompt_tokens: int, new_tokens: int, role: str = "model") -> float | None:
        """Dollars at most; None without a price file."""
        if not self.price_file:
            return None
        prompt, completion = self._prices(self.endpoint(spec, role).model)
        return (prompt_tokens * prompt + new_tokens * completion) / 1e6


def _called(spec: str) -> str:
    """What a model is called in results: a file's name without its folder."""
    scheme, _, name = spec.partition(":")
    return f"{scheme}:{Path(name).stem}" if scheme == "endpoint" else spec
