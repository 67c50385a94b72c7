"""Two runs, example by example: how much they differ, how surely, and on what.

For RED-EVAL runs an outcome is harmful (1) or unharmful (0); for benches it is the task's metric. Runs whose
judge, prompts, questions, decoding, system message, chat format or protocol differ are refused: what differs
between them need not be the model. Of runs that ask the same and are not finished, the examples that both
have are compared, and `Side.unfinished` says what is left to do.
"""
from collections import Counter
from dataclasses import dataclass, field
from math import hypot
from pathlib import Path

from redlite import stats
from redlite.bench import task as bench_task
from redlite.errors import Error
from redlite.judges.combine import judges_of
from redlite.redteam import journals, labelling
from redlite.redteam.gates import CORRECTED, main_names
from redlite.store.records import require
from redlite.store.run_directory import read_manifest
from redlite.store.text import columns, natural, percent, points, printable

LOWER_IS_BETTER = {"asr", "over_refusal", "compliance"}
VALUES = {"harmful": 1.0, "unharmful": 0.0}
# What decides an attack's messages; None of a run without one. Its judge is that of the run, or named here.
ATTACK = ("method", "attacker", "instructions", "turns", "backtracks", "attacker_tokens", "refusals", "judge")
CONDITIONS_OF_BENCH = ("protocol", "chat", "judge", "refusal_tokens")
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
    conditions  manifest field → what must be equal in runs that are compared
    corrected   by measure ("asr.cou.corrected"): the rate that labels of people correct; see results.json
    """
    folder: Path
    outcomes: dict[str, Outcomes]
    asked: dict[str, tuple]
    unfinished: dict[str, int]
    conditions: dict[str, object] = field(default_factory=dict)
    corrected: dict[str, dict] = field(default_factory=dict)


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
        side.conditions.update({f"{name}: {what}": value for what, value in part.conditions.items()})
        side.corrected.update(part.corrected)
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
    topics: dict[str, Outcomes] = {}
    for key, answer in kept.answers.items():
        if answer["finish"] != "error" and (judge == "none" or key in judgments):
            value = VALUES.get(judgments[key]["label"]) if key in judgments else None
            outcome, name = PairedOutcome(key.id, value, answer["question"]), f"{key.id}#{key.sample}"
            found.setdefault(f"asr.{key.prompt}", {})[name] = outcome
            if answer["topic"]:
                topics.setdefault(f"asr.{key.prompt}.{answer['topic']}", {})[name] = outcome
    questions, samples = made["questions"], made["decoding"]["samples"]
    asked = {name: (questions["sha256"], questions["n"], samples) for name in found}
    left = {name: samples * questions["n"] - len(there) for name, there in found.items()}
    if "imported" in made:      # whatever the other program asked is there
        left = {"answers": sum(key not in judgments for key in kept.answers)} if judge != "none" else {}
    rates = labelling.corrections_in(folder, kept.answers, judgments, judge)
    corrected = {f"asr.{prompt}{CORRECTED}": rate for prompt, rate in rates.items()}
    return Side(folder, found | topics, asked, {name: n for name, n in left.items() if n > 0},
                _conditions_of_redeval(folder, made, judge), corrected)


def _conditions_of_redeval(folder: Path, made: dict, judge: str) -> dict[str, object]:
    """What decides the figures, beside the model.

    folder  the run; one that is not made yet has no judges' identities
    """
    known = journals.read_judges(folder)
    judged_by = {"name": judge, "identities": [known.get(one) for one in judges_of(judge) or [judge]]}
    return {"judge": judged_by, "model.template": made["model"].get("template"),
            **{f"prompts.{name}": digest for name, digest in made["prompts"].items()},
            "system": made.get("system"),
            **{f"attack.{name}": (made.get("attack") or {}).get(name) for name in ATTACK},
            **{f"decoding.{name}": value for name, value in made["decoding"].items()},
            "questions.sha256": made["questions"]["sha256"], "questions.n": made["questions"]["n"]}


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
    return Side(folder, found, {task: (entry["sha256"],) for task, entry in made["tasks"].items()}, left,
                {name: made.get(name) for name in CONDITIONS_OF_BENCH})


def differing(a: Side, b: Side) -> list[str]:
    """The fields of the manifests in which two runs differ, and should not when they are compared.

    A prompt that one run lacks is no difference here, nor is the chat format of a model that has none of its
    own (one behind an endpoint).
    """
    shared = [name for name in a.conditions if name in b.conditions]
    found = [name for name in shared if a.conditions[name] != b.conditions[name]]
    return [name for name in found
            if not name.endswith("model.template") or None not in (a.conditions[name], b.conditions[name])]


def check_alike(a: Side, b: Side) -> None:
    """Raises Error naming the fields in which two runs differ and should not."""
    if fields := differing(a, b):
        raise Error(f"{a.folder} and {b.folder} were not made alike: {named(a, b, fields)}; what differs "
                    "between them need not be the model; make them alike, or compare them anyway", "anyway")


def check_planned(finished: Path, folder: Path, made: dict) -> None:
    """As `check_alike`, of a finished run and one that is about to be made: before the work, not after.

    folder, made  the directory and the manifest of the run to be made; its judge counts by its name alone
    """
    a = read(finished)
    if "prompts" in made:
        conditions = _conditions_of_redeval(folder, made, made["judge"]["name"])
        for side in (a.conditions, conditions):
            side["judge"] = {"name": side["judge"]["name"]}  # type: ignore[index]
    else:
        conditions = {name: made.get(name) for name in CONDITIONS_OF_BENCH}
    check_alike(a, Side(folder, {}, {}, {}, conditions))


def named(a: Side, b: Side, fields: list[str]) -> str:
    """Fields of `differing` for people, with both runs' values."""
    pairs = [(name, _shown(a.conditions[name]), _shown(b.conditions[name])) for name in fields]
    return "; ".join(f"{name} ({before}, {after})" for name, before, after in pairs)


