"""What a run directory is, and its results counted again from its journals: of RED-EVAL, of benches, of a
scorecard."""
from pathlib import Path

from redlite.bench import results as bench_results
from redlite.bench import task as bench_task
from redlite.errors import Error
from redlite.redteam import journals, results
from redlite.store.files import read_json
from redlite.store.records import Kind, require
from redlite.store.run_directory import read_manifest

RESULTS = "results.json"
# What is read again of a bench's results.json: what its records do not say themselves.
BENCH: dict[str, Kind] = {"model": str, "protocol": str, "results": dict, "versions": dict, "n-shot": dict,
                          "n-samples": dict}
# Of a task in a bench's manifest.
TASK: dict[str, Kind] = {"n": int, "metrics": [str], "groups": [str], "mean": str}


def kind_of(folder: str | Path) -> str:
    """"redeval", "bench" or "scorecard". Raises Error for another directory."""
    made = read_manifest(folder)
    if made.get("kind") == "scorecard":
        return "scorecard"
    for field, kind in (("prompts", "redeval"), ("tasks", "bench")):
        if field in made:
            return kind
    raise Error(f"{folder}: is neither a run of RED-EVAL nor of benches nor a scorecard")


def parts_of(folder: str | Path) -> dict[str, Path]:
    """The runs of a directory by their kind ("redeval", "bench"): itself, or the parts of a scorecard."""
    folder = Path(folder)
    found = {name: folder / name for name in ("redeval", "bench")
             if (folder / name / "manifest.json").exists()}
    if found:
        return found
    kind = kind_of(folder)
    if kind == "scorecard":
        raise Error(f"{folder}: this scorecard has no results yet; run its command again")
    return {kind: folder}


def counted(parts: dict[str, Path],
            kept: journals.RunJournals | None = None) -> tuple[dict | None, dict | None]:
    """What results.json of RED-EVAL and of the benches hold, counted again; None for a part that lacks.

    kept  RED-EVAL's journals, where they have been read already
    """
    asr, bench = None, None
    if folder := parts.get("redeval"):
        kept = journals.read_journals(folder) if kept is None else kept
        asr = results.results(kept, journals.last_judge(folder))
    if folder := parts.get("bench"):
        bench = recounted(folder)
    return asr, bench


def recounted(folder: Path) -> dict:
    """What results.json of a bench run holds, counted again from its records.

    The benches' own files are not needed: what records do not say comes from results.json as it is.
    """
    made, path = read_manifest(folder), folder / RESULTS
    again = "run the bench's command again, which asks nothing twice and writes it"
    if not path.exists():
        raise Error(f"{path}: is not there yet; {again}")
    known = require(read_json(path), BENCH, path, again)
    judge = made["judge"]["name"] if isinstance(made.get("judge"), dict) else None
    tasks, complete = [], True
    for name, entry in made["tasks"].items():
        require(entry, TASK, f"{folder / 'manifest.json'}: task {name}", "restore it from a copy")
        tasks.append(_task(folder, name, entry, known, f"{path}: {again}"))
        complete &= len(tasks[-1].examples) >= entry["n"]
    found = bench_results.results(folder, tasks)
    kept = {field: made.get(field, known.get(field)) for field in ("version", "protocol", "chat")}
    return {**kept, "model": known["model"], "judge": judge, **found, "complete": complete}


def _task(folder: Path, name: str, entry: dict, known: dict, mend: str) -> bench_task.Task:
    """A task as its records and results show it; it holds no documents."""
    examples = [bench_task.Example(id, {}, (), category=record.get("category") or "")
                for id, record in bench_task.records(folder, name).items()]
    try:
        keys = [key.partition(",") for key in known["results"][name]]
        filter = next(kind for metric, _, kind in keys if kind and metric == entry["metrics"][0])
        return bench_task.Task(
            name, known["versions"][name], examples, _no_measure, tuple(entry["metrics"]), filter,
            known["n-shot"][name], tuple(entry["groups"]), entry["mean"],
            whole=known["n-samples"][name]["original"])
    except (KeyError, TypeError, StopIteration):
        raise Error(f"{mend}: it does not know the task {name}") from None


def _no_measure(example: bench_task.Example, answers: list) -> dict[str, float]:
    raise TypeError("records are measured already")
