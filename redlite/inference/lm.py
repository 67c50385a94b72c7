"""`LM`: a model with its tokenizer and chat format; what `redlite.load` returns."""
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from redlite import kernels
from redlite.errors import Error
from redlite.inference import sampling
from redlite.inference.engine import Engine, Request
from redlite.inference.score import Score, score
from redlite.model.llama import LLaMA
from redlite.model.sequences import PackedSequences, packed_attention
from redlite.text import chat
from redlite.text import tokenizer as text_tokenizer
from redlite.weights import checkpoint
from redlite.weights.gguf import GGUF
from redlite.weights.source import Source, open_source, path_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Completion:
    """One answer. `ids` as generated, the end token included; `text` without special tokens and stop strings; `seconds` of wall time in a shared batch."""
    ids: list[int]
    text: str
    finish: str
    prompt_tokens: int
    seconds: float


@dataclass(frozen=True)
class Prompt:
    """Token ids to continue, and how. seed: decides the answer whole, whatever else runs."""
    ids: list[int]
    max_new_tokens: int
    rule: sampling.Rule = sampling.Rule()
    seed: int = 0
    stop: tuple[str, ...] = ()

    def fault(self) -> str:
        """What is wrong with the settings, "" if nothing."""
        if wrong := sampling.wrong_kind({"max_new_tokens": self.max_new_tokens, "seed": self.seed}) or self.rule.fault():
            return wrong
        if self.max_new_tokens < 1:
            return f"max_new_tokens {self.max_new_tokens} must be at least 1"
        return "" if 0 <= self.seed < 1 << 128 else f"seed {self.seed} must be at least 0 and below 2^128"


