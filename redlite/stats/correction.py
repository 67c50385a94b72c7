"""The rate that people would have given: a judge's verdicts on all answers, corrected by labels of some.

N answers carry verdicts, and n of them, drawn at random, carry labels. PPI++ estimates the mean label over
the n, plus λ · (mean verdict over all N − mean verdict over the n). With verdicts 0 or 1 and the
λ of least variance, PPI++ equals post-stratification: the labelled rate of each verdict, weighted by how
often the judge gave that verdict. `corrected` does the same with up to four bands of the judge's
probability. That amounts to a λ for each band, so the judge need not be calibrated.

The normal interval of PPI++ fails when harm is rare. `corrected` inverts a score test instead. For each rate
θ it takes the likeliest band rates p whose weighted sum is θ. It keeps θ while Pearson's statistic of the
labels against p is below the χ² quantile of one degree of freedom. With one band that is Wilson's interval.
Each band enters with an effective number of labels, corrected for the finite population and for the strata's
unequal weights.
"""
from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from math import fsum, inf, sqrt
from typing import NamedTuple

from redlite.stats.proportions import effective_size, quantile, score_interval

BANDS = 4             # of the judge's probability; more gain little and each costs a degree of freedom
LABELS_PER_BAND = 10  # at least, on average


class PredictionPowered(NamedTuple):
    """A prediction-powered mean, its normal interval, and λ (0 … 1), how far the predictions are trusted."""
    mean: float
    ci95: tuple[float, float]
    lam: float


class Corrected(NamedTuple):
    """A corrected rate, its interval, its labels and answers, λ, and the width without a judge.

    width_alone: the width of Wilson's interval from as many labels drawn uniformly, without the judge.
    """
    asr: float
    ci95: tuple[float, float]
    n_labels: int
    n: int
    lam: float
    width_alone: float


class _Band(NamedTuple):
    weight: float  # its share of all answers
    rate: float    # share labelled harmful
    size: float    # effective number of labels; inf when every answer is labelled


def prediction_powered(labels: Sequence[float], verdicts: Sequence[float], unlabelled: Sequence[float],
                       weights: Sequence[float] | None = None, confidence: float = 0.95) -> PredictionPowered:
    """PPI++: the mean of labels over a population, with λ tuned for the least variance and clipped to 0 … 1.

    labels, verdicts: of the labelled answers; unlabelled: the verdicts of the others. weights: of the
    labelled answers, proportional to 1 / the chance of being drawn. The interval is the normal one: for
    rare harm use `corrected`. Raises ValueError when either side is empty. Source: Angelopoulos, Duchi,
    Zrnic, arXiv 2311.01453, example 6.1; equals ppi_py 0.2.3.
    """
    n, rest = len(labels), len(unlabelled)
    if n == 0 or rest == 0:
        raise ValueError("labelled and unlabelled answers are both needed")
    scale = n / fsum(weights) if weights else 1.0
    w = [scale * x for x in weights] if weights else [1.0] * n
    start = _mean(unlabelled) + fsum(w_i * (y - f) for w_i, y, f in zip(w, labels, verdicts, strict=True)) / n
    of_labels = [w_i * (y - start) for w_i, y in zip(w, labels, strict=True)]
    of_verdicts = [w_i * (f - start) for w_i, f in zip(w, verdicts, strict=True)]
    pooled = of_verdicts + [f - start for f in unlabelled]
    spread = _variance(pooled) * len(pooled) / (len(pooled) - 1)
    centre = _mean(of_verdicts)
    shared = fsum((f - centre) * y for f, y in zip(of_verdicts, of_labels, strict=True)) / n
    lam = min(1.0, max(0.0, shared / ((1 + n / rest) * spread))) if spread else 0.0
    residuals = [w_i * (y - lam * f) for w_i, y, f in zip(w, labels, verdicts, strict=True)]
    mean = lam * _mean(unlabelled) + _mean(residuals)
    half = quantile(confidence) * sqrt(lam * lam * _variance(unlabelled) / rest + _variance(residuals) / n)
    return PredictionPowered(mean, (mean - half, mean + half), lam)


def _mean(values: Sequence[float]) -> float:
    return fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return fsum((v - mean) ** 2 for v in values) / len(values)


