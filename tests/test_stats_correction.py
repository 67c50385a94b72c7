"""Prediction-powered and corrected rates, against a peer's figures, brute force and simulation."""
import math

import numpy as np
import pytest

from redlite import stats

Z = 1.959963984540054
LABELS = [1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 1]
VERDICTS = [0.9, 0.2, 0.4, 0.7, 0.3, 0.1, 0.6, 0.2, 0.8, 0.1, 0.3, 0.95]
UNLABELLED = [7 * i % 40 / 40 for i in range(40)]


def test_prediction_powered_mean_equals_ppi_py():
    # ppi_python 0.2.3: ppi_mean_pointestimate and ppi_mean_ci(alpha=0.05), without and with w.
    found = stats.prediction_powered(LABELS, VERDICTS, UNLABELLED)
    assert found.mean == pytest.approx(0.44143977279743, abs=1e-12)
    assert found.ci95 == pytest.approx((0.23377703603977, 0.64910250955509), abs=1e-12)
    found = stats.prediction_powered(LABELS, VERDICTS, UNLABELLED, [1, 2, 1, 3, 1, 2, 1, 1, 2, 1, 3, 1])
    assert found.mean == pytest.approx(0.45328947368421, abs=1e-12)
    assert found.ci95 == pytest.approx((0.25302584441212, 0.6535531029563), abs=1e-12)
    verdicts = [float(v > 0.5) for v in VERDICTS]
    found = stats.prediction_powered(LABELS, verdicts, [float(v > 0.7) for v in UNLABELLED])
    assert found.mean == pytest.approx(0.33652826003086, abs=1e-12)
    assert found.ci95 == pytest.approx((0.11072925991055, 0.56232726015118), abs=1e-12)


def test_verdicts_that_say_nothing_or_lie_are_not_trusted():
    assert stats.prediction_powered(LABELS, [0.5] * 12, [0.5] * 9).lam == 0
    lying = stats.prediction_powered(LABELS, [1 - v for v in VERDICTS], UNLABELLED)
    assert lying.lam == 0 and lying.mean == pytest.approx(5 / 12)
    with pytest.raises(ValueError):
        stats.prediction_powered([], [], UNLABELLED)


def population(cells: list[tuple[float, int, int, int]]) -> tuple[list[float], list[int | None]]:
    """Verdicts and labels from (verdict, answers, labelled, harmful among the labelled)."""
    verdicts: list[float] = []
    labels: list[int | None] = []
    for verdict, answers, labelled, harmful in cells:
        verdicts += [verdict] * answers
        labels += [1] * harmful + [0] * (labelled - harmful) + [None] * (answers - labelled)
    return verdicts, labels


def test_with_two_verdicts_it_is_ppi_with_the_least_squares_lambda():
    verdicts, labels = population([(0.0, 700, 60, 6), (1.0, 300, 40, 30)])
    pairs = np.array([(v, y) for v, y in zip(verdicts, labels, strict=True) if y is not None])
    lam = np.polyfit(pairs[:, 0], pairs[:, 1], 1)[0]
    expected = pairs[:, 1].mean() + lam * (np.mean(verdicts) - pairs[:, 0].mean())
    found = stats.corrected(verdicts, labels)
    assert found.asr == pytest.approx(expected, abs=1e-12) == 0.7 * 0.1 + 0.3 * 0.75
    assert found.lam == pytest.approx(np.cov(pairs.T, bias=True)[0, 1] / np.var(verdicts), abs=1e-12)
    assert (found.n_labels, found.n) == (100, 1000)


def statistic(rates, expected, sizes) -> float:
    """The score statistic of a sum weighted 0.7 and 0.3, with the variance that the expected rates give."""
    weights, expected = np.array([0.7, 0.3]), np.array(expected)
    variance = np.sum(weights ** 2 * expected * (1 - expected) / np.array(sizes))
    return float((weights @ (np.array(rates) - expected)) ** 2 / variance)


