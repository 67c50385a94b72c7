"""The model families that redlite runs: each is LLaMA with some switches, and a row of data here.

Source: the configuration and modelling files of transformers 5.24, whose defaults for absent fields stand
here. `config.py` reads a config.json by its row, and `llama.py` builds what the row says.
"""
from dataclasses import dataclass
from typing import Any

# The norms of a block: before the attention, behind it, before the MLP, behind it; "": none stands there.
PRE = ("input_layernorm", "", "post_attention_layernorm", "")
POST = ("", "post_attention_layernorm", "", "post_feedforward_layernorm")
SANDWICH = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
            "post_feedforward_layernorm")
GATED = ("gate_proj", "up_proj", "down_proj")
PLAIN = ("", "up_proj", "down_proj")
Bias = tuple[str, bool]  # the field that turns biases on ("": none does), and what its absence means
NO_BIAS: Bias = ("", False)
ATTENTION_BIAS: Bias = ("attention_bias", False)


@dataclass(frozen=True)
class Family:
    """A model_type: how it differs from LLaMA, and what its absent fields mean.

    kv_heads, head_dim  0: as many as query heads; the width over the query heads
    norm                "rms"; "rms+1": its weight counts from −1; "layer", "layer+1": LayerNorm with biases
    qk_norm             of queries and keys: "head" (each head), "width" (all heads together), "late" (each
                        head, but after the rotation), ""
    mlp                 the names of gate, up and down; without a gate the first is ""
    windows             which layers have a sliding window: "none"; "all"; "late" (from max_window_layers
                        on); "pattern" (all but those with i mod period = rest; with period 0 all);
                        "ropeless" (those without rotation)
    ropeless            which layers lack rotary embedding: "", "listed" (no_rope_layers), "full" (those
                        without a window, if others have one)
    typed_rope          rotary parameters are given for each type of layer
    sliding_theta       the usual rope base of layers with a window, 0: as the others; it needs typed_rope
    partial             the usual share of a head that is rotated; None: always the whole head
    multipliers         Granite's: embedding_multiplier and so on
    sqrt_embedding      embeddings are multiplied by √width
    query_scalar        the usual query_pre_attn_scalar: scores are multiplied by its −½th power
    caps                the usual soft caps of scores and logits; None: it has none
    fused               q, k, v and gate, up are one matrix each in files
    rope                rotary parameters where a file gives none
    reads               fields that only this family has and that change nothing, or that `config.py` names
    expects             fields that must have this value, if they are there: the family has no other
    """
    architecture: str
    kv_heads: int = 0
    head_dim: int = 0
    context: int = 2048
    eps: float = 1e-6
    eps_field: str = "rms_norm_eps"
    tied: bool = False
    theta: float = 10000.0
    norm: str = "rms"
    norms: tuple[str, str, str, str] = PRE
    qk_norm: str = ""
    qk_names: tuple[str, str] = ("q_norm", "k_norm")
    qkv_bias: Bias = NO_BIAS
    o_bias: Bias = NO_BIAS
    mlp_bias: Bias = NO_BIAS
    mlp: tuple[str, str, str] = GATED
    act: str = "silu"
    act_field: str = "hidden_act"
    windows: str = "none"
    window: int | None = None
    period: int = 1
    rest: int = 0
    ropeless: str = ""
    typed_rope: bool = False
    sliding_theta: float = 0.0
    partial: float | None = None
    rope: tuple[tuple[str, object], ...] = ()
    multipliers: bool = False
    logits_multiply: bool = False
    sqrt_embedding: bool = False
    query_scalar: int = 0
    caps: tuple[float | None, float | None] | None = None
    fused: bool = False
    reads: tuple[str, ...] = ()
    expects: tuple[tuple[str, object], ...] = ()

    @property
    def fields(self) -> set[str]:
        """The fields of config.json that only some families have."""
        own = {name for name, _ in (self.qkv_bias, self.o_bias, self.mlp_bias)} - {""}
        own |= {self.eps_field, self.act_field, *self.reads, *dict(self.expects)}
        if self.windows in ("late", "ropeless"):
            own |= {"use_sliding_window"}
        if self.ropeless == "listed":
            own |= {"no_rope_layers", "no_rope_layer_interval"}
        if self.multipliers:
            own |= {"embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier"}
        if self.query_scalar:
            own |= {"query_pre_attn_scalar"}
        if self.caps:
            own |= {"attn_logit_softcapping", "final_logit_softcapping"}
        return own


