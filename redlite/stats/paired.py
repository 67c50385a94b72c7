"""Two runs on the same questions: tests, intervals, families of tests, and the size of what they can see."""
from collections.abc import Sequence
from math import comb, fsum, sqrt
from statistics import NormalDist
from typing import NamedTuple

from redlite.stats.proportions import effective_size, quantile, score_interval


class Paired(NamedTuple):
    """The difference b − a of two runs' rates on the same questions, its interval, the p-value of none."""
    difference: float
    ci95: tuple[float, float]
    p: float
    questions: int


def paired(pairs: Sequence[tuple[str, float, float]], seed: int = 0, confidence: float = 0.95) -> Paired:
    """Compare the rates of two runs over (question, a, b), outcomes in [0, 1], samples repeated or not.

    The p-value is `sign_flip`'s over questions. The interval is Newcombe's square-and-add of each run's
    clustered interval, with the correlation that the questions' residuals show; so it holds at 0%, at 100%
    and with few questions. The correlation has Newcombe's correction for continuity: without it, two runs
    that agree on every question would have no interval at all. The two may differ on a borderline case.
    Raises ValueError when there is no pair. Source of the interval: Newcombe, Statistics in Medicine 17
    (1998) 2635, method 10; Zou and Donner, ibid. 27 (2008) 1693.
    """
    questions: dict[str, list[float]] = {}
    for question, a, b in pairs:
        sums = questions.setdefault(question, [0.0, 0.0, 0])
        sums[0] += a
        sums[1] += b
        sums[2] += 1
    if not questions:
        raise ValueError("there is no pair to compare")
    sums_a, sums_b, sizes = zip(*questions.values(), strict=True)
    total = sum(sizes)
    rate_a, rate_b = fsum(sums_a) / total, fsum(sums_b) / total
    low_a, high_a = score_interval(rate_a, effective_size(sums_a, sizes), confidence)
    low_b, high_b = score_interval(rate_b, effective_size(sums_b, sizes), confidence)
    residuals_a = [y - rate_a * m for y, m in zip(sums_a, sizes, strict=True)]
    residuals_b = [y - rate_b * m for y, m in zip(sums_b, sizes, strict=True)]
    scale = sqrt(fsum(r * r for r in residuals_a) * fsum(r * r for r in residuals_b))
    together = fsum(x * y for x, y in zip(residuals_a, residuals_b, strict=True))
    if together > 0:    # half an answer of each question's size, squared as the residuals are
        together = max(0.0, together - 0.5 * fsum(m * m for m in sizes) / len(sizes))
    shared = together / scale if scale else 0.0

    def half(x: float, y: float) -> float:
        return sqrt(max(0.0, x * x + y * y - 2 * shared * x * y))

    difference = rate_b - rate_a
    low = max(-1.0, difference - half(rate_b - low_b, high_a - rate_a))
    high = min(1.0, difference + half(high_b - rate_b, rate_a - low_a))
    flips = [b - a for a, b in zip(sums_a, sums_b, strict=True)]
    return Paired(difference, (low, high), sign_flip(flips, seed), len(questions))


def sign_flip(differences: Sequence[float], seed: int = 0, draws: int = 20_000) -> float:
    """The two-sided p-value that each question's difference was as likely to have the other sign.

    A question's samples flip together, so they need not be independent. Exact for whole numbers: the
    distribution of the sum is built question by question. Otherwise Monte Carlo with (hits + 1) / (draws +
    1), which is valid. With one sample a question it is the exact McNemar test. Source: Fisher, The Design
    of Experiments (1935), section 21.
    """
    import numpy as np
    sizes = [abs(d) for d in differences if d]
    observed = abs(fsum(differences))
    if all(float(d).is_integer() for d in sizes):
        whole = [int(d) for d in sizes]
        middle = sum(whole)
        chance = np.zeros(2 * middle + 1)  # of each sum from −middle to middle
        chance[middle] = 1.0
        for d in whole:
            chance = 0.5 * (np.roll(chance, d) + np.roll(chance, -d))  # what rolls over the ends is zero
        extreme = np.abs(np.arange(-middle, middle + 1)) >= observed
        return min(1.0, float(chance[extreme].sum()))
    generator, hits = np.random.default_rng(seed), 0
    for _ in range(0, draws, 500):
        signs = generator.integers(0, 2, (500, len(sizes))) * 2 - 1
        hits += int((np.abs(signs @ np.array(sizes)) >= observed * (1 - 1e-12)).sum())
    return (hits + 1) / (draws + 1)


def bootstrap_difference(pairs: list[tuple[str, float, float]], seed: int = 0, resamples: int = 10_000,
                         confidence: float = 0.95, weights: list[float] | None = None) -> tuple[float, float]:
    """The percentile bootstrap interval of mean(b) − mean(a) over (unit, a, b).

    weights: of the pairs in both means, alike unless given. Units are resampled whole (a question with all
    its prompts or samples), so answers to one question need not be independent. Source: Efron and
    Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    import numpy as np
    units: dict[str, list[float]] = {}
    for (unit, a, b), weight in zip(pairs, weights or [1.0] * len(pairs), strict=True):
        total = units.setdefault(unit, [0.0, 0.0])
        total[0] += weight * (b - a)
        total[1] += weight
    sums, sizes = (np.array(column, dtype=np.float64) for column in zip(*units.values(), strict=True))
    generator, means = np.random.default_rng(seed), []
    for start in range(0, resamples, 500):  # in blocks, to bound the memory
        drawn = generator.integers(0, len(sums), (min(500, resamples - start), len(sums)))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    lo, hi = np.quantile(np.concatenate(means), ((1 - confidence) / 2, (1 + confidence) / 2))
    return float(lo), float(hi)


def mcnemar(wins: int, losses: int) -> float:
    """The exact two-sided p-value of McNemar's test: discordant pairs fall that unevenly by chance.

    For one sample a question; see `sign_flip` for several. Source: McNemar, Psychometrika 12 (1947) 153;
    exact form.
    """
    n, k = wins + losses, min(wins, losses)
    if n == 0:
        return 1.0
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2 ** n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of a family, in the order given.

    Rejecting those of at most 5% rejects a true hypothesis of the family with at most 5% probability,
    however the tests depend on each other. Source: Holm, Scandinavian Journal of Statistics 6 (1979) 65.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def questions_needed(difference: float, discordant: float, power: float = 0.8,
                     confidence: float = 0.95) -> float:
    """How many questions a paired comparison needs to find a difference with that power; not rounded.

    discordant: the share of questions on which the runs differ; at least |difference|, which it is raised to.
    Source: Connor, Biometrics 43 (1987) 207, equation for McNemar's test.
    """
    delta = abs(difference)
    if not 0 < delta <= 1:
        raise ValueError(f"no number of questions finds a difference of {difference}")
    share = max(discordant, delta)
    z = quantile(confidence) * sqrt(share) + NormalDist().inv_cdf(power) * sqrt(share - delta * delta)
    return z * z / (delta * delta)


def detectable_difference(n: int, discordant: float, power: float = 0.8,
                          confidence: float = 0.95) -> float | None:
    """The smallest difference of rates that n questions find with that power; None when they find none.

    discordant: as in `questions_needed`.
    """
    if n < 1 or questions_needed(1.0, discordant, power, confidence) > n:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if questions_needed(middle, discordant, power, confidence) > n:
            low = middle
        else:
            high = middle
    return high
