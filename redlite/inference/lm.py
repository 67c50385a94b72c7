"""`LM`: a model with its tokenizer and chat format; what `redlite.load` returns."""
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redlite import kernels
from redlite.answer import Answer
from redlite.errors import Error
from redlite.inference import sampling
from redlite.inference.engine import Arrivals, Engine, Request
from redlite.inference.parts import Parts, fingerprints, parts
from redlite.inference.score import Score, score
from redlite.model.config import Config
from redlite.model.llama import LLaMA
from redlite.model.sequences import PackedSequences, packed_attention
from redlite.text import tokenizer as text_tokenizer
from redlite.text.chat_choice import Format, NoFormat, given
from redlite.weights import checkpoint
from redlite.weights.adapter import Adapter
from redlite.weights.gguf import GGUF
from redlite.weights.source import open_source

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


Completion = Answer  # the name that users of `LM.generate` know


class LM:
    """A loaded model: `model`, `config`, `tokenizer`, `template`, `path`, `device` and `dtype` (a name).

    `adapter` is what was merged into the weights, or None.

    chat  the chat format, or `NoFormat`; `template` is the format, and raises Error where there is none
    """

    def __init__(self, model: LLaMA, tokenizer: text_tokenizer.Tokenizer, chat: Format | NoFormat,
                 path: Path, dtype: str, device: str, max_batch: int = 32, adapter: Adapter | None = None):
        self.adapter = adapter
        self.model, self.config, self.tokenizer, self.chat = model, model.config, tokenizer, chat
        self.path, self.dtype, self.device = path, dtype, torch.device(device)
        self.engine = Engine(model, max_batch)
        end = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        self.stop_ids = frozenset({*model.config.eos_ids, *chat.stop_ids, *tokenizer.end_ids, *end})

    @property
    def template(self) -> Format:
        """The chat format. Raises Error where the model has none, saying what to give."""
        return given(self.chat)

    @staticmethod
    def load(path: "str | Path | GGUF | Parts", dtype: str = "float32", device: str = "cpu",
             quantize: str | None = None, template: str | None = None, trainable: bool = False,
             adapter: str | Path | None = None) -> "LM":
        """See `redlite.load`.

        path       a name or path, an opened GGUF file, or `Parts`, of which no file is opened or read again
        trainable  keep the weights plain tensors; inference would have them packed. With `quantize` the
                   matrices are frozen, and adapters can be trained beside them (model/lora.py)
        """
        source = path.source if isinstance(path, Parts) else open_source(path)
        if dtype not in DTYPES:
            raise Error(f"dtype {dtype!r} is not known; use {', '.join(DTYPES)}", "dtype")
        check_device(device)
        packed = packing(dtype, device, quantize, trainable)
        config, _ = checkpoint.read_config(source)
        found = path if isinstance(path, Parts) else parts(source, template, adapter=adapter)
        if found.adapter:
            config = found.adapter.config(config)
        words = found.tokenizer
        if words.base_size > config.vocab_size:     # an added token without a row is refused when it is used
            raise Error(f"{found.path}: the tokenizer has {words.base_size} tokens and the model only "
                        f"{config.vocab_size}; they do not belong together")
        with torch.device("meta"):
            model = LLaMA(config)
        # Packed products on CPUs take and give float32, so the vectors are float32 too.
        vectors = torch.float32 if packed == "bfloat16" else DTYPES[dtype]
        checkpoint.load_weights(model, source, vectors, device, packed, found.adapter, frozen=trainable)
        return LM(model.eval().requires_grad_(False), words, found.chat, found.path, dtype, device,
                  adapter=found.adapter)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Tensor:
        """Logits [T, V] float32 after every token of one sequence."""
        packed = PackedSequences.of([self._check(ids)], self.device)
        attend = packed_attention(self.config, packed.offsets)
        return self.model.logits(self.model(packed.ids, packed.positions, attend, packed.lengths))

    def generate(self, prompts: list[list[int]], max_new_tokens: int, temperature: float = 0.0,
                 top_p: float = 1.0, seed: int = 0, stop: tuple[str, ...] = (), **rule: Any) -> list[Answer]:
        """Continue every prompt; the answers are in the prompts' order. See `stream`."""
        answers = dict(self.stream(prompts, max_new_tokens, temperature, top_p, seed, stop, **rule))
        return [answers[i] for i in range(len(prompts))]

    def stream(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float = 0.0,
               top_p: float = 1.0, seed: int | list[int] = 0, stop: str | tuple[str, ...] = (),
               top_k: int = 0, min_p: float = 0.0, repetition_penalty: float = 1.0,
               beside: Sequence[Sequence[int]] = ()) -> Iterator[tuple[int, Answer]]:
        """Yield (index, answer) as each prompt finishes.

        seed  one for all prompts, or a list with one for each. Prompts that are equal get different answers
              from one seed.
        temperature, top_p, top_k, min_p, repetition_penalty  see `sampling.Rule`; temperature 0 is greedy
        stop  texts at which an answer ends; they are cut off
        beside  other prompts, answered already; see `Engine.run`

        A sampled answer depends on the seed, the prompt, and the number of identical prompts before it. Other
        prompts matter only through the length of the shared prefix: see kernels/README.md, "Whole models on
        CPUs". An answer's finish is "stop" at an end token or a stop text. It is "length" after
        max_new_tokens or at the end of the model's context. Raises Error for a prompt that is empty, too
        long, or holds ids outside the vocabulary, and for a setting of a wrong kind or size.
        """
        if isinstance(seed, list) and len(seed) != len(prompts):
            raise Error(f"generate: {len(seed)} seeds for {len(prompts)} prompts; "
                        "give one seed, or each prompt its own")
        # A seed is hashed, and a hash takes anything.
        if not isinstance(seed, list) and (wrong := sampling.wrong_kind({"seed": seed})):
            raise Error(f"generate: {wrong}")
        rule = sampling.Rule(temperature, top_p, top_k, min_p, repetition_penalty)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        seen, requests = Counter[tuple[int, ...]](), list[Request]()
        for i, ids in enumerate(prompts):
            if isinstance(seed, list):
                own = seed[i]
            else:
                own = sampling.request_seed(seed, ids, seen[tuple(ids)])
                seen[tuple(ids)] += 1
            requests.append(Request(ids, max_new_tokens, rule, own, stops))
        yield from self.run(requests, beside)

    def run(self, requests: list[Request],
            beside: Sequence[Sequence[int]] = ()) -> Iterator[tuple[int, Answer]]:
        """Yield (index, answer) as each request finishes, by its own settings; errors as in `stream`.

        The model's own end tokens and stop texts are added to each request's. beside: see `Engine.run`.
        """
        ready = [self._ready(i, request) for i, request in enumerate(requests)]
        for i, answer in self.engine.run(ready, beside):
            yield i, replace(answer, text=self._text(answer.ids, ready[i].stop))

    def follow(self, arrivals: Arrivals) -> Iterator[tuple[int, Answer]]:
        """`run` for requests that come while others are generated; see `Engine.follow`.

        A request's own `stopped` is asked too, after every token: it can watch an answer grow, or end it.
        """
        stops: dict[int, tuple[str, ...]] = {}

        def ready(free: int) -> list[tuple[int, Request]]:
            new = [(i, self._ready(i, request)) for i, request in arrivals(free)]
            stops.update((i, request.stop) for i, request in new)
            return new
        for i, answer in self.engine.follow(ready):
            yield i, replace(answer, text=self._text(answer.ids, stops.pop(i)))

    def _ready(self, i: int, request: Request) -> Request:
        """A request with the model's own end tokens and stop texts. Raises Error as `stream`."""
        limit = self.engine.context_limit()
        if fault := request.fault():
            raise Error(f"generate: {fault}")
        self._check(request.ids, f"prompt {i}")
        if len(request.ids) >= limit:
            raise Error(f"prompt {i} has {len(request.ids)} tokens; the model's context of {limit} "
                        "leaves no room for an answer")
        stop = (*request.stop, *(s for s in self.chat.stop_strings if s not in request.stop))
        checks = [check for check in (request.stopped, self._stop_check(stop)) if check]
        return replace(request, stop=stop, stop_ids=request.stop_ids | self.stop_ids,
                       stopped=(lambda ids: any([check(ids) for check in checks])) if checks else None)

    def score(self, pairs: list[tuple[list[int], list[int]]]) -> list[Score]:
        """Log-probability of each continuation after its context; pairs of ids; see score.py.

        Raises Error for an empty context: put at least `tokenizer.bos_id` there.
        """
        for i, (context, continuation) in enumerate(pairs):
            self._check(context, f"context {i}")
            if continuation:
                self._check(continuation, f"continuation {i}")
        return score(self.model, [(list(c), list(x)) for c, x in pairs])

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of what decides the results; see the function."""
        return fingerprints(self)

    def _check(self, ids: Sequence[int], what: str = "the sequence") -> Sequence[int]:
        if not ids:
            raise Error(f"{what} is empty; at least one token is needed")
        if min(ids) < 0 or max(ids) >= self.config.vocab_size:
            raise Error(f"{what} holds a token id outside the vocabulary of {self.config.vocab_size}")
        return ids

    def _stop_check(self, stop: tuple[str, ...]) -> Callable[[list[int]], bool] | None:
        """Tells whether the newest tokens end the text at a stop text, which may span token borders."""
        wanted = [s.encode() for s in stop if s]
        if not wanted:
            return None
        reach = max(map(len, wanted)) + 1  # a token that adds text adds at least a byte

        def stopped(ids: list[int]) -> bool:
            tail = b"".join(self.tokenizer.piece_bytes(i) for i in ids[-reach:])
            if not any(s in tail for s in wanted):
                return False
            text = self._text(ids, ())  # sentencepiece's first space is among the bytes, but not in the text
            return any(s in text for s in stop if s)
        return stopped

    def _text(self, ids: Sequence[int], stop: tuple[str, ...]) -> str:
        text = self.tokenizer.decode([i for i in ids if i not in self.stop_ids])
        cuts = [text.index(s) for s in stop if s and s in text]
        return text[:min(cuts)] if cuts else text


def check_device(device: str) -> None:
    """Raises Error unless tensors can be made on a device, and the kernels that the user forces run there."""
    try:
        found = torch.empty(0, device=device).device.type
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise Error(f"device {device!r} cannot be used: {reason}; use device 'cpu'", "device") from None
    if found == "meta":
        raise Error("device 'meta' cannot be used: it holds no numbers; use device 'cpu'", "device")
    if kernels.FORCED and (reason := kernels.unusable(kernels.FORCED, found)):
        raise Error(f"REDLITE_KERNELS={kernels.FORCED} cannot serve on device {device!r}: {reason}; "
                    "set another, or nothing")


def packing(dtype: str, device: str, quantize: str | None, trainable: bool = False) -> str | None:
    """The format in which a model's matrices are kept (see `kernels.pack`); None for plain tensors.

    trainable  for training; what is not quantised stays plain then
    Raises Error if `quantize` cannot be had.
    """
    if quantize not in (None, "int8", "int4"):
        raise Error(f"quantize {quantize!r} is not known; use int8 or int4", "quantize")
    kind = torch.device(device).type
    reason = kernels.unpackable(kind)
    if not reason and kind == "cpu" and dtype != "float32":
        reason = f"on CPUs it goes with dtype float32, not {dtype}"
    if not reason and kind != "cpu" and trainable:
        reason = f"training through quantised weights is for device 'cpu', not {device!r}"
    if quantize and reason:
        raise Error(f"quantize {quantize!r} cannot be had: {reason}", "quantize")
    own = kind == "cpu" and dtype in ("float32", "bfloat16") and not kernels.unpackable(kind)
    return quantize or (dtype if own and not trainable else None)


def how_layers_run(config: Config, dtype: str, device: str, quantize: str | None) -> str:
    """Where a model's layers run, and why not in C where they do not: a line for the reader of a manifest.

    Arguments as for `redlite.load`, which must be able to load such a model.
    """
    kind, packed = torch.device(device).type, packing(dtype, device, quantize)
    attention = kernels.implementation("cached_attention", kind)
    reason = ""
    if kind != "cpu":
        reason = f"so they do on {kind}, with attention by {attention}"
    elif packed is None:
        reason = kernels.unpackable(kind) or f"C has no {dtype}"
    elif config.act not in kernels.PACKED_ACTIVATIONS:
        reason = f"C has no activation {config.act}; it does the matrix products and the attention"
    elif attention != "c":
        reason = f"the attention of generation is by {attention}"
    if reason:
        return f"{config.model_type}: layers in PyTorch ({reason})"
    return f"{config.model_type}: all layers in C, weights in {packed}"
