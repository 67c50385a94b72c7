"""How redlite.stats agrees with its peers, and the coverage of its intervals.

    python tests/beside/agreement_stats.py                  agreement; ends in a line of JSON
    python tests/beside/agreement_stats.py coverage [CSV …] coverage of corrected rates (long)
    python tests/beside/agreement_stats.py clusters         coverage of clustered intervals (minutes)

Needs numpy, scipy, statsmodels, krippendorff, scikit-learn, ppi_python. A CSV has columns question, answer,
label ("harmful" or "unharmful"); the rules judge gives the predictions. `--draws N` sets the draws (2,000).
"""
import argparse
import csv
import json

import numpy as np

from redlite import stats
from redlite.judges.rules import rules


def worst(differences: dict, name: str, ours, theirs) -> None:
    """Keep the largest absolute difference of a name."""
    gap = float(np.max(np.abs(np.asarray(ours, float) - np.asarray(theirs, float))))
    differences[name] = max(differences.get(name, 0.0), gap)


def ppi(differences: dict, generator) -> None:
    """Point, λ and interval, with 0/1 verdicts and probabilities, with and without weights."""
    from ppi_py import ppi_mean_ci, ppi_mean_pointestimate
    from ppi_py.ppi import _calc_lam_glm
    for round_ in range(40):
        n, rest = int(generator.integers(20, 200)), int(generator.integers(50, 2000))
        truth = generator.random(n + rest) < generator.choice([0.03, 0.3, 0.6])
        verdicts = np.clip(0.5 * truth + generator.random(n + rest) * 0.6, 0, 1)
        if round_ % 2:
            verdicts = (verdicts > 0.5).astype(float)
        labels = truth[:n].astype(float)
        weights = generator.random(n) + 0.2 if round_ % 4 > 1 else None
        ours = stats.prediction_powered(
            labels.tolist(), verdicts[:n].tolist(), verdicts[n:].tolist(),
            None if weights is None else weights.tolist())
        args = labels, verdicts[:n], verdicts[n:]
        scaled = np.ones(n) if weights is None else weights / weights.sum() * n
        start = verdicts[n:].mean() + (scaled * (labels - verdicts[:n])).mean()
        lam = _calc_lam_glm(scaled * (labels - start), scaled * (verdicts[:n] - start), verdicts[n:] - start,
                            np.eye(1), clip=True)
        worst(differences, "ppi point", ours.mean, np.ravel(ppi_mean_pointestimate(*args, w=weights))[0])
        worst(differences, "ppi lambda", ours.lam, lam)
        worst(differences, "ppi interval", ours.ci95, np.ravel(ppi_mean_ci(*args, alpha=0.05, w=weights)))


def agreement(differences: dict, generator) -> None:
    """κ against scikit-learn and statsmodels, α against krippendorff with missing ratings."""
    import krippendorff
    from sklearn.metrics import cohen_kappa_score
    from statsmodels.stats.inter_rater import cohens_kappa
    for _ in range(40):
        ratings = generator.integers(0, 3, (int(generator.integers(2, 5)), 60)).astype(float)
        ratings[1] = np.where(generator.random(60) < 0.6, ratings[0], ratings[1])
        a, b = ratings[0].tolist(), ratings[1].tolist()
        worst(differences, "kappa sklearn", stats.kappa(a, b), cohen_kappa_score(a, b))
        table = np.zeros((3, 3))
        np.add.at(table, (ratings[0].astype(int), ratings[1].astype(int)), 1)
        worst(differences, "kappa statsmodels", stats.kappa(a, b), cohens_kappa(table).kappa)
        ratings[generator.random(ratings.shape) < 0.3] = np.nan
        ours = stats.alpha([[None if np.isnan(x) else x for x in row] for row in ratings])
        worst(differences, "alpha", ours, krippendorff.alpha(ratings, level_of_measurement="nominal"))