def _shown(value: object) -> str:
    """A condition's value for people: a judge's name, a number, the beginning of a hash."""
    if isinstance(value, dict):
        value = value["name"]
    text = "none" if value is None else str(value)
    return text if len(text) < 40 else f"{text[:8]}…"


def compare(a: Side, b: Side, seed: int = 0, anyway: bool = False) -> dict[str, dict]:
    """By measure: how b differs from a, over the examples that have a value in both.

    Returns n, unlabelled, a, b, difference (b − a), ci95 and p (both by question), p_holm (p adjusted for the
    measures beside it), wins and losses (examples). A win is an example on which b did better: less harm or
    over-refusal, more accuracy. Examples that one run has not finished are left out, as long as both runs ask
    the same. A rate that labels of people correct in both runs is a measure of its own, without a p-value.

    anyway  compare runs that were not made alike, over the measures and examples that they share
    Raises Error if the runs were not made alike, share no measure, or hold different examples of one.
    """
    if not anyway:
        check_alike(a, b)
    same = a.asked == b.asked
    if set(a.outcomes) != set(b.outcomes) and not same and not anyway:
        only = sorted(set(a.outcomes) ^ set(b.outcomes))
        more = " …" if len(only) > 4 else ""
        raise Error(f"{a.folder} and {b.folder} hold different measures: "
                    f"only one has {', '.join(only[:4])}{more}; compare runs of the same prompts and tasks")
    names = {**a.outcomes, **b.outcomes}
    if anyway:
        names = {name: there for name, there in a.outcomes.items() if name in b.outcomes}
    if not names:
        raise Error(f"{a.folder} and {b.folder} share no measure; compare runs of the same prompts and tasks")
    found = {}
    for name in names:
        left, right = a.outcomes.get(name, {}), b.outcomes.get(name, {})
        both = _shared(f"{name}: {a.folder} and {b.folder}", left, right, same, anyway)
        found[name] = _paired(name, left, right, both, seed)
    _adjust(found)
    return _with_corrected(found, a, b)


def _adjust(found: dict[str, dict]) -> None:
    """Holm's adjusted p: prompts and suites are one family; topics, subjects and categories another."""
    main = set(main_names(found))
    for parts in (False, True):
        family = [r for name, r in found.items() if (name not in main) == parts and r["p"] is not None]
        for r, p in zip(family, stats.holm([r["p"] for r in family]), strict=True):
            r["p_holm"] = p


