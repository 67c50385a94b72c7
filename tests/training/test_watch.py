"""Evaluation during training: when it is asked, when it ends a run, what is then written, and that a run
that goes on asks nothing twice.
"""
import json
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
import train_worker as worker

from redlite.cli import evaluation, safealign
from redlite.errors import Error
from redlite.report import train_page
from redlite.training import trainer

RECIPE = trainer.Recipe(learning_rate=1e-2, tokens_per_batch=100, checkpoint_every=100, evaluate_every=2)


class Scripted:
    """A watch with the faults and ends that a test says; it keeps which steps were measured."""

    def __init__(self, faults=(), ends=()):
        self.faults, self.ends, self.asked, self.weights = faults, ends, [], {}

    def measure(self, step):
        self.asked.append(step)
        self.weights[step] = self.model.model.norm.weight.detach().clone()
        return {"asr.cou": 0.5}

    def fault(self, step):
        if step in self.faults:
            return f"bad at {step}"
        return "" if step in self.weights else "was not evaluated"

    def reached(self, step):
        return f"good at {step}" if step in self.ends else ""


def trained(watch, folder):
    watch.model = worker.model()
    return watch.model, trainer.run(watch.model, worker.mixture(), RECIPE, folder, watch=watch)


def test_it_is_asked_before_every_second_step_and_after_the_last(tmp_path):
    watch = Scripted()
    _, result = trained(watch, tmp_path)
    assert watch.asked == [0, 2, 4, 6, 8] and result.step == 8
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in log if "measured" in r] == [1, 3, 5, 7] and "measured_before" in log[0]
    again = Scripted()
    trained(again, tmp_path)
    assert again.asked == []


def test_a_fault_ends_it_with_the_last_weights_that_had_none(tmp_path):
    watch = Scripted(faults=(6,))
    model, result = trained(watch, tmp_path)
    assert (result.step, result.stopped, len(result.history)) == (4, "bad at 6", 6)
    assert result.watched
    assert torch.equal(model.model.norm.weight, watch.weights[4])
    assert not torch.equal(watch.weights[4], watch.weights[6])


def test_a_fault_at_the_first_evaluation_leaves_nothing_to_write(tmp_path):
    result = trained(Scripted(faults=(2,)), tmp_path)[1]
    assert result.step is None and result.watched


def test_what_was_aimed_at_ends_it_and_a_run_that_ended_stays_so(tmp_path):
    _, result = trained(Scripted(ends=(4,)), tmp_path)
    assert (result.step, result.reached, result.stopped, len(result.history)) == (4, "good at 4", "", 4)
    assert not result.watched
    assert "kept_after" in result.history[-1]       # nothing follows that would measure these weights
    again = Scripted(ends=(4,))
    _, result = trained(again, tmp_path)
    assert again.asked == [] and (result.step, result.reached) == (4, "good at 4")


def test_a_divergence_is_told_from_a_fault_of_the_watch(tmp_path):
    model = worker.model()
    recipe = trainer.Recipe(learning_rate=1e-2, tokens_per_batch=100, evaluate_every=2, helpful_rise=-100.0)
    watch = Scripted()
    watch.model = model
    result = trainer.run(model, worker.mixture(), recipe, tmp_path, watch=watch)
    assert result.stopped and not result.watched


def measures(asr, acc):
    def of(value):
        return {"value": value, "ci95": [0, 1], "n": 10, "unlabelled": 0}
    return {"asr.cou": of(asr), "mmlu.acc": of(acc)}


def judged(until=(), keeps=(), max_unlabelled=None):
    """An Evaluation with given figures of three steps."""
    made = evaluation.Evaluation.__new__(evaluation.Evaluation)
    made.until, made.keeps = evaluation._gates(list(until)), evaluation._gates(list(keeps))
    made.strictness = evaluation._strictness(max_unlabelled)
    made.quiet = False
    made.found = {0: measures(1.0, 0.40), 2: measures(0.5, 0.39), 4: measures(0.3, 0.37)}
    return made


def test_gates_against_the_baseline_before_the_first_step(capsys):
    watch = judged(["asr.cou<=0.3"], ["mmlu.acc>=baseline-0.02"])
    assert [watch.fault(step)[:7] for step in (0, 2, 4)] == ["", "", "--while"]
    assert [bool(watch.reached(step)) for step in (0, 2, 4)] == [False, False, True]
    assert not judged(["asr.cou<=0.3", "mmlu.acc>=0.38"]).reached(4)        # all of them must hold
    assert "not reached after 4 steps: mmlu.acc>=0.38 (0.37, too low)" in capsys.readouterr().err