def tests(differences: dict, generator) -> None:
    """Wilson, Holm, McNemar, sign-flip, clustered variance and asr@k."""
    from scipy.stats import binomtest, permutation_test
    from statsmodels.api import OLS
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.proportion import proportion_confint
    for _ in range(40):
        n = int(generator.integers(1, 400))
        k = int(generator.integers(0, n + 1))
        worst(differences, "wilson", stats.wilson(k, n), proportion_confint(k, n, method="wilson"))
        worst(differences, "mcnemar", stats.mcnemar(k, n - k), binomtest(k, n).pvalue)
        p = generator.random(9) ** 3
        worst(differences, "holm", stats.holm(p.tolist()), multipletests(p, method="holm")[1])
        flips = generator.integers(-3, 4, 10)
        found = permutation_test(
            (flips.astype(float),), np.sum, permutation_type="samples", n_resamples=np.inf)
        worst(differences, "sign flip", stats.sign_flip(flips.tolist()), found.pvalue)
        sizes = generator.integers(5, 21, 150)
        sums = generator.binomial(sizes, generator.beta(1, 2, 150))
        outcomes = np.concatenate([np.arange(m) < y for y, m in zip(sums, sizes, strict=True)]).astype(float)
        clusters = np.repeat(np.arange(150), sizes)
        robust = OLS(outcomes, np.ones(len(outcomes))).fit(
            cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False})
        rate, variance = sums.sum() / sizes.sum(), robust.bse[0] ** 2
        raw = rate * (1 - rate) / variance  # before ρ is drawn towards 1 by 2 parts in ν² + 2
        residuals = (sums - rate * sizes) ** 2
        weight = (residuals.sum() ** 2 / (residuals ** 2).sum()) ** 2
        m = (sizes ** 2).sum() / sizes.sum()
        rho = (sizes.sum() / raw - 1) / (m - 1)
        drawn = sizes.sum() / (1 + (m - 1) * (weight * rho + 2) / (weight + 2))
        effective = stats.effective_size(sums.tolist(), sizes.tolist())
        worst(differences, "clustered size, relative", effective / drawn, 1)
        # The product form of Chen et al., arXiv 2107.03374, figure 3.
        kept = [1 - np.prod(1 - 3 / np.arange(m - c + 1, m + 1)) for c, m in zip(sums, sizes, strict=True)]
        worst(differences, "asr@3", stats.asr_at_k(sums.tolist(), sizes.tolist(), 3)[0], np.mean(kept))


