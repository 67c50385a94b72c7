"""The cosines and sines of rotary position embedding, from the parameters that `rope.py` reads."""
import math
from typing import Any

import torch
from torch import Tensor

from redlite.model.config import Config
from redlite.model.rope import NONE, SLIDING, TRAINED

Pair = tuple[Tensor, Tensor]                # cos and sin [T, R]
Tables = list[tuple[Pair, Pair] | None]     # by kind of layer, for queries and for keys; None: no such layer


def rotary_tables(config: Config, positions_T: Tensor, lengths_T: Tensor | None,
                  dtype: torch.dtype) -> Tables:
    """cos and sin of each token's rotary angles, for every kind of layer that the model has.

    positions_T  int64, each token's place in its own sequence
    lengths_T    int64, the length so far of each token's sequence; None: position + 1
    """
    keys: list[Pair | None] = [None, None, None]
    for kind in set(config.rope_kinds):
        if kind == NONE:  # x · 1 − y · 0 is x
            shape = len(positions_T), config.rotated
            keys[NONE] = (torch.ones(shape, dtype=dtype, device=positions_T.device),
                          torch.zeros(shape, dtype=dtype, device=positions_T.device))
        else:
            keys[kind] = rotary_table(config, positions_T, lengths_T, dtype, sliding=kind == SLIDING)
    if config.query_growth is None:
        return [pair and (pair, pair) for pair in keys]
    # Llama 4's temperature: queries grow with the logarithm of how often the trained context fits.
    beta, trained = config.query_growth
    scale_T1 = (1 + beta * torch.log(1 + torch.floor(positions_T / trained)))[:, None]
    return [pair and (((pair[0] * scale_T1).to(dtype), (pair[1] * scale_T1).to(dtype)), pair)
            for pair in keys]


def rotary_table(config: Config, positions_T: Tensor, lengths_T: Tensor | None, dtype: torch.dtype,
                 sliding: bool = False) -> tuple[Tensor, Tensor]:
    """cos and sin [T, R] of each token's rotary angles, written twice along R, computed in float32.

    Default: angle_i = position · θ^(−2i/R) (arXiv 2104.09864). `linear` divides positions by the factor.
    `dynamic` raises θ with the sequence's length once it passes the trained context (NTK-aware), `alpha` by a
    fixed amount. `llama3` divides low frequencies by the factor and blends between (Llama 3.1's reference
    code). `yarn` does so by another rule (arXiv 2309.00071), `longrope` with a factor for each frequency
    (arXiv 2402.13753); both scale cos and sin.

    sliding  the table of layers with a window that have parameters of their own
    """
    theta, given = config.sliding_rope if sliding and config.sliding_rope else (config.rope_theta,
                                                                                config.rope_scaling)
    R, scaling = config.rotated, given or {}
    kind = scaling.get("rope_type", "default")
    exponent = torch.arange(0, R, 2, device=positions_T.device).float() / R
    length_T = positions_T + 1 if lengths_T is None else lengths_T
    if kind == "dynamic":
        trained = config.max_positions
        growth_T = scaling["factor"] * length_T.clamp(min=trained).float()[:, None] / trained
        theta_T = theta * (growth_T - (scaling["factor"] - 1)) ** (R / (R - 2))
        frequency = 1.0 / theta_T ** exponent            # [T, R/2]: each sequence has its own
    elif kind == "alpha":
        frequency = 1.0 / (theta * scaling["alpha"] ** (R / (R - 2))) ** exponent
    else:
        frequency = 1.0 / theta ** exponent              # [R/2]: the same for all
    if kind == "linear":
        frequency = frequency / scaling["factor"]
    elif kind == "llama3":
        # Pairs that turn often over the trained context keep their frequency; slow ones are stretched.
        turns = scaling[TRAINED] * frequency / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        frequency = frequency * (keep + (1 - keep) / scaling["factor"])
    elif kind == "yarn":
        keep = _yarn_keep(scaling, theta, R).to(positions_T.device)
        frequency = frequency / scaling["factor"] * (1 - keep) + frequency * keep
    elif kind == "longrope":
        short, long = (torch.tensor(scaling[name], device=positions_T.device)
                       for name in ("short_factor", "long_factor"))
        beyond_T1 = (length_T > scaling[TRAINED])[:, None]
        frequency = frequency / torch.where(beyond_T1, long, short)
    angle_TR = (positions_T.float()[:, None] * frequency).repeat(1, 2)
    cos, sin = angle_TR.cos(), angle_TR.sin()
    if "attention_factor" in scaling:
        cos, sin = cos * scaling["attention_factor"], sin * scaling["attention_factor"]
    return cos.to(dtype), sin.to(dtype)


def _yarn_keep(scaling: dict[str, Any], theta: float, R: int) -> Tensor:
    """YaRN's share [R/2] of the unscaled frequency: 1 for pairs that turn often, 0 for slow ones."""
    def pair_of(turns: float) -> float:
        return R * math.log(scaling[TRAINED] / (turns * 2 * math.pi)) / (2 * math.log(theta))
    low, high = pair_of(scaling["beta_fast"]), pair_of(scaling["beta_slow"])
    if scaling["truncate"]:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, R - 1)
    if low == high:
        high += 0.001
    return 1 - ((torch.arange(R // 2).float() - low) / (high - low)).clamp(0, 1)
