"""The parameters of a model by its `Config`: names and shapes, without building it; no torch."""
from redlite.model.config import Config

Shapes = dict[str, tuple[int, ...]]


def shapes(config: Config) -> Shapes:
    """name → shape of every parameter of `llama.LLaMA`."""
    ends = {"model.embed_tokens.weight": (config.vocab_size, config.dim)}
    if not config.tied:
        ends["lm_head.weight"] = (config.vocab_size, config.dim)
    layer = _layer(config)
    return ends | _norm("model.norm", config.dim, config.family.norm) | {
        f"model.layers.{i}.{name}": shape for i in range(config.n_layers) for name, shape in layer.items()}


def _layer(config: Config) -> Shapes:
    family, size = config.family, config.head_dim
    queries, keys = config.n_heads * size, config.n_kv_heads * size
    found: Shapes = {}
    for name in filter(None, family.norms):
        found |= _norm(name, config.dim, family.norm)
    for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        found |= _linear(f"self_attn.{name}", rows, config.dim, config.qkv_bias)
    found |= _linear("self_attn.o_proj", config.dim, queries, config.o_bias)
    if family.qk_norm:
        for name, width in zip(family.qk_names, (queries, keys), strict=True):
            found |= _norm(f"self_attn.{name}", width if family.qk_norm == "width" else size, "rms")
    *wide, down = filter(None, family.mlp)
    for name in wide:
        found |= _linear(f"mlp.{name}", config.ffn_dim, config.dim, config.mlp_bias)
    found |= _linear(f"mlp.{down}", config.dim, config.ffn_dim, config.mlp_bias)
    if config.act == "xielu":
        found |= {"mlp.act_fn.alpha_p": (1,), "mlp.act_fn.alpha_n": (1,), "mlp.act_fn.beta": (),
                  "mlp.act_fn.eps": ()}
    return found


def _linear(name: str, rows: int, columns: int, bias: bool) -> Shapes:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def _norm(name: str, size: int, kind: str) -> Shapes:
    """kind: as in `families.Family.norm`"""
    found: Shapes = {f"{name}.weight": (size,)}
    return found | ({f"{name}.bias": (size,)} if kind.startswith("layer") else {})
