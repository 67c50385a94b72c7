"""Mutates config.json of every family, and reads what comes out: one line for each fault, no traceback.

Run by hand:  python tests/beside/fuzz_configs.py 2000 1     (how many, and the seed)
tests/model/test_config_mutations.py runs a short slice of it.
"""
import copy
import json
import random
import sys
from pathlib import Path

import torch

from redlite.errors import Error
from redlite.model.config import Config
from redlite.model.llama import LLaMA
from redlite.model.rotary import rotary_tables

CASES = json.loads((Path(__file__).parents[1] / "golden" / "families.json").read_text())["cases"]
VALUES = [None, True, False, 0, -1, 1, 2, 3, 7, 1 << 20, 1 << 40, 10**30, 0.0, -0.5, 0.3, 1e-300, 1e300,
          float("inf"), float("nan"), "", "yarn", "full_attention", "x" * 5000, [], {}, [1], [None] * 4, [[]],
          {"rope_type": "yarn", "factor": 4}, {"rope_type": ["x"]}, {"type": "longrope", "short_factor": 3},
          {"full_attention": 7}, {"sliding_attention": {"rope_type": "linear"}}, ["sliding_attention"] * 4]
MOST = 300  # characters of an error


def mutated(raw: dict, rng: random.Random) -> dict:
    """The configuration with one to four fields changed, removed, renamed or added."""
    def value() -> object:      # a copy: a later change would reach every place that shares it, even itself
        return copy.deepcopy(rng.choice(VALUES))
    raw = copy.deepcopy(raw)
    for _ in range(rng.randint(1, 4)):
        inner = [v for v in raw.values() if isinstance(v, dict) and v]
        place = rng.choice(inner) if inner and rng.random() < 0.3 else raw
        name = rng.choice(sorted(place)) if place else "x"
        kind = rng.randrange(6)
        if kind < 3:
            place[name] = value()
        elif kind == 3:
            place.pop(name, None)
        elif kind == 4:
            for _ in range(rng.choice([1, 3000])):
                place[f"odd\n{rng.randrange(10**9)}" * rng.randint(1, 9)] = value()
        else:
            place[rng.choice(sorted(rng.choice(list(CASES.values()))["config"]))] = value()
    if rng.random() < 0.1:
        raw["model_type"] = rng.choice(sorted(case["config"]["model_type"] for case in CASES.values()))
    return raw


def outcome(raw: dict) -> str:
    """"loads" or the one line of the error. Raises AssertionError for any other behaviour."""
    try:
        config = Config.from_hf(raw, "config.json")
    except Error as error:
        text = str(error)
        assert "\n" not in text and len(text) <= MOST, text
        return text
    again = Config.from_hf(config.to_hf(), "again")
    assert again == config, (config, again)
    with torch.device("meta"):
        LLaMA(config)
    if config.rotated <= 4096:
        tables = rotary_tables(config, torch.arange(3), None, torch.float32)
        assert all(pair[0].shape == (3, config.rotated) for pairs in tables if pairs for pair in pairs)
    return "loads"


def run(count: int, seed: int) -> dict[str, int]:
    """How many of the mutations load, and how many are refused."""
    rng, found = random.Random(seed), {"loads": 0, "refused": 0}
    for n in range(count):
        raw = mutated(rng.choice(list(CASES.values()))[rng.choice(["config", "given"])], rng)
        try:
            found["loads" if outcome(raw) == "loads" else "refused"] += 1
        except Exception:
            print(f"mutation {n} of seed {seed}: {str(raw)[:2000]}", file=sys.stderr)
            raise
    return found


if __name__ == "__main__":
    print(run(int(sys.argv[1]), int(sys.argv[2])))
