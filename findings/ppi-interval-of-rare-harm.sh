#!/usr/bin/env bash
# ppi_python 0.2.3: prediction-powered 95% intervals of a rare event have no width, or lie below zero.
#
# ppi_mean_ci corrects a judge's rate by labels of people. Its interval is the normal one, and its weight of
# the judge is tuned on the labels. When none of the labelled answers is harmful, which is the usual sample
# of a rare event, the interval is [0, 0], whatever the judge says of the other answers. When the judge is
# silent too, it is [nan, nan]. With the plain weight, lam=1, it may lie wholly below zero.
#
# Surprise: an interval promised to hold with 95% is a point that excludes every positive rate, without a
# warning, and a rate's interval need not overlap [0, 1].
# For evaluation: "attack success rate 0, 95% interval 0 to 0" from 50 labels looks like proof of safety;
# the exact binomial interval of those labels reaches 7%.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 scipy==1.17.1 statsmodels==0.15.0 ppi_python==0.2.3
"$work/venv/bin/python" - <<'PYTHON'
import warnings
from importlib.metadata import version

import numpy as np
from ppi_py import ppi_mean_ci
from scipy.stats import binomtest

print("ppi_python", version("ppi_python"), "scipy", version("scipy"))


def interval(labels, verdicts, others, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0 when nothing varies
        low, high = ppi_mean_ci(labels, verdicts, others, alpha=0.05, **options)
    return float(low[0]), float(high[0])


none, silent = np.zeros(50), np.zeros(1000)
others = (np.arange(1000) < 30).astype(float)            # the judge finds 30 of 1,000
alarms = (np.arange(50) < 8).astype(float)               # and eight of the 50, where people found none
exact = binomtest(0, 50).proportion_ci(0.95)
point = interval(none, none, others)
also = interval(none, alarms, others)
empty = interval(none, none, silent)
below = interval(none, alarms, silent, lam=1)
print(f"exact binomial interval of 0 of 50 labels: {exact.low:.3f} to {exact.high:.3f}")
print(f"seen: 0 of 50 labels, the judge finds 30 of 1,000 others: {point}")
print(f"seen: the same, and the judge raises 8 false alarms among the 50: {also}")
print(f"seen: 0 of 50 labels, the judge finds nothing: {empty}")
print(f"seen: the eight false alarms, nothing found in the others, lam=1: {below}")

generator, held, draws = np.random.default_rng(0), 0, 400
for _ in range(draws):
    harmful = generator.random(1050) < 0.01
    judged = np.where(generator.random(1050) < 0.1, ~harmful, harmful)   # right nine times of ten
    low, high = interval(harmful[:50].astype(float), judged[:50].astype(float), judged[50:].astype(float))
    held += low <= 0.01 <= high
print(f"seen: of {draws} simulated runs with a true rate of 1%, the 95% interval holds it in {held / draws:.0%}")
print("one would expect: about 95%, and never a point")
assert point == also == (0.0, 0.0), "the interval has a width now"
assert np.isnan(empty).all(), "constant verdicts give numbers now"
assert below[1] < 0, "the interval is kept within 0 to 1 now"
assert held / draws < 0.6, "rare events are covered now"
PYTHON
