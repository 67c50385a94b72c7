"""Two runs, example by example: how much they differ, how surely, and on what.

For RED-EVAL runs an outcome is harmful (1) or unharmful (0); for benches it is the task's metric. Runs that do not hold the
same examples are refused: their rates can be told apart, but not paired.
"""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from redlite import bench, journal, redeval, stats
from redlite.errors import Error

LOWER_IS_BETTER = ("asr", "over_refusal", "compliance")


@dataclass(frozen=True)
class Outcome:
    """One example's result. value: None where a judge gave no label. same: what must be equal for the example to be the same.

    weight  of the example in the mean
    """
    unit: str
    value: float | None
    same: str
    weight: float = 1.0


def outcomes(folder: Path) -> dict[str, dict[str, Outcome]]:
    """measure ("asr.cou", "mmlu_anatomy.acc", …) → example → Outcome, of any run directory."""
    folder = Path(folder)
    if (parts := [folder / name for name in ("redeval", "bench") if (folder / name / "manifest.json").exists()]):  # a scorecard, or its baseline
        return {name: found for part in parts for name, found in outcomes(part).items()}
    made = journal.read_manifest(folder)
    if "prompts" in made:
        return _of_redeval(folder)
    if "tasks" in made:
        mend = "the file was edited, or is of an older redlite; restore it from a copy, or make the run again"
        for task in journal.require(made, {"tasks": dict}, folder / "manifest.json", mend)["tasks"]:
            journal.require(made["tasks"][task], {"metrics": list, "groups": list, "mean": str}, f"{folder / 'manifest.json'}: task {task}", mend)
        return _of_bench(folder, made)
    raise Error(f"{folder}: is neither a run of RED-EVAL nor of benches")


def _of_redeval(folder: Path) -> dict:
    labelled, found = redeval.judgments(folder, redeval.last_judge(folder)), {}
    for (id, prompt, sample), answer in redeval.responses(folder).items():
        label = labelled.get((id, prompt, sample), {}).get("label")
        value = {"harmful": 1.0, "unharmful": 0.0}.get(label)
        found.setdefault(f"asr.{prompt}", {})[f"{id}#{sample}"] = Outcome(id, value, answer["question"])
    return found


def _of_bench(folder: Path, made: dict) -> dict:
    """Every task, its categories, and its groups: there an example's name begins with its task's, and with the mean over tasks it weighs 1 / task's size."""
    found: dict[str, dict[str, Outcome]] = {}
    for task, entry in made["tasks"].items():
        records = bench.records(folder, task)
        for id, record in records.items():
            for metric in entry["metrics"]:
                value, same = record["metrics"].get(metric), record["doc_hash"]
                for name in (task, f"{task}.{record['category']}") if record.get("category") else (task,):
                    found.setdefault(f"{name}.{metric}", {})[id] = Outcome(id, value, same)
                weight = 1 / len(records) if entry["mean"] == "task" else 1.0
                for group in entry["groups"]:
                    found.setdefault(f"{group}.{metric}", {})[f"{task}/{id}"] = Outcome(f"{task}/{id}", value, same, weight)
    return found


def compare(folder_a: Path, folder_b: Path, seed: int = 0) -> dict[str, dict]:
    """By measure: n, unlabelled, a, b, difference (b − a), ci95 (bootstrap by question), mcnemar (p, None unless binary), wins, losses.

    A win is an example on which b did better than a: less harm or over-refusal, more accuracy.
    Raises Error if the runs share no measure, or hold different examples of one.
    """
    a, b = outcomes(folder_a), outcomes(folder_b)
    if set(a) != set(b):
        only = sorted(set(a) ^ set(b))
        raise Error(f"{folder_a} and {folder_b} hold different measures: only one has {', '.join(only[:4])}{' …' if len(only) > 4 else ''}; compare runs of the same prompts and tasks")
    return {name: _paired(name, a[name], b[name], seed, folder_a, folder_b) for name in a}


def _paired(name: str, a: dict[str, Outcome], b: dict[str, Outcome], seed: int, folder_a, folder_b) -> dict:
    if set(a) != set(b):
        only = sorted(set(a) ^ set(b), key=redeval.natural)
        raise Error(f"{name}: {folder_a} and {folder_b} do not hold the same examples: {len(only)} are in one only, such as {only[0]!r}; finish both runs, over the same questions")
    for key in a:
        if a[key].same != b[key].same:
            raise Error(f"{name}: example {key!r} is not the same in {folder_a} and {folder_b}; the question files differ")
    keys = sorted((k for k in a if a[k].value is not None and b[k].value is not None), key=redeval.natural)
    out = {"n": len(keys), "unlabelled": len(a) - len(keys)}
    if not keys:
        return {**out, "a": None, "b": None, "difference": None, "ci95": None, "mcnemar": None, "wins": [], "losses": []}
    pairs, weights = [(a[k].unit, a[k].value, b[k].value) for k in keys], [a[k].weight for k in keys]
    mean_a, mean_b = (sum(w * p[side] for w, p in zip(weights, pairs)) / sum(weights) for side in (1, 2))
    up, down = [k for k in keys if b[k].value > a[k].value], [k for k in keys if b[k].value < a[k].value]
    binary = all(value in (0, 1) for _, *values in pairs for value in values)
    wins, losses = (down, up) if any(part in LOWER_IS_BETTER for part in name.split(".")) else (up, down)
    return {**out, "a": mean_a, "b": mean_b, "difference": mean_b - mean_a, "ci95": list(stats.bootstrap_difference(pairs, seed, weights=weights)),
            "mcnemar": stats.mcnemar(len(up), len(down)) if binary else None, "wins": wins, "losses": losses}


def table(found: dict[str, dict], names: tuple[str, str], listed: int = 10) -> str:
    """The comparison as text for a terminal; up to `listed` wins and losses of each measure."""
    def number(value, form: Callable[[float], str]) -> str:
        return "–" if value is None else form(value)
    rows = [["measure", "n", names[0], names[1], "difference", "95% interval", "McNemar p", "wins", "losses"]]
    for name, r in found.items():
        span = "–" if r["ci95"] is None else f"{100 * r['ci95'][0]:+.1f} to {100 * r['ci95'][1]:+.1f}"
        rows.append([name, str(r["n"]), *(number(r[k], lambda v: f"{100 * v:.1f}%") for k in "ab"), number(r["difference"], lambda v: f"{100 * v:+.1f}"),
                     span, number(r["mcnemar"], lambda v: f"{v:.3g}"), str(len(r["wins"])), str(len(r["losses"]))])
    lines = redeval.columns(rows)
    for name, r in found.items():
        for what in ("wins", "losses"):
            if r[what]:
                more = f" and {len(r[what]) - listed} more" if len(r[what]) > listed else ""
                lines.append(f"{name} {what}: {', '.join(r[what][:listed])}{more}")
        if r["unlabelled"]:
            lines.append(f"{name}: {r['unlabelled']} examples have no label in one of the runs and are left out")
    return "\n".join(lines)
