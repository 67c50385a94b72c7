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
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"rope_scaling": {"type": "yarn", "factor": 2}}, "yarn"),
    ({"rope_scaling": {"type": "linear"}}, "'factor' is missing"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}}, "beta_fast"),
    ({"rope_scaling": [1]}, "rope_scaling"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"sliding_window": 8}, "sliding_window"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ({"head_dim": 5}, "head_dim"),
])
def test_what_would_change_the_result_is_refused_by_name(change, words):
    with pytest.raises(Error, match=words) as caught:
        Config.from_hf(PLAIN | change, "somewhere/config.json")
    assert "somewhere/config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_old_configs_lack_fields():
    config = Config.from_hf(PLAIN, "x")
    assert (config.n_kv_heads, config.rope_theta, config.max_positions, config.windows) == (4, 10000.0, 2048,
                                                                                            (None, None))


def test_qwen2_has_biases_that_no_field_announces_and_a_window_that_is_off():
    config = Config.from_hf(PLAIN | {"model_type": "qwen2", "num_key_value_heads": 2, "sliding_window": 8,
                                     "use_sliding_window": False}, "x")
    assert config.qkv_bias and not config.o_bias and config.windows == (None, None)
