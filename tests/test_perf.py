"""The timing command: turns, and the GPU round's refusal where there is no GPU."""
import json

import pytest
import torch

from redlite.cli import common, perf


def test_turns_alternate_and_the_first_is_not_counted():
    order = []
    found = perf.in_turns(3, {"a": lambda: order.append("a"), "b": lambda: order.append("b")})
    assert order == ["a", "b"] * 4 and set(found) == {"a", "b"} and all(s >= 0 for s in found.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_said(capsys):
    assert common.guarded("perf", perf.body, ["gpu"]) == 2
    assert "no CUDA GPU here" in capsys.readouterr().err


def test_a_piece_ends_in_json(tmp_path, capsys):
    before = torch.get_num_threads()
    try:
        assert common.guarded("perf", perf.body, ["decode", "--model", "organism", "--rounds", "1", "--tokens", "4", "--threads", "1", "--save", str(tmp_path / "x.json")]) == 0
    finally:
        torch.set_num_threads(before)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["decode"]["int8"]["tokens_per_s"]["1"] > 0 and found["ceilings"]["copy_bytes_per_s"] > 0 and json.loads((tmp_path / "x.json").read_text()) == found
