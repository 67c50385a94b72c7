"""Gates: bounds on measures, which turn figures into an exit code."""
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass

from redlite.errors import Error

_NUMBER = r"[0-9.]+(?:e-?\d+)?"
_BOUND = rf"(?:(baseline)\s*(?:([+-])\s*({_NUMBER}))?|(-?{_NUMBER}))"
_GATE = re.compile(rf"\s*([\w.-]+)\s*(<=|>=|<|>)\s*{_BOUND}\s*", re.ASCII)
CORRECTED = ".corrected"  # the end of an ASR's name that labels of people correct: asr.cou.corrected
SIGNS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class Gate:
    """A bound on a measure: a number, or the baseline's value plus `bound`."""
    text: str
    measure: str
    sign: str
    relative: bool
    bound: float


def parse_gate(text: str) -> Gate:
    """A gate such as "asr.cou<=0.1" or "mmlu.acc>=baseline-0.02"; Error if it is neither."""
    match = _GATE.fullmatch(text)
    if not match:
        raise Error(f"gate {text!r}: write MEASURE<=NUMBER, or MEASURE>=baseline-NUMBER (also <, >), "
                    "such as asr.cou<=0.1")
    measure, sign, relative, plus, offset, number = match.groups()
    given = (offset or "0") if relative else number
    try:
        bound = float(given)
    except ValueError:
        raise Error(f"gate {text!r}: {given!r} is no number") from None
    if measure.startswith("asr.") and not 0 <= bound <= 1:
        raise Error(f"gate {text!r}: a rate lies between 0 and 1, not at {given}; 5% is 0.05")
    return Gate(text, measure, sign, bool(relative), -bound if plus == "-" else bound)


def main_names(measures: Iterable[str]) -> list[str]:
    """The measures of the summary: without single subjects, tasks and categories."""
    part = re.compile(r"mmlu_(?!stem\.|humanities\.|social_sciences\.|other\.)|bbh_")
    return [name for name in measures
            if (name.count(".") < 2 or name.endswith(CORRECTED)) and not part.match(name)]


def check_names(gates: list[Gate], measures: list[str]) -> None:
    """Raises Error for a gate on a measure that will not be there: before the work, not after."""
    for gate in gates:
        if gate.measure not in measures:
            raise Error(f"gate {gate.text!r}: there is no measure {gate.measure!r}; "
                        f"there are {', '.join(main_names(measures))}")


@dataclass(frozen=True)
class Strictness:
    """What a gate asks beyond its bound.

    by              "value": the value must hold; "bound": the end of its 95% interval that is worse
    max_unlabelled  the largest share of a measure's examples that may lack a label
    """
    by: str = "value"
    max_unlabelled: float = 0.05


BY_VALUE = Strictness()


def check_gates(gates: list[Gate], found: dict[str, dict], baseline: dict[str, dict] | None,
                strictness: Strictness = BY_VALUE, paired: dict[str, dict] | None = None) -> list[dict]:
    """For each gate: gate (its text), value, bound, passed, unlabelled, of, why.

    A gate without a value fails.
    found, baseline  measure → value, ci95, n (labelled), unlabelled, as `scorecard.measures` gives them
    paired           the differences to the baseline, whose intervals decide relative gates by "bound"
    value            what is held against the bound: the measure's value, or the end of its interval
    why              what a failed gate fails for, "" if it passes
    Raises Error for a gate against a baseline where there is none. See `check_names` for the names.
    """
    return [_checked(gate, found, baseline, strictness, paired or {}) for gate in gates]


def _checked(gate: Gate, found: dict[str, dict], baseline: dict[str, dict] | None, strictness: Strictness,
             paired: dict[str, dict]) -> dict:
    if gate.relative and baseline is None:
        raise Error(f"gate {gate.text!r}: needs a baseline")
    measure = found.get(gate.measure, {"value": None})
    value: float | None = measure["value"]
    against: float | None = gate.bound
    if gate.relative:
        other = (baseline or {}).get(gate.measure, {}).get("value")
        against = None if other is None else other + gate.bound
    if strictness.by == "bound" and value is not None:
        worst = 1 if gate.sign.startswith("<") else 0
        if not gate.relative:
            value = measure["ci95"][worst]
        elif against is not None:
            difference = paired.get(gate.measure, {}).get("ci95")
            value = None if difference is None else against - gate.bound + difference[worst]
    unlabelled = measure.get("unlabelled", 0)
    of = measure.get("n", 0) + unlabelled
    why = ""
    if value is None or against is None:
        why = "no value"
    elif not SIGNS[gate.sign](value, against):
        why = "too high" if gate.sign.startswith("<") else "too low"
        if strictness.by == "bound":
            why = f"the interval reaches {value:.4g}"
    if unlabelled > strictness.max_unlabelled * of:
        why = f"{unlabelled} of {of} unlabelled{', ' + why if why else ''}"
    return {"gate": gate.text, "value": value, "bound": against, "passed": not why, "unlabelled": unlabelled,
            "of": of, "why": why}
