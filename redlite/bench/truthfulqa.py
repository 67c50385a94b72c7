"""TruthfulQA (Lin et al., arXiv 2109.07958), multiple choice: truthfulqa_mc1 (v2.0) and _mc2 (v3.0).

mc1: the true answer (the first) has the highest log-probability. mc2: the share of probability on the true
answers. Both protocols are the same: the paper used the harness.
"""
import math
from pathlib import Path

from redlite import data
from redlite.bench.encoding import Scored
from redlite.bench.task import Example, Task, first_file
from redlite.errors import Error
from redlite.store.files import read_json

PRIMER = Path(data.__file__).parent / "bench" / "truthfulqa_primer.txt"


FILES = ("mc_task.json", "v1_817/mc_task.json", "v1/mc_task.json", "v2025_790/mc_task.json")


def load(folder: Path, protocol: str) -> list[Task]:
    """From mc_task.json of the upstream repository.

    Of its two editions the first one (817 questions) is preferred.
    """
    path = first_file(folder, *FILES)
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise Error(f"{path}: must hold a list of questions, and not an empty one")
    primer = PRIMER.read_text(encoding="utf-8").rstrip("\n")
    mc1 = [_example(row, "mc1_targets", primer, n, path) for n, row in enumerate(rows)]
    for n, example in enumerate(mc1):
        if example.target[0] != 1:
            raise Error(f"{path}, question {n}: 'mc1_targets' must give a true answer first")
    mc2 = [_example(row, "mc2_targets", primer, n, path) for n, row in enumerate(rows)]
    return [Task("truthfulqa_mc1", 2.0, mc1, _mc1, batch="truthfulqa"),
            Task("truthfulqa_mc2", 3.0, mc2, _mc2, batch="truthfulqa")]


def _example(row: object, field: str, primer: str, n: int, path: Path) -> Example:
    question, targets = (row.get(k) if isinstance(row, dict) else None for k in ("question", field))
    if not isinstance(row, dict) or not isinstance(question, str) or not isinstance(targets,
                                                                                    dict) or not targets:
        raise Error(f"{path}, question {n}: needs 'question' and non-empty '{field}' {{answer: 0 or 1}}")
    if not all(choice.strip() for choice in targets):
        raise Error(
            f"{path}, question {n}: an answer in '{field}' is empty; fill it in or leave the question out")
    labels = list(targets.values())
    if any(label not in (0, 1) for label in labels) or set(labels) != {0, 1}:
        raise Error(
            f"{path}, question {n}: '{field}' must give true answers 1 and false ones 0, and hold both")
    context = f"{primer}\n\nQ: {question}\nA:"
    return Example(str(n), row, tuple(Scored(context, " " + choice) for choice in targets), tuple(labels))


def _mc1(example: Example, logprobs: list[float]) -> dict:
    return {"acc": float(logprobs.index(max(logprobs)) == 0)}


def _mc2(example: Example, logprobs: list[float]) -> dict:
    top = max(logprobs)  # out of every exponent, or a long answer's probability would underflow to 0
    shares = [math.exp(x - top) for x in logprobs]
    return {"acc": sum(s for s, true in zip(shares, example.target, strict=True) if true) / sum(shares)}