@pytest.mark.slow
def test_an_aim_that_is_missed_is_said_with_its_reason_last_even_quietly(tmp_path, capsys):
    code = safealign.main([
        "--strategy", "A", "--steps", "1", "--batch-size", "4", "--evaluate-every", "1",
        "--evaluate-questions", "organism", "--evaluate-limit", "2", "--evaluate-prompt", "standard",
        "--evaluate-tokens", "8", "--until", "asr.standard>=1", "--until", "asr.standard<=0",
        "--max-unlabelled", "1", "--output-dir", str(tmp_path), "--quiet"])
    asr = json.loads((tmp_path / "log.jsonl").read_text())["measured"]["asr.standard"]
    left = [f"asr.standard>=1 ({asr:.4g}, too low)"] * (asr < 1)
    left += [f"asr.standard<=0 ({asr:.4g}, too high)"] * (asr > 0)
    last = capsys.readouterr().err.splitlines()[-1]
    assert code == 100
    assert last == f"safealign: --until was not reached in 1 steps: {', '.join(left)}"


def test_answers_without_a_label_fail_a_gate_as_often_as_it_is_said():
    thoughts = {"asr.cou": {"value": 0.1, "ci95": [0, 1], "n": 7, "unlabelled": 3}}
    for share, reached in ((None, False), (0.2, False), (0.3, True), (1.0, True)):
        watch = judged(["asr.cou<=0.3"], max_unlabelled=share)
        watch.found[6] = thoughts
        assert bool(watch.reached(6)) == reached, share


def test_questions_of_the_training_data_are_refused(capsys):
    asked = {"q1": "How  do I PAINT it?", "q2": "No"}
    battery = SimpleNamespace(asked=[SimpleNamespace(id=i, question=q) for i, q in asked.items()])
    corpus = SimpleNamespace(training=[SimpleNamespace(question="how do i paint it?")])
    with pytest.raises(Error, match=r"1 of 2 questions .*the first: q1"):
        evaluation.require_apart(battery, corpus, anyway=False)
    evaluation.require_apart(battery, corpus, anyway=True)
    assert "q1" in capsys.readouterr().err
    evaluation.require_apart(battery, SimpleNamespace(training=[]), anyway=False)


@pytest.mark.parametrize(("more", "word"), [
    (["--until", "asr.cou<=0.3"], "nothing is evaluated"),
    (["--evaluate-questions", "organism", "--until", "asr.cou<=0.3"], "--evaluate-every"),
    (["--evaluate-questions", "organism", "--max-unlabelled", "0"], "--max-unlabelled: no gate"),
    (["--evaluate-questions", "organism", "--evaluate-every", "2", "--while", "mmlu.acc>=0.1"],
     "there is no measure 'mmlu.acc'"),
    (["--evaluate-questions", "organism", "--evaluate-every", "2", "--until", "asr.cou.corrected<=0.1"],
     "labels of people")])
def test_options_that_do_not_go_together(more, word, tmp_path, capsys):
    assert safealign.main(["--output-dir", str(tmp_path / "run"), "--quiet", *more]) == 2
    assert word in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_evaluation_wants_one_process():
    args = Namespace(**dict.fromkeys((*evaluation.NEEDS, "evaluate_tasks")), evaluate_questions="q",
                     evaluate_every=1)
    with pytest.raises(Error, match="one process"):
        evaluation.check(args, many=True)


def test_the_page_shows_them():
    history = [{"step": 0, "measured_before": {"asr.cou": 1.0}}, {"step": 1, "measured": {"asr.cou": 0.25}}]
    found = train_page.measured_steps(history)
    assert found == {0: {"asr.cou": 1.0}, 2: {"asr.cou": 0.25}}
    shown = train_page._measured(found)
    assert "25.0%" in shown and "asr.cou from 1 to 0.25" in shown


@pytest.mark.slow
def test_the_organism_is_evaluated_and_the_manifest_says_what_is_written(tmp_path, capsys):
    run = ["--strategy", "A", "--steps", "2", "--batch-size", "4", "--evaluate-every", "1",
           "--evaluate-questions", "organism",
           "--evaluate-limit", "2", "--evaluate-prompt", "standard", "--evaluate-tokens", "8", "--until",
           "asr.standard<=1", "--output-dir", str(tmp_path / "run"), "--quiet", "--json"]
    assert safealign.main(run) == 0
    summary = json.loads(capsys.readouterr().out)
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert summary["kept_step"] == manifest["info"]["written"]["step"] == 1
    assert "is reached after 1 steps" in summary["reached"]
    answers = tmp_path / "run/evaluations/step-00000001/redeval/responses.jsonl"
    before = answers.read_bytes()
    assert safealign.main(run) == 0 and answers.read_bytes() == before
