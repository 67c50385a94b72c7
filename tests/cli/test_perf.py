"""The timing command: turns, and the GPU round's refusal where there is no GPU."""
import json
import math
from types import SimpleNamespace

import pytest
import torch

import redlite
from redlite.cli import perf
from redlite.cli.program import guarded
from redlite.errors import Error
from redlite.kernels.cpu import library
from redlite.model.config import Config
from redlite.perf import client, cpu, gpu, look_up, processes


def test_turns_alternate_and_the_first_is_not_counted():
    order = []
    found = cpu.in_turns(3, {"a": lambda: order.append("a"), "b": lambda: order.append("b")})
    assert order == ["a", "b"] * 4 and set(found) == {"a", "b"} and all(s >= 0 for s in found.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_said(capsys):
    assert guarded("perf", perf.body, ["gpu"]) == 2
    assert "no CUDA GPU here" in capsys.readouterr().err


@pytest.mark.slow
def test_a_piece_ends_in_json(tmp_path, capsys):
    before = torch.get_num_threads()
    try:
        assert guarded("perf", perf.body,
                       ["decode", "--model", "organism", "--rounds", "3", "--tokens", "64", "--threads", "1",
                        "--save", str(tmp_path / "x.json")]) == 0
    finally:
        torch.set_num_threads(before)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["loops"]["products, int8"] in library.isas()
    assert found["decode"]["int8"]["tokens_per_s"]["1"] > 0 and found["ceilings"]["copy_bytes_per_s"] > 0
    assert json.loads((tmp_path / "x.json").read_text()) == found


@pytest.mark.slow
def test_guesses_are_timed_on_the_same_answers(monkeypatch):
    """Which both sides give; the organism repeats itself."""
    found = look_up.run("organism", 24, 1, questions=2, formats=("int8",))
    assert list(found) == ["int8"] and list(found["int8"]) == ["standard", "cot", "cou"]
    for made in found["int8"].values():
        assert made["tokens"] <= 2 * 23 and made["tokens_per_step"] >= 1
        assert made["each"] == sorted(made["each"]) and made["faster"] > 0 and made["whole"] > 0
    monkeypatch.setattr(look_up.LM, "generate",
                        lambda lm, prompts, new: [SimpleNamespace(ids=[lm.engine.guesses, 1])])
    with pytest.raises(ValueError, match="guesses changed the answer"):
        look_up.run("organism", 24, 1, questions=1, formats=("int8",))


@pytest.mark.slow
def test_perplexity_is_that_of_the_logits(tmp_path, capsys):
    """Over one window and a short second one, against log-softmax in float64 of the whole windows' logits."""
    text = "A calm answer about the garden. " * 60
    (tmp_path / "text.txt").write_text(text)
    found = cpu.perplexity("organism", str(tmp_path / "text.txt"), window=100)
    lm = redlite.load("organism")
    ids = lm.tokenizer.encode(text)
    nll = []
    for start in range(0, len(ids) - 1, 100):
        window = ids[start:start + 100]
        logprobs = lm.logits(window).double().log_softmax(-1)
        nll += [-float(logprobs[i, token]) for i, token in enumerate(window[1:])]
    assert len(nll) == found["tokens"]
    assert found["float32"] == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-5)
    assert found["int8"] == pytest.approx(found["float32"], rel=0.1) and found["int8"] != found["float32"]
    with pytest.raises(Error, match="absent.txt: cannot be read"):
        cpu.perplexity("organism", str(tmp_path / "absent.txt"))


@pytest.mark.slow
def test_whole_runs_are_timed_in_processes_of_their_own(capsys):
    first = processes.first_token("organism", None, 1)["standard"]
    found = processes.growth("organism", "int8", [3], 4)["3"]
    assert 0 < first < 60 and found["seconds_per_question"] == found["seconds"] / 3
    assert found["peak_bytes"] > 50e6
    assert "3 questions, 4 new tokens" in capsys.readouterr().out
    assert guarded("perf", perf.body, ["decode", "--model", "no-such-model"]) == 2
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(Error, match="exit code 2"):
        processes.growth("no-such-model", None, [1], 1)
    assert guarded("perf", perf.body, ["first-token"]) == 2
    assert "first-token needs --model" in capsys.readouterr().err


@pytest.mark.slow
def test_the_7b_round_runs_at_a_small_shape(capsys):
    """The same code on this CPU with a tiny config: each piece generates, attends and trains what it says,
    and its figures are positive. Three rounds, since a difference of two times may be below 0 once.
    """
    config = Config("llama", 300, 32, 2, 4, 2, 8, 48, max_positions=256)
    shape = {"requests": 4, "shared": 20, "own": 5, "new": 6}
    found = gpu.run(3, {"copy_bytes_per_s": 1e9, "matrix_flops_per_s": 1e9}, config, torch.float32, "cpu",
                    shape, batch=3, prefix=17, new=60, conversations=2, tokens=24, steps=3)
    assert found["redeval"]["new_tokens_per_s"] == pytest.approx(24 / found["redeval"]["seconds"])
    assert all(found[piece][figure] > 0
               for piece, figure in (("decode", "weight_bytes_per_s"), ("shared_prefix_attention", "ratio"),
                          ("align", "tokens_per_s"), ("align", "mfu_of_measured_matrix_rate")))


@pytest.mark.slow
def test_the_client_is_timed_against_a_server_in_another_process(monkeypatch, tmp_path):
    """Every request is answered, and no faster than the server's delay allows."""
    monkeypatch.chdir(tmp_path)
    found = client.run(requests=40, concurrency=8)
    assert 0 < found["requests_per_s"] <= found["ceiling_of_the_delay"] == 160
    assert found["client_cpu_ms"] > 0 and found["server_cpu_ms"] > 0
