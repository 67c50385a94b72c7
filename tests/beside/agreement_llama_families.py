"""Compares redlite with llama.cpp on tiny GGUF files of several families: largest difference of the logits.

Run by hand where llama-cpp-python 0.3.36 and gguf 0.19 are installed beside redlite:

    python tests/beside/agreement_llama_families.py

The files are those of tests/weights/test_gguf_families.py, whose writer might be wrong as our reader is: here
llama.cpp reads them. It gets a vocabulary beside. More files, WRITTEN, are written by gguf-py: layers without
rotation, the divisors of Llama 3.1, outputs that are tied, biases, windows. All numbers are float32.
llama.cpp leaves out Phi-3's window ("phi3" differs), and takes Gemma's activation from a table of float16 (a
few thousandths).
"""
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("helpers", "weights")]

import gguf_file  # noqa: E402
import test_gguf_families as families  # noqa: E402
from agreement_llama_cpp import Peer  # noqa: E402
from family_models import SMALL_IDS, run  # noqa: E402

from redlite.model.llama import LLaMA  # noqa: E402
from redlite.weights import checkpoint  # noqa: E402

VOCABULARY = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": [f"<t{i}>" for i in range(97)],
              "tokenizer.ggml.scores": np.arange(97, dtype="<f4") * -1,
              "tokenizer.ggml.token_type": np.full(97, 1, "<i4")}
# architecture, metadata of its own, extra tensors; "tied": there is no output.weight
WRITTEN: dict[str, tuple[str, dict, tuple[str, ...]]] = {
    "smollm3": ("smollm3", {}, ()),
    "smollm3 tied": ("smollm3", {}, ("tied",)),
    "llama tied": ("llama", {}, ("tied",)),
    "llama 3.1": ("llama", {"rope.freq_base": 500000.0}, ("rope_freqs",)),
    "llama 3.1 tied": ("llama", {"rope.freq_base": 500000.0}, ("rope_freqs", "tied")),
    "llama linear": ("llama", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, ()),
    "llama biased": ("llama", {}, ("bias",)),
    "qwen2 tied": ("qwen2", {}, ("bias", "tied")),
    "qwen2 yarn": ("qwen2", {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
                             "rope.scaling.original_context_length": 32}, ("bias",)),
    "qwen3 tied": ("qwen3", {}, ("qk_norm", "tied")),
    "granite tied": ("granite", {"embedding_scale": 6.0, "residual_scale": 0.22, "attention.scale": 0.2,
                                 "logit_scale": 0.25}, ("tied",)),
}
LAYERS, DIM, HEADS, GROUPS, HEAD, FFN = 8, 64, 4, 2, 16, 96


def llama3_divisors(base: float) -> np.ndarray:
    """What llama.cpp's converter writes for Llama 3.1: wavelengths below 2048 stay, those above 8192 times 8.

    Source: convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors.
    """
    found = []
    for frequency in 1.0 / base ** (np.arange(0, HEAD, 2) / HEAD):
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            found.append(1.0)
        elif wavelength > 8192:
            found.append(8.0)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            found.append(1 / ((1 - smooth) / 8 + smooth))
    return np.array(found, np.float32)


def write_by_gguf_py(name: str, path: Path) -> Path:
    """One of WRITTEN, random."""
    import gguf
    arch, own, extra = WRITTEN[name]
    rng = np.random.default_rng(7)
    file = gguf.GGUFWriter(path, arch)
    file.add_block_count(LAYERS)
    file.add_context_length(128)
    file.add_embedding_length(DIM)
    file.add_feed_forward_length(FFN)
    file.add_head_count(HEADS)
    file.add_head_count_kv(GROUPS)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_dimension_count(HEAD)
    file.add_vocab_size(97)
    if "rope.freq_base" not in own:
        file.add_rope_freq_base(10000.0)
    for key, value in own.items():
        add = {float: file.add_float32, int: file.add_uint32, str: file.add_string}[type(value)]
        add(f"{arch}.{key}", value)
    file.add_tokenizer_model("llama")
    file.add_token_list(VOCABULARY["tokenizer.ggml.tokens"])
    file.add_token_scores([-float(i) for i in range(97)])
    file.add_token_types([1] * 97)
    file.add_bos_token_id(1)
    file.add_eos_token_id(2)

    def tensor(name: str, *shape: int) -> None:
        drawn = rng.standard_normal(shape) * (0.15 if len(shape) > 1 else 0.3)
        file.add_tensor(name, (drawn + ("norm" in name)).astype(np.float32))
    tensor("token_embd.weight", 97, DIM)
    tensor("output_norm.weight", DIM)
    if "tied" not in extra:
        tensor("output.weight", 97, DIM)
    if "rope_freqs" in extra:
        file.add_tensor("rope_freqs.weight", llama3_divisors(own["rope.freq_base"]))
    wide, narrow = HEADS * HEAD, GROUPS * HEAD
    for i in range(LAYERS):
        for part, rows, columns in (("attn_q", wide, DIM), ("attn_k", narrow, DIM), ("attn_v", narrow, DIM),
                                    ("attn_output", DIM, wide), ("ffn_gate", FFN, DIM),
                                    ("ffn_up", FFN, DIM), ("ffn_down", DIM, FFN)):
            tensor(f"blk.{i}.{part}.weight", rows, columns)
            if "bias" in extra and part.startswith("attn_") and (arch == "llama" or part != "attn_output"):
                tensor(f"blk.{i}.{part}.bias", rows)
        for part in ("attn_norm", "ffn_norm"):
            tensor(f"blk.{i}.{part}.weight", DIM)
        if "qk_norm" in extra:
            tensor(f"blk.{i}.attn_q_norm.weight", HEAD)
            tensor(f"blk.{i}.attn_k_norm.weight", HEAD)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def main() -> None:
    plain = gguf_file.write
    gguf_file.write = lambda path, metadata, tensors, **more: plain(
        path, metadata | VOCABULARY, tensors, **more)
    for name in [*families.CASES, *(f"gguf-py: {name}" for name in WRITTEN)]:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = Path(folder) / "model.gguf"
            if name in families.CASES:
                families.write(name, path)
            else:
                write_by_gguf_py(name.removeprefix("gguf-py: "), path)
            config, _ = checkpoint.read_config(path)
            with torch.device("meta"):
                model = LLaMA(config)
            checkpoint.load_weights(model, path)
            ours = run(model.eval(), [SMALL_IDS]).numpy()
            theirs = Peer(str(path), 64).logits(SMALL_IDS)
            print(f"{name:24} {np.abs(ours - theirs).max():.1e} of {np.abs(ours).max():.1f}", flush=True)


if __name__ == "__main__":
    main()
