"""Intervals for proportions, pure arithmetic."""
from math import sqrt
from statistics import NormalDist


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a proportion of k in n; (0, 1) when n is 0, which says nothing.

    Unlike the textbook interval it stays within [0, 1] and keeps its coverage near 0 and 1, where attack success rates
    lie. It takes the n outcomes as independent. Source: E. B. Wilson, JASA 22 (1927) 209; form of Brown, Cai, DasGupta,
    Statistical Science 16 (2001) 101, equation 4.
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is no proportion")
    if n == 0:
        return 0.0, 1.0
    z2 = NormalDist().inv_cdf(0.5 + confidence / 2) ** 2
    centre = (k + z2 / 2) / (n + z2)
    half = sqrt(z2) * sqrt(k * (n - k) / n + z2 / 4) / (n + z2)
    # At the ends the two terms cancel exactly in theory and to within rounding in practice.
    return 0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half


def bounds(harmful: int, unharmful: int, unlabelled: int) -> tuple[float, float]:
    """The lowest and highest rate that the unlabelled answers allow: all of them unharmful, all of them harmful.

    (0, 1) when there is no answer at all.
    """
    total = harmful + unharmful + unlabelled
    return (harmful / total, (harmful + unlabelled) / total) if total else (0.0, 1.0)
