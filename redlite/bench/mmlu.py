"""MMLU (Hendrycks et al., arXiv 2009.03300), 5-shot: tasks mmlu_SUBJECT, groups mmlu and mmlu_CATEGORY.

lm_eval: log-probabilities of " A" … " D"; the shots are the first five of dev.
paper: at most two tokens are generated, and the answer is right if they begin with the letter; shots are
dropped from the end while the prompt has more than 2,048 tokens.
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
        raise Error(
            f"{folder / 'test'}: holds no SUBJECT_test.csv; put the dev/ and test/ folders of MMLU there")
    groups = _groups(folder / "subject_categories.json")
    tasks = []
    for path in paths:
        subject = path.name.removesuffix("_test.csv")
        own = ("mmlu", groups.get(subject, "mmlu_other")) if groups else ("mmlu",)
        tasks.append(_task(folder, subject, path, own, protocol))
    return tasks


def _groups(path: Path) -> dict[str, str]:
    """The group of each subject; {} without the file."""
    categories = read_json(path) if path.exists() else {}
    wanted = f'{path}: must hold {{subject: {{"category": text}}}}'
    if not isinstance(categories, dict):
        raise Error(wanted)
    found = {}
    for subject, entry in categories.items():
        category = entry.get("category", "") if isinstance(entry, dict) else None
        if not isinstance(category, str):
            raise Error(f"{wanted}; {subject!r} does not")
        found[subject] = CATEGORIES.get(category, "mmlu_other")
    return found


def _task(folder: Path, subject: str, path: Path, groups: tuple[str, ...], protocol: str) -> Task:
    dev = folder / "dev" / f"{subject}_dev.csv"
    if not dev.exists():
        raise Error(f"{dev}: is missing; the few-shot examples of {subject} come from it")
    shots, rows = read(dev), read(path)
    if len(shots) < SHOTS:
        raise Error(f"{dev}: holds {len(shots)} rows; {SHOTS} are needed")
    spaces = " " if protocol == "lm_eval" else "  "
    head = "The following are multiple choice questions (with answers) about"
    head += f"{spaces}{subject.replace('_', ' ')}.\n\n"
    solved = [f"{_ask(row)} {LETTERS[row['answer']]}\n\n" for row in shots[:SHOTS]]
    examples = []
    for n, row in enumerate(rows):
        requests: tuple[Scored | Continued, ...]
        if protocol == "lm_eval":
            requests = tuple(Scored(head + "".join(solved) + _ask(row), f" {letter}") for letter in LETTERS)
        else:
            requests = (Continued(_ask(row), 2, lead=head, shots=tuple(solved), limit=PAPER_TOKENS),)
        examples.append(Example(f"{subject}-{n}", row, requests, row["answer"]))
    measure = _letter if protocol == "lm_eval" else _begins
    return Task(f"mmlu_{subject}", 1.0, examples, measure, shots=SHOTS, groups=groups)


def _ask(row: dict) -> str:
    lines = [
        row["question"].strip(),
        *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=True))
    ]
    return "\n".join(lines) + "\nAnswer:"


def _letter(example: Example, logprobs: list[float]) -> dict:
    return {"acc": float(logprobs.index(max(logprobs)) == example.target)}


def _begins(example: Example, answers: list[str]) -> dict:
    return {"acc": float(answers[0].strip().startswith(LETTERS[example.target]))}


def read(path: Path) -> list[dict]:
    """Rows {question, choices, answer 0–3} of a subject's file.

    The file has the header question, choice0 … answer, or, as upstream's, none.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]  # blank lines are none
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Error(f"{path}: cannot be read as CSV in UTF-8 ({error})") from None
    if rows and rows[0] == HEADER:
        rows = rows[1:]
    if not rows:
        raise Error(f"{path}: holds no question")
    return [_row(row, number, path) for number, row in enumerate(rows, 1)]


def _row(row: list[str], number: int, path: Path) -> dict:
    where = f"{path}, row {number}"
    if len(row) != 6:
        raise Error(f"{where}: has {len(row)} columns; 6 are needed: question, four choices, answer")
    answer = row[5].strip()
    if answer not in (*"0123", *LETTERS):
        hint = f"; a first line of column names must be {','.join(HEADER)}" if number == 1 else ""
        raise Error(f"{where}: the answer {answer!r} is none of 0 to 3 or A to D{hint}")
    if not all(text.strip() for text in row[:5]):
        empty = "a choice" if row[0].strip() else "the question"
        raise Error(f"{where}: {empty} is empty; fill it in or leave the row out")
    place = LETTERS.index(answer) if answer in LETTERS else int(answer)
    return {"question": row[0], "choices": row[1:5], "answer": place}
