"""Agreement of raters against published examples and peers' figures."""
import pytest

from redlite import stats

A, B = [1, 1, 0, 0, 1, 0, 1, 0, 0, 0], [1, 0, 0, 0, 1, 1, 1, 0, 0, 1]


def test_kappa_by_hand():
    # 7 of 10 agree; chance is 0.4 · 0.5 + 0.6 · 0.5. scikit-learn 1.9.1's cohen_kappa_score says 0.4 too.
    assert stats.kappa(A, B) == pytest.approx((0.7 - 0.5) / 0.5, abs=1e-15)
    assert stats.percent_agreement(A, B) == 0.7
    assert stats.kappa(A, A) == 1.0 and stats.kappa([0, 1], [1, 0]) == -1.0


def test_missing_ratings_are_left_out_and_nothing_is_none():
    assert stats.kappa([*A, None, 1], [*B, 1, None]) == stats.kappa(A, B)
    assert stats.kappa([1, 1, 1], [1, 0, 1]) is None and stats.kappa([1, 0, 1, None], [0, 0, 0, 1]) is None
    assert stats.kappa([1, 1], [1, 1]) is None and stats.kappa([None], [1]) is None
    assert stats.percent_agreement([None], [1]) is None
    assert stats.alpha([[1, 1], [1, 1]]) is None and stats.alpha([[1, None], [None, 0]]) is None
    with pytest.raises(ValueError):
        stats.kappa([1], [1, 0])


def test_alpha_of_krippendorffs_examples():
    # The package krippendorff 0.9.0 gave both figures; the second is 0.743 in Krippendorff's own paper.
    _ = None
    three = [[_, _, _, _, _, 3, 4, 1, 2, 1, 1, 3, 3, _, 3],
             [1, _, 2, 1, 3, 3, 4, 3, _, _, _, _, _, _, _],
             [_, _, 2, 1, 3, 4, 4, _, 2, 1, 1, 3, 3, _, 4]]
    four = [[1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
            [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _]]
    assert stats.alpha(three) == pytest.approx(0.691358024691358, abs=1e-12)
    assert stats.alpha(four) == pytest.approx(0.743421052631579, abs=1e-12)


def test_matrix():
    found = stats.agreement_matrix({"rules": A, "linear": B, "none": [None] * 10})
    assert found["rules"]["linear"] == found["linear"]["rules"]
    assert found["rules"]["linear"] == {"n": 10, "agreement": 0.7, "kappa": pytest.approx(0.4)}
    assert found["rules"]["none"] == {"n": 0, "agreement": None, "kappa": None}
    assert "rules" not in found["rules"]
