"""Who answers: a model on this machine, named and identified before it is loaded."""
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from redlite.errors import Error
from redlite.store.files import Hashing


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. The paper's is the default: 500 new tokens; greedy, so that one sample is enough."""
    max_new_tokens: int = 500
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1

    def __post_init__(self):
        if self.max_new_tokens < 1 or self.samples < 1 or not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise Error(f"max-new-tokens {self.max_new_tokens} and samples {self.samples} must be at least 1, temperature {self.temperature} "
                        f"at least 0, top-p {self.top_p} above 0 and at most 1")
        if self.samples > 1 and self.temperature == 0:
            raise Error(f"samples {self.samples}: at temperature 0 all samples are the same; set --temperature as well")


@dataclass(frozen=True)
class Reply:
    """One answer as an answerer gives it. finish: "stop", "length", "refused_by_api" or "error"."""
    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


@dataclass(frozen=True)
class Choice:
    """A model or a judge that is named and identified, and loaded only when there is work for it.

    identity  what goes into the manifest: SHA-256 of everything that decides its results
    load      gives the answerer (an object with `.answer`) or the judge (with `.label`)
    count     tokens of a prompt (chat messages)
    seconds   rough upper bound of the time for (prompt tokens, new tokens), unless None
    cost      what the provider charges at most; 0 on this machine
    """
    name: str
    identity: dict
    load: Callable[[], object]
    count: Callable[[list[dict]], int] | None = None
    seconds: Callable[[int, int], float] | None = None
    cost: float = 0.0


class LocalAnswerer:
    """Answers from a model on this machine."""

    def __init__(self, lm, batch_size: int | None = None):
        self.lm = lm
        if batch_size:
            lm.engine.max_batch = batch_size

    def answer(self, conversations: list[list[dict]], decoding: Decoding, seeds: list[int], stop: tuple[str, ...]) -> Iterator[tuple[int, Reply]]:
        """An iterator of (index, Reply), each as soon as its conversation (chat messages) is answered.

        Raises Error at once, before any answer is made, if a conversation does not fit the model.
        """
        prompts = [self.lm.template.encode(messages, add_generation_prompt=True).ids for messages in conversations]
        limit = self.lm.engine.context_limit()
        for messages, ids in zip(conversations, prompts):
            if len(ids) >= limit:
                raise Error(f"the model's context of {limit} tokens has no room for an answer to a prompt of {len(ids)}: …{messages[-1]['content'][-60:]!r}; "
                            "leave the question or the prompt out")
        stream = self.lm.stream(prompts, decoding.max_new_tokens, decoding.temperature, decoding.top_p, seeds, stop)
        return ((i, Reply(c.text, c.finish, c.prompt_tokens, len(c.ids), round(c.seconds, 3))) for i, c in stream)


def local_model(path, dtype: str, device: str, quantize: str | None = None, template: str | None = None, batch_size: int | None = None) -> Choice:
    """A model on this machine, identified by its files without loading the weights."""
    hashing = Hashing(path) if Path(path).is_file() else None  # a .gguf file, while torch is imported
    from redlite.inference import lm as inference_lm
    inference_lm.check_device(device)
    inference_lm.packing(dtype, device, quantize)  # refuses here, before a run directory is made, what loading would refuse after
    parts = inference_lm.parts(path, template)
    settings = {"dtype": dtype, "device": device.partition(":")[0], "quantize": quantize}
    return Choice(parts.path.name, {"name": parts.path.name, **inference_lm.fingerprints(parts, hashing and hashing.result()), **settings},
                  load=lambda: LocalAnswerer(inference_lm.LM.load(parts, dtype, device, quantize), batch_size),
                  count=lambda messages: len(parts.template.encode(messages, add_generation_prompt=True).ids),
                  seconds=partial(_seconds_at_most, parts.path, dtype, device))


def _seconds_at_most(path: Path, dtype: str, device: str, prompt_tokens: int, new_tokens: int) -> float:
    """Twice the time that arithmetic on the prompts, and reading all weights once a new token, take at measured speed."""
    import torch

    from redlite.inference import lm as inference_lm
    from redlite.model.llama import LLaMA
    from redlite.weights import checkpoint
    with torch.device("meta"):
        weights = sum(p.numel() for p in LLaMA(checkpoint.read_config(path)[0]).parameters())
    square, row = torch.ones(1024, 1024, dtype=inference_lm.DTYPES[dtype], device=device), torch.ones(1, 1024, dtype=inference_lm.DTYPES[dtype], device=device)
    matrix = torch.ones(32 * 1024, 1024, dtype=inference_lm.DTYPES[dtype], device=device)  # larger than caches

    def timed(work) -> float:
        float(work().sum())
        start = time.perf_counter()
        float(work().sum())
        return time.perf_counter() - start
    arithmetic = timed(lambda: square @ square) / (2 * 1024 ** 3)   # seconds an operation
    reading = timed(lambda: row @ matrix.T) / matrix.numel()        # seconds a weight
    return 2 * (2 * weights * prompt_tokens * arithmetic + weights * new_tokens * reading)