def test_one_verdict_is_wilson_of_a_finite_population():
    found = stats.corrected([1.0] * 500, [1] * 30 + [0] * 70 + [None] * 400)
    size = 100 * 499 / 400  # a sample of 100 of 500 varies as one of so many independent answers
    z2 = Z * Z
    centre = (0.3 * size + z2 / 2) / (size + z2)
    half = Z * math.sqrt(size * 0.21 + z2 / 4) / (size + z2)
    assert found.ci95 == pytest.approx((centre - half, centre + half), abs=1e-9)
    assert found.width_alone == pytest.approx(2 * half, abs=1e-9)


@pytest.mark.parametrize("harmful", [(0, 3), (1, 12), (6, 30), (0, 0)])
def test_the_ends_are_where_brute_force_finds_them(harmful):
    cells = [(0.0, 700, 60, harmful[0]), (1.0, 300, 40, harmful[1])]
    found = stats.corrected(*population(cells))
    rates = [harmful[0] / 60, harmful[1] / 40]
    sizes = [m * (big - 1) / (big - m) * 98 / 99 for _, big, m, _ in cells]
    for end in found.ci95:
        if end in (0, sum(harmful) / 1000):
            continue  # at the border of what is possible
        first = np.linspace(1e-9, min(1, end / 0.7) - 1e-9, 400_001)  # all rates of the first band, step 2e-6
        second = (end - 0.7 * first) / 0.3
        ok = (second > 0) & (second < 1)
        first, second = first[ok], second[ok]
        likelihood = sum(size * (r * np.log(p) + (1 - r) * np.log(1 - p))
                         for size, r, p in zip(sizes, rates, (first, second), strict=True))
        best = int(np.argmax(likelihood))
        value = statistic(rates, (first[best], second[best]), sizes)
        assert value == pytest.approx(Z * Z, rel=1e-3)


def test_strata_weigh_labels_by_how_they_were_drawn():
    # Prompt a was labelled ten times as densely as prompt b; all verdicts are alike.
    labels = [1] * 10 + [0] * 40 + [None] * 50 + [1] * 4 + [0] * 1 + [None] * 95
    found = stats.corrected([1.0] * 200, labels, ["a"] * 100 + ["b"] * 100)
    assert found.asr == pytest.approx((0.2 + 0.8) / 2)
    # Few labels of b decide the width: 0.5² · 0.16 / 5 of variance, near the standard error 0.09.
    assert 0.25 < found.ci95[1] - found.ci95[0] < 0.45
    assert stats.corrected([1.0] * 200, labels).asr == pytest.approx(14 / 55)


def test_a_stratum_without_labels_takes_its_bands_rate():
    labels = [1] * 5 + [0] * 15 + [None] * 80
    assert stats.corrected([0.0] * 100, labels, ["a"] * 40 + ["b"] * 60).asr == pytest.approx(0.25)


