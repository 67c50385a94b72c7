"""PEFT adapters against PEFT's own logits; what changes the result and is not read is refused by name."""
import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import test_checkpoint as made
import torch
from make_adapter_goldens import SEED, TIED_TWICE, values
from make_model_goldens import BASE, weights

import redlite
from redlite import kernels
from redlite.cli import redeval
from redlite.errors import Error
from redlite.inference import lm
from redlite.model.config import Config
from redlite.model.llama import LLaMA
from redlite.weights import adapter, checkpoint, fit, fused, hf_files
from redlite.weights.source import open_source, resolve

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "adapters.json").read_text())["cases"]


def base_of(folder, name):
    """The base of a golden case, as a directory."""
    raw = {"model_type": "llama", **BASE, **GOLDEN[name]["base"]}
    with torch.device("meta"):
        model = LLaMA(Config.from_hf(raw, "x"))
    held = fused.joined(dict(model.named_parameters()), model.config)
    shapes = {n: (sum(map(len, parts)), *parts[0].shape[1:]) for n, parts in held.items()}
    return made.write_directory(folder / "base", raw, weights(shapes, SEED))


def adapter_of(folder, name, tensors=None, **change):
    """The adapter of a golden case, its configuration changed; a field that is ... is left out."""
    path = folder / "adapter"
    path.mkdir(exist_ok=True)
    config = GOLDEN[name]["config"] | change
    config = {field: value for field, value in config.items() if value is not ...}
    (path / "adapter_config.json").write_text(json.dumps(config))
    found = {n: torch.from_numpy(w) for n, w in values(GOLDEN[name]["shapes"], TIED_TWICE in name).items()}
    safetensors.torch.save_file({n: t for n, t in (found | (tensors or {})).items() if t is not ...},
                                path / "adapter_model.safetensors")
    return path


def load(base, path, **options):
    found = adapter.read(path)
    config = found.config(checkpoint.read_config(base)[0])
    with torch.device("meta"):
        model = LLaMA(config)
    checkpoint.load_weights(model, base, adapter=found, **options)
    return model.eval()


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_are_those_of_peft(tmp_path, name):
    base, path = base_of(tmp_path, name), adapter_of(tmp_path, name)
    expected = torch.tensor(GOLDEN[name]["logits"])
    assert (made.logits(made.load(base)) - expected).abs().max() > 0.01
    assert (made.logits(load(base, path)) - expected).abs().max() <= 1e-5
    if not kernels.unpackable("cpu"):
        assert (made.logits(load(base, path, packed="float32")) - expected).abs().max() <= 1e-5
        assert (made.logits(load(base, path, packed="int8")) - expected).abs().max() <= 0.2


def test_fused_and_split_matrices_meet(tmp_path):
    """An adapter of Phi-3's fused matrices fits a base that keeps them apart, and the other way round."""
    fused_base = dict(safetensors.torch.load_file(base_of(tmp_path, "fused") / "model.safetensors"))
    raw = {"model_type": "phi3", **BASE, "pad_token_id": 0, "sliding_window": None}
    with torch.device("meta"):
        model = LLaMA(Config.from_hf(raw, "x"))
    stored = {n: hf_files.Mapped(t, n) for n, t in fused_base.items()}
    apart = {n: torch.empty(t.shape) for n, t in fused.split(stored, model.config).items()}
    for name, tensor in fused.split(stored, model.config).items():
        tensor.fill(apart[name])
    split = raw | {"model_type": "llama", "rms_norm_eps": 1e-5}
    base = made.write_directory(tmp_path / "apart", split, apart)
    for name in ("fused", "fused, dora"):
        expected = torch.tensor(GOLDEN[name]["logits"])
        assert (made.logits(load(base, adapter_of(tmp_path, name))) - expected).abs().max() <= 1e-5
    plain = dict(safetensors.torch.load_file(base_of(tmp_path, "patterns") / "model.safetensors"))
    for i in range(BASE["num_hidden_layers"]):
        for whole, parts in fit.FUSED.items():
            rows = [plain.pop(f"model.layers.{i}.{part}.weight") for part in parts]
            plain[f"model.layers.{i}.{whole}.weight"] = torch.cat(rows)
    base = made.write_directory(tmp_path / "together", raw | {"rms_norm_eps": 1e-6}, plain)
    for name in ("patterns", "dora"):
        expected = torch.tensor(GOLDEN[name]["logits"])
        assert (made.logits(load(base, adapter_of(tmp_path, name))) - expected).abs().max() <= 1e-5


def test_rows_that_do_not_fit_the_base(tmp_path):
    path = adapter_of(tmp_path, "tokens", trainable_token_indices=[211, 7, 3])
    with pytest.raises(Error, match="trainable_tokens_delta' is for token 211 of a vocabulary of 211"):
        load(base_of(tmp_path, "tokens"), path)
    with pytest.raises(Error, match="rows for the embedding alone, which the base does not use"):
        load(base_of(tmp_path, "tokens"), adapter_of(tmp_path, "tokens, tied, both"))


