"""Clustered intervals, asr@k and paired comparisons, against closed forms, enumeration, simulation."""
import math
import random
from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest

from redlite import stats


def test_one_answer_a_question_is_wilson():
    for k, n in [(0, 7), (3, 7), (7, 7), (5, 200), (11, 30)]:
        found = stats.clustered([1] * k + [0] * (n - k), [1] * n)
        assert found == pytest.approx(stats.wilson(k, n), abs=1e-15)


def test_equal_samples_of_a_question_count_once():
    # Ten questions, all ten samples of each alike: no more is known than from ten answers.
    assert stats.clustered([10] * 5 + [0] * 5, [10] * 10) == pytest.approx(stats.wilson(5, 10), abs=1e-12)
    assert stats.clustered([0] * 10, [10] * 10) == pytest.approx(stats.wilson(0, 10), abs=1e-12)
    assert stats.clustered([10] * 10, [10] * 10) == pytest.approx(stats.wilson(10, 10), abs=1e-12)


def test_independent_samples_count_almost_fully_but_never_more():
    # Every question has the pooled rate: far too even for chance, and still no narrower than 1,000 answers.
    low, high = stats.clustered([2] * 200, [5] * 200)
    narrow = stats.wilson(400, 1000)
    assert low <= narrow[0] and narrow[1] <= high
    assert high - low == pytest.approx(narrow[1] - narrow[0], rel=1e-3)


def test_effective_size_rests_on_the_cluster_robust_variance():
    # statsmodels 0.15.0, OLS on a constant, cov_type "cluster" without correction, gave this variance.
    sums, sizes, variance = [3, 0, 5, 1, 2, 0, 4, 4], [5, 4, 5, 3, 5, 2, 5, 4], 0.015226983922200532
    rate, m = 19 / 33, (25 + 16 + 25 + 9 + 25 + 4 + 25 + 16) / 33
    rho = (variance / (rate * (1 - rate) / 33) - 1) / (m - 1)
    squares = [(y - rate * size) ** 2 for y, size in zip(sums, sizes, strict=True)]
    weight = (sum(squares) ** 2 / sum(s * s for s in squares)) ** 2
    drawn = (weight * rho + 2) / (weight + 2)
    assert stats.effective_size(sums, sizes) == pytest.approx(33 / (1 + (m - 1) * drawn), rel=1e-12)


def test_empty_clusters_and_wrong_ones():
    assert stats.clustered([], []) == stats.clustered([0, 0], [0, 0]) == (0.0, 1.0)
    assert stats.clustered([1, 0, 0], [2, 0, 3]) == stats.clustered([1, 0], [2, 3])
    with pytest.raises(ValueError):
        stats.clustered([3], [2])


@pytest.mark.parametrize("samples, rate", [(5, 0.03), (20, 0.1)])
def test_coverage_of_clustered_intervals(samples, rate):
    # Beta-binomial questions with a correlation of 0.3; 600 draws have a standard error of 0.009.
    generator, scale, held = np.random.default_rng(1), 1 / 0.3 - 1, 0
    for _ in range(600):
        chances = generator.beta(rate * scale, (1 - rate) * scale, 200)
        low, high = stats.clustered(generator.binomial(samples, chances).tolist(), [samples] * 200)
        held += low <= rate <= high
    assert 0.93 <= held / 600 <= 0.975


def test_asr_at_k_is_the_mean_over_all_choices():
    harmful, samples, k = [2, 0, 5, 1], [5, 4, 5, 3], 2
    chances = []
    for c, n in zip(harmful, samples, strict=True):
        chosen = list(combinations([1] * c + [0] * (n - c), k))
        chances.append(sum(map(any, chosen)) / len(chosen))
    mean, (low, high) = stats.asr_at_k(harmful, samples, k)
    assert mean == pytest.approx(sum(chances) / 4, abs=1e-12) and 0 <= low < mean < high <= 1


def test_asr_at_one_is_the_asr_and_short_questions_drop_out():
    harmful, samples = [3, 0, 1, 5, 2, 0], [5] * 6
    mean, interval = stats.asr_at_k(harmful, samples, 1)
    assert mean == pytest.approx(11 / 30)
    assert interval == pytest.approx(stats.clustered(harmful, samples), abs=1e-12)
    assert stats.asr_at_k([1, 2], [2, 5], 5)[0] == 1.0
    assert stats.asr_at_k([1, 2], [2, 4], 5) is None


def test_sign_flip_enumerates_all_signs():
    # scipy 1.17.1, permutation_test(permutation_type="samples", n_resamples=inf), gave 0.21875.
    flips = [3, -1, 2, 2, 0, -2, 4, 1]
    assert stats.sign_flip(flips) == pytest.approx(0.21875, abs=1e-12)
    sums = [abs(np.dot(signs, flips)) for signs in product((1, -1), repeat=8)]
    assert stats.sign_flip(flips) == sum(s >= 9 for s in sums) / 256
    assert stats.sign_flip([]) == stats.sign_flip([0, 0]) == 1.0


