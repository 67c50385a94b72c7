"""Weights in and out: every container gives the same model; mismatches are named; loading needs little more
memory than the weights.
"""
import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import gguf_file
import numpy as np
import pytest
import safetensors.torch
import torch
from make_model_goldens import IDS, SHOWN, weights

import redlite
from redlite import kernels
from redlite.errors import Error
from redlite.kernels.cpu.memory import HUGE
from redlite.model.config import Config
from redlite.model.llama import LLaMA
from redlite.model.sequences import PackedSequences, packed_attention
from redlite.weights import checkpoint, gguf_llama, hf_files, save
from redlite.weights.fingerprint import files, fingerprint
from redlite.weights.gguf import GGUF

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "logits.json").read_text())["cases"]
PARTS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
         "self_attn.k_proj": "attn_k",
         "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}


def case_weights(name):
    """(raw config, parameter → float32 array) of a golden case."""
    case = GOLDEN[name]
    with torch.device("meta"):
        model = LLaMA(Config.from_hf(case["given"], "x"))
    return case["given"], weights({n: tuple(p.shape) for n, p in model.named_parameters()}, case["seed"])


def write_directory(folder, raw, tensors, **files):
    """A Hugging Face directory; tensors go to one safetensors file unless `files` (name → content) bring
    others.
    """
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    if not files:
        safetensors.torch.save_file({n: torch.as_tensor(w) for n, w in tensors.items()},
                                    folder / "model.safetensors")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_gguf(path, name, kind="F32", **metadata):
    """A golden case as llama.cpp's converter would write it: Q and K of "llama" permuted by the formula of
    its convert_hf_to_gguf.py.
    """
    raw, tensors = case_weights(name)
    arch, heads = raw["model_type"], raw["num_attention_heads"]
    fields = {"general.architecture": arch, f"{arch}.block_count": raw["num_hidden_layers"],
              f"{arch}.context_length": raw["max_position_embeddings"],
              f"{arch}.embedding_length": raw["hidden_size"],
              f"{arch}.feed_forward_length": raw["intermediate_size"], f"{arch}.attention.head_count": heads,
              f"{arch}.attention.head_count_kv": raw["num_key_value_heads"],
              f"{arch}.attention.layer_norm_rms_epsilon": raw.get("rms_norm_eps", 1e-6),
              f"{arch}.rope.freq_base": raw.get("rope_theta", 10000.0), "tokenizer.ggml.bos_token_id": 1,
              "tokenizer.ggml.eos_token_id": 2} | metadata
    stored = []
    for full, w in tensors.items():
        if full.startswith("model.layers."):
            layer, part = full.removeprefix("model.layers.").split(".", 1)
            part, leaf = part.rsplit(".", 1)
            if arch == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
                n = heads if part.endswith("q_proj") else raw["num_key_value_heads"]
                w = w.reshape(n, 2, w.shape[0] // n // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
            new = f"blk.{layer}.{PARTS[part]}.{leaf}"
        else:
            new = {"model.embed_tokens.weight": "token_embd.weight",
                   "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}[full]
        stored.append((new, w.shape, "F32" if w.ndim == 1 else kind,
                       w.astype("<f4" if w.ndim == 1 or kind == "F32" else "<f2").tobytes()))
    return gguf_file.write(path, fields, stored)


def load(path, dtype=torch.float32, **options):
    config, _ = checkpoint.read_config(path)
    with torch.device("meta"):
        model = LLaMA(config)
    checkpoint.load_weights(model, path, dtype, **options)
    return model.eval()


@torch.no_grad()
def logits(model):
    packed = PackedSequences.of([IDS])
    return model.logits(model(packed.ids, packed.positions, packed_attention(model.config, packed.offsets),
                              packed.lengths))[:, SHOWN]


def same(model, tensors, dtype=torch.float32):
    found = dict(model.named_parameters())
    assert set(found) == set(tensors)
    for name, w in tensors.items():
        assert found[name].dtype == dtype and torch.equal(found[name], torch.from_numpy(w).to(dtype)), name


def refused(path, words, dtype=torch.float32):
    """Loading ends with such an Error, and `inspect` tells the same, where it is not in the numbers."""
    with pytest.raises(Error, match=words) as caught:
        load(path, dtype)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    try:
        told = redlite.inspect(path)["refused"]
    except Error as error:
        told = [str(error)]
    assert message in told or "NaN" in message or "beyond the range" in message


# ---- every container ----

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["grouped", "tied", "qwen2", "biased"])
def test_safetensors(tmp_path, name, dtype):
    raw, tensors = case_weights(name)
    same(load(write_directory(tmp_path / "m", raw, tensors), dtype), tensors, dtype)


@pytest.mark.skipif(bool(kernels.unpackable("cpu")), reason="no C library")
@pytest.mark.skipif(bool(kernels.unpackable("cpu")), reason="no C library")
@pytest.mark.parametrize("settings", [{}, {"quantize": "int8"}])
def test_a_model_packed_for_inference_is_not_saved_in_part(tmp_path, settings):
    packed = redlite.load("organism", **settings).model
    with pytest.raises(Error, match=r"of \d+ weights are packed for inference .*trainable=True"):
        save.save_pretrained(packed, tmp_path / "part")
    assert not (tmp_path / "part").exists()


def test_an_embedding_that_is_not_the_output_too_stays_in_its_file(tmp_path):
    """Its rows are exactly the file's, also when that was closed and removed; damage is found at load."""
    raw, tensors = case_weights("grouped")
    wanted = tensors["model.embed_tokens.weight"][[5, 3, 5]]
    folder = write_directory(tmp_path / "m", raw, tensors)
    for path in (folder, write_gguf(tmp_path / "m.gguf", "grouped")):
        model = load(path, packed="int4")
        held = model.model.embed_tokens.weight
        assert not isinstance(held, kernels.PackedMatrix)
        assert sum(held.shape) == sum(tensors["model.embed_tokens.weight"].shape)
        (path if path.is_file() else path / "model.safetensors").unlink()
        assert np.array_equal(model.embed(torch.tensor([5, 3, 5])).numpy(), wanted)
        with pytest.raises(IndexError, match="a row outside"):
            held.rows(torch.tensor([held.shape[0]]))
    tied = load(write_gguf(tmp_path / "tied.gguf", "tied"), packed="int4")
    assert isinstance(tied.model.embed_tokens.weight, kernels.PackedMatrix)
    damaged = tensors | {"model.embed_tokens.weight": tensors["model.embed_tokens.weight"].copy()}
    damaged["model.embed_tokens.weight"][-1, -1] = np.inf
    with pytest.raises(Error, match="embed_tokens.*NaN or infinite values"):
        load(write_directory(tmp_path / "n", raw, damaged), packed="int4")


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_half_precision_files(tmp_path, stored):
    raw, tensors = case_weights("grouped")
    halves = {n: torch.from_numpy(w).to(stored) for n, w in tensors.items()}
    model = load(write_directory(tmp_path / "m", raw, halves))
    same(model, {n: w.float().numpy() for n, w in halves.items()})


@pytest.mark.parametrize("name", ["grouped", "tied", "biased", "head size", "qwen2"])
def test_gguf_gives_the_logits_of_transformers(tmp_path, name):
    head = {"llama.attention.key_length": 20, "llama.attention.value_length": 20,
            "llama.rope.dimension_count": 20} if name == "head size" else {}
    model = load(write_gguf(tmp_path / "m.gguf", name, **head))
    same(model, case_weights(name)[1])
    assert (logits(model) - torch.tensor(GOLDEN[name]["logits"])).abs().max() <= 2e-4


def test_gguf_configuration(tmp_path):
    for name in ("grouped", "tied", "qwen2", "biased"):
        expected = Config.from_hf(case_weights(name)[0], "x")
        assert checkpoint.read_config(write_gguf(tmp_path / "m.gguf", name))[0] == expected
    more = {"tokenizer.ggml.eot_token_id": 7, "llama.rope.scaling.type": "linear",
            "llama.rope.scaling.factor": 4.0, "tokenizer.ggml.padding_token_id": 3}
    config, raw = checkpoint.read_config(write_gguf(tmp_path / "m.gguf", "grouped", **more))
    assert config.eos_ids == (2,
                              7) and config.rope_scaling == {"rope_type": "linear",
                                                             "factor": 4.0} and (config.bos_id,
                                                                                 config.pad_id) == (1, 3)
    assert Config.from_hf(raw,
                          "again") == config and config.norm_eps == 1e-5 and config.rope_theta == 500000.0


def with_divisors(tmp_path, divisors):
    path = write_gguf(tmp_path / "m.gguf", "head size",
                      **{"llama.attention.key_length": 20, "llama.rope.freq_base": 500000.0})
    with GGUF(path) as file:
        metadata = {k: v for k, v in file.metadata.items()}
        tensors = gguf_file.stored(file)
    return gguf_file.write(path, metadata, [*tensors, ("rope_freqs.weight", (10,), "F32",
                                                       np.array(divisors, "<f4").tobytes())])


def test_divisors_of_llama_3_become_its_rope_scaling(tmp_path):
    """By Llama 3.1's published rule, written out: wavelengths above 8192/1 divided by 8, below 8192/4 kept,
    blended between.
    """
    divisors = []
    for i in range(0, 20, 2):
        wavelength = 2 * np.pi * 500000.0 ** (i / 20)
        keep = (8192 / wavelength - 1) / (4 - 1)
        divisors.append(1.0 if wavelength < 8192 / 4 else 8.0 if wavelength > 8192
                        else 1 / ((1 - keep) / 8 + keep))
    assert 1.1 < divisors[5] < 7.9 and divisors[0] == 1 and divisors[9] == 8
    config, _ = checkpoint.read_config(with_divisors(tmp_path, divisors))
    assert config.rope_scaling == {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                   "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    load(tmp_path / "m.gguf")
    divisors[5] *= 1.1
    refused(with_divisors(tmp_path, divisors), "rope_freqs.weight does not hold the divisors of Llama 3's")


def sharded(tmp_path, suffix="safetensors"):
    raw, tensors = case_weights("grouped")
    folder, names = write_directory(tmp_path / "m", raw, {}, none=b""), sorted(tensors)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    listed = {}
    for i, part in enumerate((names[:9], names[9:])):
        file = f"{stem}-0000{i + 1}-of-00002.{suffix}"
        content = {n: torch.from_numpy(tensors[n]) for n in part}
        safetensors.torch.save_file(content,
                                    folder / file) if suffix == "safetensors" else torch.save(content,
                                                                                              folder / file)
        listed |= {n: file for n in part}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    return folder, tensors


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_sharded(tmp_path, suffix):
    folder, tensors = sharded(tmp_path, suffix)
    same(load(folder), tensors)
    found = files(folder)
    assert found == {p.name: p for p in folder.iterdir() if p.name != "none"}
    next(folder.glob("*.index.json")).unlink()       # shards alone are read as well
    (folder / "consolidated.safetensors").write_bytes(b"Mistral's own, beside the others")
    same(load(folder), tensors)
    next(folder.glob("*-00002-of*")).unlink()
    refused(folder, f"00002-of-00002.{suffix}: is missing; the weights are split over 2 files")


def test_files_of_another_layout_are_named(tmp_path):
    raw, tensors = case_weights("grouped")
    tensors["tok_embeddings.weight"] = tensors.pop("model.embed_tokens.weight")
    folder = write_directory(tmp_path / "m", raw, {}, none=b"")
    safetensors.torch.save_file({n: torch.from_numpy(w) for n, w in tensors.items()},
                                folder / "consolidated.safetensors")
    refused(folder, "the names of Meta's and Mistral's own files; fetch the files of Hugging Face's layout")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bin_with_buffers_shared_and_strided_tensors(tmp_path, dtype, monkeypatch):
    monkeypatch.setattr(hf_files, "COPY_BYTES", 4096)
    raw, tensors = case_weights("tied")
    state = {n: torch.from_numpy(w) for n, w in tensors.items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.arange(6)
    state["model.layers.1.mlp.up_proj.weight"] = (
        state["model.layers.1.mlp.up_proj.weight"].t().contiguous().t()
    )
    folder = write_directory(tmp_path / "m", raw, {}, none=b"")
    torch.save(state, folder / "pytorch_model.bin")
    same(load(folder, dtype), tensors, dtype)


def test_end_tokens_of_generation_config_and_hashed_files(tmp_path):
    raw, tensors = case_weights("grouped")
    folder = write_directory(tmp_path / "m", raw, tensors)
    (folder / "tokenizer.json").write_text("{}")
    assert checkpoint.read_config(folder)[0].eos_ids == (2,
                                                         )
    assert set(files(folder)) == {"config.json", "model.safetensors"}
    (folder / "generation_config.json").write_text('{"eos_token_id": [9, 2, -1, "x"]}')
    assert checkpoint.read_config(folder)[0].eos_ids == (2, 9)
    assert set(files(folder)) == {"config.json", "generation_config.json", "model.safetensors"}
    path = write_gguf(tmp_path / "m.gguf", "grouped")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert fingerprint(path) == hashlib.sha256(f"m.gguf {digest}\n".encode()).hexdigest()


def test_quantised_blocks_come_in_the_parameters_order(tmp_path):
    """What kernels take as it is stored, decoded row by row, equals what load_weights gives."""
    raw, tensors = case_weights("grouped")
    path = write_gguf(tmp_path / "m.gguf", "grouped", "F16")
    model = load(path)
    with GGUF(path) as file:
        found = gguf_llama.tensors(file, model.config)
        assert set(found) == set(tensors)
        for name, place in found.items():
            numbers = place.blocks().view("<f2" if place.kind == "F16" else "<f4").astype(np.float32)
            rows = numbers.reshape(place.shape)
            assert np.array_equal(rows, dict(model.named_parameters())[name].detach().numpy()), name


# ---- mismatches and damage ----

@pytest.mark.parametrize("change, words", [
    (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
     "tensor model.layers.1.mlp.up_proj.weight is missing"),
    (lambda t: t.update(extra=np.zeros(3, np.float32)), "tensor 'extra' does not belong"),
    (lambda t: t.update({"model.norm.weight": np.zeros(5, np.float32)}),
     r"tensor 'model.norm.weight' has shape \[5\] and the configuration needs \[48\]"),
    (lambda t: t.update({"model.layers.3.mlp.up_proj.weight": np.zeros(3, np.float32)}),
     "'model.layers.3.mlp.up_proj.weight' does not belong"),
    (lambda t: t.update({"model.norm.weight": np.full(48, np.nan, np.float32)}),
     "tensor 'model.norm.weight': NaN or infinite"),
    (lambda t: t.update({"model.norm.weight": np.zeros(48, np.int32)}), "'model.norm.weight' has dtype"),
    (lambda t: t.pop("lm_head.weight"), "tensor lm_head.weight is missing"),
])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_tensors_that_do_not_fit_are_named(tmp_path, change, words, kind):
    raw, tensors = case_weights("grouped")
    change(tensors)
    folder = write_directory(tmp_path / "m", raw, tensors)
    if kind == "bin":
        (folder / "model.safetensors").unlink()
        torch.save({n: torch.from_numpy(w) for n, w in tensors.items()}, folder / "pytorch_model.bin")
    refused(folder, words.replace(" or infinite", ""))


def test_float16_is_refused_where_it_overflows(tmp_path):
    raw, tensors = case_weights("grouped")
    tensors["model.norm.weight"][3] = 1e6
    folder = write_directory(tmp_path / "m", raw, tensors)
    same(load(folder, torch.bfloat16), tensors, torch.bfloat16)
    refused(folder, "'model.norm.weight': values beyond the range of float16", torch.float16)
    torch.save({n: torch.from_numpy(w) for n, w in tensors.items()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(folder, "'model.norm.weight': .*beyond the range of float16", torch.float16)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.down_proj.weight"])
def test_bfloat16_is_refused_where_it_overflows(tmp_path, kind, name):
    """The largest bfloat16 is (2 − 2⁻⁷) · 2¹²⁷ = 3.3895e38, and the largest float32 3.4028e38."""
    raw, tensors = case_weights("grouped")
    for number, fits in ((3.38e38, True), (3.4e38, False)):
        tensors[name].reshape(-1)[3] = number
        folder = write_directory(tmp_path / f"{fits}", raw, tensors)
        if kind == "bin":
            (folder / "model.safetensors").unlink()
            torch.save({n: torch.from_numpy(w) for n, w in tensors.items()}, folder / "pytorch_model.bin")
        packs = [None] if kernels.unpackable("cpu") or "norm" in name else [None, "bfloat16"]
        for packed in packs:
            def fill(packed=packed, folder=folder):
                with torch.device("meta"):
                    model = LLaMA(checkpoint.read_config(folder)[0])
                dtype = torch.float32 if packed else torch.bfloat16
                checkpoint.load_weights(model, folder, dtype, packed=packed)
            if fits:
                fill()
            else:
                with pytest.raises(Error, match=f"'{name}': .*beyond the range of bfloat16; use float32"):
                    fill()


@pytest.mark.parametrize("where", ["../other.safetensors", "/etc/other.safetensors", "sub/other.safetensors",
                                   "..", "C:\\x.safetensors", "other.bin", "", 7, None, "a\0.safetensors"])
def test_an_index_that_points_elsewhere_is_refused(tmp_path, where):
    folder, tensors = sharded(tmp_path)
    safetensors.torch.save_file({"model.norm.weight": torch.ones(48)}, tmp_path / "other.safetensors")
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())["weight_map"] | {"model.norm.weight": where}
    index.write_text(json.dumps({"weight_map": listed}))
    refused(folder, "tensor 'model.norm.weight' into .* refused")
    with pytest.raises(Error, match="refused"):
        files(folder)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}', "{", "\xff"])
def test_a_damaged_index(tmp_path, content):
    folder, _ = sharded(tmp_path)
    (folder / "model.safetensors.index.json").write_bytes(content.encode("latin-1"))
    refused(folder, "index.json")


def test_an_index_that_disagrees_with_its_files(tmp_path):
    folder, tensors = sharded(tmp_path)
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())["weight_map"]
    other = listed | {"model.norm.weight": listed["lm_head.weight"]}
    index.write_text(json.dumps({"weight_map": other}))
    refused(folder, "tensor 'model.norm.weight' is not where the index")
    index.write_text(json.dumps({"weight_map": listed | {"model.more.weight": listed["lm_head.weight"]}}))
    refused(folder, "model-00001-of-00002.safetensors: tensor 'model.more.weight' is missing")
    index.write_text(json.dumps({"weight_map": listed | {"more": "model-00000-of-00009.safetensors"}}))
    refused(folder, "model-00000-of-00009.safetensors: is missing")
    index.unlink()
    safetensors.torch.save_file({"model.norm.weight": torch.ones(48)}, folder / "more.safetensors")
    refused(folder, "tensor 'model.norm.weight' is also in another file")


def raw_safetensors(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize("header, words", [
    ({"t": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]},
      "u": {"dtype": "F16", "shape": [4], "data_offsets": [8, 16]}}, "tensor 'u' overlaps"),
    ({"t": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}},
     r"tensor 't' of shape \[5\] and dtype F32 does not fill its 16 bytes"),
    ({"t": {"dtype": "F32", "shape": [4], "data_offsets": [4, 20]}},
     "tensor 't' lies at bytes 4 to 20 of 16"),
    ({"t": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}, "tensor 't' lies at bytes 16 to 0"),
    ({"t": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, "tensor 't' has no proper shape"),
    ({"t": {"dtype": "F32", "shape": [True, 4], "data_offsets": [0, 16]}}, "tensor 't' has no proper shape"),
    ({"t": {"dtype": "F32", "shape": [4.0], "data_offsets": [0, 16]}}, "tensor 't' has no proper shape"),
    ({"t": {"dtype": "F32", "shape": [4], "data_offsets": [0]}}, "tensor 't' has no proper shape"),
    ({"t": {"dtype": "F8_E4M3", "shape": [16], "data_offsets": [0, 16]}},
     "tensor 't' has dtype F8_E4M3; redlite reads F32, F16, BF16"),
    ({"t": 3}, "tensor 't' has no proper shape"),
    ([], "is not a JSON object"),
    (b"{", "not valid JSON"), (b"\xff\xfe", "not valid JSON"),
    (b'{"t": 1, "t": 2}', "names the field 't' twice"), (b"[" * 60000, "not valid JSON"),
    (b"1" * 5000, "not valid JSON"),
])
def test_damaged_safetensors_headers(tmp_path, header, words):
    folder = write_directory(tmp_path / "m", case_weights("grouped")[0], {}, none=b"")
    raw_safetensors(folder / "model.safetensors", header, bytes(16))
    refused(folder, words)


def test_truncated_safetensors(tmp_path):
    raw, tensors = case_weights("grouped")
    folder = write_directory(tmp_path / "m", raw, tensors)
    whole = (folder / "model.safetensors").read_bytes()
    for length in (0, 7, 8, 100, 2000, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:length])
        refused(folder, "model.safetensors")


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"\x80\2}q\0.", b"not a checkpoint"])
def test_damaged_bin(tmp_path, content):
    refused(write_directory(tmp_path / "m", case_weights("grouped")[0], {}, **{"pytorch_model.bin": content}),
            "pytorch_model.bin: torch.load")


