"""Intervals and tests for proportions and paired outcomes, pure arithmetic."""
from itertools import repeat
from math import comb, fsum, sqrt
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


def mean_stderr(values: list[float]) -> tuple[float, float | None]:
    """The mean, and its standard error: sample standard deviation (n − 1) / √n; None for a single value."""
    n = len(values)
    mean = fsum(values) / n
    return mean, sqrt(fsum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else None


def bootstrap_difference(pairs: list[tuple[str, float, float]], seed: int = 0, resamples: int = 10_000, confidence: float = 0.95,
                         weights: list[float] | None = None) -> tuple[float, float]:
    """The percentile bootstrap interval of mean(b) − mean(a) over (unit, a, b); weights: of the pairs in both means, alike unless given.

    Units are resampled whole (a question with all its prompts or samples), so answers to one question need not be
    independent. Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    import numpy as np
    units: dict[str, list[float]] = {}
    for (unit, a, b), weight in zip(pairs, weights or repeat(1.0)):
        total = units.setdefault(unit, [0.0, 0.0])
        total[0] += weight * (b - a)
        total[1] += weight
    sums, sizes = (np.array(column, dtype=np.float64) for column in zip(*units.values()))
    generator, means = np.random.default_rng(seed), []
    for start in range(0, resamples, 500):  # in blocks, to bound the memory
        drawn = generator.integers(0, len(sums), (min(500, resamples - start), len(sums)))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    lo, hi = np.quantile(np.concatenate(means), ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(lo), float(hi)


def mcnemar(wins: int, losses: int) -> float:
    """The exact two-sided p-value of McNemar's test: that many discordant pairs fall so unevenly, were either side as likely.

    Source: McNemar, Psychometrika 12 (1947) 153; exact binomial form.
    """
    n, k = wins + losses, min(wins, losses)
    if n == 0:
        return 1.0
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2 ** n)