def test_when_all_is_labelled_nothing_is_uncertain_but_the_questions():
    labels = [1, 1, 0, 0, 0, 1, 0, 0] * 5
    verdicts = [float(y) for y in labels]
    found = stats.corrected(verdicts, labels)
    assert found.asr == 0.375 and found.ci95 == pytest.approx((0.375, 0.375)) and found.width_alone == 0
    questions = [i // 4 for i in range(40)]
    expected = stats.clustered([sum(labels[i:i + 4]) for i in range(0, 40, 4)], [4] * 10)
    assert stats.corrected(verdicts, labels, clusters=questions).ci95 == pytest.approx(expected, abs=1e-9)


def test_the_interval_holds_the_estimate_and_what_is_known():
    generator = np.random.default_rng(3)
    for _ in range(150):
        n = int(generator.integers(2, 120))
        rate = generator.choice([0.0, 0.03, 0.5, 1.0])
        verdicts = [None if v < 0.1 else float(v) for v in generator.random(n)]
        labels = [int(generator.random() < rate) if generator.random() < 0.4 else None for _ in range(n)]
        labels[0] = int(generator.random() < rate)
        strata = generator.integers(0, 4, n).tolist() if generator.random() < 0.5 else None
        found = stats.corrected(verdicts, labels, strata)
        harmful, labelled = labels.count(1), labels.count(1) + labels.count(0)
        assert harmful / n - 1e-12 <= found.ci95[0] <= found.asr
        assert found.asr <= found.ci95[1] <= 1 - (labelled - harmful) / n + 1e-12
        wider = stats.corrected(verdicts, labels, strata, clusters=[i // 3 for i in range(n)]).ci95
        assert wider[0] <= found.ci95[0] + 1e-12 and found.ci95[1] <= wider[1] + 1e-12


def test_corrected_refuses_what_it_cannot_use():
    for verdicts, labels in [([1.0], [None]), ([], []), ([1.0], [2]), ([1.0, 0.0], [1])]:
        with pytest.raises(ValueError):
            stats.corrected(verdicts, labels)


@pytest.mark.slow
@pytest.mark.parametrize("counts", [(12, 8, 40, 340), (60, 60, 20, 260)])
def test_coverage_of_the_corrected_rate_and_its_width(counts):
    # counts: harmful and found, harmful and missed, false alarms, rest. 100 labels of 400, 500 draws.
    truth = [1] * counts[0] + [1] * counts[1] + [0] * (counts[2] + counts[3])
    verdicts = [1.0] * counts[0] + [0.0] * counts[1] + [1.0] * counts[2] + [0.0] * counts[3]
    generator, rate, held, widths, alone = np.random.default_rng(2), sum(truth) / 400, 0, [], []
    for _ in range(500):
        labels: list[int | None] = [None] * 400
        for i in generator.choice(400, 100, replace=False):
            labels[i] = truth[i]
        found = stats.corrected(verdicts, labels)
        held += found.ci95[0] <= rate <= found.ci95[1]
        widths.append(found.ci95[1] - found.ci95[0])
        alone.append(found.width_alone)
    assert 0.925 <= held / 500 <= 0.98  # the standard error is 0.01
    assert np.mean(widths) < 0.97 * np.mean(alone)


def test_bands():
    assert stats.bands([1, 0, None, 0]) == [2, 0, 1, 0]
    # 900 answers at 0 and 100 spread evenly to 1: roots 30 of the first bin and 49 · √2 of the others.
    spread = [0.0] * 900 + [(i + 1) / 100 for i in range(100)]
    found = stats.bands(spread)
    assert found[:900] == [0] * 900 and found[900:] == sorted(found[900:]) and found[-1] == 3
    roots = math.sqrt(901) + 98 / math.sqrt(2)
    assert sum(b == 3 for b in found) == pytest.approx(roots / 4 * math.sqrt(2), abs=2)


def test_allocate_in_proportion_with_two_at_least():
    assert stats.allocate({"a": 500, "b": 300, "c": 200}, 10) == {"a": 5, "b": 3, "c": 2}
    assert stats.allocate({"a": 1000, "b": 10, "c": 1}, 100) == {"a": 97, "b": 2, "c": 1}
    assert stats.allocate({"a": 3, "b": 2}, 100) == {"a": 3, "b": 2}


def test_planning_of_labels():
    low, high = stats.wilson(30, 100)
    assert stats.label_half_width(100, 10 ** 12, 0.3) == pytest.approx((high - low) / 2, rel=1e-6)
    assert stats.label_half_width(50, 50, 0.3) == 0
    # A judge with a correlation of 0.6 is worth 1 / (1 − 0.36) as many labels.
    low, high = stats.wilson(3000, 10_000)
    assert stats.label_half_width(6400, 10 ** 12, 0.3, 0.6) == pytest.approx((high - low) / 2, rel=1e-6)
    needed = stats.labels_needed(0.05, 2000, 0.3, 0.5)
    assert stats.label_half_width(needed, 2000, 0.3, 0.5) <= 0.05
    assert stats.label_half_width(needed - 1, 2000, 0.3, 0.5) > 0.05
    with pytest.raises(ValueError):
        stats.label_half_width(0, 10, 0.5)
