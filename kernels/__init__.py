"""The operations that the model and the losses are made of, each in up to three implementations.

`reference` is plain PyTorch and the definition; `c` is the library built at install, for CPUs; `triton`
is for GPUs (and for CPUs under TRITON_INTERPRET=1, where tests prove it); `torch-flash` is attention on
CPUs by torch's own flash kernel. For each operation the
fastest implementation that exists for the tensors' device serves; the environment variable
REDLITE_KERNELS=reference|c|triton, read once at import, forces one. `implementation(op, device)` says
which one runs, and `why(op, device)` why a faster one does not.

The Triton files are called `<op>_triton.py`, not `<op>.py`: importing a submodule named like the
function would put the module in the function's place.
"""
import os
from functools import lru_cache
from importlib import import_module

import torch

from . import native, reference
from .block_cpu import PackedBlock
from .packed import Packed
from .reference import merge_attention
from .step_cpu import PackedTrunk

FORCED = os.environ.get("REDLITE_KERNELS") or None
if FORCED not in (None, "reference", "c", "triton"):
    raise ValueError(f"REDLITE_KERNELS={FORCED!r}: use reference, c or triton")

# operation → implementation → the module here that defines a function of the operation's name
MODULES = {
    "attention": {"reference": "reference", "torch-flash": "attention_cpu", "triton": "attention_triton"},
    "cached_attention": {"reference": "reference", "c": "decode_cpu", "triton": "decode_triton"},
    "token_nll": {"reference": "reference", "c": "token_nll_cpu", "triton": "token_nll_triton"},
    "rms_norm": {"reference": "reference"},
    "rotary": {"reference": "reference"},
    "swiglu": {"reference": "reference"},
}
PREFERENCE = {"cpu": ("c", "torch-flash", "reference"), "cuda": ("triton", "reference")}


@lru_cache(maxsize=None)
def _unusable(name: str) -> str:
    """Why the implementation `name` cannot run on this machine; "" if it can."""
    if name == "c":
        return native.library()[1]
    if name == "triton":
        try:
            import triton  # noqa: F401
        except ImportError as error:
            return f"triton is not installed ({error})"
    if name == "torch-flash":
        return import_module(f"{__name__}.attention_cpu").unusable()
    return ""


@lru_cache(maxsize=None)
def _choose(op: str, device_type: str):
    """(function, implementation, why not a faster one) for an operation on a kind of device."""
    reasons = []
    for name in (FORCED,) if FORCED else [n for n in PREFERENCE.get(device_type, ("reference",)) if n in MODULES[op]]:
        module = MODULES[op].get(name)
        reason = _unusable(name) if module else f"{op} has no {name} implementation"
        if not reason:
            return getattr(import_module(f"{__name__}.{module}"), op), name, "; ".join(reasons)
        reasons.append(reason)
    return getattr(reference, op), "reference", "; ".join(reasons)


def implementation(op: str, device_type: str = "cpu") -> str:
    """The implementation that serves `op` on "cpu" or "cuda": "reference", "c", "torch-flash" or "triton"."""
    return _choose(op, device_type)[1]


def why(op: str, device_type: str = "cpu") -> str:
    """Why no faster implementation of `op` serves; "" if the first choice does."""
    return _choose(op, device_type)[2]


def attention(q, k, v, q_offsets, k_offsets=None, *, causal=True, window=None, scale=None):
    """Attention over packed sequences; see `reference.attention` for shapes and meaning. Returns (out, log-sum-exp)."""
    return _choose("attention", q.device.type)[0](q, k, v, q_offsets, k_offsets, causal=causal, window=window, scale=scale)


def cached_attention(q, k, v, keys, values, places, prefix=None, *, window=None, scale=None):
    """Attention of a generation step over a shared prefix and the requests' caches; see `reference.cached_attention`.

    prefix: what `shared_prefix` made. The C implementation serves float32 queries only; its caches may be float16.
    """
    function, name, _ = _choose("cached_attention", q.device.type)
    if name == "c" and q.dtype != torch.float32:
        function = reference.cached_attention
    return function(q, k, v, keys, values, places, prefix, window=window, scale=scale)


def shared_prefix(k, v):
    """The keys and values [P, G, K] of a shared prefix in the form that `cached_attention` takes."""
    if k.dtype == torch.float32 and implementation("cached_attention", k.device.type) == "c":
        return import_module(f"{__name__}.decode_cpu").SharedPrefix(k, v)
    return k, v


def token_nll(hidden, weight, targets):
    """−log softmax(hidden @ weight.T)[target] a row, float32 [N]; never holds [N, V]; see `reference.token_nll`."""
    return _choose("token_nll", hidden.device.type)[0](hidden, weight, targets)


def linear(x, weight, bias=None):
    """x @ weight.T + bias, [T, N]; a matrix that `pack` made has its own product (inference), a tensor goes to torch."""
    return torch.nn.functional.linear(x, weight, bias) if isinstance(weight, torch.Tensor) else weight.product(x, bias)


def embedding(ids, weight):
    """Rows of a [V, D] matrix, a tensor or what `pack` made."""
    return torch.nn.functional.embedding(ids, weight) if isinstance(weight, torch.Tensor) else weight.rows(ids)


def unpackable(device_type: str) -> str:
    """Why `pack` cannot make matrices for "cpu" or "cuda"; "" if it can."""
    wanted = {"cpu": "c", "cuda": "triton"}.get(device_type)
    if wanted is None:
        return f"there are no packed products for {device_type}"
    return f"REDLITE_KERNELS={FORCED} has no packed products for {device_type}" if FORCED not in (None, wanted) else _unusable(wanted)


def pack(weight, format, dtype, device):
    """A matrix [N, D] in "int8" or "int4", on CPUs also "float32", for `linear` and `embedding` on that device with activations of `dtype`.

    On CPUs a `packed.Packed` (float32 only), on GPUs a `matmul_triton.PackedTriton`.
    """
    if torch.device(device).type == "cpu":
        return Packed.of(weight, format)
    return import_module(f"{__name__}.matmul_triton").PackedTriton.of(weight, format, dtype, device)


def pack_gguf(kind, raw, shape, dtype, device):
    """As `pack`, of the blocks of a GGUF tensor as they are; kind: a key of packed.GGUF_KINDS, raw: a contiguous uint8 array."""
    if torch.device(device).type == "cpu":
        return Packed.of_gguf(kind, raw, shape)
    return import_module(f"{__name__}.matmul_triton").PackedTriton.of_gguf(kind, raw, shape, dtype, device)


def rms_norm(x, weight, eps):
    """Root-mean-square normalisation of the last axis; see `reference.rms_norm`."""
    return _choose("rms_norm", x.device.type)[0](x, weight, eps)


def rotary(x, cos, sin):
    """Rotary position embedding of packed heads; see `reference.rotary`."""
    return _choose("rotary", x.device.type)[0](x, cos, sin)


def swiglu(gate, up):
    """silu(gate) · up; see `reference.swiglu`."""
    return _choose("swiglu", gate.device.type)[0](gate, up)
