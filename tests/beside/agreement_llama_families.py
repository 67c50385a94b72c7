"""Compares redlite with llama.cpp on tiny GGUF files of several families: largest difference of the logits.

Run by hand where llama-cpp-python 0.3.36 is installed beside redlite:

    python tests/beside/agreement_llama_families.py

The files are those of tests/weights/test_gguf_families.py, whose writer might be wrong as our reader is: here
llama.cpp reads them. It gets a vocabulary beside. All numbers are float32. llama.cpp leaves out Phi-3's
window ("phi3" differs), and takes Gemma's activation from a table of float16 (a few thousandths).
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


def main() -> None:
    plain = gguf_file.write
    gguf_file.write = lambda path, metadata, tensors, **more: plain(
        path, metadata | VOCABULARY, tensors, **more)
    for name in families.CASES:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = families.write(name, Path(folder) / "model.gguf")
            config, _ = checkpoint.read_config(path)
            with torch.device("meta"):
                model = LLaMA(config)
            checkpoint.load_weights(model, path)
            ours = run(model.eval(), [SMALL_IDS]).numpy()
            theirs = Peer(str(path), 64).logits(SMALL_IDS)
            print(f"{name:15} {np.abs(ours - theirs).max():.1e} of {np.abs(ours).max():.1f}", flush=True)


if __name__ == "__main__":
    main()
