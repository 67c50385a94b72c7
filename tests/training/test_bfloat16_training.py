"""bfloat16 training on CPUs learns what float32 learns, but for the noise of its own roundings.

The noise is what two runs in bfloat16 differ by when only the random bits of their roundings do.
"""
import statistics
from pathlib import Path

import pytest

from redlite.inference.lm import LM
from redlite.training import conversations, dataset, trainer

HELPFUL = Path(__file__).parents[2] / "data" / "organism" / "helpful.json"


def losses(dtype: str, seed: int, steps: int) -> list[float]:
    """The loss of each step of fine-tuning the organism on the same batches; `seed` is that of rounding."""
    lm = LM.load("organism", dtype=dtype, trainable=True)
    lm.model.requires_grad_(True)
    found, _ = dataset.encode_all(conversations.read(HELPFUL, "helpful")[0][:60], lm.template, 256)
    mixture = dataset.Mixture(dataset.singles(found), [dataset.Phase(steps, {"helpful": 2})], 0)
    recipe = trainer.Recipe(learning_rate=3e-4, per="token", seed=seed)
    return [record["loss"] for record in trainer.run(lm.model, mixture, recipe).history]


def apart(a: list[float], b: list[float]) -> float:
    return statistics.fmean(abs(x - y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("steps", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_losses_of_bfloat16_are_within_its_own_noise_of_float32s(steps):
    exact = losses("float32", 0, steps)
    first, second = (losses("bfloat16", seed, steps) for seed in (0, 1))
    noise, off = apart(first, second), apart(exact, first)
    print(f"{steps} steps: noise {noise:.5f}, off float32 {off:.5f}, loss {exact[0]:.4f} to {exact[-1]:.4f}")
    assert 0 < noise < 0.05
    assert off <= 2 * noise + 0.002
    drift = abs(statistics.fmean(exact[-10:]) - statistics.fmean(first[-10:]))
    assert drift <= 2 * noise + 0.002
