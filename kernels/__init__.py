"""The operations that the model and the losses are made of, each in up to three implementations.

- `reference`: plain PyTorch; the definition.
- `c`: the library built at install, for CPUs; `torch-flash`: attention on CPUs by torch's own flash kernel.
- `triton`: for GPUs, and for CPUs under TRITON_INTERPRET=1, where tests prove it.

The fastest one that exists for the tensors' device serves. The environment variable
REDLITE_KERNELS=reference|c|triton, read at import, forces one. `implementation(op, device)` says which one
runs, `why(op, device)` why no faster one does. REDLITE_ISA=portable|avx2|…, read at import too, has the C
library use that instruction set (README.md lists them) rather than the widest that the processor has.

Shape letters: T tokens of all sequences packed end to end, S keys likewise, H query heads, G key/value heads,
K head size, B requests, P tokens of a shared prefix, N rows or output columns, D hidden width, V vocabulary.
"""
import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from . import reference
from .cpu import library
from .cpu.cached_attention import SharedPrefix
from .cpu.frozen import FrozenMatrix
from .cpu.packed import PackedMatrix
from .cpu.transformer import ACTIVATIONS as PACKED_ACTIVATIONS
from .cpu.transformer import PackedBlock, PackedTrunk
from .reference import ACTIVATIONS, Update, merge_attention, softcap

__all__ = [
    "ACTIVATIONS", "FORCED", "FORCED_ISA", "FrozenMatrix", "MODULES", "PACKED_ACTIVATIONS", "PackedBlock",
    "PackedMatrix", "PackedTrunk", "PackedWeight", "Update", "adamw", "attention", "cached_attention",
    "embedding", "gated", "implementation", "linear", "merge_attention", "notice", "pack", "pack_gguf",
    "rms_norm", "rotary", "shared_prefix", "softcap", "square_sum", "token_nll", "unpackable", "unusable",
    "why"]
FORCED = os.environ.get("REDLITE_KERNELS") or None
if FORCED not in (None, "reference", "c", "triton"):
    raise ValueError(f"REDLITE_KERNELS={FORCED!r}: use reference, c or triton")
FORCED_ISA = os.environ.get("REDLITE_ISA") or None
if FORCED_ISA is not None:
    library.force(FORCED_ISA)

# operation → implementation → the module here that defines a function of the operation's name
MODULES = {
    **{name: {"reference": "reference", "c": "cpu.optimizer"} for name in ("adamw", "square_sum")},
    **{name: {"reference": "reference", "c": "cpu.elementwise"} for name in ("rms_norm", "rotary", "gated")},
    "attention": {
        "reference": "reference", "torch-flash": "cpu.flash_attention",
        "triton": "triton.attention"}, "cached_attention": {
            "reference": "reference", "c": "cpu.cached_attention", "triton": "triton.cached_attention"},
    "token_nll": {"reference": "reference", "c": "cpu.token_nll", "triton": "triton.token_nll"}, }
PREFERENCE = {"cpu": ("c", "torch-flash", "reference"), "cuda": ("triton", "reference")}
Prefix = tuple[Tensor, Tensor] | SharedPrefix  # what `shared_prefix` makes


class PackedWeight(Protocol):
    """A matrix [N, D] that `pack` made. `shape`, `dtype` and `device` are those of the matrix that it stands
    for.
    """

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def product(self, x_TD: Tensor, bias_N: Tensor | None = None) -> Tensor:
        """x @ matrix.T + bias, [T, N]."""

    def rows(self, ids: Tensor) -> Tensor:
        """The matrix's rows at int64 ids [T]: [T, D]."""


class Choice(NamedTuple):
    """An operation's function, its implementation, and why no faster one serves ("": it is the first choice).
    """
    function: Callable[..., Any]
    name: str
    why: str


@cache
def unusable(name: str, device_type: str = "cpu") -> str:
    """Why the implementation `name` cannot run on "cpu" or "cuda" of this machine; "" if it can."""
    if name == "c":
        return library.missing()
    if name == "triton":
        try:
            return str(import_module(f"{__name__}.triton.token_nll").unusable(device_type))
        except ImportError as error:
            return f"triton is not installed ({error})"
    if name == "torch-flash":
        return str(import_module(f"{__name__}.cpu.flash_attention").unusable())
    return ""


@cache
def _choose(op: str, device_type: str) -> Choice:
    """The implementation of an operation on a kind of device."""
    reasons = []
    names = PREFERENCE.get(device_type, ("reference",)) if FORCED is None else (FORCED,)
    for name in names:
        if name not in MODULES[op]:
            if FORCED:
                reasons.append(f"{op} has no {name} implementation")
            continue
        if reason := unusable(name, device_type):
            reasons.append(reason)
            continue
        return Choice(getattr(import_module(f"{__name__}.{MODULES[op][name]}"), op), name, "; ".join(reasons))
    return Choice(getattr(reference, op), "reference", "; ".join(reasons))


