"""A model small enough for any test: random weights, a token for every byte, a chat format of three control
tokens.
"""
from pathlib import Path

from redlite.inference.lm import LM
from redlite.model.config import Config
from redlite.model.llama import LLaMA
from redlite.text.chat import Encoded

BOS, EOS, USER, ASSISTANT = 256, 257, 258, 259


class Bytes:
    """A tokenizer of bytes."""
    vocab_size, bos_id, eos_id, pad_id, add_bos, chat_template = 260, BOS, EOS, None, True, None
    end_ids, trims, named = (), {}, {}
    special = {"<s>": BOS, "</s>": EOS, "<|user|>": USER, "<|assistant|>": ASSISTANT}

    def encode(self, text):
        return list(text.encode())

    def encode_segment(self, text, first):
        return self.encode(text)

    def decode(self, ids):
        return bytes(i for i in ids if i < 256).decode(errors="replace")

    def piece_bytes(self, i):
        return bytes([i]) if i < 256 else b""

    def fingerprint(self):
        return "bytes"


class Turns:
    """A chat format: a control token before each text, EOS behind an assistant's."""
    name, stop_ids, stop_strings = "turns", (EOS,), ()

    def encode(self, messages, add_generation_prompt=False):
        ids, trained = [BOS], [False]
        for message in messages:
            mine = message["role"] == "assistant"
            text = [*message["content"].encode(), *[EOS] * mine]
            ids += [{"user": USER, "assistant": ASSISTANT, "system": BOS}[message["role"]], *text]
            trained += [False, *[mine] * len(text)]
        return Encoded(ids + [ASSISTANT] * add_generation_prompt, trained + [False] * add_generation_prompt)

    def fingerprint(self):
        return "turns"


def lm(seed=0, max_positions=2048, std=0.3, max_batch=32):
    """A random model; std is large, so that greedy answers differ from question to question."""
    config = Config("llama", 260, 32, 2, 4, 2, 8, 48, max_positions=max_positions, eos_ids=(EOS,))
    model = LLaMA(config).initialize(seed, std=std).eval().requires_grad_(False)
    return LM(model, Bytes(), Turns(), Path("tiny"), "float32", "cpu", max_batch)
