"""Two runs, example by example: how much they differ, how surely, and on what.

For RED-EVAL runs an outcome is harmful (1) or unharmful (0); for benches it is the task's metric. Runs of
other questions or examples are refused: their rates can be told apart, but not paired. Of runs that ask the
same and are not finished, the examples that both have are compared, and `Side.unfinished` says what is left
to do.
"""
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from redlite import stats
from redlite.bench import task as bench_task
from redlite.errors import Error
from redlite.redteam import journals
from redlite.store.records import require
from redlite.store.run_directory import read_manifest
from redlite.store.text import columns, natural, percent

LOWER_IS_BETTER = {"asr", "over_refusal", "compliance"}
VALUES = {"harmful": 1.0, "unharmful": 0.0}
TASK = {"sha256": str, "n": int, "metrics": list, "groups": list, "mean": str}


@dataclass(frozen=True)
class PairedOutcome:
    """The result of one finished example.

    unit   the question: examples of one unit are drawn together in the bootstrap
    value  None where a judge gave no label
    same   what must be equal in both runs for the example to be the same
    task   "" where examples weigh alike in the mean; else the task whose examples do, tasks weighing alike
    """
    unit: str
    value: float | None
    same: str
    task: str = ""


Outcomes = dict[str, PairedOutcome]  # by example


@dataclass(frozen=True)
class Side:
    """A run as it is compared.

    outcomes    by measure ("asr.cou", "mmlu_anatomy.acc", …)
    asked       prompt or task → what tells its questions or examples from others'
    unfinished  prompt or task → how many of its examples are not answered, have failed or are not judged yet
    """
    folder: Path
    outcomes: dict[str, Outcomes]
    asked: dict[str, tuple]
    unfinished: dict[str, int]


def read(folder: str | Path) -> Side:
    """A run directory of RED-EVAL, of benches or of a scorecard. Raises Error if it is none, or was
    edited."""
    folder = Path(folder)
    side = Side(folder, {}, {}, {})
    parts = [name for name in ("redeval", "bench") if (folder / name / "manifest.json").exists()]
    for name in parts:  # a scorecard, or its baseline
        part = read(folder / name)
        side.outcomes.update(part.outcomes)
        side.asked.update(part.asked)
        side.unfinished.update(part.unfinished)
    if parts:
        return side
    made = read_manifest(folder)
    if "prompts" in made:
        return _of_redeval(folder)
    if "tasks" in made:
        mend = "the file was edited, or is of an older redlite; restore it from a copy, or make the run again"
        where = f"{folder / 'manifest.json'}"
        for task, entry in require(made, {"tasks": dict}, where, mend)["tasks"].items():
            require(entry, TASK, f"{where}: task {task}", mend)
        return _of_bench(folder, made)
    raise Error(f"{folder}: is neither a run of RED-EVAL nor of benches")


def _of_redeval(folder: Path) -> Side:
    """Answers that failed, or that the judge has not seen yet, are not finished."""
    made, judge = journals.read_made(folder), journals.last_judge(folder)
    kept = journals.read_journals(folder)
    judgments = kept.judged_by(judge)
    found: dict[str, Outcomes] = {f"asr.{prompt}": {} for prompt in made["prompts"]}
    for key, answer in kept.answers.items():
        if answer["finish"] != "error" and (judge == "none" or key in judgments):
            value = VALUES.get(judgments[key]["label"]) if key in judgments else None
            outcome = PairedOutcome(key.id, value, answer["question"])
            found.setdefault(f"asr.{key.prompt}", {})[f"{key.id}#{key.sample}"] = outcome
    questions, samples = made["questions"], made["decoding"]["samples"]
    asked = {name: (questions["sha256"], questions["n"], samples) for name in found}
    left = {name: samples * questions["n"] - len(there) for name, there in found.items()}
    return Side(folder, found, asked, {name: n for name, n in left.items() if n > 0})


def _of_bench(folder: Path, made: dict) -> Side:
    """Every task, its categories, and its groups. In a group, an example's name begins with its task's."""
    found: dict[str, Outcomes] = {}
    left = {}
    for task, entry in made["tasks"].items():
        records = bench_task.records(folder, task)
        if len(records) < entry["n"]:
            left[task] = entry["n"] - len(records)
        weighs_as = task if entry["mean"] == "task" else ""
        for metric in entry["metrics"]:
            for name in (task, *entry["groups"]):
                found.setdefault(f"{name}.{metric}", {})
            for id, record in records.items():
                value, same = record["metrics"].get(metric), record["doc_hash"]
                found[f"{task}.{metric}"][id] = PairedOutcome(id, value, same)
                if record.get("category"):
                    category = found.setdefault(f"{task}.{record['category']}.{metric}", {})
                    category[id] = PairedOutcome(id, value, same)
                for group in entry["groups"]:
                    outcome = PairedOutcome(f"{task}/{id}", value, same, weighs_as)
                    found[f"{group}.{metric}"][f"{task}/{id}"] = outcome
    return Side(folder, found, {task: (entry["sha256"],) for task, entry in made["tasks"].items()}, left)