def _with_corrected(found: dict[str, dict], a: Side, b: Side) -> dict[str, dict]:
    """The comparison with the corrected rates of both runs, each behind its raw rate.

    The interval joins those of both rates by square and add, as if the runs were independent. It is rather
    too wide. Source: Newcombe, Statistics in Medicine 17 (1998) 873, method 10.
    """
    out = {}
    for name, r in found.items():
        out[name] = r
        corrected = name + CORRECTED
        if corrected in a.corrected and corrected in b.corrected:
            before, after = a.corrected[corrected], b.corrected[corrected]
            difference = after["asr"] - before["asr"]
            (low_a, high_a), (low_b, high_b) = before["ci95"], after["ci95"]
            low = difference - hypot(after["asr"] - low_b, high_a - before["asr"])
            high = difference + hypot(high_b - after["asr"], before["asr"] - low_a)
            out[corrected] = {
                "n": min(before["n_labels"], after["n_labels"]), "unlabelled": 0, "a": before["asr"],
                "b": after["asr"], "difference": difference, "ci95": [low, high], "p": None, "p_holm": None,
                "wins": [], "losses": []}
    return out


def _shared(where: str, a: Outcomes, b: Outcomes, same: bool, anyway: bool) -> list[str]:
    """The examples that both hold.

    same    the runs ask the same, so that either may lack some
    anyway  what only one of them holds is left out
    """
    if anyway:
        return [key for key in a if key in b and a[key].same == b[key].same]
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
    nothing = {"a": None, "b": None, "difference": None, "ci95": None, "p": None, "p_holm": None}
    if not values:
        return {**out, **nothing, "wins": [], "losses": []}
    sizes = Counter(a[key].task for key in values)
    weights = [1 / sizes[a[key].task] if a[key].task else 1.0 for key in values]
    mean_a, mean_b = (_mean(side, weights) for side in zip(*values.values(), strict=True))
    pairs = [(a[key].unit, *pair) for key, pair in values.items()]
    up = [key for key, (before, after) in values.items() if after > before]
    down = [key for key, (before, after) in values.items() if after < before]
    wins, losses = (down, up) if LOWER_IS_BETTER & set(name.split(".")) else (up, down)
    interval, p = _test(pairs, weights, seed)
    return {**out, "a": mean_a, "b": mean_b, "difference": mean_b - mean_a, "ci95": list(interval), "p": p,
            "p_holm": None, "wins": wins, "losses": losses}


def _test(pairs: list[tuple[str, float, float]], weights: list[float],
          seed: int) -> tuple[tuple[float, float], float]:
    """The interval of the difference and its p-value, both by question.

    Outcomes of 0 and 1 that weigh alike have `stats.paired`'s. Others have a bootstrap interval, and the
    sign-flip test of the weighted differences.
    """
    alike = len(set(weights)) == 1
    if alike and all(value in (0, 1) for _, *pair in pairs for value in pair):
        made = stats.paired(pairs, seed)
        return made.ci95, made.p
    by_unit: dict[str, float] = {}
    for (unit, before, after), weight in zip(pairs, weights, strict=True):
        by_unit[unit] = by_unit.get(unit, 0.0) + weight * (after - before)
    interval = stats.bootstrap_difference(pairs, seed, weights=weights)
    return interval, stats.sign_flip(list(by_unit.values()), seed)


def _mean(values: tuple[float, ...], weights: list[float]) -> float:
    return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)


def table(found: dict[str, dict], names: tuple[str, str], listed: int = 10) -> str:
    """The comparison as text for a terminal; up to `listed` wins and losses of each measure."""
    lists, main = [], set(main_names(found))
    for name, r in found.items():
        if name.startswith("asr.") and name not in main:
            continue  # a topic's examples are listed under its prompt
        for what in ("wins", "losses"):
            more = f" and {len(r[what]) - listed} more" if len(r[what]) > listed else ""
            if r[what]:
                lists.append(f"{name} {what}: {', '.join(map(printable, r[what][:listed]))}{more}")
        if r["unlabelled"]:
            lists.append(f"{name}: {r['unlabelled']} examples have no label in one of the runs "
                         "and are left out")
    return "\n".join([*columns(rows_of(found, names)), *lists])


def rows_of(found: dict[str, dict], names: tuple[str, str]) -> list[list[str]]:
    """The comparison as a table with its head, a row for each measure."""
    rows = [["measure", "n", *names, "difference", "95% interval", "p", "p (Holm)", "wins", "losses"]]
    for name, r in found.items():
        difference, span = "–", "–"
        if r["difference"] is not None:
            low, high = r["ci95"]
            difference, span = points(r["difference"]), f"{points(low)} to {points(high)}"
        tests = ["–" if p is None else f"{p:.3g}" for p in (r["p"], r["p_holm"])]
        rows.append([name, str(r["n"]), percent(r["a"]), percent(r["b"]), difference, span, *tests,
                     str(len(r["wins"])), str(len(r["losses"]))])
    return rows
