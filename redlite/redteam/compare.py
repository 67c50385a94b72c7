"""Two runs, example by example: how much they differ, how surely, and on what.

For RED-EVAL runs an outcome is harmful (1) or unharmful (0); for benches it is the task's metric. Runs of other questions or
examples are refused: their rates can be told apart, but not paired. Of runs that ask the same and are not finished, the
examples that both have are compared, and `Side.unfinished` says what is left to do.
"""
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from redlite import stats
from redlite.bench import task as bench_task
from redlite.errors import Error
from redlite.redteam import journals
from redlite.store.records import require
from redlite.store.run_directory import read_manifest
from redlite.store.text import columns, natural

LOWER_IS_BETTER = ("asr", "over_refusal", "compliance")


@dataclass(frozen=True)
class PairedOutcome:
    """One finished example's result. value: None where a judge gave no label. same: what must be equal for the example to be the same.

    task  "" where examples weigh alike in the mean; else the task whose examples do, tasks weighing alike
    """
    unit: str
    value: float | None
    same: str
    task: str = ""


@dataclass(frozen=True)
class Side:
    """A run as it is compared.

    outcomes    measure ("asr.cou", "mmlu_anatomy.acc", …) → example → PairedOutcome
    asked       prompt or task → what tells its questions or examples from others'
    unfinished  prompt or task → how many of its examples have no outcome yet: not answered, failed, or not judged; only where some have none
    """
    outcomes: dict[str, dict[str, PairedOutcome]]
    asked: dict[str, tuple]
    unfinished: dict[str, int]


def read(folder: Path) -> Side:
    """Any run directory. Raises Error if it is none, or was edited."""
    folder = Path(folder)
    if parts := [read(folder / name) for name in ("redeval", "bench") if (folder / name / "manifest.json").exists()]:  # a scorecard, or its baseline
        return Side(**{field: {name: found for part in parts for name, found in vars(part)[field].items()} for field in vars(parts[0])})
    made = read_manifest(folder)
    if "prompts" in made:
        return _of_redeval(folder)
    if "tasks" in made:
        mend = "the file was edited, or is of an older redlite; restore it from a copy, or make the run again"
        for task in require(made, {"tasks": dict}, folder / "manifest.json", mend)["tasks"]:
            require(made["tasks"][task], {"sha256": str, "n": int, "metrics": list, "groups": list, "mean": str}, f"{folder / 'manifest.json'}: task {task}", mend)
        return _of_bench(folder, made)
    raise Error(f"{folder}: is neither a run of RED-EVAL nor of benches")


def _of_redeval(folder: Path) -> Side:
    """Answers that failed, or that the judge has not seen yet, are not finished."""
    made, judge, kept = journals.read_made(folder), journals.last_judge(folder), journals.read_journals(folder)
    judgments = kept.judged_by(judge)
    found: dict[str, dict[str, PairedOutcome]] = {f"asr.{prompt}": {} for prompt in made["prompts"]}
    for key, answer in kept.answers.items():
        if answer["finish"] != "error" and (judge == "none" or key in judgments):
            value = {"harmful": 1.0, "unharmful": 0.0}.get(judgments[key]["label"]) if key in judgments else None
            outcome = PairedOutcome(key.id, value, answer["question"])
            found.setdefault(f"asr.{key.prompt}", {})[f"{key.id}#{key.sample}"] = outcome
    questions, samples = made["questions"], made["decoding"]["samples"]
    left = {name: samples * questions["n"] - len(there) for name, there in found.items()}
    return Side(found, {name: (questions["sha256"], questions["n"], samples) for name in found}, {name: n for name, n in left.items() if n > 0})


def _of_bench(folder: Path, made: dict) -> Side:
    """Every task, its categories, and its groups: there an example's name begins with its task's."""
    found: dict[str, dict[str, PairedOutcome]] = {}
    left = {}
    for task, entry in made["tasks"].items():
        records = bench_task.records(folder, task)
        if len(records) < entry["n"]:
            left[task] = entry["n"] - len(records)
        for metric in entry["metrics"]:
            for name in (task, *entry["groups"]):
                found.setdefault(f"{name}.{metric}", {})
        for id, record in records.items():
            for metric in entry["metrics"]:
                value, same = record["metrics"].get(metric), record["doc_hash"]
                for name in (task, f"{task}.{record['category']}") if record.get("category") else (task,):
                    found.setdefault(f"{name}.{metric}", {})[id] = PairedOutcome(id, value, same)
                for group in entry["groups"]:
                    found[f"{group}.{metric}"][f"{task}/{id}"] = PairedOutcome(f"{task}/{id}", value, same, task if entry["mean"] == "task" else "")
    return Side(found, {task: (entry["sha256"],) for task, entry in made["tasks"].items()}, left)


def compare(folder_a: Path, folder_b: Path, seed: int = 0) -> dict[str, dict]:
    """By measure: n, unlabelled, a, b, difference (b − a), ci95 (bootstrap by question), mcnemar (p, None unless binary), wins, losses.

    A win is an example on which b did better than a: less harm or over-refusal, more accuracy. Examples that one run has not
    finished are left out, as long as both runs ask the same; see `Side.unfinished`.
    Raises Error if the runs share no measure, or hold different examples of one.
    """
    a, b = read(folder_a), read(folder_b)
    same = a.asked == b.asked
    if set(a.outcomes) != set(b.outcomes) and not same:
        only = sorted(set(a.outcomes) ^ set(b.outcomes))
        raise Error(f"{folder_a} and {folder_b} hold different measures: only one has {', '.join(only[:4])}{' …' if len(only) > 4 else ''}; compare runs of the same prompts and tasks")
    return {name: _paired(name, a.outcomes.get(name, {}), b.outcomes.get(name, {}), same, seed, folder_a, folder_b) for name in {**a.outcomes, **b.outcomes}}


def _paired(name: str, a: dict[str, PairedOutcome], b: dict[str, PairedOutcome], same: bool, seed: int, folder_a, folder_b) -> dict:
    if set(a) != set(b) and not same:
        only = sorted(set(a) ^ set(b), key=natural)
        raise Error(f"{name}: {folder_a} and {folder_b} do not hold the same examples: {len(only)} are in one only, such as {only[0]!r}; finish both runs, over the same questions")
    both = [key for key in a if key in b]
    for key in both:
        if a[key].same != b[key].same:
            raise Error(f"{name}: example {key!r} is not the same in {folder_a} and {folder_b}; the question files differ")
    keys = sorted((k for k in both if a[k].value is not None and b[k].value is not None), key=natural)
    out = {"n": len(keys), "unlabelled": len(both) - len(keys)}
    if not keys:
        return {**out, "a": None, "b": None, "difference": None, "ci95": None, "mcnemar": None, "wins": [], "losses": []}
    pairs, sizes = [(a[k].unit, a[k].value, b[k].value) for k in keys], Counter(a[k].task for k in keys)
    weights = [1 / sizes[a[k].task] if a[k].task else 1.0 for k in keys]
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
    lines = columns(rows)
    for name, r in found.items():
        for what in ("wins", "losses"):
            if r[what]:
                more = f" and {len(r[what]) - listed} more" if len(r[what]) > listed else ""
                lines.append(f"{name} {what}: {', '.join(r[what][:listed])}{more}")
        if r["unlabelled"]:
            lines.append(f"{name}: {r['unlabelled']} examples have no label in one of the runs and are left out")
    return "\n".join(lines)
