"""Sampling against distributions worked out by hand and in numpy."""
import re

import numpy as np
import pytest
import torch

from redlite.errors import Error
from redlite.inference.sampling import Rule, request_seed, sample, uniforms


def draw(logits, temperature, top_p, uniform, seen=(), **rule):
    rows = len(uniform)
    return sample(torch.tensor([logits] * rows, dtype=torch.float32),
                  [Rule(temperature, top_p, **rule)] * rows,
                  torch.tensor(uniform, dtype=torch.float32), [list(seen)] * rows).tolist()


def test_temperature_zero_takes_the_first_largest():
    assert draw([0.0, 3.0, 3.0], 0.0, 1.0, [0.99]) == [1]


def test_the_least_temperatures_are_no_division_by_nothing():
    assert all(draw([0.0, 3.0, -3.0], temperature, 1.0, [0.0, 0.99]) == [1, 1]
               for temperature in (5e-324, 1e-300, 1e-40, 1e-30, 2e-30))


@pytest.mark.slow
def test_frequencies_follow_the_softmax():
    logits, grid = [1.0, 0.0, 2.0, -1.0], ((np.arange(40000) + 0.5) / 40000).tolist()
    for temperature in (0.5, 1.0, 2.0):
        counts = np.bincount(draw(logits, temperature, 1.0, grid), minlength=4) / 40000
        expected = np.exp(np.array(logits) / temperature)
        np.testing.assert_allclose(counts, expected / expected.sum(), atol=1e-3)


@pytest.mark.slow
def test_top_p_keeps_the_fewest_tokens_that_reach_it():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    grid = ((np.arange(10000) + 0.5) / 10000).tolist()
    for top_p, kept in ((0.4, [0]), (0.5, [0]), (0.51, [0, 1]), (0.8, [0, 1]), (0.9, [0, 1, 2]),
                        (1.0, [0, 1, 2, 3])):
        got = np.bincount(draw(np.log(p).tolist(), 1.0, top_p - 1e-6, grid), minlength=4) / 10000
        expected = np.where(np.isin(np.arange(4), kept), p, 0) / p[kept].sum()
        np.testing.assert_allclose(got, expected, atol=2e-3)


def test_the_least_top_p_keeps_the_first():
    assert draw([1.0, 3.0, 2.0], 1.0, 1e-300, [0.0, 0.5, 0.999]) == [1, 1, 1]


def test_the_largest_uniform_number_stays_inside():
    assert draw([0.0, 0.0, -200.0], 1.0, 1.0, [np.nextafter(np.float32(1), np.float32(0)).item()]) == [1]
    assert draw([0.0] * 7, 1.0, 0.5, [0.9999999]) == [3]


def test_rows_with_and_without_temperature_mix():
    logits = torch.tensor([[0.0, 5.0, 0.0]] * 3)
    ids = sample(logits, [Rule(), Rule(100.0), Rule()], torch.tensor([0.0, 0.99, 0.0]), [[]] * 3)
    assert ids.tolist() == [1, 2, 1]


def test_top_k_then_top_p_and_min_p():
    """top_k leaves 0.5, 0.3, 0.15; of their 0.95, top_p 0.8 keeps two (0.5 < 0.76 ≤ 0.8); min_p 0.4 keeps
    those of at least 0.2.
    """
    p = np.array([0.5, 0.3, 0.15, 0.05])
    grid = ((np.arange(10000) + 0.5) / 10000).tolist()
    for rule, top_p, kept in (({"top_k": 3}, 1.0, [0, 1, 2]), ({"top_k": 3}, 0.8, [0, 1]),
                              ({"top_k": 1}, 1.0, [0]), ({"min_p": 0.4}, 1.0, [0, 1]),
                              ({"min_p": 0.29}, 1.0, [0, 1, 2]), ({"min_p": 1.0}, 1.0, [0]),
                              ({"top_k": 9}, 1.0, [0, 1, 2, 3])):
        got = np.bincount(draw(np.log(p).tolist(), 1.0, top_p, grid, **rule), minlength=4) / 10000
        np.testing.assert_allclose(got, np.where(np.isin(np.arange(4), kept), p, 0) / p[kept].sum(),
                                   atol=2e-3)


def test_repetition_penalty():
    """Positive logits are divided, negative ones multiplied, seen tokens only, greedy too."""
    assert draw([2.0, 1.5, -1.0], 0.0, 1.0, [0.0], seen=[0, 0], repetition_penalty=1.5) == [1]
    assert draw([2.0, 1.5, -1.0], 0.0, 1.0, [0.0], seen=[0], repetition_penalty=1.3) == [0]
    grid, logits = ((np.arange(20000) + 0.5) / 20000).tolist(), np.array([1.0, -0.5, 0.2])
    got = np.bincount(draw(logits.tolist(), 1.0, 1.0, grid, seen=[1, 0], repetition_penalty=2.0),
                      minlength=3) / 20000
    expected = np.exp([0.5, -1.0, 0.2])
    np.testing.assert_allclose(got, expected / expected.sum(), atol=1e-3)


def test_rules_name_what_is_wrong():
    assert not Rule(0.7, 0.9, 40, 0.05, 1.1).fault()
    for wrong in (Rule(-1.0), Rule(float("nan")), Rule(top_p=0), Rule(top_k=-1), Rule(min_p=2),
                  Rule(repetition_penalty=0), Rule(repetition_penalty=1e-40)):
        assert "must be" in wrong.fault()
    assert not Rule(np.float32(0.7), 1, np.int64(40), 0, 2).fault()
    for name, value in (("temperature", "0.7"), ("temperature", True), ("top_p", None), ("top_k", 2.5),
                        ("min_p", 1j), ("repetition_penalty", [1.1])):
        assert re.fullmatch(rf"{name} .* must be a (whole )?number", Rule(**{name: value}).fault())


def test_seeds_are_stable_across_versions():
    # Written down once: a change would alter the sampled answers of runs that exist.
    assert request_seed(0, [1, 2, 3], 0) == 170340758705792138049245675793160713614
    np.testing.assert_allclose(uniforms(42).random(3),
                               [0.8201981478608876, 0.18924562408645496, 0.8676608148821462], rtol=0, atol=0)
    assert len({request_seed(s, [1, 2, 3], r) for s in (0, 1) for r in (0, 1)}) == 4


def test_logits_that_are_no_numbers_are_refused():
    """argmax would take the first NaN, token 0 of a broken model, and call it an answer."""
    nan, inf = float("nan"), float("inf")
    for row in ([nan] * 3, [0.0, nan, 1.0], [0.0, inf, 1.0], [-inf] * 3):
        for temperature in (0.0, 1.0):
            with pytest.raises(Error, match="logits are not finite"):
                draw(row, temperature, 1.0, [0.5])
    assert draw([-inf, 2.0, 1.0], 0.0, 1.0, [0.5]) == [1]  # a token that can never be chosen is no fault
