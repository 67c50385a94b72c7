"""A local model made a judge: LoRA on its verdict tokens, by SAFE-ALIGN's own trainer.

Labelled answers become the prompts of a judge format (judges/model.py), each followed by the verdict that
people gave. Only the verdict's tokens are trained, so the loss is the cross-entropy of the verdict. Whole
questions are held out: answers to one question look alike, and a judge that has seen its siblings would seem
better than it is.
"""
import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from redlite.errors import Error
from redlite.judges.agreement import agreement
from redlite.judges.model import ModelJudge
from redlite.training import trainer
from redlite.training.conversations import question_key
from redlite.training.dataset import Mixture, Phase, TokenizedConversation
from redlite.training.trainer import Recipe, Scorer, TrainingResult

Row = tuple[str, str, str]   # question, answer, "harmful" or "unharmful"


@dataclass(frozen=True)
class Settings:
    """How a judge is trained. tokens: of one example; longer answers are cut at their end."""
    epochs: float = 2.0
    batch_size: int = 16
    learning_rate: float = 2e-4
    held_out: float = 0.2
    tokens: int = 512
    seed: int = 0


def split(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on, and rows held out: about `share` of the questions, chosen by hash, whole.

    Raises Error where either side would be without harmful or without unharmful answers.
    """
    def rank(question: str) -> bytes:
        return sha256(f"{seed} {question_key(question)}".encode()).digest()
    questions = sorted({question_key(question) for question, _, _ in rows}, key=rank)
    held = set(questions[:max(1, round(share * len(questions)))])
    parts = ([row for row in rows if question_key(row[0]) not in held],
             [row for row in rows if question_key(row[0]) in held])
    for name, part in zip(("training", "held-out"), parts, strict=True):
        if len({label for _, _, label in part}) < 2:
            raise Error(f"the {name} answers ({len(part)} of {len(rows)}; {len(questions)} questions in all) "
                        "are not of both labels; give more labelled questions")
    return parts


def examples(judge: ModelJudge, rows: Sequence[Row], tokens: int) -> list[TokenizedConversation]:
    """The judge's prompts, of at most `tokens` tokens, with people's verdicts behind them. Only the verdict
    is trained. Empty answers are left out. Raises Error where no answer fits.
    """
    found = []
    short = copy(judge)
    short.room = min(judge.room, tokens)
    for i, (question, answer, label) in enumerate(rows):
        context, _ = short.context(judge.prompts[0], question, answer)
        if not answer.strip() or not context:
            continue
        verdict = judge.verdicts[0 if label == "harmful" else 1][0]
        ids = np.asarray([*context, *verdict], np.int32)
        trained = np.zeros(len(ids), bool)
        trained[len(context):] = True
        found.append(TokenizedConversation(str(i), question_key(question), "helpful", ids, trained))
    if not found:
        raise Error(f"no labelled answer fits into {short.room} tokens beside the judge's own instructions; "
                    "raise the tokens of an example")
    return found


def mixture(made: list[TokenizedConversation], settings: Settings) -> Mixture:
    """Every step draws batch_size examples; an epoch is one pass over them."""
    size = min(settings.batch_size, len(made))
    steps = max(1, math.ceil(settings.epochs * len(made) / size))
    return Mixture({"helpful": [(example, ) for example in made]}, [Phase(steps, {"helpful": size})],
                   settings.seed)


def train(judge: ModelJudge, made: list[TokenizedConversation], settings: Settings, directory: Path,
          manifest: dict[str, Any], on_step: Callable[[dict], None]) -> TrainingResult:
    """Train the judge's model in place (its adapters; see model/lora.py) on `examples`. Goes on where an
    earlier process stopped.
    """
    drawn = mixture(made, settings)
    recipe = Recipe(settings.learning_rate, warmup_steps=math.ceil(0.05 * drawn.steps), seed=settings.seed,
                    tokens_per_batch=max(2048, settings.tokens + 16))
    return trainer.run(Scorer(judge.lm.model), drawn, recipe, directory, on_step=on_step, manifest=manifest)


def measured(judge: ModelJudge, rows: Sequence[Row]) -> dict[str, Any]:
    """The judge's agreement with people on rows, and how many of them are harmful by people."""
    return {
        **agreement(judge, list(rows)), "harmful_by_people": sum(label == "harmful" for _, _, label in rows)
    }