def test_sign_flip_of_single_samples_is_mcnemar():
    for wins, losses in [(1, 8), (3, 17), (5, 5), (40, 22), (0, 0)]:
        found = stats.sign_flip([1] * wins + [-1] * losses + [0] * 9)
        assert found == pytest.approx(stats.mcnemar(wins, losses), rel=1e-9)


def test_sign_flip_of_fractions_is_near_the_enumeration():
    flips = [0.31, -0.12, 0.25, 0.27, -0.2, 0.4, 0.11]
    sums = [abs(np.dot(signs, flips)) for signs in product((1, -1), repeat=7)]
    exact = sum(s >= sum(flips) - 1e-12 for s in sums) / 128
    assert stats.sign_flip(flips) == pytest.approx(exact, abs=0.01)


def newcombe(e: int, f: int, g: int, h: int) -> tuple[float, float]:
    """Newcombe's method 10 with his correction of φ, from the formulas for the 2 × 2 table."""
    n = e + f + g + h
    (l1, u1), (l2, u2) = stats.wilson(e + f, n), stats.wilson(e + g, n)
    p1, p2 = (e + f) / n, (e + g) / n
    scale = (e + f) * (g + h) * (e + g) * (f + h)
    cross = e * h - f * g
    cross = max(0.0, cross - n / 2) if cross > 0 else cross
    phi = cross / math.sqrt(scale) if scale else 0.0
    below = math.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
    above = math.sqrt((p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2)
    return p1 - p2 - below, p1 - p2 + above


TABLES = [(36, 12, 2, 0), (20, 8, 3, 19), (0, 4, 0, 26), (30, 0, 0, 0), (5, 0, 0, 25), (5, 0, 0, 5),
          (3, 9, 8, 0)]


@pytest.mark.parametrize("table", TABLES)
def test_paired_interval_of_single_samples_is_newcombes(table):
    outcomes = [(1, 1), (1, 0), (0, 1), (0, 0)]
    pairs = [(str(i), float(a), float(b)) for i, (b, a) in
             enumerate(o for o, count in zip(outcomes, table, strict=True) for _ in range(count))]
    found = stats.paired(pairs)
    assert found.ci95 == pytest.approx(newcombe(*table), abs=1e-7)
    assert found.difference == pytest.approx((table[1] - table[2]) / sum(table))
    assert found.p == pytest.approx(stats.mcnemar(table[1], table[2])) and found.questions == sum(table)
    assert found.ci95[1] - found.ci95[0] > 0.1      # however alike, so few questions leave room


def test_repeating_every_sample_adds_nothing():
    generator = random.Random(4)
    pairs = [(str(i), float(generator.random() < 0.4), float(generator.random() < 0.6)) for i in range(60)]
    once, often = stats.paired(pairs), stats.paired(pairs * 10)
    assert often.p == pytest.approx(once.p, rel=1e-9)
    assert often.ci95 == pytest.approx(once.ci95, abs=2e-3)
    with pytest.raises(ValueError):
        stats.paired([])


def test_holm_equals_statsmodels():
    # statsmodels 0.15.0, multipletests(method="holm")
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=1e-15)
    assert stats.holm([]) == [] and stats.holm([0.9, 0.8]) == [1.0, 1.0]


def test_planned_questions_have_the_power_that_was_asked_for():
    # Connor's equation for a difference of 0.1 at 0.2 discordant; then the exact power of McNemar's test.
    z, power = 1.959963984540054, 0.8416212335729143
    n = stats.questions_needed(0.1, 0.2)
    assert n == pytest.approx((z * math.sqrt(0.2) + power * math.sqrt(0.2 - 0.01)) ** 2 / 0.01)
    size, rejects = math.ceil(n), Fraction(0)
    for m in range(size + 1):
        chance = math.comb(size, m) * Fraction(1, 5) ** m * Fraction(4, 5) ** (size - m)
        if chance < Fraction(1, 10 ** 9):
            continue
        for wins in range(m + 1):
            if stats.mcnemar(wins, m - wins) <= 0.05:
                rejects += chance * math.comb(m, wins) * Fraction(3, 4) ** wins * Fraction(1, 4) ** (m - wins)
    assert 0.74 <= float(rejects) <= 0.83  # the exact test is conservative


def test_detectable_difference_inverts_the_planning():
    for n, discordant in [(60, 0.3), (200, 0.2), (2000, 0.05)]:
        found = stats.detectable_difference(n, discordant)
        assert stats.questions_needed(found, discordant) == pytest.approx(n, rel=1e-6)
    assert stats.detectable_difference(3, 0.2) is None
    with pytest.raises(ValueError):
        stats.questions_needed(0.0, 0.2)
