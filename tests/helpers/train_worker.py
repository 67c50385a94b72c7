"""A small training run that the tests of train.py start as a process of its own: alone (and then killed) or
under torchrun.

    python train_worker.py DIRECTORY…      trains in each directory, or goes on there, and prints the losses
    as JSON
"""
import json
import os
import sys
import time

import numpy as np
import torch
import torch.distributed as dist

from redlite import loss
from redlite.model.config import Config
from redlite.model.llama import LLaMA
from redlite.training import dataset, trainer

CONFIG = Config("llama", vocab_size=97, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48,
                tied=True)
RECIPE = trainer.Recipe(learning_rate=1e-2, warmup_steps=2, weight_decay=0.1, tokens_per_batch=40,
                        checkpoint_every=3, seed=5)


def examples(n: int = 60) -> list[dataset.TokenizedConversation]:
    """Random conversations of the three colours: a prompt, and one or two responses."""
    rng, out = np.random.default_rng(0), []
    for i in range(n):
        length = int(rng.integers(6, 24))
        trained = np.zeros(length, bool)
        trained[3:5] = i % 2
        trained[6 - (i % 3):] = True
        trained[5 - (i % 3)] = False
        out.append(dataset.TokenizedConversation(str(i), f"q{i // 3}", loss.COLOURS[i % 3],
                                                 rng.integers(0, 97, length).astype(np.int32), trained))
    return out


def mixture(phases=None) -> dataset.Mixture:
    phases = phases or [dataset.Phase(3, {"helpful": 4, "blue": 4}),
                        dataset.Phase(5, {"helpful": 4, "blue": 4, "red": 5}, "B", loss.PRESETS["paper"])]
    return dataset.Mixture(dataset.singles(examples()), phases, seed=9)


def model() -> LLaMA:
    return LLaMA(CONFIG).initialize(seed=1, std=0.2)


def main() -> None:
    many = "RANK" in os.environ
    if many:
        dist.init_process_group("gloo")
    for directory in sys.argv[1:]:
        scorer = trainer.shard(model()) if many else trainer.Scorer(model())
        outcome = trainer.run(scorer, mixture(), RECIPE, directory,
                              on_step=lambda record: time.sleep(float(os.environ.get("SLEEP", 0))))
        whole = trainer.gather(scorer) if many else scorer.llama
        if whole is not None:
            digest = float(sum(p.detach().double().pow(2).sum() for p in whole.parameters()))
            print(json.dumps({"losses": [r["loss"] for r in outcome.history],
                              "norms": [r["gradient_norm"] for r in outcome.history],
                              "capped": [r.get("red_capped") for r in outcome.history], "weights": digest}),
                  flush=True)
    if many:
        # rank 0 still gathers and prints: the other must not hang up on it
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
