"""MMLU (Hendrycks et al., arXiv 2009.03300), 5-shot: tasks mmlu_SUBJECT, groups mmlu and mmlu_CATEGORY.

lm_eval: log-probabilities of " A" … " D"; the shots are the first five of dev. paper: at most two tokens are generated, and the
answer is right if they begin with the letter; shots are dropped from the end while the prompt has more than 2,048 tokens.
"""
import csv
from pathlib import Path

from redlite.bench.encoding import Continued, Scored
from redlite.bench.task import Example, Task
from redlite.errors import Error
from redlite.store.files import read_json

SHOTS, LETTERS, PAPER_TOKENS = 5, "ABCD", 2048
HEADER = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]
CATEGORIES = {"STEM": "mmlu_stem", "humanities": "mmlu_humanities", "social sciences": "mmlu_social_sciences"}


def load(folder: Path, protocol: str) -> list[Task]:
    """One task a subject that test/ holds."""
    paths = sorted((folder / "test").glob("*_test.csv"))
    if not paths:
        raise Error(f"{folder / 'test'}: holds no SUBJECT_test.csv; put the dev/ and test/ folders of MMLU there")
    categories = {}
    if (folder / "subject_categories.json").exists():
        categories = read_json(folder / "subject_categories.json")
        for subject, entry in categories.items() if isinstance(categories, dict) else [("", None)]:
            if not isinstance(entry, dict) or not isinstance(entry.get("category", ""), str):
                raise Error(f"{folder / 'subject_categories.json'}: must hold {{subject: {{\"category\": text}}}}" + (f"; {subject!r} does not" if subject else ""))
    return [_task(folder, path.name.removesuffix("_test.csv"), path, categories, protocol) for path in paths]


def _task(folder: Path, subject: str, path: Path, categories: dict, protocol: str) -> Task:
    dev = folder / "dev" / f"{subject}_dev.csv"
    if not dev.exists():
        raise Error(f"{dev}: is missing; the few-shot examples of {subject} come from it")
    shots, rows = read(dev), read(path)
    if len(shots) < SHOTS:
        raise Error(f"{dev}: holds {len(shots)} rows; {SHOTS} are needed")
    group = CATEGORIES.get((categories.get(subject) or {}).get("category"), "mmlu_other") if categories else None
    spaces = " " if protocol == "lm_eval" else "  "
    head = f"The following are multiple choice questions (with answers) about{spaces}{subject.replace('_', ' ')}.\n\n"
    solved = [f"{_ask(row)} {LETTERS[row['answer']]}\n\n" for row in shots[:SHOTS]]
    examples = []
    for n, row in enumerate(rows):
        if protocol == "lm_eval":
            requests = tuple(Scored(head + "".join(solved) + _ask(row), f" {letter}") for letter in LETTERS)
        else:
            requests = (Continued(_ask(row), 2, lead=head, shots=tuple(solved), limit=PAPER_TOKENS),)
        examples.append(Example(f"{subject}-{n}", row, requests, row["answer"]))
    return Task(f"mmlu_{subject}", 1.0, examples, _letter if protocol == "lm_eval" else _begins, shots=SHOTS,
                groups=("mmlu", group) if group else ("mmlu",))


def _ask(row: dict) -> str:
    lines = [row["question"].strip(), *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"]))]
    return "\n".join(lines) + "\nAnswer:"


def _letter(example: Example, logprobs: list[float]) -> dict:
    return {"acc": float(logprobs.index(max(logprobs)) == example.target)}


def _begins(example: Example, answers: list[str]) -> dict:
    return {"acc": float(answers[0].strip().startswith(LETTERS[example.target]))}


def read(path: Path) -> list[dict]:
    """Rows {question, choices, answer 0–3} of a subject's file: with the header question, choice0 … answer, or upstream's without one."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]  # blank lines are none
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Error(f"{path}: cannot be read as CSV in UTF-8 ({error})") from None
    out = []
    for number, row in enumerate(rows[1:] if rows and rows[0] == HEADER else rows, 1):
        if len(row) != 6:
            raise Error(f"{path}, row {number}: has {len(row)} columns; 6 are needed: question, four choices, answer")
        answer = row[5].strip()
        if answer not in (*"0123", *LETTERS):
            raise Error(f"{path}, row {number}: the answer {answer!r} is none of 0 to 3 or A to D" + (f"; a first line of column names must be {','.join(HEADER)}" if number == 1 else ""))
        if not all(text.strip() for text in row[:5]):
            raise Error(f"{path}, row {number}: {'a choice' if row[0].strip() else 'the question'} is empty; fill it in or leave the row out")
        out.append({"question": row[0], "choices": row[1:5], "answer": LETTERS.index(answer) if answer in LETTERS else int(answer)})
    if not out:
        raise Error(f"{path}: holds no question")
    return out