def implementation(op: str, device_type: str = "cpu") -> str:
    """The implementation that serves `op`, a key of MODULES, on "cpu" or "cuda".

    One of "reference", "c", "torch-flash" and "triton".
    """
    return _choose(op, device_type).name


def why(op: str, device_type: str = "cpu") -> str:
    """Why no faster implementation of `op` serves; "" if the first choice does."""
    return _choose(op, device_type).why


def notice() -> str:
    """One line for the user if the C library should serve but cannot: what is wrong, and how to mend it; else
    "".
    """
    reason = library.missing() if FORCED in (None, "c") else ""
    return reason and f"the reference kernels serve, which are slower: {reason}"


def attention(q: Tensor, k: Tensor, v: Tensor, q_offsets: Tensor, k_offsets: Tensor | None = None, *,
              causal: bool = True, window: int | None = None, scale: float | None = None,
              cap: float | None = None) -> tuple[Tensor, Tensor]:
    """Attention over packed sequences, differentiable in q, k and v.

    | argument | shape, dtype | meaning |
    |---|---|---|
    | q | [T, H, K] float32, bfloat16, float16 | queries of all sequences |
    | k, v | [S, G, K], q's dtype | keys and values; H is a multiple of G |
    | q_offsets | [B + 1] integers | where each sequence's queries begin; the last is T |
    | k_offsets | [B + 1] integers, or None | the same for keys; None: as the queries |
    | causal | bool | a query sees its own key and those before it; the last query stands at the last key |
    | window | int ≥ 1, or None | it sees only the last `window` of those |
    | scale | float > 0, or None | of the scores; None: 1/√K |
    | cap | float > 0, or None | scaled scores become `softcap` of them; only the reference does this |

    Returns out [T, H, K] in q's dtype, and the log-sum-exp of the scaled scores [T, H], float32. A query that
    sees no key has out 0 and log-sum-exp −∞. Raises ValueError where the arguments do not fit together.
    """
    if cap is not None:
        return reference.attention(q, k, v, q_offsets, k_offsets, causal=causal, window=window, scale=scale,
                                   cap=cap)
    function: Callable[..., tuple[Tensor, Tensor]] = _choose("attention", q.device.type).function
    return function(q, k, v, q_offsets, k_offsets, causal=causal, window=window, scale=scale)


def cached_attention(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, places: Tensor,
                     prefix: Prefix | None = None, *, window: int | None = None,
                     scale: float | None = None, cap: float | None = None) -> Tensor:
    """Attention of a generation step: each request's new key and value go into its cache, then its query
    attends.

    | argument | shape, dtype | meaning |
    |---|---|---|
    | q | [B, H, K] | the query of each request's new token |
    | k, v | [B, G, K], q's dtype | its key and value |
    | keys, values | [B or more, G, S, K], contiguous | the caches, written in place; C takes 16 bits too |
    | places | [B] int64, 0 to S − 1 | where request b's new key goes; its query sees the keys up to there |
    | prefix | what `shared_prefix` made, or None | keys and values that come before every cache |
    | window | int ≥ 1, or None | a query sees only the last `window` keys |
    | scale | float > 0, or None | of the scores; None: 1/√K |
    | cap | float > 0, or None | as for `attention` |

    Returns [B, H, K] in q's dtype. Raises ValueError where the arguments do not fit together.
    """
    choice = _choose("cached_attention", q.device.type)
    # The C implementation serves float32 queries only, and Triton's has no cap.
    served = q.dtype == torch.float32 if choice.name == "c" else cap is None
    function: Callable[..., Tensor] = choice.function if served else reference.cached_attention
    more = {} if cap is None else {"cap": cap}
    return function(q, k, v, keys, values, places, prefix, window=window, scale=scale, **more)


def shared_prefix(k: Tensor, v: Tensor, kept: torch.dtype = torch.float32) -> Prefix:
    """The keys and values [P, G, K] of a prefix that all requests share, as `cached_attention` takes them.

    kept  the dtype of the caches that go with it: in C, those of bfloat16 want a prefix of bfloat16
    """
    if k.dtype == torch.float32 and implementation("cached_attention", k.device.type) == "c":
        return SharedPrefix(k, v, kept)
    return k, v


def token_nll(hidden: Tensor, weight: Tensor | FrozenMatrix, targets: Tensor) -> Tensor:
    """−log softmax(hidden @ weight.T)[target] of each row, float32 [N]; the logits [N, V] are never held.

    | argument | shape, dtype | meaning |
    |---|---|---|
    | hidden | [N, D] float32, bfloat16, float16 | last hidden states |
    | weight | [V, D] float32, bfloat16, float16, or a `FrozenMatrix` | output weights |
    | targets | [N] int64 or int32 | 0 to V − 1; −100: the row gives 0, without work or gradient |

    Differentiable in hidden and a tensor of weights, for any upstream gradient: one number a row, of any
    sign. Raises ValueError where the arguments do not fit together, or a target is outside the vocabulary.
    """
    function: Callable[..., Tensor] = _choose("token_nll", hidden.device.type).function
    return function(hidden, weight, targets)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / √(mean x² + eps) · weight over the last axis (arXiv 1910.07467), differentiable in x and weight.

    x [..., D] float32, bfloat16 or float16; weight [D]. The mean is taken in float32; bfloat16 is rounded
    before the weight multiplies it, and after. Returns x's shape and dtype.
    """
    function: Callable[..., Tensor] = _choose("rms_norm", x.device.type).function
    return function(x, weight, eps)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [T, H, K] with the first R numbers of each head rotated (`reference.rotary`), differentiable in x.

    cos, sin [T, R] in x's dtype, R ≤ K: of each pair's angle, written twice.
    """
    function: Callable[..., Tensor] = _choose("rotary", x.device.type).function
    return function(x, cos, sin)