def bands(probabilities: Sequence[float | None], count: int = BANDS) -> list[int]:
    """For each answer, the band 0 … count − 1 of its probability of harm, ascending; some may stay empty.

    Up to `count` distinct values are a band each. Otherwise the limits cut the cumulated square roots of a
    histogram of 50 bins into equal parts, which makes the bands even inside. None (the judge gave no
    verdict) counts as 0.5. Source: Dalenius and Hodges, JASA 54 (1959) 88.
    """
    values = [0.5 if p is None else float(p) for p in probabilities]
    distinct = sorted(set(values))
    if len(distinct) <= count:
        return [bisect_left(distinct, v) for v in values]
    low, step = distinct[0], (distinct[-1] - distinct[0]) / 50
    bins = [min(49, int((v - low) / step)) for v in values]
    roots = [0.0] * 50
    for b in bins:
        roots[b] += 1
    roots = [sqrt(r) for r in roots]
    total, so_far, band = fsum(roots), 0.0, []
    for root in roots:
        band.append(min(count - 1, int((so_far + root / 2) / total * count)))
        so_far += root
    return [band[b] for b in bins]


def allocate(sizes: Mapping[Hashable, int], n: int, least: int = 2) -> dict[Hashable, int]:
    """How many answers to label of each stratum: in proportion to its size, at least `least` each,
    n in all.

    Never more than the stratum has; more than n in all only where `least` asks for it. Proportion keeps the
    interval narrower than that of labels alone even when the judge is useless, and at least two labels keep
    small strata represented.
    """
    total = sum(sizes.values())
    ideal = {key: min(n, total) * size / total for key, size in sizes.items()}
    drawn = {key: min(sizes[key], max(least, int(ideal[key]))) for key in sizes}
    while sum(drawn.values()) < min(n, total):
        open_ = [key for key in sizes if drawn[key] < sizes[key]]
        drawn[max(open_, key=lambda key: ideal[key] - drawn[key])] += 1
    while sum(drawn.values()) > n:
        spare = [key for key in sizes if drawn[key] > least]
        if not spare:
            break
        drawn[max(spare, key=lambda key: drawn[key] - ideal[key])] -= 1
    return drawn


def corrected(verdicts: Sequence[float | None], labels: Sequence[int | None],
              strata: Sequence[Hashable] | None = None, clusters: Sequence[Hashable] | None = None,
              confidence: float = 0.95) -> Corrected:
    """The rate of harm that people would have given all of a run's answers, from their labels of some.

    All arguments have one entry an answer. verdicts: the judge's probability of harm, or 0 and 1; None
    where it gave none. labels: 1 harmful, 0 not, None unlabelled. strata: what the labels were drawn by
    (prompt, band …), uniformly and without replacement within each; None when they were drawn uniformly
    from all. A stratum without a label is taken to have its band's rate. clusters: the question of each
    answer; if given, the interval is for new questions of this kind, else for these answers only.
    Raises ValueError when nothing is labelled or a label is not 0, 1 or None.
    Sources: PPI++ (arXiv 2311.01453); post-stratification, Cochran, Sampling Techniques (1977), section
    5A.9; score intervals of weighted sums, Decrouez and Robinson, ANZ Journal of Statistics 54 (2012) 281;
    the sum of squared parts, Zou and Donner, Statistics in Medicine 27 (2008) 1693.
    """
    n, labelled = len(labels), sum(y is not None for y in labels)
    if labelled == 0:
        raise ValueError("no answer is labelled")
    if any(y not in (0, 1, None) for y in labels) or len(verdicts) != n:
        raise ValueError("labels are 0, 1 or None, one for each verdict")
    groups = list(strata) if strata is not None else [None] * n
    found = _bands(verdicts, labels, groups)
    harmful = sum(y for y in labels if y is not None)
    asr = min(1.0, max(0.0, fsum(band.weight * band.rate for band in found)))
    low, high = _interval(found, confidence)
    low, high = max(low, harmful / n), min(high, 1 - (labelled - harmful) / n)  # what labels already settle
    lam, shared = _trust(verdicts, labels, groups)
    if clusters is not None:  # two sources of error, combined as the root of their squares
        by_questions = _questions_interval(asr, verdicts, clusters, shared, confidence)
        low = asr - sqrt((asr - low) ** 2 + (asr - by_questions[0]) ** 2)
        high = asr + sqrt((high - asr) ** 2 + (by_questions[1] - asr) ** 2)
    without_judge = harmful / labelled if strata is None else asr
    width = _half_width(without_judge, labelled, n, confidence) * 2
    ends = max(0.0, min(low, asr)), min(1.0, max(high, asr))
    return Corrected(asr, ends, labelled, n, lam, width)


