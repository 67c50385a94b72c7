#!/usr/bin/env bash
# llama.cpp of October 2026 (xllamacpp 2026.10.11549, gguf 0.19.0): the context size, a setting of memory,
# changes the log-probabilities of a short prompt.
#
# Phi-3's long-context models have two lists of rotary factors (LongRoPE): a short one for texts up to the
# length of pretraining, a long one for texts beyond it. llama.cpp takes the one or the other by the size of
# the context that is set aside, once for all texts, however short.
#
# Surprise: what follows 20 tokens has other likelihoods in a context of 2048 than in one of 1024. Where no
# size is given, the context is the file's own, and the short text is rotated as only long ones should be.
# For evaluation: a benchmark, or an attack's success, of one file depends on the server's --ctx-size.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q xllamacpp==2026.10.11549 gguf==0.19.0
"$work/venv/bin/python" - "$work" <<'PYTHON' 2> "$work/log" || { tail -n 5 "$work/log"; exit 1; }
import sys
from importlib.metadata import version

import gguf
import numpy as np
import xllamacpp

print("xllamacpp", version("xllamacpp"), "gguf", version("gguf"))
DIM, HIDDEN, HEADS, LAYERS, TRAINED, LONGEST = 32, 64, 2, 2, 1024, 4096
words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
prompt = np.random.default_rng(1).integers(3, len(words), 20).tolist()


def write_model(path, short, long):
    """A Phi-3 with random weights, the same whatever the two factors of every rotary frequency are."""
    random = np.random.default_rng(0)
    out = gguf.GGUFWriter(path, "phi3")
    out.add_context_length(LONGEST)
    out.add_rope_scaling_orig_ctx_len(TRAINED)
    out.add_rope_scaling_attn_factors(1.0)
    out.add_rope_dimension_count(DIM // HEADS)
    out.add_embedding_length(DIM)
    out.add_feed_forward_length(HIDDEN)
    out.add_block_count(LAYERS)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_tokenizer_model("llama")
    out.add_token_list(words)
    out.add_token_scores([0.0] * len(words))
    out.add_token_types([2, 3, 3] + [6] * 256)
    shapes = {"token_embd": (len(words), DIM), "output": (len(words), DIM), "output_norm": (DIM,)}
    for i in range(LAYERS):
        shapes |= {f"blk.{i}.attn_norm": (DIM,), f"blk.{i}.attn_qkv": (3 * DIM, DIM),
                   f"blk.{i}.attn_output": (DIM, DIM), f"blk.{i}.ffn_norm": (DIM,),
                   f"blk.{i}.ffn_up": (2 * HIDDEN, DIM), f"blk.{i}.ffn_down": (DIM, HIDDEN)}
    for name, shape in shapes.items():
        out.add_tensor(f"{name}.weight", random.normal(0, 0.3, shape).astype(np.float32))
    for name, factor in (("short", short), ("long", long)):
        out.add_tensor(f"rope_factors_{name}.weight", np.full(DIM // HEADS // 2, factor, np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def logprobs(path, context):
    """Log-probabilities of the token after the prompt; context 0 is the file's own."""
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx = path, context
    reply = xllamacpp.Server(settings).handle_completions(
        {"prompt": prompt, "max_tokens": 1, "temperature": 0, "n_probs": len(words), "cache_prompt": False})
    found = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    assert len(found) == len(words)
    return np.array([row["logprob"] for row in sorted(found, key=lambda row: row["id"])])


usual, only_long = sys.argv[1] + "/usual.gguf", sys.argv[1] + "/only_long.gguf"
write_model(usual, short=1, long=4)
write_model(only_long, short=4, long=4)
short, long = logprobs(usual, 256), logprobs(only_long, 256)
far = {}
for context in (512, TRAINED, 2 * TRAINED, 0):
    got = logprobs(usual, context)
    far[context] = np.abs(got - short).max(), np.abs(got - long).max()
    print(f"seen: {len(prompt)} tokens, context {context or 'not given'}: log-probabilities are up to "
          f"{far[context][0]:.2g} from those by short factors, {far[context][1]:.2g} from those by long ones")
print(f"one would expect: the short factors throughout, as {len(prompt)} tokens are fewer than {TRAINED}")
assert max(far[512][0], far[TRAINED][0]) < 1e-3 < 0.1 < min(far[512][1], far[TRAINED][1])
assert min(far[2 * TRAINED][0], far[0][0]) > 0.1, "a short prompt keeps the short factors now"
assert max(far[2 * TRAINED][1], far[0][1]) < 1e-3
PYTHON
