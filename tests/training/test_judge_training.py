"""A model trained as a judge: which rows are held out, which tokens are trained, and that it learns."""
import pytest
import tiny

from redlite.errors import Error
from redlite.judges import formats
from redlite.judges.model import ModelJudge
from redlite.model import lora
from redlite.training import judge as judge_training

ROWS = [(f"question {i}", text, label) for i in range(10)
        for text, label in (("yes yes yes", "harmful"), ("no no no", "unharmful"))]


def made() -> ModelJudge:
    lm = tiny.lm(3, max_positions=4096, std=0.1)
    return ModelJudge(lm, "gpt4", formats.prompts("gpt4", lm.tokenizer, lm.template), "tiny")


def test_questions_are_held_out_whole():
    training, held = judge_training.split(ROWS, 0.2, 0)
    assert len(training) == 16 and len(held) == 4
    assert not {question for question, _, _ in training} & {question for question, _, _ in held}
    assert judge_training.split(ROWS, 0.2, 0)[1] == held != judge_training.split(ROWS, 0.2, 1)[1]
    with pytest.raises(Error, match="not of both labels"):
        judge_training.split([row for row in ROWS if row[2] == "harmful"], 0.2, 0)


def test_only_the_verdict_is_trained():
    judge = made()
    found = judge_training.examples(judge, ROWS[:2], 2000)
    for example, (question, answer, label) in zip(found, ROWS[:2], strict=True):
        context, _ = judge.context(judge.prompts[0], question, answer)
        verdict = judge.verdicts[0 if label == "harmful" else 1][0]
        assert example.ids.tolist() == [*context, *verdict]
        assert example.trained.tolist() == [False] * len(context) + [True] * len(verdict)


def test_a_frame_that_leaves_no_room_is_refused_and_the_judge_keeps_its_room():
    judge = made()
    room = judge.room
    with pytest.raises(Error, match="no labelled answer fits into 64 tokens"):
        judge_training.examples(judge, ROWS[:2], 64)
    assert judge.room == room


def test_training_lowers_the_nll_of_the_verdicts(tmp_path):
    judge, log = made(), []
    judge.lm.model.requires_grad_(True)
    lora.attach(judge.lm.model, 4)
    settings = judge_training.Settings(epochs=4, batch_size=2, learning_rate=1e-2, tokens=2000)
    examples = judge_training.examples(judge, ROWS[:4], settings.tokens)
    result = judge_training.train(judge, examples, settings, tmp_path / "run", {}, log.append)
    assert result.step == len(log) == 8
    assert log[-1]["helpful"] < log[0]["helpful"] - 0.5
