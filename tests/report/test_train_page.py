"""The plots of a training run: every label lies within the drawing, and a share runs from 0 to 1."""
import xml.etree.ElementTree as ElementTree

import pytest

from redlite.report.train_page import WIDTH, Curve, _facts, _plots, plot

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


def test_steps_are_numbered_as_the_terminal_does():
    """What is held out is measured before step 1, and after the last."""
    history = [{"step": 0, "blue": 2.0, "validation_before": {"blue": 3.0}},
               {"step": 1, "blue": 1.0, "validation": {"blue": 1.5}}]
    drawing = dict(_plots(history))["NLL by colour (dots: held out)"]
    root = ElementTree.fromstring(drawing.split("<p class=\"key\"")[0])
    assert [t.text for t in root.iter("text") if t.text.startswith("step")] == ["step 0", "step 2"]
    [path] = root.iter("path")
    dots = [float(dot.get("cx")) for dot in root.iter("circle")]
    ends = [float(point.split()[0]) for point in path.get("d").strip("M").split("L")]
    assert dots[0] < ends[0] < ends[1] == dots[1]


def test_what_was_not_trained_on_is_not_called_used():
    made = {"command": "c", "version": "1", "seed": 0, "data": "d", "model": {"name": "m", "weights": "w"},
            "plan": {"strategy": "A", "prompts": {}, "seed": 0, "steps_a": None}, "recipe": {"seed": 0}}
    counts = {"blue": 8, "held out": 2, "left out: red, by strategy A": 8}
    found = dict(_facts(made, {"conversations": counts}))
    assert found["conversations trained on: blue"] == 8 and found["conversations held out"] == 2
    assert found["conversations left out: red, by strategy A"] == 8
    assert not {"seed", "prompts"} & set(found) and "trained on: red" not in str(found)
