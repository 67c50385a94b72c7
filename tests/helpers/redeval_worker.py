"""RED-EVAL with a made-up answerer and no torch: for tests, and as a program that tests kill (FOLDER, SECONDS
an answer)."""
import random
import sys
import time
from pathlib import Path

from redlite.answer import Answer
from redlite.judges import rules
from redlite.judges.choice import JudgeChoice, rules_judge
from redlite.judges.verdict import Verdict
from redlite.redteam import redeval
from redlite.redteam import results as redteam_results
from redlite.redteam.answerers import Decoding, ModelChoice
from redlite.redteam.journals import read_journals
from redlite.redteam.questions import Prompt, Question
from redlite.store.run_directory import Run

QUESTIONS = [Question(str(i), f"question {i}?", "T" if i % 2 else "U", "S") for i in range(1, 8)]
PROMPTS = [Prompt("standard", "<question>"), Prompt("cou", "Red-LM: x\n\nRed-LM: <question>\n\nBase-LM:")]


class Fake:
    """Answers out of order, deterministically by conversation and seed; `fails` says which attempts end in an
    error."""

    def __init__(self, fails=(), dies_after=None, pause=0.0):
        self.asked, self.fails, self.dies_after, self.pause = [], list(fails), dies_after, pause

    def answer(self, conversations, decoding, seeds, stop, beside):
        self.asked.append((conversations, decoding, seeds, stop))
        order = list(range(len(conversations)))
        random.Random(len(order)).shuffle(order)
        return self._answers(conversations, seeds, order)

    def _answers(self, conversations, seeds, order):
        for i in order:
            time.sleep(self.pause)
            if self.dies_after is not None:
                if self.dies_after == 0:
                    raise KeyboardInterrupt
                self.dies_after -= 1
            content = conversations[i][-1]["content"]
            finish = (
                "error" if content in self.fails else "refused_by_api" if "question 3?" in content else "stop"
            )
            text = (
                ""
                if finish != "stop"
                else "I cannot help with that."
                if seeds[i] % 3 == 0
                else f"(Internal thought: go on (now).) Sure, {content[-12:]} {seeds[i]}"
            )
            yield i, Answer(text, finish, len(content), len(text), 0.25)


def choice(answerer, name="fake"):
    return ModelChoice(name, {"name": name, "weights": "0" * 64}, lambda run: answerer, characters)


def characters(messages):
    return sum(len(m["content"]) for m in messages)


RULES = rules_judge()
GREEDY = Decoding()


def made(
    model, decoding=GREEDY, judge=RULES, questions=QUESTIONS, limit=None, seed=0, prompts=PROMPTS,
    system=None,
):
    return redeval.manifest(
        command="redeval", seed=seed, model=model, question_path=Path("q.json"), questions=questions,
        limit=limit, prompts=prompts, judge=judge, decoding=decoding, system=system,
    )


class SlowRules(rules.Rules):
    """The rules, with a pause before each verdict."""

    def __init__(self, pause):
        self.pause = pause

    def label(self, pairs):
        for item in super().label(pairs):
            time.sleep(self.pause)
            yield item


def go(
    folder, answerer, decoding=GREEDY, seed=0, questions=QUESTIONS, judge=RULES, prompts=PROMPTS,
    system=None,
):
    model = choice(answerer)
    with Run(
        folder, made(model, decoding, seed=seed, questions=questions, prompts=prompts, system=system)
    ) as run:
        journals = redeval.run(run, model, questions, prompts, decoding, seed, system)
        if judge:
            redeval.judge(run, judge, journals)
    return journals.answers


def results(folder, judge="rules"):
    """What a run's results.json would hold."""
    return redteam_results.results(read_journals(folder), judge)


def labels(folder, judge="rules"):
    """One judge's labels."""
    return {key: record["label"] for key, record in read_journals(folder).judged_by(judge).items()}


def judge(name, label, identity=None, raw=lambda i: ""):
    """A judge that gives answer i the label and the raw text that `label` and `raw` give for i."""
    class Same:
        def label(self, pairs):
            return ((i, Verdict(label(i), raw(i))) for i in range(len(pairs)))
    Same.name = name
    return JudgeChoice(name, identity or {"name": name}, lambda run: Same())


def records(folder, name="responses.jsonl"):
    return sorted(Path(folder, name).read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    print("ready", flush=True)
    pause = float(sys.argv[2])
    go(
        Path(sys.argv[1]), Fake(pause=pause), Decoding(8, 1.0, 1.0, 4),
        judge=JudgeChoice(RULES.name, RULES.identity, lambda run: SlowRules(pause)),
    )