def test_a_merged_matrix_is_rounded_once(tmp_path):
    base, path = base_of(tmp_path, "plain"), adapter_of(tmp_path, "plain")
    whole = dict(load(base, path).named_parameters())
    for name, parameter in load(base, path, dtype=torch.bfloat16).named_parameters():
        assert torch.equal(parameter, whole[name].to(torch.bfloat16)), name


# ---- what is refused ----

@pytest.mark.parametrize("change, words", [
    ({"peft_type": "IA3"}, "peft_type is 'IA3'; redlite reads LORA"),
    ({"peft_type": ...}, "peft_type is None"),
    ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa' changes the base's weights too"),
    ({"init_lora_weights": 1}, "init_lora_weights 1 changes"),
    ({"bias": "some"}, "bias is 'some'"),
    ({"use_rslora": 1}, "use_rslora is 1; true or false"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out is true"),
    ({"lora_bias": True}, "field 'lora_bias' is not known"),
    ({"trainable_token_indices": [3]}, "trainable_token_indices and the file .* differ on model.embed"),
    ({"trainable_token_indices": [3, 3]}, "trainable_token_indices has .*3, 3.*; different ids"),
    ({"trainable_token_indices": {"lm_head": [-1]}}, "trainable_token_indices has .*-1"),
    ({"trainable_token_indices": {"q_proj": [1]}}, "trainable_token_indices has .*q_proj"),
    ({"trainable_token_indices": 7}, "trainable_token_indices has .*7"),
    ({"alora_invocation_tokens": [1, 2]}, "field 'alora_invocation_tokens'"),
    ({"target_parameters": ["experts"]}, "field 'target_parameters'"),
    ({"later": False}, "field 'later' is not known"),
    ({"later": 1, "mode": 2, "z": 3}, r"field 'later' \(and 2 more fields\) is not known"),
    ({"r": "4"}, "r .* is '4'; a number is needed"),
    ({"r": 5}, "does not fit rank 5"),
    ({"lora_alpha": ...}, "lora_alpha .* is None"),
    ({"lora_alpha": float("nan")}, "lora_alpha .* is nan"),
    ({"rank_pattern": [1]}, r"rank_pattern is \[1\]; an object"),
    ({"rank_pattern": {"q_proj": 3}}, "does not fit rank 3"),
    ({"alpha_pattern": {"(a+)+$": 3}}, "a regular expression that may take for ever"),
    ({"alpha_pattern": {"q_proj[": 3}}, "which is no regular expression"),
    ({"target_modules": ["q_proj"]}, "target_modules and the file of weights differ on .*v_proj"),
    ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "differ on 'k_proj'"),
    ({"target_modules": 3}, "target_modules is 3"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save has 'lm_head', of which"),
    ({"use_dora": True}, "lora_A, lora_B, lora_magnitude_vector are needed"),
])
def test_configurations_that_are_refused(tmp_path, change, words):
    path = adapter_of(tmp_path, "plain", **change)
    with pytest.raises(Error, match=words) as caught:
        adapter.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


FIRST = "base_model.model.model.layers.0.self_attn.q_proj."


@pytest.mark.parametrize("tensors, words", [
    ({FIRST + "lora_A.weight": ...}, "has lora_B; lora_A, lora_B are needed"),
    ({FIRST + "lora_magnitude_vector": torch.ones(48)}, "lora_magnitude_vector; lora_A, lora_B are needed"),
    ({FIRST + "ia3_l": torch.ones(48)}, "is of no kind that redlite reads"),
    ({"model.norm.weight": torch.ones(48)}, "is of no kind that redlite reads"),
    ({FIRST + "lora_A.weight": torch.ones(4, 47)}, "do not fit the base's"),
    ({FIRST + "lora_A.weight": torch.full((4, 48), float("nan"))}, "lora_A.weight.*NaN or infinite"),
    ({FIRST.replace("layers.0", "layers.9") + f"lora_{s}.weight": torch.ones(*shape)
      for s, shape in (("A", (4, 48)), ("B", (48, 4)))}, "belongs to no matrix of the model"),
    ({"base_model.model.lm_head.weight": torch.ones(211, 47)}, r"has shape \[211, 47\] and the base's"),
    ({"base_model.model.lm_head.weight": torch.ones(213, 48)},
     r"has shape \[213, 48\] for a vocabulary of 211, and the adapter has no .* of one size"),
    ({"base_model.model.lm_head.weight": torch.ones(213, 48),
      "base_model.model.model.embed_tokens.weight": torch.ones(212, 48)}, "of one size"),
])
def test_tensors_that_are_refused(tmp_path, tensors, words):
    base = base_of(tmp_path, "plain")
    path = adapter_of(tmp_path, "plain", tensors)
    with pytest.raises(Error, match=words) as caught:
        load(base, path)
    assert "\n" not in str(caught.value)


def test_tying_that_peft_would_keep_is_refused(tmp_path):
    base = base_of(tmp_path, "tied, head saved")
    path = adapter_of(tmp_path, "tied, head saved", ensure_weight_tying=True)
    with pytest.raises(Error, match="ensure_weight_tying is not supported where the adapter changes lm_head"):
        load(base, path)


def test_a_directory_that_is_no_adapter(tmp_path):
    with pytest.raises(Error, match="has no adapter_config.json"):
        adapter.read(tmp_path)
    path = adapter_of(tmp_path, "plain")
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(Error, match="has no adapter_model.safetensors"):
        adapter.read(path)


def test_an_adapter_as_the_model_says_what_to_give(tmp_path):
    path = adapter_of(tmp_path, "plain", base_model_name_or_path="org/base-7b")
    expected = f"{path}: is an adapter of org/base-7b: give --model org/base-7b --adapter {path}"
    with pytest.raises(Error, match=re.escape(expected)):
        redlite.load(path)
    adapter_of(tmp_path, "plain", base_model_name_or_path=...)
    with pytest.raises(Error, match="is an adapter of BASE: give --model BASE --adapter"):
        open_source(path)


# ---- through redlite.load and the commands ----

@pytest.fixture
def organisms(tmp_path):
    """write(scale) makes an adapter of one matrix of the embedded model, and gives its directory."""
    shapes = {n: t.shape for n, t in hf_files.tensors(resolve("organism")).items()}
    rows, columns = shapes["model.layers.0.mlp.up_proj.weight"]
    name, path = "base_model.model.model.layers.0.mlp.up_proj.lora_", tmp_path / "mine"
    path.mkdir()
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["up_proj"]}
    (path / "adapter_config.json").write_text(json.dumps(config))

    def write(scale):
        tensors = {name + "A.weight": torch.ones(1, columns), name + "B.weight": torch.full((rows, 1), scale)}
        safetensors.torch.save_file(tensors, path / "adapter_model.safetensors")
        return path
    return write


