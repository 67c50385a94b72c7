#!/usr/bin/env bash
# llama-cpp-python 0.3.36 (built from its own llama.cpp, which takes minutes): Phi-3's sliding window is dropped.
#
# Files of Phi-3 and Phi-4-mini state their window as `phi3.attention.sliding_window`. llama.cpp reads the field,
# says so in its log alone, and lets every token attend to all that came before. Gemma 2's window, written the same
# way, counts.
#
# Surprise: the file states it, transformers applies it, and the architecture beside it has it.
# For evaluation: with prompts longer than the window (2,047 tokens for Phi-3-mini-4k) the same file answers
# otherwise than the model that was released; nothing in the answer tells.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q gguf==0.19.0 llama-cpp-python==0.3.36
"$work/venv/bin/python" - <<'PYTHON'
import tempfile
from importlib.metadata import version
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

print("llama-cpp-python", version("llama-cpp-python"), "and gguf", version("gguf"))
LAYERS, WIDTH, HEADS, INNER, WORDS, LENGTH = 2, 64, 4, 128, 64, 24


def write(path, arch, window):
    draw = np.random.default_rng(0)
    out = gguf.GGUFWriter(path, arch)
    out.add_context_length(128)
    out.add_embedding_length(WIDTH)
    out.add_block_count(LAYERS)
    out.add_feed_forward_length(INNER)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(WIDTH // HEADS)
    out.add_sliding_window(window)
    if arch == "gemma2":
        out.add_key_length(WIDTH // HEADS)
        out.add_value_length(WIDTH // HEADS)
    out.add_tokenizer_model("llama")
    out.add_token_list([b"<unk>", b"<s>", b"</s>", *(f"w{i}".encode() for i in range(3, WORDS))])
    out.add_token_scores([0.0] * WORDS)
    out.add_token_types([2, 3, 3, *[1] * (WORDS - 3)])

    def add(name, *shape):
        out.add_tensor(name, (draw.standard_normal(shape) * 0.3).astype("<f4"))

    def ones(name):
        out.add_tensor(name, np.ones(WIDTH, "<f4"))
    add("token_embd.weight", WORDS, WIDTH)
    ones("output_norm.weight")
    if arch == "phi3":
        add("output.weight", WORDS, WIDTH)
    for i in range(LAYERS):
        at = f"blk.{i}."
        ones(at + "attn_norm.weight")
        ones(at + "ffn_norm.weight")
        add(at + "attn_output.weight", WIDTH, WIDTH)
        add(at + "ffn_down.weight", WIDTH, INNER)
        if arch == "phi3":
            add(at + "attn_qkv.weight", 3 * WIDTH, WIDTH)
            add(at + "ffn_up.weight", 2 * INNER, WIDTH)
        else:
            for name in "qkv":
                add(f"{at}attn_{name}.weight", WIDTH, WIDTH)
            add(at + "ffn_up.weight", INNER, WIDTH)
            add(at + "ffn_gate.weight", INNER, WIDTH)
            ones(at + "post_attention_norm.weight")
            ones(at + "post_ffw_norm.weight")
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def logits(path):
    model = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False)
    model.eval([3 + i % 50 for i in range(LENGTH)])
    return np.array(model.scores[LENGTH - 1])


apart = {}
with tempfile.TemporaryDirectory() as folder:
    for arch in ("gemma2", "phi3"):
        rows = []
        for window in (4, 4096):
            path = Path(folder, f"{arch}-{window}.gguf")
            write(path, arch, window)
            rows.append(logits(path))
        apart[arch] = float(np.abs(rows[0] - rows[1]).max())
        print(f"seen: {arch}, {LENGTH} tokens, windows of 4 and of 4096: logits {apart[arch]:.4f} apart")
print("one would expect: apart in both architectures, as the window is shorter than the text")
assert apart["gemma2"] > 1e-3 and apart["phi3"] == 0, "Phi-3's window counts now"
PYTHON