class LM:
    """A loaded model. Attributes: `model`, `config`, `tokenizer`, `template`, `path`, `device`, `dtype` (a name)."""

    def __init__(self, model: LLaMA, tokenizer, template, path: Path, dtype: str, device: str, max_batch: int = 32):
        self.model, self.config, self.tokenizer, self.template = model, model.config, tokenizer, template
        self.path, self.dtype, self.device = path, dtype, torch.device(device)
        self.engine = Engine(model, max_batch)
        ends = {*model.config.eos_ids, *template.stop_ids, *(() if tokenizer.eos_id is None else (tokenizer.eos_id,))}
        self.stop_ids = frozenset(ends)

    @staticmethod
    def load(path, dtype: str = "float32", device: str = "cpu", quantize: str | None = None, template: str | None = None, trainable: bool = False) -> "LM":
        """See `redlite.load`. trainable: keep the weights plain tensors, where inference would have them packed.

        path may also be `Parts`, which are then used as they are: no file is opened or read again.
        """
        found = path if isinstance(path, Parts) else None
        source = found.source if found else open_source(path)
        if dtype not in DTYPES:
            raise Error(f"dtype {dtype!r} is not known; use {', '.join(DTYPES)}")
        check_device(device)
        packed = None if trainable else packing(dtype, device, quantize)
        config, _ = checkpoint.read_config(source)
        found = found or parts(source, template)
        words = found.tokenizer
        if words.vocab_size > config.vocab_size:
            raise Error(f"{found.path}: the tokenizer has {words.vocab_size} tokens and the model only {config.vocab_size}; they do not belong together")
        with torch.device("meta"):
            model = LLaMA(config)
        checkpoint.load_weights(model, source, DTYPES[dtype], device, packed)
        return LM(model.eval().requires_grad_(False), words, found.template, found.path, dtype, device)

    @torch.no_grad()
    def logits(self, ids: list[int]) -> Tensor:
        """Logits [T, V] float32 after every token of one sequence."""
        packed = PackedSequences.of([self._check(ids)], self.device)
        return self.model.logits(self.model(packed.ids, packed.positions, packed_attention(self.config, packed.offsets), packed.lengths))

    def generate(self, prompts: list[list[int]], max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0,
                 seed: int = 0, stop: tuple[str, ...] = (), **rule) -> list[Completion]:
        """Continue every prompt; the results are in the prompts' order. See `stream`."""
        results = dict(self.stream(prompts, max_new_tokens, temperature, top_p, seed, stop, **rule))
        return [results[i] for i in range(len(prompts))]

    def stream(self, prompts: list[list[int]], max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0,
               seed: int | list[int] = 0, stop: tuple[str, ...] = (), top_k: int = 0, min_p: float = 0.0,
               repetition_penalty: float = 1.0) -> Iterator[tuple[int, Completion]]:
        """Yield (index, Completion) as each prompt finishes.

        temperature 0 is greedy; see `sampling.Rule` for how a token is drawn. A sampled answer depends on the seed, the
        prompt and how many equal prompts came before it in the list, on other prompts only by how much of their start all
        share (kernels/README.md, "Whole models on CPUs"); a list of seeds gives each prompt its own. Generation ends at an
        end token ("stop"), a stop string ("stop", cut from the text), after max_new_tokens ("length") or at the end of the
        model's context ("length").
        Raises Error for a prompt that is empty, too long, or holds ids outside the vocabulary, and for a setting of a wrong kind or size.
        """
        if isinstance(seed, list) and len(seed) != len(prompts):
            raise Error(f"generate: {len(seed)} seeds for {len(prompts)} prompts; give one seed, or each prompt its own")
        if wrong := not isinstance(seed, list) and sampling.wrong_kind({"seed": seed}):  # it is hashed, which takes anything
            raise Error(f"generate: {wrong}")
        rule = sampling.Rule(temperature, top_p, top_k, min_p, repetition_penalty)
        seen, asked = Counter(), []
        for i, ids in enumerate(prompts):
            own = seed[i] if isinstance(seed, list) else sampling.request_seed(seed, ids, seen[tuple(ids)])
            seen[tuple(ids)] += 1
            asked.append(Prompt(list(ids), max_new_tokens, rule, own, (stop,) if isinstance(stop, str) else tuple(stop)))
        yield from self.run(asked)

    def run(self, prompts: list["Prompt"]) -> Iterator[tuple[int, Completion]]:
        """Yield (index, Completion) as each prompt finishes, each by its own settings; ends and errors as in `stream`."""
        requests, stops = [], []
        for i, p in enumerate(prompts):
            if fault := p.fault():
                raise Error(f"generate: {fault}")
            self._check(p.ids, f"prompt {i}")
            if len(p.ids) >= self.engine.context_limit():
                raise Error(f"prompt {i} has {len(p.ids)} tokens; the model's context of {self.engine.context_limit()} leaves no room for an answer")
            stops.append((*p.stop, *(s for s in self.template.stop_strings if s not in p.stop)))
            requests.append(Request(p.ids, p.max_new_tokens, p.rule, p.seed, self.stop_ids, self._stop_check(stops[-1])))
        for i, result in self.engine.run(requests):
            yield i, Completion(result.ids, self._text(result.ids, stops[i]), result.finish, len(prompts[i].ids), result.seconds)

    def score(self, pairs: list[tuple[list[int], list[int]]]) -> list[Score]:
        """Log-probability of each continuation after its context, (context ids, continuation ids); see score.py.

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

    def _check(self, ids: list[int], what: str = "the sequence") -> list[int]:
        if not ids:
            raise Error(f"{what} is empty; at least one token is needed")
        if min(ids) < 0 or max(ids) >= self.config.vocab_size:
            raise Error(f"{what} holds a token id outside the vocabulary of {self.config.vocab_size}")
        return ids

    def _stop_check(self, stop: tuple[str, ...]):
        """Whether the bytes of the newest tokens end the text at a stop string; a string may span token borders."""
        wanted = [s.encode() for s in stop if s]
        if not wanted:
            return None
        reach = max(map(len, wanted)) + 1  # a token that adds text adds a byte at least

        def stopped(ids: list[int]) -> bool:
            tail = b"".join(self.tokenizer.piece_bytes(i) for i in ids[-reach:])
            if not any(s in tail for s in wanted):
                return False
            text = self._text(ids, ())  # without sentencepiece's first space, which is among the bytes
            return any(s in text for s in stop if s)
        return stopped

    def _text(self, ids: list[int], stop: tuple[str, ...]) -> str:
        text = self.tokenizer.decode([i for i in ids if i not in self.stop_ids])
        cuts = [text.index(s) for s in stop if s and s in text]
        return text[:min(cuts)] if cuts else text


def check_device(device: str) -> None:
    """Raises Error unless tensors can be made on a device."""
    try:
        found = torch.empty(0, device=device).device.type
    except (RuntimeError, AssertionError) as error:
        raise Error(f"device {device!r} cannot be used: {str(error).splitlines()[0][:200]}; name another with --device") from None
    if found == "meta":
        raise Error("device 'meta' cannot be used: it holds no numbers; name another with --device")


def packing(dtype: str, device: str, quantize: str | None) -> str | None:
    """The format in which inference takes a model's matrices (see `kernels.pack`); None for plain tensors. Error if `quantize` cannot be had."""
    if quantize not in (None, "int8", "int4"):
        raise Error(f"quantize {quantize!r} is not known; use int8 or int4")
    kind = torch.device(device).type
    reason = kernels.unpackable(kind) or ("packed products on CPUs are float32" if kind == "cpu" and dtype != "float32" else "")
    if quantize and reason:
        raise Error(f"quantize {quantize!r} cannot be had: {reason}")
    return quantize or ("float32" if kind == "cpu" and not reason else None)


@dataclass(frozen=True)
class Parts:
    """A model without its weights: what a manifest or a count of tokens needs, had in a moment.

    source  the model's directory, or its GGUF file, opened once for all that is read from it
    """
    path: Path
    tokenizer: text_tokenizer.Tokenizer
    template: chat.Template
    source: Source


def parts(model: str | Path | GGUF, template: str | None = None) -> Parts:
    """The parts of a model; arguments as for `redlite.load`, or its GGUF file opened."""
    source = open_source(model)
    path = path_of(source)
    words = text_tokenizer.from_gguf(path, source.metadata) if isinstance(source, GGUF) else text_tokenizer.load(path)
    return Parts(path, words, chat.choose(words, words.chat_template, path.name, template), source)


def fingerprints(model: LM | Parts) -> dict[str, str]:
    """SHA-256 of what decides a model's results: weights (every file, with the config), tokenizer, template."""
    source = model.source if isinstance(model, Parts) else model.path
    return {"weights": checkpoint.fingerprint(source), "tokenizer": model.tokenizer.fingerprint(),
            "template": model.template.fingerprint()}
