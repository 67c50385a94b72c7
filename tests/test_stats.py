"""Intervals and tests against published tables and against the equations that define them."""
import math
import random
from fractions import Fraction
from statistics import NormalDist, stdev

import pytest

from redlite import stats

Z = 1.959963984540054  # the 97.5% quantile of the normal distribution, from tables

# R. G. Newcombe, Statistics in Medicine 17 (1998) 857, table I, method 3 (score, without continuity
# correction).
NEWCOMBE = [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718)]


@pytest.mark.parametrize("k, n, lo, hi", NEWCOMBE)
def test_wilson_equals_newcombes_table(k, n, lo, hi):
    assert stats.wilson(k, n) == (pytest.approx(lo, abs=5e-5), pytest.approx(hi, abs=5e-5))


@pytest.mark.parametrize("k, n", [(1, 2), (3, 7), (5, 200), (199, 200), (980, 1960), (1, 10 ** 6)])
def test_wilsons_ends_solve_the_score_equation(k, n):
    for end in stats.wilson(k, n):
        assert (k / n - end) ** 2 == pytest.approx(Z ** 2 * end * (1 - end) / n, rel=1e-9)


def test_wilson_at_its_ends_and_for_nothing():
    assert stats.wilson(0, 0) == (0.0, 1.0)
    assert stats.wilson(0, 10) == (0.0, pytest.approx(Z ** 2 / (10 + Z ** 2)))
    assert stats.wilson(10, 10) == (pytest.approx(10 / (10 + Z ** 2)), 1.0)
    wide, narrow = stats.wilson(3, 10, 0.99), stats.wilson(3, 10, 0.5)
    assert wide[0] < narrow[0] < 0.3 < narrow[1] < wide[1]


@pytest.mark.parametrize("k, n", [(-1, 3), (4, 3), (1, 0)])
def test_wilson_refuses_what_is_no_proportion(k, n):
    with pytest.raises(ValueError):
        stats.wilson(k, n)


def test_bounds():
    assert stats.bounds(3, 5, 2) == (0.3, 0.5)
    assert stats.bounds(3, 5, 0) == (0.375, 0.375)
    assert stats.bounds(0, 0, 4) == (0.0, 1.0)
    assert stats.bounds(0, 0, 0) == (0.0, 1.0)


def test_mean_and_its_standard_error():
    values = [random.Random(0).gauss(2, 3) for _ in range(50)]
    mean, error = stats.mean_stderr(values)
    assert mean == pytest.approx(sum(values) / 50)
    assert error == pytest.approx(stdev(values) / math.sqrt(50))
    assert stats.mean_stderr([4.0]) == (4.0, None)


def test_mcnemar_equals_the_binomial_tail():
    assert stats.mcnemar(0, 0) == 1.0
    assert stats.mcnemar(5, 5) == 1.0
    assert stats.mcnemar(1, 8) == stats.mcnemar(8, 1) == 2 * (1 + 9) / 512
    for wins, losses in [(3, 17), (40, 22), (0, 30)]:
        n = wins + losses
        tail = sum(
            Fraction(math.factorial(n),
                     math.factorial(i) * math.factorial(n - i)) for i in range(min(wins, losses) + 1))
        assert stats.mcnemar(wins, losses) == pytest.approx(float(2 * tail / Fraction(2) ** n))


def test_bootstrap_agrees_with_the_normal_approximation():
    generator = random.Random(1)
    pairs = [(str(i), a := float(generator.random() < 0.5), float(a or generator.random() < 0.3))
             for i in range(400)]
    differences = [b - a for _, a, b in pairs]
    centre, half = sum(differences) / 400, NormalDist().inv_cdf(0.975) * stdev(differences) / 20
    lo, hi = stats.bootstrap_difference(pairs, seed=3)
    assert lo == pytest.approx(centre - half, abs=0.006) and hi == pytest.approx(centre + half, abs=0.006)
    assert stats.bootstrap_difference(pairs, seed=3) == (lo, hi)


def test_bootstrap_keeps_a_unit_together():
    # Every unit answers all of its four samples alike, so 400 pairs say no more than 100: the interval is
    # twice as wide.
    generator = random.Random(2)
    units = [float(generator.random() < 0.4) for _ in range(100)]
    grouped = [(str(i), 0.0, b) for i, b in enumerate(units) for _ in range(4)]
    apart = [(str(i), 0.0, b) for i, (_, _, b) in enumerate(grouped)]
    width = [hi - lo for lo, hi in (stats.bootstrap_difference(p, seed=1) for p in (grouped, apart))]
    assert width[0] / width[1] == pytest.approx(2, abs=0.15)
