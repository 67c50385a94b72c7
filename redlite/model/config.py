"""A model's config.json, checked: every field that would change the result is read or refused by name."""
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from redlite.errors import Error
from redlite.model.families import FAMILIES, Family
from redlite.model.fields import LARGEST, Reader
from redlite.model.rope import MAIN, NONE, SLIDING, TRAINED, Rope, read_rope

FULL_TYPE, SLIDING_TYPE = LAYER_TYPES = ("full_attention", "sliding_attention")
QWEN2_FULL_LAYERS = 28
MOST_LAYERS = 512
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh",
               "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu", "relu2": "relu2"}
# Models around a text model that redlite runs: what to do about them.
WRAPPED = {"gemma3": "gemma3_text", "mistral3": "mistral or ministral3", "llava": "llama"}


@dataclass(frozen=True)
class Config:
    """The shape of a model: its family's row and the sizes and switches of its config.json.

    dim, head_dim, ffn_dim  widths of the model, of a head, of the MLP
    rope_theta, rope_scaling  see `rope.Rope`
    sliding_rope            that of layers with a window, where it differs
    max_positions           tokens of context that the model was trained for
    tied                    whether the embedding is also the output matrix
    windows                 for each layer its sliding window in tokens, the token itself counted, or None
    ropeless                for each layer whether its queries and keys are not rotated
    rotated                 numbers of a head that are rotated, from the first on; 0: all
    act                     "silu", "gelu", "gelu_tanh", "relu", "relu2" or "xielu"
    embedding_scale, residual_scale, logit_scale  multipliers
    attention_scale         of the scores; None: 1/√head_dim
    attention_cap, logit_cap  x becomes cap · tanh(x / cap); None: no cap
    query_growth            (β, trained context): queries grow by 1 + β ln(1 + ⌊position / context⌋)
    """
    model_type: str
    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    max_positions: int = 2048
    tied: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    windows: tuple[int | None, ...] = ()
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    sliding_rope: Rope | None = None
    ropeless: tuple[bool, ...] = ()
    rotated: int = 0
    act: str = "silu"
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    attention_scale: float | None = None
    attention_cap: float | None = None
    logit_cap: float | None = None
    query_growth: tuple[float, int] | None = None

    def __post_init__(self) -> None:
        usual = {"windows": (None,) * self.n_layers, "ropeless": (False,) * self.n_layers,
                 "rotated": self.head_dim}
        for name, value in usual.items():
            if not getattr(self, name):
                object.__setattr__(self, name, value)

    @property
    def family(self) -> Family:
        """What the model's family has in common."""
        return FAMILIES[self.model_type]

    @property
    def weights(self) -> int:
        """How many numbers the model's matrices hold; norms and biases are left out."""
        attention = 2 * self.dim * self.head_dim * (self.n_heads + self.n_kv_heads)
        mlp = self.dim * self.ffn_dim * sum(map(bool, self.family.mlp))
        ends = self.vocab_size * self.dim * (1 if self.tied else 2)
        return self.n_layers * (attention + mlp) + ends

    @cached_property
    def rope_kinds(self) -> tuple[int, ...]:
        """For each layer the kind of its rotation, an index into `rope.Tables`."""
        own = SLIDING if self.sliding_rope else MAIN
        return tuple(NONE if bare else MAIN if window is None else own
                     for bare, window in zip(self.ropeless, self.windows, strict=True))

    @staticmethod
    def from_hf(raw: dict, where: str) -> "Config":
        """Read a Hugging Face config.json that is parsed already; `where` names the file in errors.

        Raises Error for a family that redlite does not run, a missing or impossible value, and any field
        that is not known to be harmless, by name.
        """
        read = Reader(raw, where)
        kind = read.text("model_type")
        if kind not in FAMILIES:
            raise Error(f"{where}: {_unsupported(kind)}")
        family = FAMILIES[kind]
        read.refuse_unknown(family.fields)
        _check_expected(read, family)
        heads, layers = read.size("num_attention_heads"), read.size("num_hidden_layers", most=MOST_LAYERS)
        dim, positions = read.size("hidden_size"), read.size("max_position_embeddings", family.context)
        kv_heads, head_dim = _heads(read, family, dim, heads)
        rotated = _rotated(read, family, head_dim)
        rope, sliding_rope = read_rope(read, family, rotated, positions)
        types, window = _layer_types(read, family, layers)
        windows = tuple(window if t == SLIDING_TYPE else None for t in types)
        return Config(
            model_type=kind, vocab_size=read.size("vocab_size"), dim=dim, n_layers=layers, n_heads=heads,
            n_kv_heads=kv_heads, head_dim=head_dim, ffn_dim=read.size("intermediate_size"),
            norm_eps=read.number(family.eps_field, family.eps), rope_theta=rope.theta,
            rope_scaling=rope.scaling, max_positions=positions,
            tied=read.flag("tie_word_embeddings", family.tied), qkv_bias=_flag(read, family.qkv_bias),
            o_bias=_flag(read, family.o_bias), mlp_bias=_flag(read, family.mlp_bias), windows=windows,
            bos_id=read.token("bos_token_id"), eos_ids=read.tokens("eos_token_id"),
            pad_id=read.token("pad_token_id"),
            sliding_rope=sliding_rope if any(windows) else None,
            ropeless=_ropeless(read, family, layers, windows), rotated=rotated, act=_act(read, family),
            query_growth=_query_growth(read, family, rope), **_scales(read, family, dim, head_dim))

    def to_hf(self) -> dict:
        """A config.json that gives this model again, in transformers as in redlite."""
        ends, family = list(self.eos_ids), self.family
        out = {
            "architectures": [family.architecture], "model_type": self.model_type,
            "vocab_size": self.vocab_size, "hidden_size": self.dim, "intermediate_size": self.ffn_dim,
            "num_hidden_layers": self.n_layers, "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads, "head_dim": self.head_dim,
            family.act_field: "gelu_pytorch_tanh" if self.act == "gelu_tanh" else self.act,
            family.eps_field: self.norm_eps, "rope_theta": self.rope_theta, "rope_scaling": self.rope_scaling,
            "max_position_embeddings": self.max_positions, "tie_word_embeddings": self.tied,
            "bos_token_id": self.bos_id, "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
            "pad_token_id": self.pad_id,
        }
        for (field, _), value in ((family.qkv_bias, self.qkv_bias), (family.o_bias, self.o_bias),
                                  (family.mlp_bias, self.mlp_bias)):
            if field:
                out[field] = value
        return out | self._rope_to_hf() | self._windows_to_hf() | self._scales_to_hf()

    def _rope_to_hf(self) -> dict:
        """The fields of rotary embedding that are not the same for all families."""
        family, scaling = self.family, self.rope_scaling
        out: dict[str, Any] = {}
        if family.partial is not None:
            out["partial_rotary_factor"] = self.rotated / self.head_dim
        if scaling and scaling["rope_type"] == "alpha":
            out["rope_scaling"] = scaling | {"rope_type": "dynamic"}
        if family.fused and scaling:
            out[TRAINED] = scaling[TRAINED]
        if self.query_growth and scaling:
            out["rope_scaling"] = scaling | {"llama_4_scaling_beta": self.query_growth[0]}
        elif family.rope and not scaling:  # null would mean the usual scaling
            out["rope_parameters"] = {"rope_type": "default", "rope_theta": self.rope_theta}
        if family.typed_rope:
            main = Rope(self.rope_theta, scaling)
            both = zip(LAYER_TYPES, (main, self.sliding_rope or main), strict=True)
            out["rope_parameters"] = {
                name: {"rope_type": "default", "rope_theta": rope.theta} | (rope.scaling or {})
                for name, rope in both}
            out["rope_scaling"] = None
            if family.sliding_theta and not self.sliding_rope:
                out["rope_local_base_freq"] = self.rope_theta
        return out

    def _windows_to_hf(self) -> dict:
        family, window = self.family, next((w for w in self.windows if w is not None), None)
        types = [FULL_TYPE if w is None else SLIDING_TYPE for w in self.windows]
        out: dict[str, Any] = {}
        if family.windows != "none":
            out["sliding_window"] = window
        if family.windows in ("late", "ropeless"):
            out["use_sliding_window"] = window is not None
        if family.windows not in ("none", "all"):
            out["layer_types"] = types
        if family.ropeless == "listed":
            out["no_rope_layers"] = [int(not bare) for bare in self.ropeless]
        return out

    def _scales_to_hf(self) -> dict:
        family = self.family
        out: dict[str, Any] = {}
        if family.multipliers:
            scale = self.logit_scale if family.logits_multiply else 1 / self.logit_scale
            out = {"embedding_multiplier": self.embedding_scale, "residual_multiplier": self.residual_scale,
                   "logits_scaling": scale,
                   "attention_multiplier": self.attention_scale or self.head_dim**-0.5}
        if family.query_scalar and self.attention_scale:
            scalar = self.attention_scale**-2
            out["query_pre_attn_scalar"] = round(scalar) if abs(scalar - round(scalar)) < 1e-6 else scalar
        if family.caps:
            out |= {"attn_logit_softcapping": self.attention_cap, "final_logit_softcapping": self.logit_cap}
        return out