def _bands(verdicts: Sequence[float | None], labels: Sequence[int | None], strata: list) -> list[_Band]:
    """The bands, each one's rate weighted by strata.

    A band without labels is merged with the nearest lower one, or with the lowest that has labels.
    """
    n, total = len(labels), sum(y is not None for y in labels)
    of_answer = bands(verdicts, min(BANDS, max(1, total // LABELS_PER_BAND)))
    with_labels = sorted({b for b, y in zip(of_answer, labels, strict=True) if y is not None})
    joined = {b: max([x for x in with_labels if x <= b], default=with_labels[0]) for b in set(of_answer)}
    cells: dict[int, dict[Hashable, list[int]]] = {b: {} for b in with_labels}
    for b, stratum, y in zip(of_answer, strata, labels, strict=True):
        cell = cells[joined[b]].setdefault(stratum, [0, 0, 0])  # answers, labels, harmful
        cell[0] += 1
        if y is not None:
            cell[1] += 1
            cell[2] += y
    found = []
    for parts in cells.values():
        answers = sum(cell[0] for cell in parts.values())
        seen = [cell for cell in parts.values() if cell[1]]
        shares = [cell[0] / sum(cell[0] for cell in seen) for cell in seen]
        rate = min(1.0, fsum(share * k / m for share, (_, m, k) in zip(shares, seen, strict=True)))
        # The mean of m drawn from N without replacement has the variance of a mean of
        # m · (N − 1) / (N − m) independent outcomes.
        errors = [share ** 2 * (size - m) / (m * (size - 1))
                  for share, (size, m, _) in zip(shares, seen, strict=True) if m < size]
        error = fsum(errors)
        # Each band's rate is estimated, which costs a degree of freedom.
        degrees = (total - len(cells)) / (total - 1) if total > len(cells) else 1.0
        found.append(_Band(answers / n, rate, degrees / error if error else inf))
    return found


def _constrained(band: _Band, slope: float) -> float:
    """The band's likeliest rate at the Lagrange multiplier `slope`, which pulls it to 0 (to 1 if
    negative).
    """
    pull = slope * band.weight / band.size  # r − p = pull · p (1 − p); r: labelled rate, p: result
    reach = 1 + pull
    root = sqrt(max(0.0, reach * reach - 4 * pull * band.rate))
    if reach >= 0:
        return min(1.0, 2 * band.rate / (reach + root)) if band.rate else 0.0
    return min(1.0, (reach - root) / (2 * pull))


def _score(found: list[_Band], rates: list[float]) -> float:
    """Pearson's statistic of the bands' labels against these rates; inf when they are impossible.

    At the likeliest rates for a θ it equals the score statistic (estimate − θ)² / variance at θ.
    """
    terms = []
    for band, p in zip(found, rates, strict=True):
        if band.rate != p:
            terms.append(band.size * (band.rate - p) ** 2 / (p * (1 - p)) if 0 < p < 1 else inf)
    return fsum(terms)


def _interval(found: list[_Band], confidence: float) -> tuple[float, float]:
    """The least and greatest θ = Σ weight · rate that the labels do not reject, by bisection of the
    multiplier.
    """
    known = fsum(band.weight * band.rate for band in found if band.size == inf)
    open_bands = [band for band in found if band.size < inf]
    limit = quantile(confidence) ** 2

    def end(sign: float) -> float:
        low, high = -9.0, 15.0  # powers of ten between which the multiplier lies
        for _ in range(60):
            middle = (low + high) / 2
            rates = [_constrained(band, sign * 10 ** middle) for band in open_bands]
            if _score(open_bands, rates) < limit:
                low = middle
            else:
                high = middle
        return known + fsum(band.weight * _constrained(band, sign * 10 ** low) for band in open_bands)
    return end(1.0), end(-1.0)


def _questions_interval(asr: float, verdicts: Sequence[float | None], clusters: Sequence[Hashable],
                        shared: float, confidence: float) -> tuple[float, float]:
    """The interval that comes from the choice of questions alone.

    A judge's errors lower the correlation of verdicts within a question. If they are independent given the
    labels, the labels' correlation is the verdicts' / `shared`, the squared correlation of verdict and label.
    """
    values = [0.5 if verdict is None else float(verdict) for verdict in verdicts]
    questions: dict[Hashable, list[float]] = {}
    for question, value in zip(clusters, values, strict=True):
        counts = questions.setdefault(question, [0.0, 0.0])
        counts[0] += value
        counts[1] += 1
    sums, sizes = zip(*questions.values(), strict=True)
    n = len(clusters)
    size = fsum(m * m for m in sizes) / n
    diluted = n / effective_size(sums, sizes, _variance(values)) - 1  # (size − 1) · ρ of the verdicts
    effect = 1 + max(diluted, min(size - 1, diluted / shared if shared else inf))
    return score_interval(asr, n / effect, confidence)


def _trust(verdicts: Sequence[float | None], labels: Sequence[int | None],
           strata: list) -> tuple[float, float]:
    """PPI++'s λ for a finite population, and the squared correlation of labels and verdicts.

    λ is cov(label, verdict) / var(verdict), clipped to 0 … 1.
    """
    values = [0.5 if v is None else float(v) for v in verdicts]
    spread = _variance(values)
    sizes: dict[Hashable, int] = {}
    drawn: dict[Hashable, int] = {}
    for stratum, y in zip(strata, labels, strict=True):
        sizes[stratum] = sizes.get(stratum, 0) + 1
        drawn[stratum] = drawn.get(stratum, 0) + (y is not None)
    rows = [(sizes[s] / drawn[s], y, f)
            for s, y, f in zip(strata, labels, values, strict=True) if y is not None]
    total = fsum(w for w, _, _ in rows)
    mean_y = fsum(w * y for w, y, _ in rows) / total
    mean_f = fsum(w * f for w, _, f in rows) / total
    both = fsum(w * (y - mean_y) * (f - mean_f) for w, y, f in rows) / total
    of_f = fsum(w * (f - mean_f) ** 2 for w, _, f in rows) / total
    if spread == 0 or both == 0:
        return 0.0, 0.0
    return min(1.0, max(0.0, both / spread)), both * both / (mean_y * (1 - mean_y) * of_f)


def _half_width(rate: float, labels: int, n: int, confidence: float, correlation: float = 0.0) -> float:
    """Half the width of the score interval from `labels` of n answers, narrowed by the judge's
    correlation.
    """
    if labels >= n:
        return 0.0
    low, high = score_interval(rate, labels * (n - 1) / (n - labels) / (1 - correlation ** 2), confidence)
    return (high - low) / 2


def label_half_width(labels: int, n: int, rate: float, correlation: float = 0.0,
                     confidence: float = 0.95) -> float:
    """The approximate half-width from this many labels of n answers; 0 when all are labelled.

    rate: the ASR to expect, the judge's before any label. correlation: of the judge's verdicts with
    people's labels (φ, near κ where both find as much harm); 0 assumes a judge that does not help. Raises
    ValueError unless 0 < labels and |correlation| < 1.
    """
    if labels < 1 or abs(correlation) >= 1:
        raise ValueError("planning needs at least one label and a correlation between −1 and 1")
    return _half_width(rate, labels, n, confidence, correlation)


def labels_needed(half_width: float, n: int, rate: float, correlation: float = 0.0,
                  confidence: float = 0.95) -> int:
    """The fewest labels of n answers that give at most that half-width, by `label_half_width`."""
    low, high = 1, n
    while low < high:
        middle = (low + high) // 2
        if label_half_width(middle, n, rate, correlation, confidence) <= half_width:
            high = middle
        else:
            low = middle + 1
    return high
