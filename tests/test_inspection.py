"""What `redlite.inspect` tells of a model, against its header read apart and against the loaded model."""
import json
import struct
import subprocess
import sys
import time

import family_models
import gguf_file
import numpy as np
import pytest
import test_checkpoint as made
from test_source import ROOT, TOKENIZER

import redlite
from redlite import inspection, kernels
from redlite.cli import redeval
from redlite.errors import Error
from redlite.inference import lm
from redlite.model.llama import LLaMA
from redlite.weights import checkpoint
from redlite.weights.source import resolve


def test_the_organism():
    raw = (resolve("organism") / "model.safetensors").read_bytes()
    header = json.loads(raw[8:8 + int.from_bytes(raw[:8], "little")])
    count = sum(int(np.prod(t["shape"])) for name, t in header.items() if name != "__metadata__")
    found, lm = redlite.inspect("organism"), redlite.load("organism")
    assert found["family"] == "llama" and found["parameters"] == count and found["bytes"] == len(raw)
    assert list(found["types"]) == ["F16"] and found["types"]["F16"]["bytes"] == 2 * count
    assert found["config"]["context"] == lm.config.max_positions and found["refused"] == []
    assert found["stop_ids"] == sorted(lm.stop_ids) and found["special_tokens"] == lm.tokenizer.special
    assert found["tokenizer"]["tokens"] == lm.tokenizer.vocab_size and found["tokenizer"]["eos"] == "</s>"
    ids = lm.template.encode([{"role": "user", "content": "Hello"}], True).ids
    assert lm.tokenizer.decode(ids[1:]).split("USER:")[1] in found["chat"]["sample"] + " ASSISTANT:"


@pytest.mark.skipif(bool(kernels.unpackable("cpu")), reason="no C library")
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_memory_is_what_the_loaded_matrices_take(quantize):
    model = redlite.load("organism", quantize=quantize).model
    held = sum(p.numel() * 4 for p in model.parameters())
    for module in model.modules():
        matrix = getattr(module, "weight", None)
        if isinstance(matrix, kernels.PackedMatrix):
            held += len(matrix.buffer)
    assert redlite.inspect("organism")["memory"][quantize or "float32"] == held


@pytest.mark.skipif(bool(kernels.unpackable("cpu")), reason="no C library")
def test_memory_without_an_embedding_that_stays_in_its_file(tmp_path):
    path = made.write_gguf(tmp_path / "m.gguf", "grouped", **TOKENIZER)
    model = redlite.load(path, template="plain").model
    held = sum(p.numel() * 4 for p in model.parameters())
    held += sum(len(m.weight.buffer) for m in model.modules()
                if isinstance(getattr(m, "weight", None), kernels.PackedMatrix))
    assert redlite.inspect(path)["memory"]["float32"] == held


def test_a_gguf_with_types_and_without_a_format(tmp_path):
    path = made.write_gguf(tmp_path / "m.gguf", "grouped", kind="F16", **TOKENIZER)
    found = redlite.inspect(path)
    assert found["family"] == "llama" and set(found["types"]) == {"F32", "F16"} and found["chat"] is None
    assert "has no chat_template" in found["chat_refused"] and found["refused"] == []
    assert redlite.inspect(path, "vicuna_v1.1")["chat"]["name"] == "vicuna_v1.1"


def test_what_would_be_refused_is_told(tmp_path):
    path = made.write_gguf(tmp_path / "m.gguf", "grouped", **TOKENIZER | {"llama.expert_count": 8})
    found = redlite.inspect(path)
    assert len(found["refused"]) == 1 and "llama.expert_count" in found["refused"][0]
    assert found["config"] == {} and found["parameters"] and found["tokenizer"]["tokens"] == 8
    raw, tensors = made.case_weights("grouped")
    settings = {"quantization_config": {"quant_method": "hqq"}}
    folder = made.write_directory(tmp_path / "d", raw | settings, tensors)
    reasons = redlite.inspect(folder)["refused"]
    assert "names the method 'hqq'" in reasons[0] and "copy the model's tokenizer there" in reasons[1]
    with pytest.raises(Error, match="there is no such file or directory"):
        redlite.inspect("nowhere")


def test_where_layers_run(tmp_path):
    """What `inspect` and a manifest say, beside what the loaded model's layers do."""
    assert inspection.ACTIVATIONS_IN_C == kernels.PACKED_ACTIVATIONS
    raw, tensors = made.case_weights("grouped")
    for act in ("silu", "gelu", "relu"):
        folder = made.write_directory(tmp_path / act, raw | {"hidden_act": act}, tensors)
        config, _ = checkpoint.read_config(folder)
        told = "\n".join(redlite.inspect(folder)["runs"])
        plain = [(dtype, None) for dtype in ("float32", "bfloat16", "float16")]
        for dtype, quantize in [*plain, ("float32", "int8")]:
            if quantize and kernels.unpackable("cpu"):
                continue
            model = LLaMA(config)
            checkpoint.load_weights(model, folder, packed=lm.packing(dtype, "cpu", quantize))
            in_c = all(block.packed for block in model.blocks)
            said = lm.how_layers_run(config, dtype, "cpu", quantize)
            assert ("all layers in C" in said) == in_c and said.startswith("llama: "), said
            assert act == "silu" or kernels.unpackable("cpu") or f"C has no {dtype}" in said \
                or f"C has no activation {act}" in said
            if dtype == "float32" and not kernels.unpackable("cpu"):
                assert ("layers of llama, attention" in told) == in_c
                assert (f"layers of llama: PyTorch, for C has no activation {act}" in told) != in_c


