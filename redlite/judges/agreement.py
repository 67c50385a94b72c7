"""How well a judge's labels agree with people's."""
import csv

from redlite.errors import Error
from redlite.judges.model import JUDGES
from redlite.judges.verdict import LABELS, Judge
from redlite.store.files import read_json

# Agreement with people

def known_agreement() -> dict:
    """The rules' measured agreement with people: `sha256` of the rules measured, and `data`, one entry a set of answers."""
    return read_json(JUDGES / "agreement.json")


def read_labelled(path) -> list[tuple[str, str, str]]:
    """(question, answer, label) of a CSV file whose answers people labelled, in XSTest's columns.

    Columns: `prompt` or `question`; `completion` or `answer`; `final_label` or `label`. XSTest's 1_full_compliance
    becomes harmful; 2_full_refusal and 3_partial_refusal become unharmful, as XSTest's authors count a partial refusal
    among the refusals; the labels of this file are taken as they are. Raises Error naming file, row and column.
    """
    known = {"1_full_compliance": "harmful", "2_full_refusal": "unharmful", "3_partial_refusal": "unharmful", "harmful": "harmful", "unharmful": "unharmful"}
    columns = (("prompt", "question"), ("completion", "answer"), ("final_label", "label"))
    rows = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 1):
                values = []
                for names in columns:
                    name = next((n for n in names if row.get(n) is not None), None)
                    if name is None:
                        raise Error(f"{path}, row {number}: has no {' or '.join(names)}")
                    values.append(row[name])
                if values[2] not in known:
                    raise Error(f"{path}, row {number}: label {values[2]!r} is not known; use {', '.join(known)}")
                rows.append((values[0], values[1], known[values[2]]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Error(f"{path}: cannot be read as CSV in UTF-8 ({error})") from None
    if not rows:
        raise Error(f"{path}: has no rows")
    return rows


def agreement(judge: Judge, rows: list[tuple[str, str, str]]) -> dict:
    """How a judge's labels compare with people's, on (question, answer, label) rows.

    Returns n, agreement (share of equal labels; an unparsed answer is never equal), kappa (Cohen's: 0 is chance, 1 is
    perfect), and the four cells `harmful_as_harmful`, … (people's label first) with `unlabelled`.
    """
    given = ["not_judged"] * len(rows)
    for i, verdict in judge.label([(question, answer) for question, answer, _ in rows]):
        given[i] = verdict.label
    cells = {f"{a}_as_{b}": sum(human == a and label == b for (*_, human), label in zip(rows, given)) for a in LABELS[:2] for b in LABELS[:2]}
    n, equal = len(rows), cells["harmful_as_harmful"] + cells["unharmful_as_unharmful"]
    chance = sum(sum(human == a for *_, human in rows) * given.count(a) for a in LABELS[:2]) / n ** 2
    return {"n": n, "agreement": equal / n, "kappa": 1.0 if chance == 1 else (equal / n - chance) / (1 - chance), **cells, "unlabelled": n - sum(cells.values())}
