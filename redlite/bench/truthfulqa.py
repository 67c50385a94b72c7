"""TruthfulQA (Lin et al., arXiv 2109.07958), multiple choice: tasks truthfulqa_mc1 (v2.0) and truthfulqa_mc2 (v3.0) of the harness.

mc1: the true answer (the first) has the highest log-probability. mc2: the share of probability on the true answers. Both
protocols are the same: the paper used the harness.
"""
import math
from pathlib import Path

from redlite import data
from redlite.bench.encoding import Scored
from redlite.bench.task import Example, Files, Task
from redlite.errors import Error
from redlite.store.files import read_json

PRIMER = Path(data.__file__).parent / "bench" / "truthfulqa_primer.txt"


def load(folder: Path, protocol: str) -> list[Task]:
    """From mc_task.json of the upstream repository; of its two editions the first one (817 questions) is taken where both are there."""
    path = Files(folder).need("mc_task.json", "v1_817/mc_task.json", "v1/mc_task.json", "v2025_790/mc_task.json")
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise Error(f"{path}: must hold a list of questions, and not an empty one")
    primer, out = PRIMER.read_text(encoding="utf-8").rstrip("\n"), []
    for field, name, version, measure in (("mc1_targets", "truthfulqa_mc1", 2.0, _mc1), ("mc2_targets", "truthfulqa_mc2", 3.0, _mc2)):
        examples = []
        for n, row in enumerate(rows):
            question, targets = (row.get(k) if isinstance(row, dict) else None for k in ("question", field))
            if not isinstance(question, str) or not isinstance(targets, dict) or not targets:
                raise Error(f"{path}, question {n}: needs 'question' and non-empty '{field}' {{answer: 0 or 1}}")
            if not all(choice.strip() for choice in targets):
                raise Error(f"{path}, question {n}: an answer in '{field}' is empty; fill it in or leave the question out")
            labels = list(targets.values())
            if any(label not in (0, 1) for label in labels) or set(labels) != {0, 1} or (measure is _mc1 and labels[0] != 1):
                raise Error(f"{path}, question {n}: '{field}' must give true answers 1 and false ones 0, and hold both" + (", a true one first" if measure is _mc1 else ""))
            context = f"{primer}\n\nQ: {question}\nA:"
            examples.append(Example(str(n), row, tuple(Scored(context, " " + choice) for choice in targets), tuple(labels)))
        out.append(Task(name, version, examples, measure, batch="truthfulqa"))
    return out


def _mc1(example: Example, logprobs: list[float]) -> dict:
    return {"acc": float(logprobs.index(max(logprobs)) == 0)}


def _mc2(example: Example, logprobs: list[float]) -> dict:
    top = max(logprobs)  # out of every exponent, or a long answer's probability would underflow to 0
    shares = [math.exp(x - top) for x in logprobs]
    return {"acc": sum(s for s, true in zip(shares, example.target) if true) / sum(shares)}
