"""Compares redlite with llama.cpp on a GGUF file: ids, chat prompts, logits, greedy ids, ends.

Run by hand where llama-cpp-python 0.3.36 is installed beside redlite:

    python tests/beside/agreement_llama_cpp.py MODEL.gguf

It prints how many strings and conversations differ and the first that does; for each prompt the largest
difference of the last logits, the divergence of their softmax, and the first greedy id that differs.
redlite computes in float32 from the file's blocks. llama.cpp rounds activations to 8 bits beside them, so
logits differ, and greedy ids part where two tokens are about as likely. llama.cpp does not compose text
(NFC), which transformers does for Qwen. It ends answers at tokens of code completion, and at `</s>` where
that is a plain token.
"""
import ctypes
import sys
from pathlib import Path

import llama_cpp
import numpy as np
import torch

import redlite
from redlite.inference.lm import LM

NEW = 48
STRINGS = [
    "", " ", "  ", "\n", "\r\n\r\n", "\t\tx", " a", "a ", "a  b   c", "it's we'll I'D THEY'RE", "1234567890",
    "3.14e-10, 0x1F", "naïve café", "e\u0301 and \u00e9", "ﬁ ﬀ ½ ²",
    "日本語のテキスト。", "中文，标点！", "한국어 문장",
    "عربي ١٢٣", "हिन्दी में", "ไทยไม่มีเว้นวรรค", "👩‍👩‍👧‍👦 🏳️‍🌈", "\u200b\u200d\ufeff", "\u3000full\u00a0width",
    "def f(x):\n    return x  # ok\n\n\n", "<|im_end|> as text", "a<tag>b</tag>",
    "▁under▁", "İıſK", "x" * 200]
CHATS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Name a colour. \n"}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"},
     {"role": "user", "content": "Bye"}],
    [{"role": "user", "content": "日本語で\n\nお願いします"}],
    [{"role": "system", "content": "It's \"fine\"."}, {"role": "user", "content": "1"},
     {"role": "assistant", "content": "2"}, {"role": "user", "content": "3"},
     {"role": "assistant", "content": "4"}, {"role": "user", "content": "5"}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "e\u0301 👩‍👩‍👧"}]]
PROMPTS = ["The capital of France is", "def add(a, b):\n    return a + b\n\nprint(add(1,2))\n",
           "Once upon a time, in a small village by the sea,"]


class Peer:
    """llama.cpp with a model and one sequence of `size` tokens."""

    def __init__(self, path: str, size: int = 512):
        llama_cpp.llama_backend_init()
        quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(quiet, None)
        self.keep = quiet
        self.model = llama_cpp.llama_load_model_from_file(
            path.encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = size
        settings.type_k = settings.type_v = 0   # F32
        settings.flash_attn_type = 0
        settings.n_threads = settings.n_threads_batch = 2
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.words = llama_cpp.llama_model_get_vocab(self.model)
        self.rows = llama_cpp.llama_vocab_n_tokens(self.words)

    def ids(self, text: str, control: bool = False) -> list[int]:
        """Ids without BOS. control: texts of control tokens become their ids."""
        raw = text.encode()
        out = (ctypes.c_int32 * (len(raw) + 16))()
        count = llama_cpp.llama_tokenize(self.words, raw, len(raw), out, len(out), False, control)
        return list(out[:count])

    def logits(self, ids: list[int]) -> np.ndarray:
        """[T, V] after every token."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        return self.more(ids, 0, range(len(ids)))

    def more(self, ids: list[int], at: int, wanted: range) -> np.ndarray:
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, id in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = id, at + i, 1, 0
            batch.logits[i] = i in wanted
        if llama_cpp.llama_decode(self.context, batch):
            raise SystemExit("llama.cpp cannot compute this")
        found = np.stack([np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, i), (self.rows,))
                          for i in wanted])
        llama_cpp.llama_batch_free(batch)
        return found.copy()

    def greedy(self, ids: list[int], count: int) -> tuple[list[int], list[float]]:
        """(Ids up to the end token, which is left out; the lead of each over the next best)."""
        row, out, leads = self.logits(ids)[-1], list[int](), list[float]()
        while len(out) < count:
            best, lead = int(row.argmax()), np.sort(row)[-2:]
            if llama_cpp.llama_vocab_is_eog(self.words, best):
                break
            out.append(best)
            leads.append(float(lead[1] - lead[0]))
            row = self.more([best], len(ids) + len(out) - 1, range(1))[0]
        return out, leads

    def ends(self) -> list[int]:
        return [i for i in range(self.rows) if llama_cpp.llama_vocab_is_eog(self.words, i)]


def compare_logits(lm: LM, peer: Peer, ids: list[int]) -> tuple[float, float]:
    """(The largest difference after the last token, the divergence of llama.cpp's softmax there, in nats)."""
    ours, theirs = lm.logits(ids).double(), torch.from_numpy(peer.logits(ids)).double()
    theirs = theirs[:, :ours.shape[1]]
    p, q = torch.log_softmax(ours[-1], -1), torch.log_softmax(theirs[-1], -1)
    return float((ours[-1] - theirs[-1]).abs().max()), float((p.exp() * (p - q)).sum())


def main() -> None:
    path = sys.argv[1]
    lm, peer = redlite.load(path), Peer(path)
    print(f"ends: {sorted(lm.stop_ids)} here, {peer.ends()} there")
    wrong = [text for text in STRINGS if lm.tokenizer.encode(text) != peer.ids(text)]
    print(f"{len(STRINGS)} strings: {len(wrong)} differ", *(ascii(text) for text in wrong[:3]))
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    source = lm.tokenizer.chat_template
    if source:
        rendered = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)
        wrong = []
        for messages in CHATS:
            text = rendered.render(messages=messages, add_generation_prompt=True, bos_token="", eos_token="")
            if lm.template.encode(messages, True).ids != peer.ids(text, True):
                wrong.append(messages)
        print(f"{len(CHATS)} conversations: {len(wrong)} differ", *wrong[:1])
    for prompt in PROMPTS:
        ids = lm.tokenizer.encode(prompt)
        far, divergence = compare_logits(lm, peer, ids)
        [answer], (theirs, leads) = lm.generate([ids], NEW), peer.greedy(ids, NEW)
        ours = [id for id in answer.ids if id not in lm.stop_ids]
        pairs = zip(ours, theirs, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(theirs)))
        parted = f"; part at {same}, llama.cpp's lead {leads[same]:.3f}" if ours != theirs else ""
        print(f"{len(ids)} tokens: logits {far:.4f} apart, KL {divergence:.2e}; greedy {len(ours)} and "
              f"{len(theirs)} ids, {same} alike{parted}; {answer.finish}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        raise SystemExit(__doc__)
    main()