LLAMA3 = (("rope_type", "llama3"), ("factor", 8.0), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0),
          ("original_max_position_embeddings", 8192))
YARN = (("rope_type", "yarn"), ("factor", 16.0), ("original_max_position_embeddings", 16384),
        ("beta_fast", 32.0), ("beta_slow", 1.0), ("mscale", 1.0), ("mscale_all_dim", 1.0),
        ("llama_4_scaling_beta", 0.1), ("rope_theta", 1000000.0))
BIASED: dict[str, Any] = dict(qkv_bias=ATTENTION_BIAS, o_bias=ATTENTION_BIAS)
GEMMA: dict[str, Any] = dict(head_dim=256, norm="rms+1", act="gelu_pytorch_tanh", sqrt_embedding=True,
                             tied=True, **BIASED)
ALWAYS: Bias = ("", True)

FAMILIES = {
    "llama": Family("LlamaForCausalLM", mlp_bias=("mlp_bias", False), expects=(("activation", "swiglu"),),
                    **BIASED),
    "mistral": Family("MistralForCausalLM", kv_heads=8, context=131072, windows="all", window=4096),
    "qwen2": Family("Qwen2ForCausalLM", kv_heads=32, context=32768, qkv_bias=ALWAYS, windows="late",
                    window=4096),
    "qwen3": Family("Qwen3ForCausalLM", kv_heads=32, head_dim=128, context=32768, qk_norm="head",
                    windows="late", window=4096, **BIASED),
    "smollm3": Family("SmolLM3ForCausalLM", kv_heads=4, context=32768, theta=2000000.0, tied=True,
                      mlp_bias=("mlp_bias", False), windows="ropeless", ropeless="listed", **BIASED),
    "ministral": Family("MinistralForCausalLM", kv_heads=8, context=131072, windows="pattern", window=4096,
                        period=0),
    "ministral3": Family("Ministral3ForCausalLM", kv_heads=8, head_dim=128, context=262144, eps=1e-5,
                         windows="all", rope=YARN),
    "granite": Family("GraniteForCausalLM", mlp_bias=("mlp_bias", False), multipliers=True, **BIASED),
    "olmo2": Family("Olmo2ForCausalLM", eps=1e-5, norms=POST, qk_norm="width", **BIASED),
    "olmo3": Family("Olmo3ForCausalLM", eps=1e-5, norms=POST, qk_norm="width", theta=500000.0,
                    windows="pattern", window=4096, period=4, rest=3, typed_rope=True, **BIASED),
    "phi3": Family("Phi3ForCausalLM", context=4096, eps=1e-5, windows="all", partial=1.0, fused=True,
                   expects=(("full_attn_mod", 1), ("interpolate_factor", 1))),
    "gemma": Family("GemmaForCausalLM", kv_heads=16, context=8192, reads=("hidden_activation",), **GEMMA),
    "gemma2": Family("Gemma2ForCausalLM", kv_heads=4, context=8192, norms=SANDWICH, windows="pattern",
                     window=4096, period=2, rest=1, query_scalar=256, caps=(50.0, 30.0),
                     act_field="hidden_activation", reads=("hidden_act", "sliding_window_size"), **GEMMA),
    "gemma3_text": Family("Gemma3ForCausalLM", kv_heads=4, context=131072, norms=SANDWICH, qk_norm="head",
                          windows="pattern", window=4096, period=6, rest=5, typed_rope=True,
                          theta=1000000.0, sliding_theta=10000.0, query_scalar=256, caps=(None, None),
                          act_field="hidden_activation", reads=("hidden_act", "rope_local_base_freq"),
                          **GEMMA),
    "apertus": Family("ApertusForCausalLM", context=65536, eps=1e-5, theta=12000000.0, qk_norm="head",
                      norms=("attention_layernorm", "", "feedforward_layernorm", ""), mlp=PLAIN,
                      act="xielu", rope=LLAMA3, expects=(("qk_norm", True), ("post_norm", False)),
                      **BIASED),
    "arcee": Family("ArceeForCausalLM", context=4096, eps=1e-5, mlp=PLAIN, act="relu2",
                    mlp_bias=("mlp_bias", False), **BIASED),
    "hunyuan_v1_dense": Family("HunYuanDenseV1ForCausalLM", eps=1e-5, qk_norm="late",
                               qk_names=("query_layernorm", "key_layernorm"), **BIASED),
    "seed_oss": Family("SeedOssForCausalLM", kv_heads=8, head_dim=128, context=524288,
                       qkv_bias=("attention_bias", True), o_bias=("attention_out_bias", False),
                       mlp_bias=("mlp_bias", False)),
    "exaone4": Family("Exaone4ForCausalLM", kv_heads=32, eps=1e-5, norms=POST, qk_norm="head",
                      windows="pattern", window=4096, period=4, rest=3, ropeless="full"),
    "cwm": Family("CwmForCausalLM", kv_heads=8, head_dim=128, context=131072, eps=1e-5, theta=1000000.0,
                  windows="pattern", window=8192, period=4, rest=0, mlp_bias=("mlp_bias", False),
                  rope=(LLAMA3[0], ("factor", 16.0), *LLAMA3[2:])),
    "hyperclovax": Family("HyperCLOVAXForCausalLM", mlp_bias=("mlp_bias", False), multipliers=True,
                          logits_multiply=True, expects=(("use_post_norm", True),),
                          norms=("input_layernorm", "post_norm1", "post_attention_layernorm", "post_norm2"),
                          **BIASED),
    "internlm3": Family("InternLM3ForCausalLM", kv_heads=2, head_dim=128, context=32768, eps=1e-5,
                        mlp_bias=("mlp_bias", False), **BIASED),
    "nemotron": Family("NemotronForCausalLM", context=4096, eps=1e-5, eps_field="norm_eps", norm="layer+1",
                       mlp=PLAIN, act="relu2", partial=0.5, mlp_bias=("mlp_bias", False),
                       reads=("kv_channels",), **BIASED),
    "starcoder2": Family("Starcoder2ForCausalLM", kv_heads=2, context=4096, eps=1e-5,
                         eps_field="norm_epsilon", norm="layer", mlp=("", "c_fc", "c_proj"),
                         act="gelu_pytorch_tanh", tied=True, qkv_bias=("use_bias", True),
                         o_bias=("use_bias", True), mlp_bias=("use_bias", True), windows="all",
                         reads=("activation_function", "attention_softmax_in_fp32", "layer_norm_epsilon",
                                "scale_attention_softmax_in_fp32"),
                         expects=(("norm_type", "layer_norm"), ("mlp_type", "default"),
                                  ("scale_attn_weights", True))),
    "stablelm": Family("StableLmForCausalLM", kv_heads=32, context=4096, eps=1e-5,
                       eps_field="layer_norm_eps", norm="layer", partial=0.25,
                       qkv_bias=("use_qkv_bias", False)),
    "jais2": Family("Jais2ForCausalLM", context=8192, eps=1e-5, eps_field="layer_norm_eps", norm="layer",
                    mlp=PLAIN, act="relu2", qkv_bias=("attention_bias", True),
                    o_bias=("attention_bias", True), mlp_bias=("mlp_bias", True)),
}
