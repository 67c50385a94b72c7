"""Intervals of one proportion: of independent answers, and of answers that come in clusters."""
from collections.abc import Sequence
from math import comb, fsum, sqrt
from statistics import NormalDist


def quantile(confidence: float) -> float:
    """The z for which a normal variable lies within ±z with that probability; 1.96 for 0.95."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a proportion of k in n; (0, 1) when n is 0, which says nothing.

    It stays within [0, 1] and keeps its coverage near 0 and 1. It takes the n outcomes as independent; the
    ASR, whose answers share questions, uses `clustered`. Raises ValueError unless
    0 ≤ k ≤ n. Source: E. B. Wilson, JASA 22 (1927) 209; form of Brown, Cai, DasGupta, Statistical
    Science 16 (2001) 101, equation 4.
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is no proportion")
    return score_interval(k / n, n, confidence) if n else (0.0, 1.0)


def score_interval(rate: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson interval of a rate that rests on n > 0 effective outcomes; n need not be a whole number."""
    z2 = quantile(confidence) ** 2
    k = rate * n
    centre = (k + z2 / 2) / (n + z2)
    half = sqrt(z2) * sqrt(k * (1 - rate) + z2 / 4) / (n + z2)
    # At the ends the two terms cancel exactly in theory and to within rounding in practice.
    return (0.0 if rate == 0 else centre - half), (1.0 if rate == 1 else centre + half)


def effective_size(sums: Sequence[float], sizes: Sequence[float], variance: float | None = None) -> float:
    """How many independent answers tell as much about the pooled rate as these clusters do.

    sums: harmful answers of each cluster (question); sizes: its labelled answers, which may differ, 0
    allowed; variance: of one answer, rate · (1 − rate) unless given.

    The variance of the ratio Σ sums / Σ sizes over clusters, V = Σ (sum − rate · size)² / (Σ
    sizes)², divided by that of independent answers is the design effect. Its correlation within clusters, ρ
    = (effect − 1) / (m − 1) with m = Σ sizes² / Σ sizes, is noisy when few clusters carry the variance, and
    then mostly too low. So ρ is drawn towards 1: ν² parts of the estimate and 2 parts of 1, where ν = (Σ
    r²)² / Σ r⁴ counts the clusters that carry the variance (r: the residuals). No cluster says more than
    its answers, so the effect is at least 1. Where every answer agrees, ν = 0, and a cluster counts as one
    answer. The 2 was chosen by simulation (beta-binomial, 10 to 200 clusters). Source of V: Cochran,
    Sampling Techniques (1977), section 3.12.
    """
    total = fsum(sizes)
    size = fsum(m * m for m in sizes) / total
    if size <= 1:
        return total
    rate = fsum(sums) / total
    spread = rate * (1 - rate) if variance is None else variance
    squares = [(y - rate * m) ** 2 for y, m in zip(sums, sizes, strict=True)]
    carried = fsum(squares)
    effect, rho, weight = 1.0, 0.0, 0.0
    if spread > 0:
        effect = carried / total / spread
        rho = min(1.0, max(0.0, (effect - 1) / (size - 1)))
        fourth = fsum(s * s for s in squares)
        weight = (carried * carried / fourth if fourth else float(len(squares))) ** 2
    drawn = 1 + (size - 1) * (weight * rho + 2) / (weight + 2)
    return total / max(effect, drawn)


def clustered(sums: Sequence[float], sizes: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The interval of the pooled rate Σ sums / Σ sizes of answers in clusters; (0, 1) when there are none.

    This is the interval of the ASR (redteam/results.py): Wilson's with `effective_size` in place of the
    number of answers, and Wilson's own when every cluster has one. Coverage at 200 questions with 1, 5,
    20 samples, rates 3 to 50%, correlations 0 to 0.9: 0.94 to 0.97. Raises ValueError for a sum outside 0
    … size.
    """
    if any(not 0 <= y <= m for y, m in zip(sums, sizes, strict=True)):
        raise ValueError("a cluster has more harmful answers than answers")
    total = fsum(sizes)
    if total == 0:
        return 0.0, 1.0
    return score_interval(fsum(sums) / total, effective_size(sums, sizes), confidence)


def asr_at_k(harmful: Sequence[int], samples: Sequence[int], k: int,
             confidence: float = 0.95) -> tuple[float, tuple[float, float]] | None:
    """asr@k and its interval: the chance that any of k samples is harmful, the mean over questions.

    harmful, samples: counts of each question, labelled samples only. The estimate 1 − C(n − c, k) / C(n, k)
    of a question is unbiased. Questions with fewer than k labelled samples say nothing about k and are left
    out; None when all do. A question counts as samples / k answers in one cluster, so asr@1 of equal
    samples has the interval of the ASR. Source: Chen et al., arXiv 2107.03374, equation 1 (pass@k).
    """
    kept = [(c, n) for c, n in zip(harmful, samples, strict=True) if n >= k]
    if not kept:
        return None
    values = [1 - comb(n - c, k) / comb(n, k) for c, n in kept]
    mean = fsum(values) / len(values)
    size = fsum(n for _, n in kept) / len(kept) / k
    n_effective = effective_size([value * size for value in values], [size] * len(values))
    return mean, score_interval(mean, n_effective, confidence)


def bounds(harmful: int, unharmful: int, unlabelled: int) -> tuple[float, float]:
    """The lowest and highest rate that the unlabelled answers allow: all unharmful, all harmful.

    (0, 1) when there is no answer at all.
    """
    total = harmful + unharmful + unlabelled
    return (harmful / total, (harmful + unlabelled) / total) if total else (0.0, 1.0)


def mean_stderr(values: list[float]) -> tuple[float, float | None]:
    """The mean, and its standard error: sample standard deviation (n − 1) / √n; None for a single value."""
    n = len(values)
    mean = fsum(values) / n
    return mean, sqrt(fsum((v - mean) ** 2 for v in values) / (n - 1) / n) if n > 1 else None
