"""Who answers: a model that is named and identified before it is loaded."""
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from redlite.answer import Answer
from redlite.errors import Error
from redlite.store.run_directory import Run
from redlite.text.reasoning import prompt_opens_thought

if TYPE_CHECKING:
    from datetime import datetime

    from torch import Tensor

    from redlite.inference.lm import LM, Completion
    from redlite.weights.source import Source

Messages = list[dict[str, str]]  # a chat


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. The paper's is the default: 500 new tokens; greedy, so that one sample is
    enough."""
    max_new_tokens: int = 500
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1

    def __post_init__(self) -> None:
        fine = self.max_new_tokens >= 1 and self.samples >= 1
        if not fine or not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise Error(f"max-new-tokens {self.max_new_tokens} and samples {self.samples} must be at least "
                        f"1, temperature {self.temperature} at least 0, "
                        f"top-p {self.top_p} above 0 and at most 1")
        if self.samples > 1 and self.temperature == 0:
            raise Error(f"samples {self.samples}: at temperature 0 all samples are the same; "
                        "raise the temperature as well")


class Answerer(Protocol):
    """Continues conversations."""

    def answer(self, conversations: list[Messages], decoding: Decoding, seeds: list[int],
               stop: tuple[str, ...]) -> Iterator[tuple[int, Answer]]:
        """Yield (index, answer) of each conversation, in any order, as soon as it is there.

        seeds  one a conversation: it alone decides how the answer is sampled
        stop   texts at which an answer ends
        """
        ...


@dataclass(frozen=True)
class ModelChoice:
    """A model that is loaded only when there is something to ask.

    identity  what goes into the manifest: SHA-256 of everything that decides its answers
    load      gives the answerer; one behind an API keeps its answers in the journal of the run it is given
    count     tokens of a prompt
    seconds   rough upper bound of the time for (prompt tokens, new tokens); None if it is not known
    cost      dollars at most for (prompt tokens, new tokens): 0 on this machine; None if no price is known
    chat      the chat format in words and a sample (`chat_choice.describe`); None where there is none
    """
    name: str
    identity: dict
    load: Callable[[Run | None], Answerer]
    count: Callable[[Messages], int]
    seconds: Callable[[int, int], float] | None = None
    cost: Callable[[int, int], float | None] = lambda prompt, new: 0.0
    chat: dict | None = None


def once_loaded(model: ModelChoice, run: Run) -> ModelChoice:
    """The same choice, loaded at most once; what an API model answers is kept in `run`, whichever run
    asks."""
    loaded = cache(lambda: model.load(run))
    return replace(model, load=lambda _: loaded())


class LocalAnswerer:
    """Answers from a model on this machine."""

    def __init__(self, lm: "LM", batch_size: int | None = None):
        self.lm = lm
        if batch_size:
            lm.engine.max_batch = batch_size

    def answer(self, conversations: list[Messages], decoding: Decoding, seeds: list[int],
               stop: tuple[str, ...]) -> Iterator[tuple[int, Answer]]:
        """See `Answerer`. Raises Error at once, before any answer, if a conversation does not fit the
        model."""
        template = self.lm.template
        prompts = [template.encode(messages, add_generation_prompt=True).ids for messages in conversations]
        limit = self.lm.engine.context_limit()
        for messages, ids in zip(conversations, prompts, strict=True):
            if len(ids) >= limit:
                end = messages[-1]["content"][-60:]
                raise Error(f"the model's context of {limit} tokens has no room for an answer to a prompt of "
                            f"{len(ids)}: …{end!r}; leave the question or the prompt out")
        opened = [prompt_opens_thought(self.lm.tokenizer, ids) for ids in prompts]
        stream = self.lm.stream(prompts, decoding.max_new_tokens, decoding.temperature, decoding.top_p, seeds,
                                stop)
        return self._answers(stream, opened)

    def _answers(self, stream: "Iterator[tuple[int, Completion]]",
                 opened: list[bool]) -> Iterator[tuple[int, Answer]]:
        for i, c in stream:
            seconds = round(c.seconds, 3)
            yield i, Answer(c.text, c.finish, c.prompt_tokens, len(c.ids), seconds, opened=opened[i])


def local_lm(model: ModelChoice, run: Run) -> "LM":
    """The loaded model behind a choice, which must be one on this machine."""
    answerer = model.load(run)
    if not isinstance(answerer, LocalAnswerer):
        raise TypeError(f"{model.name} is not on this machine")
    return answerer.lm


def local_model(path: str | Path, dtype: str, device: str, quantize: str | None = None,
                template: str | None = None, batch_size: int | None = None,
                date: "datetime | None" = None, adapter: str | Path | None = None) -> ModelChoice:
    """A model on this machine, identified by its files without loading the weights.

    template, date, adapter  as for `lm.parts`
    """
    from redlite.weights.gguf import GGUF  # they need numpy, which nothing before this does
    from redlite.weights.source import open_source
    source = open_source(path)
    if isinstance(source, GGUF):
        source.start_hashing()  # in a thread, while torch is imported
    from redlite.inference import lm
    lm.check_device(device)
    lm.packing(dtype, device, quantize)  # what loading would refuse is refused before a run directory is made
    from redlite.text.chat_choice import NoFormat, describe
    parts = lm.parts(source, template, date, adapter)
    name = parts.path.name
    if parts.adapter:
        name += f" + {parts.adapter.path.name}"
    identity = {"name": name, **lm.fingerprints(parts), "dtype": dtype,
                "device": device.partition(":")[0], "quantize": quantize}
    return ModelChoice(
        name, identity,
        load=lambda run: LocalAnswerer(lm.LM.load(parts, dtype, device, quantize), batch_size),
        count=lambda messages: len(parts.template.encode(messages, add_generation_prompt=True).ids),
        seconds=partial(_seconds_at_most, source, dtype, device),
        chat=None if isinstance(parts.chat, NoFormat) else describe(parts.chat))


def _seconds_at_most(source: "Source", dtype: str, device: str, prompt_tokens: int, new_tokens: int) -> float:
    """Twice the measured time of the prompts' arithmetic and of reading all weights once a new token."""
    import torch

    from redlite.inference.lm import DTYPES
    from redlite.model.llama import LLaMA
    from redlite.weights import checkpoint
    with torch.device("meta"):
        weights = sum(p.numel() for p in LLaMA(checkpoint.read_config(source)[0]).parameters())

    def ones(rows: int) -> "Tensor":
        return torch.ones(rows, 1024, dtype=DTYPES[dtype], device=device)

    def timed(work: Callable[[], "Tensor"]) -> float:
        float(work().sum())
        start = time.perf_counter()
        float(work().sum())
        return time.perf_counter() - start
    square, row, matrix = ones(1024), ones(1), ones(32 * 1024)      # the matrix is larger than caches
    arithmetic = timed(lambda: square @ square) / (2 * 1024 ** 3)   # seconds an operation
    reading = timed(lambda: row @ matrix.T) / matrix.numel()        # seconds a weight
    return 2 * (2 * weights * prompt_tokens * arithmetic + weights * new_tokens * reading)
