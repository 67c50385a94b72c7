"""Gates: bounds on measures, which turn figures into an exit code."""
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass

from redlite.errors import Error

_NUMBER = r"[0-9.]+(?:e-?\d+)?"
_BOUND = rf"(?:(baseline)\s*(?:([+-])\s*({_NUMBER}))?|(-?{_NUMBER}))"
_GATE = re.compile(rf"\s*([\w.-]+)\s*(<=|>=|<|>)\s*{_BOUND}\s*", re.ASCII)
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
    return Gate(text, measure, sign, bool(relative), -bound if plus == "-" else bound)


def main_names(measures: Iterable[str]) -> list[str]:
    """The measures of the summary: without single subjects, tasks and categories."""
    part = re.compile(r"mmlu_(?!stem\.|humanities\.|social_sciences\.|other\.)|bbh_")
    return [name for name in measures if name.count(".") < 2 and not part.match(name)]


def check_names(gates: list[Gate], measures: list[str]) -> None:
    """Raises Error for a gate on a measure that will not be there: before the work, not after."""
    for gate in gates:
        if gate.measure not in measures:
            raise Error(f"gate {gate.text!r}: there is no measure {gate.measure!r}; "
                        f"there are {', '.join(main_names(measures))}")


def check_gates(gates: list[Gate], found: dict[str, dict], baseline: dict[str, dict] | None) -> list[dict]:
    """For each gate: gate (its text), value, bound, passed. A gate without a value does not pass.

    found, baseline  measure → its value and more, as `scorecard.measures` gives them
    Raises Error for a gate against a baseline where there is none. See `check_names` for the names.
    """
    out = []
    for gate in gates:
        if gate.relative and baseline is None:
            raise Error(f"gate {gate.text!r}: needs a baseline")
        value: float | None = found[gate.measure]["value"]
        bound: float | None = gate.bound
        if gate.relative:
            against = (baseline or {}).get(gate.measure, {}).get("value")
            bound = None if against is None else against + gate.bound
        passed = value is not None and bound is not None and SIGNS[gate.sign](value, bound)
        out.append({"gate": gate.text, "value": value, "bound": bound, "passed": passed})
    return out
