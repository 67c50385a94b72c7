"""Who answers: a model that is named and identified before it is loaded."""
import os
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from redlite.answer import Answer
from redlite.errors import Error
from redlite.store.files import sha256_json
from redlite.store.run_directory import UNFINISHED, Run
from redlite.text.reasoning import prompt_opens_thought

if TYPE_CHECKING:
    from datetime import datetime

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
               stop: tuple[str, ...], beside: list[Messages]) -> Iterator[tuple[int, Answer]]:
        """Yield (index, answer) of each conversation, in any order, as soon as it is there.

        seeds   one a conversation: it alone decides how the answer is sampled
        stop    texts at which an answer ends
        beside  conversations of the same run that are answered already, so that a model on this machine finds
                what prompts share as an undisturbed run does; see `Engine.run`
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
    runs      where its layers run, in words (`lm.how_layers_run`); None behind an API and for a mere plan
    """
    name: str
    identity: dict
    load: Callable[[Run | None], Answerer]
    count: Callable[[Messages], int]
    seconds: Callable[[int, int], float] | None = None
    cost: Callable[[int, int], float | None] = lambda prompt, new: 0.0
    chat: dict | None = None
    runs: str | None = None

    def information(self, more: dict | None) -> dict:
        """A manifest's field `info`, never compared: `more`, where a local model's layers run, and the
        file of its unfinished answers."""
        local = {"runs": self.runs, "unfinished": UNFINISHED} if self.runs else {}
        return (more or {}) | local


def once_loaded(model: ModelChoice, run: Run) -> ModelChoice:
    """The same choice, loaded at most once; what an API model answers is kept in `run`, whichever run
    asks."""
    loaded = cache(lambda: model.load(run))
    return replace(model, load=lambda _: loaded())


class LocalAnswerer:
    """Answers from a model on this machine."""

    def __init__(self, lm: "LM", batch_size: int | None = None, cache_gb: float | None = None,
                 run: Run | None = None, identity: dict | None = None):
        """
        batch_size, cache_gb  as for `local_model`
        run       where answers under way are kept, and gone on with (inference/unfinished.py); None: nowhere
        identity  of the model, in the manifest of that run
        """
        self.lm = lm
        if run:
            from redlite.inference.unfinished import Unfinished
            lm.engine.unfinished, lm.engine.identity = Unfinished.of(run), sha256_json(identity)
        if batch_size:
            lm.engine.max_batch = batch_size
        if cache_gb:
            lm.engine.cache_bytes = int(cache_gb * 1e9)

    def answer(self, conversations: list[Messages], decoding: Decoding, seeds: list[int],
               stop: tuple[str, ...], beside: list[Messages]) -> Iterator[tuple[int, Answer]]:
        """See `Answerer`. Raises Error at once, before any answer, if a conversation does not fit the
        model."""
        template = self.lm.template
        # 4 bytes a token, where a list takes 36: there may be 100,000 conversations.
        prompts, others = ([array("i", template.encode(messages, add_generation_prompt=True).ids)
                            for messages in some] for some in (conversations, beside))
        limit = self.lm.engine.context_limit()
        for messages, ids in zip(conversations, prompts, strict=True):
            if len(ids) >= limit:
                end = messages[-1]["content"][-60:]
                raise Error(f"the model's context of {limit} tokens has no room for an answer to a prompt of "
                            f"{len(ids)}: …{end!r}; leave the question or the prompt out")
        opened = [prompt_opens_thought(self.lm.tokenizer, ids) for ids in prompts]
        stream = self.lm.stream(prompts, decoding.max_new_tokens, decoding.temperature, decoding.top_p, seeds,
                                stop, beside=others)
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
                date: "datetime | None" = None, adapter: str | Path | None = None,
                cache_gb: float | None = None, plan: bool = False) -> ModelChoice:
    """A model on this machine, identified by its files without loading the weights.

    template, date, adapter  as for `parts`
    batch_size, cache_gb     answers made together, and what their keys and values may take; see `Engine`
    plan  nothing will be loaded: torch, which takes a second to import, is left out where nothing asks for it
    """
    from redlite.inference.parts import fingerprints  # they need numpy, which nothing before this does
    from redlite.inference.parts import parts as parts_of
    from redlite.text.chat_choice import NoFormat, describe
    from redlite.weights.gguf import GGUF
    from redlite.weights.source import open_source
    source = open_source(path)
    if isinstance(source, GGUF):
        source.start_hashing()  # in a thread, while torch is imported
    runs = None
    if not (plan and _surely_runs(dtype, device, quantize)):
        from redlite.inference import lm
        from redlite.weights.configuration import read_config
        lm.check_device(device)
        # What loading would refuse is refused before a run directory is made.
        runs = lm.how_layers_run(read_config(source)[0], dtype, device, quantize)
    parts = parts_of(source, template, date, adapter)
    name = parts.path.name
    if parts.adapter:
        name += f" + {parts.adapter.path.name}"
    identity = {"name": name, **fingerprints(parts), "dtype": dtype,
                "device": device.partition(":")[0], "quantize": quantize}

    def load(run: Run | None) -> Answerer:
        from redlite.inference.lm import LM
        return LocalAnswerer(LM.load(parts, dtype, device, quantize), batch_size, cache_gb, run, identity)
    return ModelChoice(
        name, identity, load,
        count=lambda messages: len(parts.template.encode(messages, add_generation_prompt=True).ids),
        seconds=partial(_seconds_at_most, source, device),
        chat=None if isinstance(parts.chat, NoFormat) else describe(parts.chat), runs=runs)


def _surely_runs(dtype: str, device: str, quantize: str | None) -> bool:
    """Whether the settings are plain enough to be granted without asking torch and the kernels."""
    from redlite import inspection
    if device != "cpu" or dtype != "float32" or os.environ.get("REDLITE_KERNELS"):
        return False
    return not quantize or inspection.library_is_built()


def _seconds_at_most(source: "Source", device: str, prompt_tokens: int, new_tokens: int) -> float:
    """Twice the measured time of the prompts' arithmetic and of reading all weights once a new token.

    It is measured in float32, which takes the longest; on CPUs by numpy, which is imported sooner than torch.
    """
    from redlite.weights.configuration import read_config
    weights = read_config(source)[0].weights
    library = import_module("numpy" if device == "cpu" else "torch")
    place = {} if device == "cpu" else {"device": device}

    def timed(work: Callable[[], Any]) -> float:
        float(work().sum())
        start = time.perf_counter()
        float(work().sum())
        return time.perf_counter() - start
    # Larger than the caches of a core. On CPUs writing a larger one would take the longest of a plan.
    rows = 1024 if device == "cpu" else 4096
    matrix = library.ones((rows, 1024), dtype=library.float32, **place)
    part, row = matrix[:rows // 4], matrix[:1]
    arithmetic = timed(lambda: part @ part.T) / (2 * len(part) ** 2 * 1024)     # seconds an operation
    reading = timed(lambda: row @ matrix.T) / (rows * 1024)                     # seconds a weight
    return 2 * (2 * weights * prompt_tokens * arithmetic + weights * new_tokens * reading)
