"""The parameters of rotary position embedding in a config.json; `rotary.py` makes the angles. No torch.

A model has up to three kinds of layers: those with the main parameters, those with a sliding window and
parameters of their own, and those without rotation.
"""
import math
from typing import Any, NamedTuple

from redlite.errors import Error
from redlite.model.families import Family
from redlite.model.fields import Reader

MAIN, SLIDING, NONE = range(3)  # the kinds of layers
# The kinds of rotary scaling, with the parameters that each must have and may have.
SCALING: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "linear": (("factor",), ()),
    "dynamic": (("factor",), ()),
    "alpha": (("alpha",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ()),
    "yarn": (("factor",), ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor",
                           "truncate")),
    "longrope": (("short_factor", "long_factor"), ("factor", "attention_factor")),
}
TRAINED = "original_max_position_embeddings"
MOST_FACTORS = 1 << 16


class Rope(NamedTuple):
    """theta: the base; scaling: {"rope_type": a key of SCALING, and its parameters}, or None."""
    theta: float
    scaling: dict[str, Any] | None = None


def read_rope(read: Reader, family: Family, rotated: int, positions: int) -> tuple[Rope, Rope | None]:
    """(the main parameters, those of layers with a window or None for the same).

    They stand in rope_parameters, or in the older rope_scaling and rope_theta. Where both are given,
    rope_scaling counts, as in transformers.
    rotated    numbers of a head that are rotated
    positions  max_position_embeddings
    """
    for name in ("rope_parameters", "rope_scaling"):
        if not isinstance(read.raw.get(name) or {}, dict):
            raise Error(f"{read.where}: {name} must be an object or null")
    newer, older = read.raw.get("rope_parameters") or {}, read.raw.get("rope_scaling") or {}
    if family.typed_rope:
        return _typed(read, family, rotated, positions)
    source = "rope_scaling" if older else "rope_parameters"
    given = older or newer or dict(family.rope)
    theta = read.number("rope_theta", family.theta)
    return _one(Reader(given, f"{read.where}: {source}"), read, family, theta, rotated, positions), None


def _typed(read: Reader, family: Family, rotated: int, positions: int) -> tuple[Rope, Rope | None]:
    """Parameters by type of layer. rope_scaling is for layers without a window, and adds to the others."""
    newer = read.raw.get("rope_parameters") or {}
    parts = {}
    for name in ("full_attention", "sliding_attention"):
        if not isinstance(newer.get(name) or {}, dict):
            raise Error(f"{read.where}: rope_parameters: {name} must be an object or null")
        parts[name] = dict(newer.get(name) or {})
    if unknown := newer.keys() - parts.keys():
        raise Error(f"{read.where}: rope_parameters has {sorted(unknown)[0]!r}; {read.raw['model_type']} "
                    "takes full_attention and sliding_attention there, each with its own parameters")
    parts["full_attention"] |= read.raw.get("rope_scaling") or {}
    # A rope_theta beside them is for the main layers alone: transformers takes the usual one for the others.
    thetas = {"full_attention": read.number("rope_theta", family.theta),
              "sliding_attention": read.number("rope_local_base_freq", family.sliding_theta or family.theta)}
    full, sliding = (
        _one(Reader(parts[name], f"{read.where}: rope_parameters: {name}"), read, family, thetas[name],
             rotated, positions)
        for name in ("full_attention", "sliding_attention"))
    return full, None if sliding == full else sliding


def _one(inner: Reader, read: Reader, family: Family, theta: float, rotated: int, positions: int) -> Rope:
    """The parameters in one object."""
    given = inner.raw
    theta = inner.number("rope_theta", theta)
    kind = given.get("rope_type", given.get("type", "default"))
    if family.fused and kind in ("su", "yarn"):  # older names of Phi-3's
        kind = "longrope"
    if kind == "default" or kind is None:
        return Rope(theta)
    if kind == "dynamic" and given.get("alpha") and family.qk_norm == "late":  # Hunyuan's
        kind = "alpha"
    if not isinstance(kind, str) or kind not in SCALING:
        raise Error(f"{inner.where}: rope_type {kind!r:.60} is not supported; "
                    f"redlite has default, {', '.join(SCALING)}")
    needed, optional = SCALING[kind]
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", TRAINED, *needed, *optional}
    if family.rope and kind == "yarn":  # Ministral 3's
        known |= {"llama_4_scaling_beta", "max_position_embeddings"}
    if kind == "alpha":  # transformers reads nothing else of these
        known |= {"factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"}
    unknown = sorted(map(str, given.keys() - known))
    if unknown:
        raise Error(f"{inner.where}: field {unknown[0][:60]!r} is not part of rope_type {kind}")
    if kind in ("dynamic", "alpha") and rotated <= 2:
        raise Error(f"{inner.where}: rope_type dynamic needs a head_dim above 2")
    scaling: dict[str, Any] = {"rope_type": kind}
    for name in needed:
        if kind != "longrope":
            scaling[name] = inner.number(name)
    if kind in ("llama3", "yarn", "longrope"):
        usual = 4096 if family.fused else positions
        beside = read if read.raw.get(TRAINED) is not None or family.fused else inner
        scaling[TRAINED] = beside.size(TRAINED, usual)
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise Error(f"{inner.where}: high_freq_factor must be above low_freq_factor")
    if kind == "yarn":
        _yarn(inner, scaling, theta)
    if kind == "longrope":
        _longrope(inner, scaling, rotated, positions)
    return Rope(theta, scaling)


def _yarn(inner: Reader, scaling: dict[str, Any], theta: float) -> None:
    """Add YaRN's parameters (arXiv 2309.00071)."""
    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(scaling["factor"]) + 1.0 if scaling["factor"] > 1 else 1.0
    scaling["beta_fast"] = inner.number("beta_fast", 32.0)
    scaling["beta_slow"] = inner.number("beta_slow", 1.0)
    scaling["truncate"] = inner.flag("truncate", True)
    if theta == 1:
        raise Error(f"{inner.where}: rope_type yarn needs a rope_theta other than 1")
    first, second = inner.number("mscale", 0.0, zero=True), inner.number("mscale_all_dim", 0.0, zero=True)
    usual = magnitude(first) / magnitude(second) if first and second else magnitude(1.0)
    scaling["attention_factor"] = inner.number("attention_factor", usual)


def _longrope(inner: Reader, scaling: dict[str, Any], rotated: int, positions: int) -> None:
    """Add LongRoPE's parameters (arXiv 2402.13753)."""
    for name in ("short_factor", "long_factor"):
        factors = inner.raw.get(name)
        good = isinstance(factors, list) and len(factors) == rotated // 2
        if not good or not all(type(f) in (int, float) and 0 < f < 1e18 for f in factors or ()):
            raise Error(f"{inner.where}: {name} must be a list of {rotated // 2} positive numbers, one for "
                        "each pair that is rotated")
        scaling[name] = [float(f) for f in factors or ()]
    factor = inner.number("factor", positions / scaling[TRAINED])
    trained = scaling[TRAINED]
    grows = factor > 1 and trained > 1
    usual = math.sqrt(1 + math.log(factor) / math.log(trained)) if grows else 1.0
    scaling["attention_factor"] = inner.number("attention_factor", usual)