def gated(act: str, gate: Tensor, up: Tensor) -> Tensor:
    """act(gate) · up, both [T, F], with an activation of ACTIVATIONS; differentiable in both."""
    function: Callable[..., Tensor] = _choose("gated", gate.device.type).function
    return function(act, gate, up)


def adamw(weight: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, update: Update,
          generator: torch.Generator) -> None:
    """A step of AdamW (arXiv 1711.05101) over one tensor, in place, computed in float32.

    | argument | shape, dtype | meaning |
    |---|---|---|
    | weight, mean, square | one size and dtype, float32 or bfloat16, contiguous | the weight, its moments |
    | gradient | the same size, float32 or bfloat16 | |
    | update | `Update` | the step's number, its rate and the other factors |
    | generator | on the weight's device | its numbers decide how bfloat16 is rounded; float32 draws none |

    bfloat16 is rounded up with the probability that makes the expected value exact. Implementations draw
    different bits for this. Raises ValueError where sizes differ.
    """
    _choose("adamw", weight.device.type).function(weight, mean, square, gradient, update, generator)


def square_sum(x: Tensor) -> Tensor:
    """Σ x² over a tensor of floats: float64 []. It is infinite where a square leaves float32's range."""
    function: Callable[..., Tensor] = _choose("square_sum", x.device.type).function
    return function(x)


def linear(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias.

    | argument | shape, dtype | meaning |
    |---|---|---|
    | x | [T, D] | activations |
    | weight | [N, D] | a tensor of x's dtype; a matrix that `pack` made (inference only); a `FrozenMatrix` |
    | bias | [N], or None | |

    Returns [T, N] in x's dtype.
    """
    if isinstance(weight, Tensor):
        return torch.nn.functional.linear(x, weight, bias)
    return weight.product(x, bias)


def embedding(ids: Tensor, weight: Tensor | PackedWeight) -> Tensor:
    """The rows [T, D] at int64 ids [T] of a matrix [V, D], which is a tensor or what `pack` made."""
    return torch.nn.functional.embedding(ids, weight) if isinstance(weight, Tensor) else weight.rows(ids)


def unpackable(device_type: str) -> str:
    """Why `pack` cannot make matrices for "cpu" or "cuda"; "" if it can."""
    wanted = {"cpu": "c", "cuda": "triton"}.get(device_type)
    if wanted is None:
        return f"there are no packed products for {device_type}"
    if FORCED not in (None, wanted):
        return f"REDLITE_KERNELS={FORCED} has no packed products for {device_type}"
    return unusable(wanted, device_type)


def pack(weight: Tensor, format: str, dtype: torch.dtype, device: str | torch.device) -> PackedWeight:
    """A matrix packed for `linear` and `embedding`, for inference.

    | argument | shape, dtype | meaning |
    |---|---|---|
    | weight | [N, D] float32, bfloat16, float16 | the matrix |
    | format | "int8", "int4"; on CPUs also "float32", "bfloat16" | integers have a scale for each 32 inputs |
    | dtype | float32; on GPUs also bfloat16, float16 | of the activations |
    | device | "cpu", "cuda" or a torch device | where the products run |

    Raises RuntimeError if the device has no packed products; `unpackable` says why.
    """
    if torch.device(device).type == "cpu":
        return PackedMatrix.of(weight, format)
    packed: PackedWeight = _triton_packed().of(weight, format, dtype, device)
    return packed


def pack_gguf(kind: str, raw: np.ndarray, shape: tuple[int, int], dtype: torch.dtype,
              device: str | torch.device) -> PackedWeight:
    """As `pack`, for GPUs, from the blocks of a GGUF tensor as they are; on CPUs `PackedMatrix.read` does
    this.

    | argument | shape, dtype | meaning |
    |---|---|---|
    | kind | "Q8_0", "Q4_0" or "Q4_1" | the tensor's type |
    | raw | uint8, contiguous | the blocks |
    | shape | (N, D), D a multiple of 32 | of the matrix |
    """
    packed: PackedWeight = _triton_packed().of_gguf(kind, raw, shape, dtype, device)
    return packed


def _triton_packed() -> Any:
    return import_module(f"{__name__}.triton.packed").PackedTriton
