"""What benchmark records amount to: means, intervals and groups, under lm-evaluation-harness's keys."""
import math
from pathlib import Path
from typing import NamedTuple

from redlite import stats
from redlite.bench.task import Example, Task, records

GROUP_VERSIONS = {"mmlu": 2, "mmlu_stem": 2, "mmlu_humanities": 2, "mmlu_social_sciences": 2, "mmlu_other": 2,
                  "bbh": 3.0}


class Member(NamedTuple):
    """A task of a group: its summary, and how many of its examples have a record."""
    task: Task
    summary: dict
    size: int


def results(folder: Path, tasks: list[Task]) -> dict:
    """What results.json holds for the tasks of a run directory."""
    out: dict = {
        name: {} for name in ("results", "groups", "group_subtasks", "versions", "n-shot", "n-samples",
                              "truncated", "shots_dropped")
    }
    out["complete"] = True
    grouped: dict[str, list[Member]] = {}
    for task in tasks:
        found = records(folder, task.name)
        there = [found[e.id] for e in task.examples if e.id in found]
        summary = summarize(task, found)
        out["results"][task.name] = summary
        out["versions"][task.name], out["n-shot"][task.name] = task.version, task.shots
        whole = task.whole or len(task.examples)
        out["n-samples"][task.name] = {"original": whole, "effective": len(there)}
        out["truncated"][task.name] = sum(r["truncated_tokens"] > 0 for r in there)
        out["shots_dropped"][task.name] = sum((r.get("shots_dropped") or 0) > 0 for r in there)
        out["complete"] &= len(there) == len(task.examples)
        for group in task.groups:
            grouped.setdefault(group, []).append(Member(task, summary, len(there)))
    for name, members in grouped.items():
        out["groups"][name] = out["results"][name] = group_mean(name, members)
        names = [member.task.name for member in members]
        out["group_subtasks"][name] = names
        out["versions"].setdefault(name, GROUP_VERSIONS.get(name, members[0].task.version))
        counts = {k: sum(out["n-samples"][n][k] for n in names) for k in ("original", "effective")}
        out["n-samples"].setdefault(name, counts)
    return out


def summarize(task: Task, found: dict[str, dict]) -> dict:
    """Mean, standard error and 95% interval of every metric over the task's records. found: records by id."""
    out = {"alias": task.name, **_over(task, task.examples, found)}
    if unlabelled := sum(not found[e.id]["metrics"] for e in task.examples if e.id in found):
        out["unlabelled"] = unlabelled
    if categories := sorted({e.category for e in task.examples} - {""}):
        out["by_category"] = {}
        for name in categories:
            own = [e for e in task.examples if e.category == name]
            labelled = sum(bool(found[e.id]["metrics"]) for e in own if e.id in found)
            out["by_category"][name] = {"n": labelled, **_over(task, own, found)}
    return out


def _over(task: Task, examples: list[Example], found: dict[str, dict]) -> dict:
    there = [found[e.id]["metrics"] for e in examples if e.id in found]
    out: dict = {}
    for metric in task.metrics:
        out |= measures(metric, task.filter, [m[metric] for m in there if metric in m])
    return out


def measures(metric: str, filter: str, values: list[float]) -> dict:
    """`metric,filter`, `metric_stderr,filter` and `metric_ci95,filter` of the values.

    The standard error is the sample standard deviation / √n. The interval is Wilson's if all values are 0 or
    1.
    """
    if not values:
        return _keys(metric, filter, None, None, [0.0, 1.0])
    mean, error = stats.mean_stderr(values)
    if all(v in (0, 1) for v in values):
        return _keys(metric, filter, mean, error, list(stats.wilson(int(sum(values)), len(values))))
    return _keys(metric, filter, mean, error, _normal(mean, error))


def _keys(metric: str, filter: str, mean: float | None, error: float | None, interval: list[float]) -> dict:
    return {
        f"{metric},{filter}": mean, f"{metric}_stderr,{filter}": error, f"{metric}_ci95,{filter}": interval
    }


def _normal(mean: float, error: float | None) -> list[float]:
    return [0.0, 1.0] if error is None else [max(0.0, mean - 1.96 * error), min(1.0, mean + 1.96 * error)]


def group_mean(name: str, members: list[Member]) -> dict:
    """A group's mean, over examples or over tasks.

    Its standard error pools the tasks' own, as the harness does.
    """
    task, out = members[0].task, {"alias": name}
    for metric in task.metrics:
        values = [m.summary[f"{metric},{task.filter}"] for m in members]
        if any(value is None for value in values):
            out |= measures(metric, task.filter, [])
            continue
        errors = [m.summary[f"{metric}_stderr,{task.filter}"] for m in members]
        sizes, by_size = [m.size for m in members], task.mean == "size"
        weights = sizes if by_size else [1] * len(sizes)
        mean = sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)
        pooled = _pooled(errors, sizes, by_size)
        right = mean * sum(sizes)
        counted = by_size and abs(right - round(right)) < 1e-6  # a count of right answers
        # Tasks of which each is all right or all wrong have no spread, which is not the same as no doubt.
        exact = counted or pooled == 0
        interval = list(stats.wilson(round(right), sum(sizes))) if exact else _normal(mean, pooled)
        out |= _keys(metric, task.filter, mean, pooled, interval)
    return out


def _pooled(errors: list[float | None], sizes: list[int], by_size: bool) -> float | None:
    """The standard error of a group's mean; None where a task has none, or every task one example."""
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return None
    if not by_size:
        return math.sqrt(sum(e * e for e in known)) / len(known)
    total = sum(sizes)
    if total <= len(sizes):
        return None
    variance = sum((n - 1) * e * e * n for n, e in zip(sizes, known, strict=True)) / (total - len(sizes))
    return math.sqrt(variance / total)
