"""API models where local ones go: an answerer and a judge over `client`, as `redeval.Choice`s."""
from collections.abc import Iterator
from dataclasses import dataclass, field

from redlite.errors import Error
from redlite.judges import model as judges_model
from redlite.judges.api import ApiJudge
from redlite.net import client as net_client
from redlite.net import endpoints
from redlite.net.client import Call, Client
from redlite.net.endpoints import VENDOR, Endpoint, Limits, model_name
from redlite.redteam.answerers import Choice, Decoding, Reply
from redlite.store.files import sha256_json
from redlite.store.run_directory import Run


class ApiAnswerer:
    """Answers from an API model. Its seeds are not the endpoint's: samples are told apart by their number."""

    def __init__(self, asking: Client):
        self.client = asking

    def answer(self, conversations: list[list[dict]], decoding: Decoding, seeds: list[int], stop: tuple[str, ...]) -> Iterator[tuple[int, Reply]]:
        """Yield (index, Reply) as each conversation is answered."""
        parameters = {"max_tokens": decoding.max_new_tokens, "temperature": decoding.temperature, "top_p": decoding.top_p, **({"stop": list(stop)[:4]} if stop else {})}
        seen: dict[str, int] = {}
        calls = []
        for messages in conversations:
            key = sha256_json(messages)
            calls.append(Call(messages, parameters, seen.get(key, 0)))
            seen[key] = seen.get(key, 0) + 1
        for i, a in self.client.ask(calls):
            yield i, Reply(a.text, a.finish, a.prompt_tokens or 0, a.completion_tokens or 0, a.seconds)


@dataclass
class Network:
    """What commands say about API models, and the clients made by it, one a model; `run`, whose journal keeps the answers, is set once it is open."""
    base_url: str | None = None
    requests: int | None = None
    tokens: int | None = None
    cost: float | None = None
    price_file: str | None = None
    concurrency: int = 16
    run: Run | None = None
    _made: dict = field(default_factory=dict)

    def endpoint(self, name: str) -> Endpoint:
        """Where a model is served. Raises Error for a base URL that is none."""
        return Endpoint(name, self.base_url or VENDOR)

    def client(self, name: str) -> Client:
        """The client of a model."""
        if name not in self._made:
            prices = endpoints.prices(self.price_file, name) if self.price_file else None
            self._made[name] = Client(self.endpoint(name), self.run, self.concurrency, Limits(self.requests, self.tokens, self.cost, prices, lambda model: endpoints.prices(self.price_file, model)))
        return self._made[name]

    def model(self, spec: str) -> Choice:
        """"openai:NAME" as a `redeval.Choice`."""
        name = model_name(spec)
        return Choice(spec, {"name": spec, "endpoint": self.endpoint(name).base_url}, lambda: ApiAnswerer(self.client(name)),
                      count=lambda messages: net_client.tokens_at_most(Call(messages))[0])

    def judge(self, spec: str, judge_format: str | None = None, prompt_path=None) -> Choice:
        """"openai:NAME" as a judge: of harm, or with judge_format "refusal" of refusals; its prompt is data/judges/api.txt or refusal.txt, or the user's own."""
        if judge_format not in (None, "refusal"):
            raise Error(f"--judge {spec} takes no --judge-format {judge_format}; leave it out, or use refusal")
        name = model_name(spec)
        prompt = judges_model.read_prompt(prompt_path or judges_model.JUDGES / f"{judge_format or 'api'}.txt")
        identity = {"format": judge_format or "api", "prompt": sha256_json(prompt), "endpoint": self.endpoint(name).base_url}
        return Choice(spec, identity, lambda: ApiJudge(self.client(name), prompt, spec))

    def bound(self, name: str, prompt_tokens: int, new_tokens: int) -> float | None:
        """Dollars at most; None without a price file."""
        if not self.price_file:
            return None
        prompt, completion = endpoints.prices(self.price_file, name)
        return (prompt_tokens * prompt + new_tokens * completion) / 1e6
