"""Times of single operations and of generation, beside torch's and the machine's ceilings, taken in turns.

Each function prints a line of its figures and returns them. `device` "cuda" takes shapes of a GPU's size.
"""
import math
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from redlite import kernels
from redlite.errors import Error
from redlite.inference import prefix
from redlite.inference.engine import Request
from redlite.inference.lm import LM
from redlite.kernels.cpu import library
from redlite.kernels.cpu.packed import CODES

Key = TypeVar("Key")
Figures = dict[str, Any]
TEXT = "The history of the city begins with a river. "


def in_turns(rounds: int, sides: Mapping[Key, Callable[[], object]],
             wait: Callable[[], object] = lambda: None) -> dict[Key, float]:
    """Median seconds of each side, over `rounds` turns after one that warms up.

    wait  returns when the device is done
    """
    seconds: dict[Key, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, body in sides.items():
            wait()
            start = time.perf_counter()
            body()
            wait()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def wait_for(device: str) -> Callable[[], object]:
    """What returns when a device is done."""
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def loops() -> dict[str, str]:
    """The instruction set of the C loops that serve, by kernel; {} without the C library. Prints them.

    Loops are named by the narrowest set that has the same ones, since a wider set may have none of its own.
    """
    if library.missing():
        return {}
    c = library.library()
    chosen: dict[str, Callable[[], object]] = {
        f"products, {name}": partial(c.rl_product_loop, code) for name, code in CODES.items()}
    chosen["attention, elementwise, loss, decoding"] = c.rl_loops
    used, found = {kernel: loop() for kernel, loop in chosen.items()}, dict[str, str]()
    for name in reversed(library.isas()[library.isas().index(library.isa()):]):
        with library.using(name):
            for kernel, loop in chosen.items():
                if kernel not in found and loop() == used[kernel]:
                    found[kernel] = name
    print("; ".join(f"{kernel}: {name}" for kernel, name in found.items()))
    return found


def ceilings(rounds: int, device: str = "cpu") -> Figures:
    """Bytes/s of a large copy, read and written, and operations/s of a float32 (GPU: bfloat16) product."""
    size, dtype = (2048, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    source = torch.ones(64 << 20, device=device)
    target, a = torch.empty_like(source), torch.ones(size, size, dtype=dtype, device=device)
    sides = {"copy": lambda: target.copy_(source), "product": lambda: a @ a}
    took = in_turns(rounds, sides, wait_for(device))
    copied, computed = 2 * source.nbytes / took["copy"], 2 * size ** 3 / took["product"]
    print(f"ceilings: copy {copied / 1e9:.1f} GB/s, {str(dtype)[6:]} product {computed / 1e9:.0f} GFLOP/s")
    return {"copy_bytes_per_s": copied, "matrix_flops_per_s": computed}


def attention(rounds: int, device: str = "cpu") -> Figures:
    """Causal attention of one sequence, forward and backward, against torch's own."""
    T, H, K, dtype = (1024, 9, 64, torch.float32) if device == "cpu" else (4096, 32, 128, torch.bfloat16)
    q, k, v, d = (torch.randn(T, H, K, dtype=dtype, device=device) for _ in range(4))
    for x in (q, k, v):
        x.requires_grad_()
    offsets = torch.tensor([0, T], dtype=torch.int32, device=device)

    def ours() -> Tensor:
        return kernels.attention(q, k, v, offsets)[0]

    def torchs() -> Tensor:
        q_1HTK, k_1HTK, v_1HTK = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(q_1HTK, k_1HTK, v_1HTK, is_causal=True)
        return out[0].transpose(0, 1)

    def backward(out: Tensor) -> Callable[[], object]:
        return lambda: torch.autograd.grad(out, (q, k, v), d, retain_graph=True)
    wait = wait_for(device)
    forward = in_turns(rounds, {"redlite": ours, "torch": torchs}, wait)
    back = in_turns(rounds, {"redlite": backward(ours()), "torch": backward(torchs())}, wait)
    used = kernels.implementation("attention", device)
    print(f"attention ({used}), {T} tokens x {H} x {K} {str(dtype)[6:]}, speed over torch's: "
          f"forward {forward['torch'] / forward['redlite']:.2f}, "
          f"backward {back['torch'] / back['redlite']:.2f}")
    return {"implementation": used, "forward_seconds": forward, "backward_seconds": back}


def decode(path: str, tokens: int, rounds: int, device: str = "cpu") -> Figures:
    """Tokens/s of greedy generation at batch 1 and 32 behind a prompt of 8 tokens, by format of the weights.

    Also the bytes/s of weights that batch 1 reads.
    """
    found = {}
    for quantize in (None, "int8", "int4"):
        lm = LM.load(path, "float32" if device == "cpu" else "bfloat16", device, quantize)
        lm.engine.guesses = False   # a step for each token, which reads all weights
        prompt = lm.tokenizer.encode(TEXT)[:8]

        def generate(n: int, new: int, lm: LM = lm, prompt: list[int] = prompt) -> Callable[[], object]:
            return lambda: list(lm.engine.run([Request(prompt, new) for _ in range(n)]))
        sides = {(n, new): generate(n, new) for n in (1, 32) for new in (1, tokens + 1)}
        took = in_turns(rounds, sides)
        speed = {n: n * tokens / (took[n, tokens + 1] - took[n, 1]) for n in (1, 32)}
        size = sum(_bytes(m.weight) for m in lm.model.modules() if hasattr(m, "weight"))
        name, read = quantize or lm.dtype, size * speed[1]
        found[name] = {"tokens_per_s": {str(n): s for n, s in speed.items()}, "weight_bytes_per_s": read}
        print(f"decode, {name}: {speed[1]:.1f} tokens/s at batch 1 ({read / 1e9:.1f} GB/s of weights), "
              f"{speed[32]:.1f} at batch 32")
    return found


def _bytes(weight: Any) -> int:
    """Of a tensor or a packed matrix."""
    return int(weight.buffer.nbytes if hasattr(weight, "buffer") else weight.nbytes)


def shared_prefix(path: str, tokens: int, rounds: int, device: str = "cpu") -> Figures:
    """Time of 32 requests with P common and 16 own prompt tokens: each prefix apart, over once for all.

    Its figures set prefix.SHARED_AT_LEAST.
    """
    lm = LM.load(path, "float32" if device == "cpu" else "bfloat16", device)
    words, usual, found = lm.tokenizer.encode(TEXT * 100), prefix.SHARED_AT_LEAST, {}

    def run(common: int, least: int) -> Callable[[], None]:
        requests = [Request([*words[:common], *words[i + 1:i + 17]], tokens) for i in range(32)]

        def body() -> None:
            prefix.SHARED_AT_LEAST = least
            try:
                list(lm.engine.run(requests))
            finally:
                prefix.SHARED_AT_LEAST = usual
        return body
    for common in (4, 8, 16, 64, 362):
        took = in_turns(rounds, {"shared": run(common, 1), "apart": run(common, 1 << 30)})
        found[str(common)] = took["apart"] / took["shared"]
        print(f"32 requests, {common} common prompt tokens, {tokens} new: "
              f"apart takes {found[str(common)]:.2f} × the time of shared", flush=True)
    return found


def perplexity(path: str, text: str, window: int = 512) -> Figures:
    """exp of the mean NLL of a text file by format of the weights.

    Each token of a window, but its first, is predicted from those of its window before it.
    """
    try:
        words = Path(text).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"{text}: cannot be read as UTF-8 text ({error})", "text") from None
    found: Figures = {}
    for name in ("float32", "bfloat16", "int8", "int4"):
        lm = LM.load(path, name) if "float" in name else LM.load(path, quantize=name)
        ids = lm.tokenizer.encode(words)
        windows = [ids[i:i + window] for i in range(0, len(ids) - 1, window)]
        scores = [lm.score([(w[:1], w[1:])])[0] for w in windows if len(w) > 1]
        tokens = sum(len(s.per_token) for s in scores)
        found[name] = math.exp(-sum(s.logprob for s in scores) / tokens)
        more = 100 * (found[name] / found["float32"] - 1)
        print(f"perplexity, {name}: {found[name]:.4f} over {tokens} tokens ({more:+.2f}%)", flush=True)
        found["tokens"] = tokens
    return found


def matmul(rounds: int) -> Figures:
    """Bytes/s that one-row products of packed weights read, at a 7B model's shapes, beside a plain read."""
    words = torch.ones(64 << 20, dtype=torch.int32)
    plain = words.nbytes / in_turns(rounds, {"read": lambda: words.sum(dtype=torch.int32)})["read"]
    found = {"read_bytes_per_s": plain}
    for columns, inputs in ((11008, 4096), (32000, 4096)):
        weight, x = torch.randn(columns, inputs), torch.randn(1, inputs)
        packed = {f: kernels.PackedMatrix.of(weight, f) for f in ("float32", "int8", "int4")}
        took = in_turns(rounds, {f: partial(m.product, x) for f, m in packed.items()})
        for f, m in packed.items():
            read = m.buffer.nbytes / took[f]
            found[f"{inputs}x{columns} {f}"] = read
            print(f"one row × {inputs} × {columns}, {f}: {read / 1e9:.1f} GB/s, "
                  f"{read / plain:.2f} of a plain read's {plain / 1e9:.1f}")
    return found