def compare(a: Side, b: Side, seed: int = 0) -> dict[str, dict]:
    """By measure: how b differs from a, over the examples that have a value in both.

    Returns n, unlabelled, a, b, difference (b − a), ci95 (bootstrap by question), mcnemar (p; None unless all
    values are 0 or 1), wins and losses (examples). A win is an example on which b did better: less harm or
    over-refusal, more accuracy. Examples that one run has not finished are left out, as long as both runs ask
    the same. Raises Error if the runs share no measure, or hold different examples of one.
    """
    same = a.asked == b.asked
    if set(a.outcomes) != set(b.outcomes) and not same:
        only = sorted(set(a.outcomes) ^ set(b.outcomes))
        more = " …" if len(only) > 4 else ""
        raise Error(f"{a.folder} and {b.folder} hold different measures: "
                    f"only one has {', '.join(only[:4])}{more}; compare runs of the same prompts and tasks")
    found = {}
    for name in {**a.outcomes, **b.outcomes}:
        left, right = a.outcomes.get(name, {}), b.outcomes.get(name, {})
        both = _shared(f"{name}: {a.folder} and {b.folder}", left, right, same)
        found[name] = _paired(name, left, right, both, seed)
    return found


def _shared(where: str, a: Outcomes, b: Outcomes, same: bool) -> list[str]:
    """The examples that both hold. same: the runs ask the same, so that either may lack some."""
    if set(a) != set(b) and not same:
        only = sorted(set(a) ^ set(b), key=natural)
        raise Error(f"{where} do not hold the same examples: {len(only)} are in one only, "
                    f"such as {only[0]!r}; finish both runs, over the same questions")
    both = [key for key in a if key in b]
    for key in both:
        if a[key].same != b[key].same:
            raise Error(f"{where} do not hold the same example {key!r}; the question files differ")
    return both


def _paired(name: str, a: Outcomes, b: Outcomes, both: list[str], seed: int) -> dict:
    values: dict[str, tuple[float, float]] = {}
    for key in sorted(both, key=natural):
        before, after = a[key].value, b[key].value
        if before is not None and after is not None:
            values[key] = before, after
    out = {"n": len(values), "unlabelled": len(both) - len(values)}
    if not values:
        return {**out, "a": None, "b": None, "difference": None, "ci95": None, "mcnemar": None, "wins": [],
                "losses": []}
    sizes = Counter(a[key].task for key in values)
    weights = [1 / sizes[a[key].task] if a[key].task else 1.0 for key in values]
    mean_a, mean_b = (_mean(side, weights) for side in zip(*values.values(), strict=True))
    pairs = [(a[key].unit, *pair) for key, pair in values.items()]
    up = [key for key, (before, after) in values.items() if after > before]
    down = [key for key, (before, after) in values.items() if after < before]
    binary = all(value in (0, 1) for pair in values.values() for value in pair)
    wins, losses = (down, up) if LOWER_IS_BETTER & set(name.split(".")) else (up, down)
    return {**out, "a": mean_a, "b": mean_b, "difference": mean_b - mean_a,
            "ci95": list(stats.bootstrap_difference(pairs, seed, weights=weights)),
            "mcnemar": stats.mcnemar(len(up), len(down)) if binary else None, "wins": wins, "losses": losses}


def _mean(values: tuple[float, ...], weights: list[float]) -> float:
    return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)


def table(found: dict[str, dict], names: tuple[str, str], listed: int = 10) -> str:
    """The comparison as text for a terminal; up to `listed` wins and losses of each measure."""
    rows = [["measure", "n", *names, "difference", "95% interval", "McNemar p", "wins", "losses"]]
    lists = []
    for name, r in found.items():
        difference, span, p = "–", "–", "–"
        if r["difference"] is not None:
            low, high = r["ci95"]
            difference, span = f"{100 * r['difference']:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}"
        if r["mcnemar"] is not None:
            p = f"{r['mcnemar']:.3g}"
        rows.append([name, str(r["n"]), percent(r["a"]), percent(r["b"]), difference, span, p,
                     str(len(r["wins"])), str(len(r["losses"]))])
        for what in ("wins", "losses"):
            more = f" and {len(r[what]) - listed} more" if len(r[what]) > listed else ""
            if r[what]:
                lists.append(f"{name} {what}: {', '.join(r[what][:listed])}{more}")
        if r["unlabelled"]:
            lists.append(f"{name}: {r['unlabelled']} examples have no label in one of the runs "
                         "and are left out")
    return "\n".join([*columns(rows), *lists])
