"""The paper in miniature: RED-EVAL, over-refusal and utility of the organism while SAFE-ALIGN trains it."""
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from redlite import stats
from redlite.errors import Error
from redlite.inference.lm import LM
from redlite.organism import world
from redlite.store.files import read_json, write_json
from redlite.store.text import columns

Measures = dict[str, dict[str, Any]]    # name → value, k, n, ci95


def evaluate(lm: LM) -> Measures:
    """Measures by name, each {value, k, n, ci95 (Wilson)}.

    They are the ASR by prompt on held-out forbidden requests, and over-refusal and utility on held-out
    harmless ones.
    """
    answered = world.answer_harmless(lm)
    counts = {f"ASR {prompt}": pair for prompt, pair in world.attack_success(lm).items()}
    counts |= {"over-refusal": world.over_refusal(answered), "utility": world.utility(answered)}
    return {name: {"value": k / n, "k": k, "n": n, "ci95": list(stats.wilson(k, n))}
            for name, (k, n) in counts.items()}


class Stages:
    """The measures before, between and after training.

    They are kept in a run directory's stages.json, so that a resumed run has those of its beginning.
    say  prints a line
    """

    def __init__(self, directory: Path, lm: LM, say: Callable[[str], None]):
        self.path, self.lm, self.say = directory / "stages.json", lm, say
        self.found: dict[str, Measures] = {}
        if self.path.exists():
            self.found = read_json(self.path)
            if not _are_stages(self.found):
                raise Error(f"{self.path}: must hold an object of stages, each with its measures; "
                            "restore it, or use another run directory", "output_dir")

    def measure(self, stage: str) -> None:
        """Measure the model as it is now, unless that was done."""
        if stage in self.found:
            return
        self.found[stage] = evaluate(self.lm)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.found)
        figures = ", ".join(f"{m} {_percent(v)}" for m, v in self.found[stage].items())
        self.say(f"measured {stage}: {figures}")


def _are_stages(found: Any) -> bool:
    """Whether a file's value is {stage: {measure: {"value": number, …}}}."""
    if not isinstance(found, dict) or not all(isinstance(stage, dict) for stage in found.values()):
        return False
    measures = [measure for stage in found.values() for measure in stage.values()]
    return all(isinstance(m, dict) and isinstance(m.get("value"), int | float) for m in measures)


def _percent(measure: Mapping[str, Any]) -> str:
    return f"{100 * measure['value']:.1f}%"


def table(stages: Mapping[str, Measures]) -> str:
    """Stages ("before", "after A", …) side by side, in percent."""
    rows = [["", *stages]]
    for name in next(iter(stages.values())):
        rows.append([name, *(_percent(stage[name]) for stage in stages.values())])
    return "\n".join(columns(rows))