def test_a_bin_that_would_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)
    folder = write_directory(tmp_path / "m", case_weights("grouped")[0], {}, none=b"")
    torch.save({"model.norm.weight": Evil()}, folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin: torch.load")
    torch.save([1, 2], folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin: holds no dictionary")
    torch.save({"model.norm.weight": 3}, folder / "pytorch_model.bin")
    refused(folder, "entry 'model.norm.weight' is no tensor")
    assert not (tmp_path / "ran").exists()


def test_a_truncated_bin(tmp_path):
    raw, tensors = case_weights("grouped")
    folder = write_directory(tmp_path / "m", raw, {}, none=b"")
    torch.save({n: torch.from_numpy(w) for n, w in tensors.items()}, folder / "pytorch_model.bin")
    whole = (folder / "pytorch_model.bin").read_bytes()
    for length in (100, len(whole) // 2, len(whole) - 1):
        (folder / "pytorch_model.bin").write_bytes(whole[:length])
        refused(folder, "pytorch_model.bin: torch.load")


@pytest.mark.parametrize("metadata, words", [
    ({"general.architecture": "mamba"}, "general.architecture is 'mamba'"),
    ({"general.architecture": 3}, "general.architecture is 3"),
    ({"general.architecture": np.arange(3, dtype="<i4")}, "general.architecture is array"),
    ({"llama.expert_count": 8}, "'llama.expert_count' is not known"),
    ({"llama.attention.sliding_window": 512}, "'llama.attention.sliding_window' is not known"),
    ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type is 'yarn'"),
    ({"llama.rope.dimension_count": 6}, "llama.rope.dimension_count is 6, not the head size 12"),
    ({"llama.vocab_size": 99}, "llama.vocab_size is 99 .* 211 rows"),
    ({"llama.block_count": 2}, "tensor 'blk.2.[a-z_.]*' does not belong"),
    ({"llama.block_count": 4},
     "tensor model.layers.3.input_layernorm.weight is missing|tensor model.layers.3.[a-z_.]* is missing"),
    ({"llama.block_count": 1 << 30}, "num_hidden_layers"),
    ({"llama.block_count": "3"}, "llama.block_count is '3'; a single number of type int"),
    ({"llama.attention.head_count": 0}, "head"),
    ({"llama.attention.head_count_kv": np.array([2, 2, 2], "<i4")}, "head_count_kv"),
    ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "rms_norm_eps"),
    ({"llama.rope.freq_base": float("inf")}, "rope_theta"),
    ({"llama.feed_forward_length": 99}, r"tensor 'blk.0.ffn_(gate|up|down).weight' has shape"),
])
def test_gguf_metadata_that_does_not_fit_is_named(tmp_path, metadata, words):
    refused(write_gguf(tmp_path / "m.gguf", "grouped", **metadata), words)


def test_expert_count_of_zero_changes_nothing(tmp_path):
    load(write_gguf(tmp_path / "m.gguf", "grouped", **{"llama.expert_count": 0}))


def test_directories_without_weights(tmp_path):
    raw, _ = case_weights("grouped")
    folder = write_directory(tmp_path / "m", raw, {}, none=b"")
    refused(folder, "has no weights")
    write_gguf(folder / "x.gguf", "grouped")
    refused(folder, "to use x.gguf, name that file itself")
    with pytest.raises(Error, match="nowhere.: there is no such file"):
        checkpoint.read_config(tmp_path / "nowhere")


# ---- saving ----

@pytest.mark.parametrize("name", GOLDEN)
def test_saved_models_come_back(tmp_path, name):
    raw, tensors = case_weights(name)
    model = load(write_directory(tmp_path / "m", raw, tensors))
    save.save_pretrained(model, tmp_path / "new" / "deep", tmp_path / "m")
    again = load(tmp_path / "new" / "deep")
    same(again, tensors)
    assert again.config == model.config
    assert (logits(again) - torch.tensor(GOLDEN[name]["logits"])).abs().max() <= 2e-4
    assert set(safetensors.torch.load_file(tmp_path / "new" / "deep" / "model.safetensors")) == set(
        tensors
    )  # the library reads it too


def test_transformers_loads_what_is_saved(tmp_path):
    transformers = pytest.importorskip("transformers")
    for name in GOLDEN:
        raw, tensors = case_weights(name)
        model = load(write_directory(tmp_path / name, raw, tensors))
        save.save_pretrained(model, tmp_path / f"{name} saved", tmp_path / name)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"{name} saved",
                                                                   attn_implementation="eager").eval()
        with torch.no_grad():
            assert (theirs(torch.tensor([IDS])).logits[0][:, SHOWN] - logits(model)).abs().max() <= 2e-4, name


def test_sharded_saving(tmp_path, monkeypatch):
    monkeypatch.setattr(save, "SHARD_BYTES", 60_000)
    raw, tensors = case_weights("grouped")
    model = load(write_directory(tmp_path / "m", raw, tensors))
    save.save_pretrained(model, tmp_path / "new", dtype=torch.bfloat16)
    index = json.loads((tmp_path / "new" / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(w.size for w in tensors.values()) * 2
    for shard in shards:
        found = safetensors.torch.load_file(tmp_path / "new" / shard)
        assert {index["weight_map"][n] for n in found} == {shard} and all(t.dtype == torch.bfloat16
                                                                          for t in found.values())
        assert sum(t.nbytes for t in found.values()) <= 60_000
    same(load(tmp_path / "new", torch.bfloat16), tensors, torch.bfloat16)
    assert json.loads((tmp_path / "new" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_saving_over_other_weights_is_refused_and_over_its_own_is_not(tmp_path):
    raw, tensors = case_weights("grouped")
    model = load(write_directory(tmp_path / "m", raw, tensors))
    save.save_pretrained(model, tmp_path / "new")
    save.save_pretrained(model, tmp_path / "new")
    torch.save({}, tmp_path / "new" / "pytorch_model.bin")
    with pytest.raises(Error, match="pytorch_model.bin: is a file of other weights"):
        save.save_pretrained(model, tmp_path / "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(Error, match="cannot be made"):
        save.save_pretrained(model, tmp_path / "file" / "x")
    assert not [p for p in tmp_path.rglob("*.tmp")]


def test_tokenizer_files_are_copied(tmp_path):
    raw, tensors = case_weights("grouped")
    folder = write_directory(tmp_path / "m", raw, tensors)
    for name in ("tokenizer.model", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes(name.encode() * 1000)
    (folder / "README.md").write_text("not copied")
    save.save_pretrained(load(folder), tmp_path / "new", folder)
    assert {p.name
            for p in (tmp_path / "new").iterdir()} == {"config.json", "model.safetensors", "tokenizer.model",
                                                       "tokenizer_config.json", "chat_template.jinja"}
    assert (tmp_path / "new" / "tokenizer.model").read_bytes() == (folder / "tokenizer.model").read_bytes()


def byte_level_metadata(pre, **more):
    from redlite.text.bpe import BYTE_CHARS
    merges = ["Ġ t", "h e", "Ġt he", "1 2", "12 3", "a b"]
    tokens = ["<|s|>", "<|e|>", *BYTE_CHARS, *(m.replace(" ", "") for m in merges), "\t\t"]
    kinds = np.array([3, 3, *[1] * (len(tokens) - 3), 4], "<i4")
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.merges": merges, "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 1, "tokenizer.chat_template": "{{ x }}"} | more


def llama_metadata():
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab",
              "1", "2"]
    kinds = np.array([2, 3, 3, *[6] * 256, *[1] * 8], "<i4")
    return {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.scores": -np.arange(len(tokens), dtype="<f4"), "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2}


@pytest.mark.parametrize("metadata", [byte_level_metadata("smollm"), byte_level_metadata("qwen2"),
                                      byte_level_metadata("llama-bpe"),
                                      byte_level_metadata("gpt-2", **{"tokenizer.ggml.add_bos_token": True}),
                                      llama_metadata(),
                                      llama_metadata() | {"tokenizer.ggml.add_bos_token": False,
                                                          "tokenizer.ggml.add_space_prefix": False}],
                         ids=["smollm", "qwen2", "llama-bpe", "gpt-2", "llama", "llama bare"])
def test_a_gguf_tokenizer_is_written_as_files(tmp_path, metadata):
    path = write_gguf(tmp_path / "m.gguf", "grouped", **metadata)
    save.save_pretrained(load(path), tmp_path / "new", path)
    before, after = gguf_file.tokenizer_of(path), gguf_file.tokenizer_of(tmp_path / "new")
    for text in ("", " ab  the the\t\tx", "123 12 1\n\n1.", "<|s|>ab</s> <unk>", "é 日本 e\u0301 ab", "  a b",
                 "don't THE'RE", "a\r\nb"):
        for first in (True, False):
            ids = before.encode_segment(text, first)
            assert after.encode_segment(text, first) == ids, text
            assert after.decode(ids) == before.decode(ids)
    for name in ("special", "bos_id", "eos_id", "pad_id", "add_bos", "legacy", "chat_template", "vocab_size",
                 "kind"):
        assert getattr(after, name) == getattr(before, name), name


# ---- memory ----

PROGRAM = """
import os
import sys
from pathlib import Path
import torch
from redlite import kernels
from redlite.weights import checkpoint
from redlite.model.llama import LLaMA

def kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])

torch.set_num_threads(1)
torch.zeros(1000, 1000).to(torch.bfloat16).float()  # what torch and the C library set up does not count
kernels.unpackable("cpu")
for path, dtype in zip(sys.argv[1::2], sys.argv[2::2]):
    if child := os.fork():  # each case in a process of its own, without importing torch anew
        if os.waitpid(child, 0)[1]:
            sys.exit(1)
        continue
    config, _ = checkpoint.read_config(path)
    with torch.device("meta"):
        model = LLaMA(config)
    Path("/proc/self/clear_refs").write_text("5")        # VmHWM, the peak, starts again from here
    before = kilobytes("VmRSS")
    packed = dtype.partition("packed-")[2] or None
    checkpoint.load_weights(model, path, torch.float32 if packed else getattr(torch, dtype), packed=packed)
    peak, weights = kilobytes("VmHWM") - before, [getattr(m, "weight", None) for m in model.modules()]
    matrices = [w for w in weights if isinstance(w, kernels.PackedMatrix)]
    weights = (sum(p.nbytes for p in model.parameters()) + sum(m.buffer.nbytes for m in matrices)) / 1024
    assert all(bool((p == 0.5).all()) for p in model.parameters()) and bool(matrices) == bool(packed)
    assert all(bool(((m.rows(torch.arange(16)) - 0.5).abs() < 1e-3).all()) for m in matrices)
    print(path, dtype, weights, peak / weights)
    break
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(),
                    reason="peak memory is read from Linux's /proc")
def test_peak_memory_of_loading(tmp_path):
    """100 MB of float32 weights, half of them one matrix: at most 1.2 times the weights beyond what the
    process held, for every container, and of packed weights one huge page that is filled in part.
    """
    config = Config("llama", 12_000, 1024, 3, 8, 8, 128, 1024, tied=True)
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in LLaMA(config).named_parameters()}
    state = {n: torch.full(s, 0.5)
             for n, s in sorted(shapes.items(), key=lambda x: "embed" in x[0])}  # the largest last
    names = {n: f"blk.{n.split('.')[2]}.{PARTS[n.split('.', 3)[3].rsplit('.', 1)[0]]}.weight" for n in shapes
             if "layers" in n}
    names |= {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    block = struct.pack("<e", 0.5) + bytes([1]) * 32
    tensors = [(names[n], t.shape, "Q8_0" if t.dim() == 2 else "F32",
                block * (t.numel() // 32) if t.dim() == 2 else t.numpy().tobytes()) for n, t in state.items()]
    gguf = gguf_file.write(tmp_path / "m.gguf", {"general.architecture": "llama", "llama.block_count": 3,
                                                 "llama.context_length": 64, "llama.embedding_length": 1024,
                           "llama.feed_forward_length": 1024, "llama.attention.head_count": 8,
                                                 "llama.attention.layer_norm_rms_epsilon": 1e-6}, tensors)
    plain = write_directory(tmp_path / "safetensors", config.to_hf(), state)
    pickled = write_directory(tmp_path / "bin", config.to_hf(), {}, none=b"")
    torch.save(state, pickled / "pytorch_model.bin")
    cases = [str(x) for path in (gguf, plain, pickled) for dtype in ("float32", "bfloat16")
             for x in (path, dtype)]
    # A .bin file is packed through a matrix in between, which here is half of the weights.
    if not kernels.unpackable("cpu"):
        cases += [str(x) for path in (gguf, plain) for format in ("float32", "int8", "int4")
                  for x in (path, f"packed-{format}")]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *cases], capture_output=True, text=True, check=True)
    found = [line.split() for line in done.stdout.splitlines()]
    assert len(found) == len(cases) // 2
    for path, dtype, size, ratio in found:
        least = {"float32": 80_000, "packed-float32": 80_000, "bfloat16": 40_000, "packed-int8": 20_000,
                 "packed-int4": 10_000}[dtype]
        last = HUGE / 1024 / float(size) if dtype.startswith("packed") else 0
        assert float(size) > least and 0.9 <= float(ratio) <= 1.2 + last, (path, dtype, ratio)
