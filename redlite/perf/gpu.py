"""Times at the shapes of a 7B model with random weights: decoding, a RED-EVAL run, shared-prefix attention, a SAFE-ALIGN step.

Nothing here is bound to a GPU: with a small config the same code runs on a CPU, as the tests do.
"""
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from redlite.inference.cache import Cache
from redlite.inference.engine import Engine, Request
from redlite.model.config import Config
from redlite.model.llama import LLaMA
from redlite.training import dataset, trainer

SEVEN_B = Config("llama", 32000, 4096, 32, 32, 32, 128, 11008, max_positions=4096)
REDEVAL = {"requests": 256, "shared": 362, "own": 140, "new": 200}   # tokens of RED-EVAL's CoU prompt and of its answers


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
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def seconds(body: Callable[[], object], device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    body()
    synchronize(device)
    return time.perf_counter() - start


def decode(model: LLaMA, new: int, rounds: int, device: str) -> dict:
    """Greedy decoding at batch 1: tokens/s, and the bytes/s of weights read (all but the embedding, of which a token reads a row)."""
    engine, prompt = Engine(model), list(range(1, 9))
    took = []
    for _ in range(rounds + 1):
        short, long = (seconds(lambda n=n: list(engine.run([Request(prompt, n)])), device) for n in (1, new + 1))
        took.append((long - short) / new)
    each = sorted(took[1:])[rounds // 2]
    read = sum(p.nbytes for p in model.parameters()) - (0 if model.config.tied else model.model.embed_tokens.weight.nbytes)
    return {"tokens_per_s": 1 / each, "weight_bytes_per_s": read / each}


def redeval(model: LLaMA, shape: dict, device: str) -> dict:
    """Seconds of a RED-EVAL-shaped run: `requests` prompts of `shared` common and `own` tokens each, `new` tokens generated for every one."""
    generator = np.random.default_rng(0)
    draw = lambda n: generator.integers(0, model.config.vocab_size, n).tolist()
    common = draw(shape["shared"])
    requests = [Request([*common, *draw(shape["own"])], shape["new"]) for _ in range(shape["requests"])]
    engine = Engine(model, max_batch=shape["requests"], prefill_tokens=8192)
    list(engine.run([replace(r, max_new_tokens=2) for r in requests]))   # compiles, and captures the graphs
    took = seconds(lambda: list(engine.run(requests)), device)
    return {"seconds": took, "new_tokens_per_s": shape["requests"] * shape["new"] / took}


def shared_prefix(config: Config, batch: int, prefix: int, own: int, rounds: int, dtype: torch.dtype, device: str) -> dict:
    """Seconds of one layer's attention at a generation step: the prefix once for the batch, over a copy of it in each request's own keys."""
    config = replace(config, n_layers=1, windows=())
    random = lambda *shape: torch.randn(*shape, dtype=dtype, device=device)
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
    took = {name: [] for name in attends}
    for _ in range(rounds + 1):
        for name, attend in attends.items():
            took[name].append(seconds(lambda: [attend(0, *new) for _ in range(20)], device) / 20)
    median = {name: sorted(s[1:])[rounds // 2] for name, s in took.items()}
    return median | {"ratio": median["apart"] / median["shared"]}


def align(model: LLaMA, steps: int, conversations: int, tokens: int, tokens_per_batch: int, matrix_flops: float, recompute: bool = True) -> dict:
    """Full fine-tuning by strategy B (capped) on random conversations: tokens/s, memory, and the share of the machine's matrix rate that the model's own 6 · N · T operations take."""
    generator, V = np.random.default_rng(0), model.config.vocab_size
    mask = np.arange(tokens) >= tokens // 3
    examples = [dataset.TokenizedConversation(f"{colour}-{i}", f"{i}", colour, generator.integers(0, V, tokens, dtype=np.int32), mask) for colour in ("blue", "red", "helpful") for i in range(conversations)]
    model.requires_grad_(True)
    mixture = dataset.Mixture(dataset.singles(examples), [dataset.Phase(steps, {"blue": conversations, "red": conversations, "helpful": conversations}, "B")], 0)
    history = trainer.run(model, mixture, trainer.Recipe(learning_rate=1e-6, tokens_per_batch=tokens_per_batch, recompute=recompute, helpful_rise=float("inf"))).history
    model.requires_grad_(False)
    speed = sorted(r["tokens_per_second"] for r in history[1:])[(len(history) - 1) // 2]
    weights = sum(p.numel() for p in model.parameters()) - (0 if model.config.tied else model.model.embed_tokens.weight.numel())
    return {"tokens_per_s": speed, "memory_mb": history[-1]["memory_mb"], "mfu_of_measured_matrix_rate": 6 * weights * speed / matrix_flops}


def run(rounds: int, ceilings: dict, config: Config = SEVEN_B, dtype: torch.dtype = torch.bfloat16, device: str = "cuda", redeval_shape: dict = REDEVAL,
        batch: int = 128, prefix: int = 1000, new: int = 128, conversations: int = 8, tokens: int = 1024, steps: int = 4) -> dict:
    """All of it; `ceilings` as `cli.perf.ceilings` returns them. Prints a line each."""
    found = {"shared_prefix_attention": shared_prefix(config, batch, prefix, 32, rounds, dtype, device)}
    print(f"shared-prefix attention, batch {batch}, prefix {prefix}: apart takes {found['shared_prefix_attention']['ratio']:.2f} × the time of shared", flush=True)
    model = random_model(config, dtype, device)
    found["decode"] = decode(model, new, rounds, device)
    share = found["decode"]["weight_bytes_per_s"] / ceilings["copy_bytes_per_s"]
    print(f"decode, batch 1: {found['decode']['tokens_per_s']:.1f} tokens/s, {found['decode']['weight_bytes_per_s'] / 1e9:.0f} GB/s of weights, {share:.2f} of a copy's", flush=True)
    found["redeval"] = redeval(model, redeval_shape, device)
    print(f"RED-EVAL-shaped, {redeval_shape}: {found['redeval']['seconds']:.2f} s, {found['redeval']['new_tokens_per_s']:.0f} new tokens/s", flush=True)
    found["align"] = align(model, steps, conversations, tokens, 4 * tokens, ceilings["matrix_flops_per_s"])
    print(f"SAFE-ALIGN step, full fine-tuning: {found['align']['tokens_per_s']:.0f} tokens/s, {found['align']['memory_mb']:.0f} MiB, "
          f"{100 * found['align']['mfu_of_measured_matrix_rate']:.0f}% of the measured matrix rate", flush=True)
    return found
