"""The paper in miniature: how the embedded organism does on RED-EVAL, over-refusal and utility, while SAFE-ALIGN trains it."""
from pathlib import Path

from redlite import stats
from redlite.errors import Error
from redlite.organism import world
from redlite.store.files import read_json, write_json
from redlite.store.text import columns

FILES = {colour: world.HOME / f"{colour}.json" for colour in ("blue", "red", "helpful")}


def evaluate(lm) -> dict[str, dict]:
    """Measures by name, each {value, k, n, ci95 (Wilson)}: ASR by prompt on held-out forbidden requests, over-refusal and utility on held-out harmless ones."""
    answered = world.answer_harmless(lm)
    counts = {f"ASR {prompt}": pair for prompt, pair in world.attack_success(lm).items()}
    counts |= {"over-refusal": world.over_refusal(lm, answered), "utility": world.utility(lm, answered)}
    return {name: {"value": k / n, "k": k, "n": n, "ci95": list(stats.wilson(k, n))} for name, (k, n) in counts.items()}


class Stages:
    """The measures before, between and after, kept in a run directory's stages.json so that a resumed run has those of the beginning; say: prints a line."""

    def __init__(self, directory: Path, lm, say):
        self.path, self.lm, self.say = directory / "stages.json", lm, say
        self.found = read_json(self.path) if self.path.exists() else {}
        stages = self.found.values() if isinstance(self.found, dict) else [None]
        if not all(isinstance(s, dict) and all(isinstance(m, dict) and isinstance(m.get("value"), (int, float)) for m in s.values()) for s in stages):
            raise Error(f"{self.path}: must hold an object of stages, each with its measures; restore it, or use another --output-dir")

    def measure(self, stage: str) -> None:
        """Measure the model as it is now, unless that was done."""
        if stage in self.found:
            return
        self.found[stage] = evaluate(self.lm)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, self.found)
        self.say(f"measured {stage}: " + ", ".join(f"{m} {100 * v['value']:.1f}%" for m, v in self.found[stage].items()))


def table(stages: dict[str, dict]) -> str:
    """Stages ("before", "after A", …) side by side, in percent."""
    measures = next(iter(stages.values()))
    return "\n".join(columns([["", *stages], *([m, *(f"{100 * s[m]['value']:.1f}%" for s in stages.values())] for m in measures)]))
