"""The plots of a training run: every label lies within the drawing, and a share runs from 0 to 1."""
import xml.etree.ElementTree as ElementTree

import pytest

from redlite.report.train_page import WIDTH, Curve, _plots, plot

WIDEST = 0.6 * 16   # of a digit, in em of the largest size that the style sheet gives a label


def ticks(drawing: str) -> list[tuple[str, float]]:
    """(label, where its text begins) of the vertical axis."""
    root = ElementTree.fromstring(drawing)
    texts = [t for t in root.iter("text") if t.get("text-anchor") == "end" and not t.text.startswith("step")]
    return [(t.text, float(t.get("x")) - WIDEST * len(t.text)) for t in texts]


@pytest.mark.parametrize("top, shown", [
    (1e-5, "1e-05"), (8.75e-6, "8.75e-06"), (1.23e-30, "1.23e-30"), (0.5, "0.5"), (123456.0, "123,456"),
    (1.23e30, "1.23e+30"), (-2.5e-7, "-2.5e-07")])
def test_no_label_is_clipped(top, shown):
    found = ticks(plot("Learning rate", [Curve("rate", 5, [(0, top / 3), (9, top)], [])]))
    assert len(found) == 5 and all(0 <= begins < WIDTH / 2 for _, begins in found), found
    assert shown in [text for text, _ in found]


@pytest.mark.parametrize("shares", [[1.0, 1.0], [0.0, 0.0], [0.9, 1.0]])
def test_a_share_runs_from_0_to_1(shares):
    history = [{"step": i, "red_capped": share} for i, share in enumerate(shares)]
    drawing = dict(_plots(history))["Share of red tokens past the cap"]
    assert [text for text, _ in ticks(drawing)] == ["0", "0.25", "0.5", "0.75", "1"]
