"""How far judges agree, over what they call harmful: any hashable ratings, None where a judge gave none."""
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from math import fsum

Ratings = Sequence[Hashable | None]
UNDEFINED = "a kappa is undefined where one of the two gives one label alone, or none"


def _rated_by_both(a: Ratings, b: Ratings) -> list[tuple[Hashable, Hashable]]:
    return [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]


def percent_agreement(a: Ratings, b: Ratings) -> float | None:
    """The share of answers that both rated on which they agree; None when they share no answer."""
    pairs = _rated_by_both(a, b)
    return sum(x == y for x, y in pairs) / len(pairs) if pairs else None


def kappa(a: Ratings, b: Ratings) -> float | None:
    """Cohen's κ over the answers that both rated: agreement beyond chance, 1 at most, 0 at chance.

    None when they share no answer, or when either gave one rating throughout: chance alone then explains the
    agreement, so that κ is 0 (or 0 / 0) whatever the other says, and measures nothing.
    Source: Cohen, Educational and Psychological Measurement 20 (1960) 37.
    """
    pairs = _rated_by_both(a, b)
    n = len(pairs)
    of_a, of_b = Counter(x for x, _ in pairs), Counter(y for _, y in pairs)
    if min(len(of_a), len(of_b)) < 2:
        return None
    by_chance = sum(count * of_b[rating] for rating, count in of_a.items())  # times n²
    return (n * sum(x == y for x, y in pairs) - by_chance) / (n * n - by_chance)


def alpha(ratings: Sequence[Ratings]) -> float | None:
    """Krippendorff's α for nominal ratings, a row a judge and a column an answer; ratings may be missing.

    1 is perfect, 0 is chance. None when no answer has two ratings or all ratings are the same.
    Source: Krippendorff, Content Analysis (2004), section 11.3.
    """
    disagreement: list[float] = []
    totals: Counter = Counter()
    for column in zip(*ratings, strict=True):
        counts = Counter(rating for rating in column if rating is not None)
        m = counts.total()
        if m >= 2:
            totals.update(counts)
            disagreement.append((m * m - sum(c * c for c in counts.values())) / (m - 1))
    n = totals.total()
    expected = n * n - sum(c * c for c in totals.values())  # times n − 1
    return 1 - (n - 1) * fsum(disagreement) / expected if expected else None


def agreement_matrix(judges: Mapping[str, Ratings]) -> dict[str, dict[str, dict]]:
    """For each two judges: n (answers both rated), agreement, κ; matrix[a][b] equals matrix[b][a]."""
    def cell(a: Ratings, b: Ratings) -> dict:
        return {"n": len(_rated_by_both(a, b)), "agreement": percent_agreement(a, b), "kappa": kappa(a, b)}
    return {a: {b: cell(judges[a], judges[b]) for b in judges if b != a} for a in judges}
