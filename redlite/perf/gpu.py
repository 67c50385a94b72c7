"""Times at the shapes of a 7B model with random weights: decoding, RED-EVAL, shared prefixes, SAFE-ALIGN.

Nothing here is bound to a GPU: with a small config the same code runs on a CPU, as the tests do.
"""
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from redlite.inference.cache import Cache
from redlite.inference.engine import Engine, Request
from redlite.model.config import Config
from redlite.model.llama import LLaMA
from redlite.model.sequences import Attend
from redlite.training import dataset, trainer

SEVEN_B = Config("llama", 32000, 4096, 32, 32, 32, 128, 11008, max_positions=4096)
# Tokens of RED-EVAL's CoU prompt and of its answers.
REDEVAL = {"requests": 256, "shared": 362, "own": 140, "new": 200}
Figures = dict[str, Any]


def random_model(config: Config, dtype: torch.dtype, device: str) -> LLaMA:
    """A model on the device, its matrices drawn there from normal(0, 0.02)."""
    with torch.device("meta"):
        model = LLaMA(config).to(dtype)
    model = model.to_empty(device=device)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1.0) if "norm" in name else p.normal_(0, 0.02)
    return model.eval().requires_grad_(False)


def synchronize(device: str) -> None:
    """Wait until the device is done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def seconds(body: Callable[[], object], device: str) -> float:
    """How long a body takes, its work on the device included."""
    synchronize(device)
    start = time.perf_counter()
    body()
    synchronize(device)
    return time.perf_counter() - start


def multiplied(model: LLaMA) -> list[torch.Tensor]:
    """The weights that every token is multiplied by: all but an embedding of which it only reads a row."""
    embedding = model.model.embed_tokens.weight
    return [p for p in model.parameters() if model.config.tied or p is not embedding]


def decode(model: LLaMA, new: int, rounds: int, device: str) -> Figures:
    """Greedy decoding at batch 1: tokens/s, and the bytes/s of weights read."""
    engine, prompt = Engine(model), list(range(1, 9))
    took = []
    for _ in range(rounds + 1):
        short = seconds(lambda: list(engine.run([Request(prompt, 1)])), device)
        long = seconds(lambda: list(engine.run([Request(prompt, new + 1)])), device)
        took.append((long - short) / new)
    each = sorted(took[1:])[rounds // 2]
    return {"tokens_per_s": 1 / each, "weight_bytes_per_s": sum(p.nbytes for p in multiplied(model)) / each}


def redeval(model: LLaMA, shape: dict[str, int], device: str) -> Figures:
    """Seconds of a RED-EVAL-shaped run: `requests` prompts of `shared` common and `own` tokens each.

    `new` tokens are generated for every one.
    """
    generator = np.random.default_rng(0)

    def draw(n: int) -> list[int]:
        ids: list[int] = generator.integers(0, model.config.vocab_size, n).tolist()
        return ids
    common = draw(shape["shared"])
    requests = [Request([*common, *draw(shape["own"])], shape["new"]) for _ in range(shape["requests"])]
    engine = Engine(model, max_batch=shape["requests"], prefill_tokens=8192)
    list(engine.run([replace(r, max_new_tokens=2) for r in requests]))   # compiles, and captures the graphs
    took = seconds(lambda: list(engine.run(requests)), device)
    return {"seconds": took, "new_tokens_per_s": shape["requests"] * shape["new"] / took}


def shared_prefix(config: Config, batch: int, prefix: int, own: int, rounds: int, dtype: torch.dtype,
                  device: str) -> Figures:
    """Seconds of one layer's attention at a generation step.

    "shared" has the prefix once for the batch, "apart" a copy of it among each request's own keys.
    """
    config = replace(config, n_layers=1, windows=())

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, device=device)
    G, K = config.n_kv_heads, config.head_dim
    new = random(batch, config.n_heads, K), random(batch, G, K), random(batch, G, K)
    attends = {}
    for name, before in (("shared", own), ("apart", own + prefix)):
        cache = Cache(config, batch, dtype, torch.device(device))
        cache.reserve(before + 1)
        for store in (cache.keys[0], cache.values[0]):
            store.normal_()
        if name == "shared":
            cache.prefix = [(random(prefix, G, K), random(prefix, G, K))]
        attends[name] = cache.attend_step(torch.full((batch,), before, dtype=torch.int64, device=device))

    def steps(attend: Attend) -> Callable[[], object]:
        return lambda: [attend(0, *new) for _ in range(20)]
    took: dict[str, list[float]] = {name: [] for name in attends}
    for _ in range(rounds + 1):
        for name, attend in attends.items():
            took[name].append(seconds(steps(attend), device) / 20)
    median = {name: sorted(s[1:])[rounds // 2] for name, s in took.items()}
    return median | {"ratio": median["apart"] / median["shared"]}


def align(model: LLaMA, steps: int, conversations: int, tokens: int, tokens_per_batch: int,
          matrix_flops: float, recompute: bool = True) -> Figures:
    """Full fine-tuning by strategy B (capped) on random conversations: tokens/s and memory.

    Also the share of the machine's matrix rate that the model's own 6 · N · T operations take.
    """
    generator, V = np.random.default_rng(0), model.config.vocab_size
    mask, examples = np.arange(tokens) >= tokens // 3, []
    for colour in ("blue", "red", "helpful"):
        for i in range(conversations):
            ids = generator.integers(0, V, tokens, dtype=np.int32)
            examples.append(dataset.TokenizedConversation(f"{colour}-{i}", f"{i}", colour, ids, mask))
    streams = dataset.singles(examples)
    mixture = dataset.Mixture(streams, [dataset.Phase(steps, dict.fromkeys(streams, conversations), "B")], 0)
    recipe = trainer.Recipe(learning_rate=1e-6, tokens_per_batch=tokens_per_batch, recompute=recompute,
                            helpful_rise=float("inf"))
    model.requires_grad_(True)
    history = trainer.run(model, mixture, recipe).history
    model.requires_grad_(False)
    speed = sorted(r["tokens_per_second"] for r in history[1:])[(len(history) - 1) // 2]
    weights = sum(p.numel() for p in multiplied(model))
    return {"tokens_per_s": speed, "memory_mb": history[-1]["memory_mb"],
            "mfu_of_measured_matrix_rate": 6 * weights * speed / matrix_flops}


def run(rounds: int, ceilings: Figures, config: Config = SEVEN_B, dtype: torch.dtype = torch.bfloat16,
        device: str = "cuda", redeval_shape: dict[str, int] = REDEVAL, batch: int = 128, prefix: int = 1000,
        new: int = 128, conversations: int = 8, tokens: int = 1024, steps: int = 4) -> Figures:
    """All of it; `ceilings` as `perf.cpu.ceilings` returns them. Prints a line each."""
    attention = shared_prefix(config, batch, prefix, 32, rounds, dtype, device)
    print(f"shared-prefix attention, batch {batch}, prefix {prefix}: "
          f"apart takes {attention['ratio']:.2f} × the time of shared", flush=True)
    model = random_model(config, dtype, device)
    decoding = decode(model, new, rounds, device)
    read = decoding["weight_bytes_per_s"]
    print(f"decode, batch 1: {decoding['tokens_per_s']:.1f} tokens/s, {read / 1e9:.0f} GB/s of weights, "
          f"{read / ceilings['copy_bytes_per_s']:.2f} of a copy's", flush=True)
    red = redeval(model, redeval_shape, device)
    print(f"RED-EVAL-shaped, {redeval_shape}: {red['seconds']:.2f} s, "
          f"{red['new_tokens_per_s']:.0f} new tokens/s", flush=True)
    training = align(model, steps, conversations, tokens, 4 * tokens, ceilings["matrix_flops_per_s"])
    print(f"SAFE-ALIGN step, full fine-tuning: {training['tokens_per_s']:.0f} tokens/s, "
          f"{training['memory_mb']:.0f} MiB, {100 * training['mfu_of_measured_matrix_rate']:.0f}% "
          "of the measured matrix rate", flush=True)
    return {"shared_prefix_attention": attention, "decode": decoding, "redeval": red, "align": training}