def table(n: int, rate: float, judged: float, kappa: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels and 0/1 verdicts of n answers with these rates by people and judge, and this κ."""
    chance = rate * judged + (1 - rate) * (1 - judged)
    both = (chance + kappa * (1 - chance) - 1 + rate + judged) / 2
    counts = np.round(np.array([both, rate - both, judged - both]) * n).astype(int)
    cells = np.repeat([3, 2, 1, 0], [*counts, n - counts.sum()])
    return cells // 2, (cells % 2).astype(float)


def probabilities(n: int, rate: float, spread: float, generator) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the miscalibrated probabilities of a judge, which is the better the larger the spread."""
    x = generator.normal(size=n) * spread
    low, high = -30.0, 30.0
    for _ in range(60):
        shift = (low + high) / 2
        low, high = (shift, high) if np.mean(1 / (1 + np.exp(-x - shift))) < rate else (low, shift)
    labels = (generator.random(n) < 1 / (1 + np.exp(-x - shift))).astype(int)
    return labels, 1 / (1 + np.exp(-0.8 * (x + shift + generator.normal(size=n)) + 0.3))


def coverage_corrected(name: str, labels, verdicts, generator, draws: int) -> None:
    """Of 100 labels, drawn uniformly, and by three pretended prompts and the judge's bands."""
    n, truth, probabilities_ = len(labels), labels.mean(), verdicts.tolist()
    strata = list(zip(stats.bands(probabilities_), generator.integers(0, 3, n).tolist(), strict=True))
    members = {s: [i for i, t in enumerate(strata) if t == s] for s in sorted(set(strata))}
    wanted = stats.allocate({s: len(m) for s, m in members.items()}, 100)
    for design in ("uniform", "stratified"):
        rows = []
        for _ in range(draws):
            if design == "uniform":
                drawn = generator.choice(n, 100, replace=False)
            else:
                parts = [generator.choice(m, wanted[s], replace=False) for s, m in members.items()]
                drawn = np.concatenate(parts)
            given: list[int | None] = [None] * n
            for i in drawn:
                given[i] = int(labels[i])
            found = stats.corrected(probabilities_, given, None if design == "uniform" else strata)
            low, high = found.ci95
            rows.append((low <= truth <= high, high < truth, low > truth,
                         found.asr - truth, high - low, found.width_alone))
        covered, below, above, bias, width, alone = np.mean(rows, axis=0)
        print(f"{name:24} {design:10} ASR {truth:.3f} coverage {covered:.3f} "
              f"(below {below:.3f}, above {above:.3f}) bias {bias:+.4f} width {width:.4f} alone {alone:.4f}",
              flush=True)


def coverage_clustered(generator, draws: int) -> None:
    """Beta-binomial questions; 10% of the samples unlabelled, at random."""
    for questions in (200, 60, 10):
        for samples in (1, 5, 20):
            for rate in (0.03, 0.1, 0.5):
                for rho in (0.0, 0.1, 0.3, 0.6, 0.9)[:1 if samples == 1 else 5]:
                    held = 0
                    for _ in range(draws):
                        scale = 1 / rho - 1 if rho else 0
                        p = generator.beta(rate * scale, (1 - rate) * scale, questions) if rho else rate
                        sizes = np.ones(questions, int)
                        if samples > 1:
                            sizes = generator.binomial(samples, 0.9, questions)
                        low, high = stats.clustered(generator.binomial(sizes, p).tolist(), sizes.tolist())
                        held += low <= rate <= high
                    print(f"{questions} questions × {samples}, rate {rate}, ρ {rho}: {held / draws:.3f}",
                          flush=True)


def coverage(files: list[str], draws: int) -> None:
    generator = np.random.default_rng(0)
    for path in files:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        labels = np.array([row["label"] == "harmful" for row in rows], int)
        verdicts = np.array([rules(row["question"], row["answer"]) == "harmful" for row in rows], float)
        coverage_corrected(path.split("/")[-1], labels, verdicts, generator, draws)
    for n, rate, judged, kappa in ((1540, .354, .251, .41), (1000, .315, .547, .49), (5634, .034, .299, .15),
                                   (2000, .03, .3, .1), (2000, .03, .08, .4), (2000, .03, .03, .7),
                                   (2000, .03, .03, .9)):
        name = f"{rate} judged {judged} κ {kappa}"
        coverage_corrected(name, *table(n, rate, judged, kappa), generator, draws)
    for rate in (0.03, 0.1, 0.3):
        for spread in (1, 2.5, 5):
            name = f"probabilities {rate} {spread}"
            coverage_corrected(name, *probabilities(2000, rate, spread, generator), generator, draws)


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("what", nargs="?", choices=("agreement", "coverage", "clusters"), default="agreement")
    parser.add_argument("files", nargs="*")
    parser.add_argument("--draws", type=int, default=2000)
    args = parser.parse_args()
    generator = np.random.default_rng(0)
    if args.what == "coverage":
        coverage(args.files, args.draws)
        return
    if args.what == "clusters":
        coverage_clustered(generator, args.draws)
        return
    differences: dict[str, float] = {}
    ppi(differences, generator)
    agreement(differences, generator)
    tests(differences, generator)
    within = max(differences.values()) <= 1e-9
    print(json.dumps({"largest difference": differences, "all within 1e-9": within}))


if __name__ == "__main__":
    main()
