"""The model family against logits that transformers computed (tests/beside/make_model_goldens.py made
them).
"""
import json
from pathlib import Path

import pytest
import torch
from make_model_goldens import IDS, SHOWN, weights

from redlite.errors import Error
from redlite.model.config import Config
from redlite.model.llama import LLaMA
from redlite.model.sequences import PackedSequences, packed_attention

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "logits.json").read_text())["cases"]
PLAIN = {"model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32,
         "num_hidden_layers": 2, "num_attention_heads": 4}


def build(case, source):
    model = LLaMA(Config.from_hf(case[source], "config.json")).eval()
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    model.load_state_dict({n: torch.from_numpy(w) for n, w in weights(shapes, case["seed"]).items()})
    return model


@torch.no_grad()
def run(model, sequences):
    packed = PackedSequences.of(sequences)
    return model.logits(model(packed.ids, packed.positions, packed_attention(model.config, packed.offsets),
                              packed.lengths))


@pytest.mark.parametrize("source", ["config", "given"])
@pytest.mark.parametrize("name", GOLDEN)
def test_logits_equal_transformers(name, source):
    """`config` is the file as transformers 5 writes it, `given` the old short form."""
    case = GOLDEN[name]
    got = run(build(case, source), [IDS])
    assert case["absmax"] > 1
    assert (got[:, SHOWN] - torch.tensor(case["logits"])).abs().max() <= 2e-4


@pytest.mark.parametrize("name", GOLDEN)
def test_packed_sequences_do_not_see_each_other(name):
    model = build(GOLDEN[name], "given")
    pieces = [IDS[:17], IDS[17:18], IDS[18:50]]
    alone = torch.cat([run(model, [p]) for p in pieces])
    assert (run(model, pieces) - alone).abs().max() <= 1e-5


def test_config_survives_the_round_trip():
    for case in GOLDEN.values():
        config = Config.from_hf(case["config"], "config.json")
        assert Config.from_hf(config.to_hf(), "again") == config


@pytest.mark.slow
def test_recomputing_layers_gives_the_same_gradients():
    grads = []
    for recompute in (False, True):
        model = build(GOLDEN["grouped"], "given")
        model.recompute = recompute
        packed = PackedSequences.of([IDS])
        model(packed.ids, packed.positions,
              packed_attention(model.config, packed.offsets)).pow(2).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.model.parameters()]))
    assert torch.equal(*grads) and grads[0].abs().max() > 0


