"""The paper in miniature: how the embedded organism does on RED-EVAL, over-refusal and utility, while SAFE-ALIGN trains it."""
from redlite import organism, stats
from redlite.redeval import columns

FILES = {colour: organism.HOME / f"{colour}.json" for colour in ("blue", "red", "helpful")}


def evaluate(lm) -> dict[str, dict]:
    """Measures by name, each {value, k, n, ci95 (Wilson)}: ASR by prompt on held-out forbidden requests, over-refusal and utility on held-out harmless ones."""
    answered = organism.answer_harmless(lm)
    counts = {f"ASR {prompt}": pair for prompt, pair in organism.attack_success(lm).items()}
    counts |= {"over-refusal": organism.over_refusal(lm, answered), "utility": organism.utility(lm, answered)}
    return {name: {"value": k / n, "k": k, "n": n, "ci95": list(stats.wilson(k, n))} for name, (k, n) in counts.items()}


def table(stages: dict[str, dict]) -> str:
    """Stages ("before", "after A", …) side by side, in percent."""
    measures = next(iter(stages.values()))
    return "\n".join(columns([["", *stages], *([m, *(f"{100 * s[m]['value']:.1f}%" for s in stages.values())] for m in measures)]))