def test_the_organism_with_an_adapter(organisms):
    plain = redlite.load("organism")
    nothing = redlite.load("organism", adapter=organisms(0.0))
    assert torch.equal(nothing.logits([1, 2, 3]), plain.logits([1, 2, 3]))
    changed = redlite.load("organism", adapter=organisms(0.05))
    assert (changed.logits([1, 2, 3]) - plain.logits([1, 2, 3])).abs().max() > 1e-3
    found = changed.fingerprints()
    assert {k: v for k, v in found.items() if k != "adapter"} == plain.fingerprints()
    assert lm.fingerprints(lm.parts("organism", adapter=organisms(0.06)))["adapter"] != found["adapter"]


def test_an_adapter_that_adds_a_token(organisms):
    path, plain = organisms(0.0), redlite.load("organism")
    tensors = safetensors.torch.load_file(path / "adapter_model.safetensors")
    rows = plain.model.model.embed_tokens(torch.arange(plain.config.vocab_size))    # tied
    name = "base_model.model.model.embed_tokens.weight"
    tensors[name] = torch.cat([rows, torch.zeros(1, rows.shape[1])])
    safetensors.torch.save_file(tensors, path / "adapter_model.safetensors")
    grown = redlite.load("organism", adapter=path)
    assert grown.config.vocab_size == plain.config.vocab_size + 1
    logits = grown.logits([1, 2, plain.config.vocab_size])
    assert torch.equal(logits[:2, :-1], plain.logits([1, 2])) and not logits[:, -1].any()


def test_a_run_goes_on_with_its_adapter_alone(organisms, tmp_path, capsys):
    command = ["--limit", "1", "--prompt", "standard", "--max-new-tokens", "4", "--judge", "rules", "--quiet",
               "--output-dir", str(tmp_path / "run")]
    with_adapter = ["--adapter", str(organisms(0.05))]
    assert redeval.main([*command, *with_adapter]) < 2  # 1: four tokens may get no label
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    if not kernels.unpackable("cpu"):
        assert manifest["info"]["runs"] == "llama: all layers in C, weights in float32"
        assert manifest["info"]["runs"] in (tmp_path / "run" / "report.html").read_text()
    made_by = manifest["model"]
    assert made_by["name"] == "organism + mine" and len(made_by["adapter"]) == 64
    assert redeval.main([*command, *with_adapter]) < 2  # 1: four tokens may get no label
    capsys.readouterr()
    organisms(0.06)
    for more in (with_adapter, []):
        assert redeval.main([*command, *more]) == 2
        assert "model." in capsys.readouterr().err


def test_its_own_chat_template_is_used(organisms):
    """Trainers save the tokenizer beside the adapter; a template that they changed is the one to ask with."""
    path, base = organisms(0.0), lm.parts("organism")
    (path / "chat_template.jinja").write_text("{% for m in messages %}{{ 'Q ' + m['content'] }}{% endfor %}")
    found = lm.parts("organism", adapter=path)
    talk = [{"role": "user", "content": "Hello"}]
    assert found.template.encode(talk, True).ids == base.tokenizer.encode("Q Hello")
    prints = [lm.fingerprints(p) for p in (found, base)]
    assert prints[0]["template"] != prints[1]["template"]
    assert lm.fingerprints(lm.parts("organism", "plain", adapter=path))["template"] != prints[0]["template"]