def test_fresh_weights_are_seeded():
    config = Config.from_hf(PLAIN, "x")
    a, b, c = (torch.cat([p.flatten() for p in LLaMA(config).initialize(s).parameters()]) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.parametrize("change, words", [
    ({"model_type": "gpt2"}, "model_type 'gpt2'"),
    ({"hidden_size": None}, "'hidden_size' is missing"),
    ({"hidden_size": "16"}, "'hidden_size'"),
    ({"hidden_size": -16}, "'hidden_size'"),
    ({"num_hidden_layers": 10 ** 12}, "'num_hidden_layers'"),
    ({"num_attention_heads": 3}, "multiple"),
    ({"num_key_value_heads": 3}, "num_key_value_heads"),
    ({"hidden_act": "mish"}, "hidden_act"),
    ({"rope_scaling": {"type": "xpos", "factor": 2}}, "xpos"),
    ({"rope_scaling": {"type": "yarn"}}, "'factor' is missing"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1, 1], "long_factor": [1]}}, "long_factor"),
    ({"rope_scaling": {"type": "linear"}}, "'factor' is missing"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}}, "beta_fast"),
    ({"rope_scaling": [1]}, "rope_scaling"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"sliding_window": 8}, "sliding_window"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ({"head_dim": 5}, "head_dim"),
    ({"is_causal": False}, "'is_causal' is 'False'"),
    ({"is_causal": 0}, "is_causal"),
    ({"use_rope": False}, "use_rope"),
    ({"use_qk_norm": True}, "use_qk_norm"),
    ({"scale_embedding": False}, "scale_embedding"),
    ({"no_rope_layers": [1, 0]}, "no_rope_layers"),
    ({"model_type": "gemma3"}, "save its text model alone, as gemma3_text"),
    ({"model_type": "smollm3", "no_rope_layers": [1, 2]}, "no_rope_layers must hold"),
    ({"model_type": "gemma3_text", "rope_parameters": {"rope_type": "default"}}, "takes full_attention"),
    ({"model_type": "gemma2", "attn_logit_softcapping": -1}, "attn_logit_softcapping"),
    ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ({"model_type": "apertus", "hidden_act": "silu"}, "hidden_act"),
    ({"model_type": "hyperclovax", "use_post_norm": False}, "use_post_norm"),
    ({"model_type": "phi3", "partial_rotary_factor": 1.5}, "rotary"),
    ({"model_type": "stablelm", "use_parallel_residual": True}, "use_parallel_residual"),
])
def test_what_would_change_the_result_is_refused_by_name(change, words):
    with pytest.raises(Error, match=words) as caught:
        Config.from_hf(PLAIN | change, "somewhere/config.json")
    assert "somewhere/config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_long_list_of_unknown_fields_is_cut():
    with pytest.raises(Error) as caught:
        Config.from_hf(PLAIN | {f"odd_{i:04}": i + 1 for i in range(3000)}, "c.json")
    assert "'odd_0000', 'odd_0001', 'odd_0002', 'odd_0003', 'odd_0004' and 2995 more" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_harmless_fields_load():
    """Fields of many public files, which change nothing; the code that auto_map names is never run."""
    more = {"_attn_implementation": "sdpa", "attn_implementation": "flash_attention_2", "finetuning_task":
            "x", "auto_map": {"AutoModelForCausalLM": "modeling_x.X"}, "dtype": "bfloat16",
            "torch_dtype": "float16",
            "is_decoder": False, "add_cross_attention": False, "use_bidirectional_attention": False,
            "_commit_hash": "a", "gradient_checkpointing": False, "qk_layernorm": False, "is_causal": True,
            "use_parallel_residual": False, "output_attentions": False, "some_debug_flag": False,
            "num_labels": 2, "attn_pdrop": None, "rope_interleaved": False, "activation": "swiglu",
            "attn_dropout": 0.1, "use_flash_attn": True, "bos_token": "<s>", "length_penalty": 1.0,
            "no_repeat_ngram_size": 0, "num_return_sequences": 1, "name_or_path": "x"}
    assert Config.from_hf(PLAIN | more, "x") == Config.from_hf(PLAIN, "x")
    for changed in ({"rope_interleaved": True}, {"activation": "geglu"}):
        with pytest.raises(Error, match=next(iter(changed))):
            Config.from_hf(PLAIN | changed, "x")


@pytest.mark.parametrize("kind, more, wrong", [
    ("starcoder2", {"activation_function": "gelu", "attention_softmax_in_fp32": True, "mlp_type": "default",
                    "layer_norm_epsilon": 1e-5, "norm_type": "layer_norm", "scale_attn_weights": True,
                    "scale_attention_softmax_in_fp32": True}, {"norm_type": "rms_norm"}),
    ("nemotron", {"kv_channels": 16}, {"kv_scale": 2}),
    ("gemma2", {"sliding_window_size": 4096}, {"sliding_window": -1}),
])
def test_harmless_fields_of_families(kind, more, wrong):
    """Fields of public files, which transformers 5.24 does not read: configuration_*.py."""
    plain = PLAIN | {"model_type": kind, "num_key_value_heads": 1}
    assert Config.from_hf(plain | more, "x") == Config.from_hf(plain, "x")
    with pytest.raises(Error, match=next(iter(wrong))):
        Config.from_hf(plain | wrong, "x")


def test_rope_scaling_beside_rope_parameters_counts():
    """As in transformers 5.24: `self.rope_parameters = rope_scaling or self.rope_parameters`."""
    yarn = {"rope_type": "yarn", "factor": 4.0}
    both = Config.from_hf(PLAIN | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
                                   "rope_scaling": yarn}, "x")
    assert both == Config.from_hf(PLAIN | {"rope_scaling": yarn}, "x")
    assert both.rope_scaling["rope_type"] == "yarn" and both.rope_theta == 10000.0


def test_old_configs_lack_fields():
    config = Config.from_hf(PLAIN, "x")
    assert (config.n_kv_heads, config.rope_theta, config.max_positions, config.windows) == (4, 10000.0, 2048,
                                                                                            (None, None))


def test_qwen2_has_biases_that_no_field_announces_and_a_window_that_is_off():
    config = Config.from_hf(PLAIN | {"model_type": "qwen2", "num_key_value_heads": 2, "sliding_window": 8,
                                     "use_sliding_window": False}, "x")
    assert config.qkv_bias and not config.o_bias and config.windows == (None, None)