def _unsupported(kind: str) -> str:
    """Why a model_type is refused."""
    if kind in WRAPPED:
        return (f"model_type {kind!r} holds more than a text model, which redlite does not run; "
                f"save its text model alone, as {WRAPPED[kind]}")
    known = ", ".join(list(FAMILIES)[:8])
    return (f"model_type {kind[:40]!r} is not supported; redlite runs {known} and {len(FAMILIES) - 8} more "
            "families, which redlite/model/families.py lists")


def _check_expected(read: Reader, family: Family) -> None:
    """Raises Error for fields whose other values redlite, or transformers, does not follow."""
    for name, wanted in (("is_causal", True), ("use_bidirectional_attention", False), *family.expects):
        value = read.raw.get(name)
        if value is not None and (type(value) is not type(wanted) or value != wanted):
            raise Error(f"{read.where}: field {name!r} is {str(value)[:60]!r}; "
                        f"redlite runs {read.raw['model_type']} models only with {wanted!r}")


def _flag(read: Reader, bias: tuple[str, bool]) -> bool:
    field, usual = bias
    return read.flag(field, usual) if field else usual


def _heads(read: Reader, family: Family, dim: int, heads: int) -> tuple[int, int]:
    """(key/value heads, head size) of a model with so many query heads."""
    raw, where = read.raw, read.where
    given = raw.get("head_dim", family.head_dim or None)  # to transformers, null is not absent
    if given is None and dim % heads:
        raise Error(f"{where}: hidden_size {dim} is no multiple of num_attention_heads {heads}, "
                    "and there is no head_dim")
    usual = family.kv_heads or heads
    if raw.get("num_key_value_heads", usual) is None:
        usual = heads
    kv_heads = read.size("num_key_value_heads", usual)
    if heads % kv_heads:
        raise Error(f"{where}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    head_dim = dim // heads if given is None else read.size("head_dim", family.head_dim or None)
    if heads * head_dim > LARGEST:
        raise Error(f"{where}: {heads} heads of {head_dim} numbers are more than {LARGEST}")
    return kv_heads, head_dim


def _rotated(read: Reader, family: Family, head_dim: int) -> int:
    """Numbers of a head that are rotated."""
    inner = read.raw.get("rope_parameters") or read.raw.get("rope_scaling") or {}
    given = [read.number("partial_rotary_factor", family.partial or 1.0)]
    if isinstance(inner, dict) and inner.get("partial_rotary_factor") is not None:
        given = [Reader(inner, f"{read.where}: rope_parameters").number("partial_rotary_factor")]
    if family.partial is None and given[0] != 1:
        raise Error(f"{read.where}: partial_rotary_factor other than 1 is not a field of "
                    f"{read.raw['model_type']} models")
    rotated = int(head_dim * given[0]) if given[0] <= 1 else 0
    if rotated % 2 or not rotated:
        raise Error(f"{read.where}: head_dim {head_dim} of which {rotated} numbers are rotated does not do; "
                    "rotary embedding needs pairs")
    return rotated


def _act(read: Reader, family: Family) -> str:
    """The MLP's activation."""
    name = read.text(family.act_field, family.act)
    if read.raw["model_type"] == "gemma" and name == "gelu":  # as transformers: the releases meant the other
        name = "gelu_pytorch_tanh"
    if name == "xielu" == family.act:
        return name
    if name not in ACTIVATIONS or family.act == "xielu":
        raise Error(f"{read.where}: {family.act_field} {name[:40]!r} is not supported for "
                    f"{read.raw['model_type']}; {family.act} is usual")
    return ACTIVATIONS[name]


def _layer_types(read: Reader, family: Family, layers: int) -> tuple[list[str], int | None]:
    """(the type of every layer, the sliding window of those that have one)."""
    raw, where, kind = read.raw, read.where, read.raw["model_type"]
    window = None if raw.get("sliding_window") is None else read.size("sliding_window")
    if "sliding_window" not in raw:
        window = family.window
    types = raw.get("layer_types")
    good = isinstance(types, list) and len(types) == layers and all(t in LAYER_TYPES for t in types)
    if types is not None and not good:
        raise Error(f"{where}: layer_types must name full_attention or sliding_attention "
                    f"for each of the {layers} layers")
    flagged = family.windows in ("late", "ropeless")
    on = read.flag("use_sliding_window", False) if flagged else family.windows != "none"
    if family.windows == "none" and (raw.get("sliding_window") is not None or SLIDING_TYPE in (types or ())):
        raise Error(f"{where}: sliding_window is not a field of {kind} models; "
                    "remove it or correct model_type")
    if family.windows == "all" and types is not None and len(set(types)) > 1:
        raise Error(f"{where}: layer_types that alternate are not supported for {kind}")
    if window is None or not on:
        return [FULL_TYPE] * layers, None
    if types and family.windows != "all":
        return types, window
    return [SLIDING_TYPE if slides else FULL_TYPE for slides in _usual(read, family, layers)], window


def _usual(read: Reader, family: Family, layers: int) -> list[bool]:
    """Whether each layer has a window, where no layer_types say."""
    if family.windows == "late":
        first = read.size("max_window_layers", QWEN2_FULL_LAYERS, least=0)
        return [i >= first for i in range(layers)]
    if family.windows == "ropeless":
        return list(_ropeless(read, family, layers, ()))
    if family.windows == "all" or not family.period:
        return [True] * layers
    period, rest = family.period, family.rest
    if family.sliding_theta or family.ropeless == "full":  # Gemma 3 and EXAONE 4 name the period
        named = next((n for n in ("_sliding_window_pattern",) if n in read.raw), "sliding_window_pattern")
        period = read.size(named, period)
        rest = period - 1
    return [i % period != rest for i in range(layers)]


def _ropeless(read: Reader, family: Family, layers: int,
              windows: tuple[int | None, ...]) -> tuple[bool, ...]:
    """Whether each layer's queries and keys are not rotated."""
    if family.ropeless == "full":
        return tuple(w is None and read.raw.get("sliding_window", family.window) is not None for w in windows)
    if family.ropeless != "listed":
        return (False,) * layers
    listed = read.raw.get("no_rope_layers")
    if listed is None:
        interval = read.size("no_rope_layer_interval", 4)
        return tuple((i + 1) % interval == 0 for i in range(layers))
    if not isinstance(listed, list) or len(listed) < layers or any(v not in (0, 1) for v in listed):
        raise Error(f"{read.where}: no_rope_layers must hold 1 (rotated) or 0 for each of {layers} layers")
    return tuple(v == 0 for v in listed[:layers])


def _query_growth(read: Reader, family: Family, rope: Rope) -> tuple[float, int] | None:
    """Ministral 3's growth of queries."""
    if "llama_4_scaling_beta" not in dict(family.rope):
        return None
    given = read.raw.get("rope_scaling") or read.raw.get("rope_parameters") or dict(family.rope)
    beta = Reader(given, f"{read.where}: rope_parameters").number("llama_4_scaling_beta", 0.0, zero=True)
    return (beta, rope.scaling[TRAINED]) if beta and rope.scaling and TRAINED in rope.scaling else None


def _scales(read: Reader, family: Family, dim: int, head_dim: int) -> dict[str, Any]:
    """The multipliers and caps."""
    found: dict[str, Any] = {}
    if family.sqrt_embedding:
        found["embedding_scale"] = math.sqrt(dim)
    if family.multipliers:
        scale = read.number("logits_scaling", 1.0)
        found = {"embedding_scale": read.number("embedding_multiplier", 1.0),
                 "residual_scale": read.number("residual_multiplier", 1.0),
                 "logit_scale": scale if family.logits_multiply else 1 / scale,
                 "attention_scale": read.number("attention_multiplier",
                                                head_dim**-0.5 if family.logits_multiply else 1.0)}
    if family.query_scalar:
        found["attention_scale"] = read.number("query_pre_attn_scalar", family.query_scalar) ** -0.5
    if family.caps:
        for name, usual, ours in zip(("attn_logit_softcapping", "final_logit_softcapping"), family.caps,
                                     ("attention_cap", "logit_cap"), strict=True):
            given = read.raw.get(name, usual)  # to transformers, null is not absent
            found[ours] = None if given is None else read.number(name, usual)
    return found
