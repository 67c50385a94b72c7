"""How well a judge's labels agree with people's."""
import csv
from pathlib import Path

from redlite.errors import Error
from redlite.judges.formats import JUDGE_FILES
from redlite.judges.verdict import Judge
from redlite.stats.agreement import kappa
from redlite.store.files import read_json

SIDES = ("harmful", "unharmful")
# What a file may say → our label. XSTest's authors count a partial refusal among the refusals.
HUMAN_LABELS = {"1_full_compliance": "harmful", "2_full_refusal": "unharmful",
                "3_partial_refusal": "unharmful", "harmful": "harmful", "unharmful": "unharmful"}
# XSTest's names of the columns, and ours.
COLUMNS = (("prompt", "question"), ("completion", "answer"), ("final_label", "label"))


def known_agreement() -> dict:
    """What data/judges/agreement.json holds: the measured agreement of judges with people, by source."""
    return read_json(JUDGE_FILES / "agreement.json")


def on_harm(judge_name: str) -> list[dict]:
    """A judge's measured agreement with people on harm: name (of the source), n, agreement, kappa each.

    Sources whose labels say refusal, not harm, are left out; so are judges that were not measured.
    """
    known = known_agreement()
    measured = known.get("judges", {}).get(judge_name, {}).get("sources", {})
    means = known.get("sources", {})
    return [{"name": source.removesuffix(".csv"), **entry} for source, entry in measured.items()
            if means.get(source, "").startswith("harm")]


def on_harm_in_words(judge_name: str) -> str:
    """The same as a sentence."""
    found = [f"kappa {d['kappa']:.2f} on {d['n']} answers of {d['name']}" for d in on_harm(judge_name)]
    if not found:
        return (f"How far {judge_name} agrees with people on harm is not measured here; "
                "label a sample of the answers: redeval label RUN.")
    return f"{judge_name} agrees with people on harm: {', '.join(found)}. Other models may differ."


def kappa_in_words(value: float | None) -> str:
    """A kappa as `agreement` gives it, in a line."""
    if value is None:
        return "kappa undefined, since the judge or the people give one label alone"
    return f"kappa {value:.2f}"


def read_labelled(path: str | Path) -> list[tuple[str, str, str]]:
    """(question, answer, label) of a CSV file whose answers people labelled; see COLUMNS and HUMAN_LABELS.

    Raises Error naming file, row and column.
    """
    rows = []
    csv.field_size_limit(1 << 24)   # an answer may be long; the module's own limit is 131,072 characters
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 1):
                question, answer, label = (_cell(row, names, f"{path}, row {number}") for names in COLUMNS)
                if label not in HUMAN_LABELS:
                    raise Error(f"{path}, row {number}: label {label!r} is not known; "
                                f"use {', '.join(HUMAN_LABELS)}")
                rows.append((question, answer, HUMAN_LABELS[label]))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Error(f"{path}: cannot be read as CSV in UTF-8 ({error})") from None
    if not rows:
        raise Error(f"{path}: has no rows")
    return rows


def _cell(row: dict, names: tuple[str, str], where: str) -> str:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise Error(f"{where}: has no {' or '.join(names)}")


def agreement(judge: Judge, rows: list[tuple[str, str, str]]) -> dict:
    """How a judge's labels compare with people's, on (question, answer, label) rows.

    Returns n, agreement (share of equal labels; an answer without a label is never equal), kappa (Cohen's: 0
    is chance, 1 is perfect, None where the judge or the people give all answers one label), the four cells
    `harmful_as_harmful`, … (people's label first), and `unlabelled`.
    """
    given = ["not_judged"] * len(rows)
    for i, verdict in judge.label([(question, answer) for question, answer, _ in rows]):
        given[i] = verdict.label
    human = [label for *_, label in rows]
    pairs = list(zip(human, given, strict=True))
    cells = {f"{a}_as_{b}": pairs.count((a, b)) for a in SIDES for b in SIDES}
    n, equal = len(rows), cells["harmful_as_harmful"] + cells["unharmful_as_unharmful"]
    return {"n": n, "agreement": equal / n, "kappa": kappa(human, given), **cells,
            "unlabelled": n - sum(cells.values())}
