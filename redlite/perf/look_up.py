"""Times of greedy answers, one at a time, with and without guesses of the next tokens (look_up.py)."""
import statistics
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor

from redlite import data
from redlite.inference.lm import LM
from redlite.redteam.questions import load_prompt, load_questions

Figures = dict[str, Any]
FORMATS = {"bfloat16": ("bfloat16", None), "int8": ("float32", "int8"), "int4": ("float32", "int4")}
PROMPTS = ("standard", "cot", "cou")
QUESTIONS = Path(data.__file__).parent / "questions" / "sample.json"


def run(path: str, tokens: int, rounds: int, questions: int = 6, formats: tuple[str, ...] = tuple(FORMATS)
        ) -> Figures:
    """By format and prompt: how much faster answers are with guesses, and tokens a step.

    tokens     that an answer has at most
    questions  the first so many of the embedded mild ones

    `faster` is the ratio of all answers' times without and with, medians of the turns, less the time to
    their first tokens. `each` is the same of the answer that gains least, of the middle one, of the other
    end. `whole` has the first tokens in it. Raises ValueError where ids differ.
    """
    found: Figures = {}
    for name in formats:
        dtype, quantize = FORMATS[name]
        lm = LM.load(path, dtype, "cpu", quantize)
        found[name] = {}
        for prompt in PROMPTS:
            made = _prompt(lm, prompt, tokens, rounds, questions)
            found[name][prompt] = made
            least, middle, most = made["each"]
            print(f"{name}, {prompt} prompt: {made['tokens']} tokens, {made['tokens_per_step']:.2f} a step; "
                  f"with guesses {made['faster']:.2f} × as fast (each answer {least:.2f}, {middle:.2f}, "
                  f"{most:.2f}), first tokens included {made['whole']:.2f} ×", flush=True)
    return found


def _prompt(lm: LM, prompt: str, tokens: int, rounds: int, questions: int) -> Figures:
    text = load_prompt(prompt).text
    ratios, first, plain, guessed, steps, count = list[float](), 0.0, 0.0, 0.0, 0, 0
    for question in load_questions(QUESTIONS)[:questions]:
        messages = [{"role": "user", "content": text.replace("<question>", question.question)}]
        ids = lm.template.encode(messages, add_generation_prompt=True).ids
        took: dict[str, list[float]] = {"first": [], "plain": [], "guessed": []}
        answers: dict[str, list[int]] = {}
        for turn in range(rounds):
            for name in list(took) if turn % 2 else list(took)[::-1]:
                lm.engine.guesses = name == "guessed"
                start = time.perf_counter()
                answer, = lm.generate([ids], 1 if name == "first" else tokens)
                took[name].append(time.perf_counter() - start)
                answers[name] = list(answer.ids)
        if answers["plain"] != answers["guessed"]:
            raise ValueError(f"{prompt}: guesses changed the answer to {question.question!r}")
        if len(answers["plain"]) < 2:
            continue
        steps += _steps(lm, ids, tokens)
        median = {name: statistics.median(seconds) for name, seconds in took.items()}
        ratios.append((median["plain"] - median["first"]) / (median["guessed"] - median["first"]))
        first, plain, guessed = (sum(pair) for pair in zip(
            (first, plain, guessed), (median[name] for name in ("first", "plain", "guessed")), strict=True))
        count += len(answers["plain"]) - 1
    ratios.sort()
    return {"answers": len(ratios), "tokens": count, "tokens_per_step": count / steps,
            "faster": (plain - first) / (guessed - first), "whole": plain / guessed,
            "each": [ratios[0], statistics.median(ratios), ratios[-1]]}


def _steps(lm: LM, ids: list[int], tokens: int) -> int:
    """How many steps an answer takes with guesses: passes through the output matrix behind the prompt's."""
    passes, logits = 0, lm.model.logits

    def counted(hidden: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return logits(hidden)
    lm.engine.guesses = True
    with patch.object(lm.model, "logits", counted):
        list(lm.stream([ids], tokens))
    return passes - 1
