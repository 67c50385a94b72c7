#!/usr/bin/env bash
# llama.cpp of October 2026 (xllamacpp 2026.10.11549, gguf 0.19.0): the server of a guard model takes the
# answer that is to be judged out of the conversation.
#
# Where the last message is the assistant's, the server renders the template without it, then writes its text
# behind the generation prompt, for the model to go on with. A guard's template builds its question from the
# whole conversation, whose last message is the one to judge. It now sees one message less.
#
# Surprise: the guard is asked about the user's message instead of the answer, and its verdict seems to begin
# with the answer itself. "add_generation_prompt": false or "continue_final_message": false in the request do
# not help; only the server's own setting does (prefill_assistant, on unless it is switched off).
# For red-teaming: the same request to the same guard judges answers on one server and questions on another.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q xllamacpp==2026.10.11549 gguf==0.19.0
"$work/venv/bin/python" - "$work/guard.gguf" <<'PYTHON' 2> "$work/log" || { tail -n 5 "$work/log"; exit 1; }
import json
import sys
import urllib.request
from importlib.metadata import version

import gguf
import numpy as np
import xllamacpp

print("xllamacpp", version("xllamacpp"), "gguf", version("gguf"))
DIM, HIDDEN, HEADS = 32, 64, 2
words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
random = np.random.default_rng(0)


def write_model(path):
    """A LLaMA of one layer with random weights: what it says does not matter here."""
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(512)
    out.add_embedding_length(DIM)
    out.add_feed_forward_length(HIDDEN)
    out.add_block_count(1)
    out.add_head_count(HEADS)
    out.add_layer_norm_rms_eps(1e-5)
    out.add_rope_dimension_count(DIM // HEADS)
    out.add_tokenizer_model("llama")
    out.add_token_list(words)
    out.add_token_scores([0.0] * len(words))
    out.add_token_types([2, 3, 3] + [6] * 256)
    shapes = {"token_embd": (len(words), DIM), "output": (len(words), DIM), "output_norm": (DIM,),
              "blk.0.attn_norm": (DIM,), "blk.0.ffn_norm": (DIM,), "blk.0.ffn_up": (HIDDEN, DIM),
              "blk.0.ffn_gate": (HIDDEN, DIM), "blk.0.ffn_down": (DIM, HIDDEN)}
    shapes |= {f"blk.0.attn_{part}": (DIM, DIM) for part in ("q", "k", "v", "output")}
    for name, shape in shapes.items():
        out.add_tensor(f"{name}.weight", random.normal(0, 0.3, shape).astype(np.float32))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


write_model(sys.argv[1])
# Guards' templates do this: who spoke last follows from the number of messages, and all of them are quoted.
TEMPLATE = """Is the last message of the {{ 'Agent' if messages|length % 2 == 0 else 'User' }} safe?
{% for m in messages %}
{{ 'Agent' if m.role == 'assistant' else 'User' }}: {{ m.content }}
{% endfor %}
{% if add_generation_prompt %}
Verdict: {% endif %}"""
ANSWER = "Here is how."
messages = [{"role": "user", "content": "May I?"}, {"role": "assistant", "content": ANSWER}]


def prompt(prefill, **more):
    """What the model would read, by the server's own account."""
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.chat_template, settings.n_ctx = sys.argv[1], TEMPLATE, 512
    if prefill is not None:
        settings.prefill_assistant = prefill
    server = xllamacpp.Server(settings)
    request = urllib.request.Request(f"{server.listening_address}/apply-template",
                                     json.dumps({"messages": messages, **more}).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)["prompt"]


usual = prompt(None)
seen = {"as it is installed": usual,
        "continue_final_message false": prompt(None, continue_final_message=False),
        "add_generation_prompt false": prompt(None, add_generation_prompt=False),
        "prefill_assistant off": prompt(False)}
for name, text in seen.items():
    print(f"seen: {name}: {text!r}")
print("one would expect: the last prompt from the first two requests too")
wanted = f"Is the last message of the Agent safe?\nUser: May I?\nAgent: {ANSWER}\nVerdict: "
assert seen["prefill_assistant off"] == wanted
moved = f"Is the last message of the User safe?\nUser: May I?\nVerdict: {ANSWER}"
assert usual == moved, "the answer keeps its place now"
assert seen["continue_final_message false"] == moved, "continue_final_message decides now"
assert seen["add_generation_prompt false"] == moved, "add_generation_prompt decides now"
PYTHON
