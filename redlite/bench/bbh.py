"""BIG-Bench Hard (Suzgun et al., arXiv 2210.09261): 27 tasks.

lm_eval: tasks bbh_cot_fewshot_TASK (v4.0). Three chain-of-thought shots from cot-prompts/, 1,024 new tokens,
what follows "the answer is " compared exactly; groups weigh by size. paper: direct answers. The first three
rows of a task are the shots and left out; 32 new tokens; right if the text begins with the label; the mean
over tasks.
"""
import re
from pathlib import Path

from redlite.bench.encoding import Continued
from redlite.bench.task import Example, Task
from redlite.errors import Error
from redlite.store.files import read_json
from redlite.store.records import require

SHOTS, PAPER_TOKENS = 3, 2048
STOP = ("</s>", "Q", "\n\n")
ANSWER = re.compile(r"(?<=the answer is )(.*)(?=.)")
STEP_BY_STEP = "A: Let's think step by step.\n"


def load(folder: Path, protocol: str) -> list[Task]:
    """One task a file of tasks/ (or bbh/, as the upstream repository calls it)."""
    tasks = next((folder / name for name in ("tasks", "bbh") if (folder / name).is_dir()), None)
    paths = sorted(tasks.glob("*.json")) if tasks else []
    if not paths:
        raise Error(
            f"{folder}: holds no tasks/*.json; put the bbh/ and cot-prompts/ folders of BIG-Bench-Hard there")
    make = _chain_of_thought if protocol == "lm_eval" else _direct
    return [make(folder, path, _rows(path)) for path in paths]


def _rows(path: Path) -> list[dict]:
    whole = read_json(path)
    rows = whole.get("examples") if isinstance(whole, dict) else None
    if not isinstance(rows, list) or len(rows) <= SHOTS:
        raise Error(f"{path}: field 'examples' must be a list of more than {SHOTS}")
    for n, row in enumerate(rows):
        require(row, {"input": str, "target": str}, f"{path}, example {n}",
                "correct it or leave the example out")
        if not row["target"].strip():  # every text begins with an empty one
            raise Error(f"{path}, example {n}: 'target' is empty; fill it in or leave the example out")
    return rows


def _chain_of_thought(folder: Path, path: Path, rows: list[dict]) -> Task:
    prompt = folder / "cot-prompts" / f"{path.stem}.txt"
    try:
        text = prompt.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"{prompt}: cannot be read ({error}); the shots of {path.stem} come from it") from None
    description, *shots = text.partition("-----\n")[2].strip().split("\n\nQ: ")
    parts = [shot.partition("\n" + STEP_BY_STEP.rstrip()) for shot in shots]
    if len(parts) != SHOTS or not all(middle for _, middle, _ in parts):
        raise Error(
            f"{prompt}: must hold a line '-----', a description and {SHOTS} examples that answer step by step"
        )
    # One file goes on behind "step by step." on the same line. The harness puts a line break there too.
    lead = f"{description}\n\n"
    for question, _, answer in parts:
        lead += f"Q: {question}\n{STEP_BY_STEP}{answer.strip()}\n\n"
    examples = []
    for n, row in enumerate(rows):
        request = Continued(f"Q: {row['input']}\n{STEP_BY_STEP}", 1024, STOP, lead=lead)
        examples.append(Example(f"{path.stem}-{n}", row, (request,), row["target"]))
    return Task(f"bbh_cot_fewshot_{path.stem}",
                4.0,
                examples,
                _extracted, ("exact_match",),
                "get-answer",
                SHOTS, ("bbh",),
                batch="bbh")


def _direct(folder: Path, path: Path, rows: list[dict]) -> Task:
    shots = tuple(f"{row['input']}\nAnswer: {row['target']}\n\n" for row in rows[:SHOTS])
    examples = []
    for n, row in enumerate(rows[SHOTS:], SHOTS):
        request = Continued(f"{row['input']}\nAnswer:", 32, shots=shots, limit=PAPER_TOKENS)
        examples.append(Example(f"{path.stem}-{n}", row, (request,), row["target"]))
    return Task(f"bbh_{path.stem}", 1.0, examples, _begins, ("acc",), "none", SHOTS, ("bbh",), mean="task",
                batch="bbh")


def extract(text: str) -> str:
    """What the harness's filter takes as the answer: the first match, or "[invalid]"."""
    found = ANSWER.findall(text)
    return found[0].strip() if found else "[invalid]"


def _extracted(example: Example, answers: list[str]) -> dict:
    return {"exact_match": float(extract(answers[0]) == example.target)}


def _begins(example: Example, answers: list[str]) -> dict:
    return {"acc": float(answers[0].strip().startswith(example.target))}