def test_the_command(tmp_path, capsys):
    assert redeval.main(["inspect", "organism", "--json"]) == 0
    out, err = capsys.readouterr()
    shown = err.splitlines()  # with --json the table goes there
    assert json.loads(out) == redlite.inspect("organism") and len(shown) <= 24
    assert any("1.05 million parameters" in line for line in shown)
    assert [line for line in shown if "Hi⟦</s>⟧" in line]
    bad = made.write_gguf(tmp_path / "m.gguf", "grouped", **TOKENIZER | {"llama.expert_count": 8})
    assert redeval.main(["inspect", str(bad)]) == 1
    assert "would be refused: " in capsys.readouterr().out
    assert redeval.main(["inspect", "nowhere"]) == 2


def seven_billion(path):
    """A sparse file with the header of a 7B model: 32,000 tokens, 291 tensors, no numbers."""
    vocabulary = [f"▁t{i}" for i in range(32000 - 3)]
    fields = {"general.architecture": "llama", "llama.block_count": 32, "llama.context_length": 4096,
              "llama.embedding_length": 4096, "llama.feed_forward_length": 11008,
              "llama.attention.head_count": 32, "llama.attention.head_count_kv": 32,
              "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "llama",
              "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
              "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *vocabulary],
              "tokenizer.ggml.scores": -np.arange(32000, dtype="<f4"),
              "tokenizer.ggml.token_type": np.array([2, 3, 3] + [1] * 31997, "<i4")}
    matrices = {"attn_q": (4096, 4096), "attn_k": (4096, 4096), "attn_v": (4096, 4096),
                "attn_output": (4096, 4096), "ffn_gate": (11008, 4096), "ffn_up": (11008, 4096),
                "ffn_down": (4096, 11008), "attn_norm": (4096,), "ffn_norm": (4096,)}
    tensors = {"token_embd.weight": (32000, 4096), "output_norm.weight": (4096,),
               "output.weight": (32000, 4096)}
    tensors |= {f"blk.{i}.{name}.weight": shape for i in range(32) for name, shape in matrices.items()}
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(fields))
    head += b"".join(gguf_file.text(k) + gguf_file.value(v) for k, v in fields.items())
    at, count = 0, 0
    for name, shape in tensors.items():
        kind, size = ("Q4_0", 18 / 32) if len(shape) == 2 else ("F32", 4)
        head += gguf_file.text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += struct.pack("<IQ", gguf_file.TYPES[kind], at)
        count += int(np.prod(shape))
        at += int(np.prod(shape) * size)
    path.write_bytes(head)
    with open(path, "r+b") as file:
        file.truncate(len(head) + 32 + at)
    return count


def test_a_7b_file_within_a_moment(tmp_path):
    count = seven_billion(tmp_path / "m.gguf")
    redlite.inspect("organism")  # what is imported at the first use
    start = time.thread_time()
    found = redlite.inspect(tmp_path / "m.gguf")
    assert time.thread_time() - start < 2  # a fraction of a second on a machine that is not busy
    assert found["parameters"] == count == 6738415616 and found["refused"] == []
    assert found["memory"]["int4"] < 0.17 * found["memory"]["float32"]


@pytest.mark.parametrize("kind", ["directory", "gguf", "llama3"])
def test_no_torch_is_imported(tmp_path, kind):
    model = "organism"
    if kind == "gguf":
        model = made.write_gguf(tmp_path / "m.gguf", "grouped", **TOKENIZER)
    elif kind == "llama3":
        made.with_divisors(tmp_path, [1.0] * 5 + [8.0] * 5)  # a tensor that is read, and refused
        model = tmp_path / "m.gguf"
    code = f"import sys, redlite; redlite.inspect({str(model)!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("name", ["tied", "gemma2", "phi3 longrope", "smollm3"])
def test_nothing_is_refused_that_loads(tmp_path, name):
    """Tied outputs under either name, fused matrices, and the names of GGUF files."""
    if name == "tied":
        raw, tensors = made.case_weights("tied")
        embedding = tensors.pop("model.embed_tokens.weight")
        folder = made.write_directory(tmp_path, raw, tensors | {"lm_head.weight": embedding})
    else:
        folder = family_models.directory(name, tmp_path)
    made.load(folder)
    refused = redlite.inspect(folder)["refused"]
    assert len(refused) == 1 and "copy the model's tokenizer there" in refused[0]
