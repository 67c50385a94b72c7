"""The paper's whole evaluation of a model in one run directory: RED-EVAL, over-refusal and utility benches.

A battery writes two runs below the directory, redeval/ and bench/, each complete in itself and resumable. A
baseline gets the same battery below baseline/, and every difference is paired by example (compare.py).
"""
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from redlite import __version__
from redlite.bench import results as bench_results
from redlite.bench import runner, xstest
from redlite.bench import task as bench_task
from redlite.inference import unfinished
from redlite.judges import choice as judge_choice
from redlite.judges.choice import JudgeChoice
from redlite.judges.verdict import LABELS
from redlite.redteam import compare, growth, journals, redeval, results, runs
from redlite.redteam.answerers import Decoding, ModelChoice, local_lm, once_loaded
from redlite.redteam.gates import CORRECTED, main_names
from redlite.redteam.questions import Prompt, Question
from redlite.store.files import write_json
from redlite.store.run_directory import Run
from redlite.store.text import percent, points

RESULTS = "results.json"
# Examples of a task; MMLU's and BBH's tasks are single subjects.
QUICK = {"questions": 20, "hhh": 48, "truthfulqa": 24, "mmlu": 1, "bbh": 1, "xstest": 30}
QUICK_SEED = 20230818
# A task → the first part of its measures' names, where that is not the task's own name.
SHORT = {"bigbench_hhh_alignment_multiple_choice": "hhh", "xstest_safe": "xstest", "xstest_unsafe": "xstest"}


@dataclass(frozen=True)
class Battery:
    """What is asked of a model.

    questions  all of the file; `asked` are those that are put to the model
    tasks      of `bench.runner.load`; `refusals` are XSTest's
    judge      of harm, None for none; `refusal_judge` is of refusals
    """
    question_path: Path | None
    questions: list[Question]
    asked: list[Question]
    prompts: list[Prompt]
    decoding: Decoding
    tasks: list[bench_task.Task]
    refusals: list[bench_task.Task]
    refusal_tokens: int
    protocol: str
    chat: bool
    judge: JudgeChoice | None
    refusal_judge: JudgeChoice | None
    seed: int


def kept_in(battery: Battery, run: Run) -> Battery:
    """The same battery; what its judges behind an API reply is kept in `run`, whichever run asks."""
    judge, refusal_judge = battery.judge, battery.refusal_judge
    return replace(battery, judge=judge and judge_choice.kept_in(judge, run),
                   refusal_judge=refusal_judge and judge_choice.kept_in(refusal_judge, run))


def bench_manifest(command: str, model: ModelChoice, battery: Battery, info: dict | None = None) -> dict:
    """What decides the results of a bench run, in the form that `store.run_directory.Run` guards."""
    tasks = {}
    for t in (*battery.tasks, *battery.refusals):
        tasks[t.name] = {"n": len(t.examples), "sha256": t.fingerprint(), "metrics": list(t.metrics),
                         "groups": list(t.groups), "mean": t.mean}
    judge, tokens = None, None
    if battery.refusals and battery.refusal_judge:
        judge = {"name": battery.refusal_judge.name, **battery.refusal_judge.identity}
        tokens = battery.refusal_tokens
    return {"command": command, "version": __version__, "seed": battery.seed, "model": model.identity,
            "protocol": battery.protocol, "chat": battery.chat, "tasks": tasks, "judge": judge,
            "refusal_tokens": tokens, "info": model.information(info)}


def run_bench(folder: Path, command: str, model: ModelChoice, battery: Battery,
              progress: redeval.Progress | None = None, info: dict | None = None) -> dict:
    """Run the battery's benches into a run directory; what its results.json holds.

    Under torchrun every rank calls this; rank 0 counts, and the others get {}.
    """
    rank, world = bench_task.ranks()
    if world > 1:
        import torch.distributed as dist
        if not dist.is_initialized():
            dist.init_process_group("gloo")
    own = folder if rank == 0 else folder / f"rank-{rank}"
    made, tasks = bench_manifest(command, model, battery, info), [*battery.tasks, *battery.refusals]
    with Run(own, made, lambda there, here: growth.bench(there, here, tasks)) as directory:
        model = once_loaded(model, directory)
        runner.run(directory, folder, lambda: local_lm(model, directory), battery.tasks, battery.chat,
                   progress, rank, world)
        judge = None
        if battery.refusals and battery.refusal_judge:
            judge = battery.refusal_judge.name
            decoding = Decoding(battery.refusal_tokens)
            xstest.run(directory, folder, model, battery.refusal_judge, battery.refusals, decoding, progress,
                       rank, world)
        unfinished.end(directory)
        if world > 1:
            dist.barrier()
        if rank:
            return {}
        found = {"version": __version__, "model": model.name, "protocol": battery.protocol,
                 "chat": battery.chat, "judge": judge,
                 **bench_results.results(folder, tasks)}
        write_json(folder / RESULTS, found)
    return found


def redeval_manifest(command: str, model: ModelChoice, battery: Battery, info: dict | None = None) -> dict:
    """The settings that decide the results of the battery's RED-EVAL."""
    if battery.question_path is None:
        raise ValueError("a battery with RED-EVAL needs the file of its questions")
    return redeval.manifest(
        command=command, seed=battery.seed, model=model, question_path=battery.question_path,
        questions=battery.questions, limit=len(battery.asked), prompts=battery.prompts, judge=battery.judge,
        decoding=battery.decoding, info=info)


def check_baseline(finished: Path, folder: Path, model: ModelChoice, battery: Battery) -> None:
    """Raises Error if a finished run was made otherwise than the battery will be; nothing is asked yet."""
    parts = runs.parts_of(finished)
    if "redeval" in parts and battery.prompts:
        compare.check_planned(parts["redeval"], folder / "redeval", redeval_manifest("", model, battery))
    if "bench" in parts and (battery.tasks or battery.refusals):
        compare.check_planned(parts["bench"], folder / "bench", bench_manifest("", model, battery))


def run_redeval(folder: Path, command: str, model: ModelChoice, battery: Battery,
                progress: redeval.Progress | None = None,
                info: dict | None = None) -> tuple[journals.RunJournals, dict]:
    """Run RED-EVAL of the battery into a run directory; its journals, and what its results.json holds."""
    made = redeval_manifest(command, model, battery, info)
    with Run(folder, made, partial(growth.redeval, folder)) as directory:
        found = redeval.run(directory, model, battery.asked, battery.prompts, battery.decoding, battery.seed,
                            None, progress)
        if battery.judge:
            redeval.judge(directory, battery.judge, found, progress)
        summary = results.results(found, battery.judge.name if battery.judge else "none")
        write_json(folder / journals.RESULTS, summary)
    return found, summary


def measures(asr: dict | None, found: dict | None) -> dict[str, dict]:
    """Flat: name → value, ci95, n (labelled), and unlabelled but for categories.

    Names are such as "asr.cou", "asr.cou.corrected" (where people have labelled answers; n counts their
    labels), "over_refusal", "mmlu.acc", "hhh.acc", "hhh.harmless.acc".

    asr    results.json of RED-EVAL
    found  results.json of the benches
    """
    out = {}
    for prompt, r in (asr["prompts"] if asr else {}).items():
        labelled = r["harmful"] + r["unharmful"]
        unlabelled = sum(r[label] for label in LABELS) - labelled
        out[f"asr.{prompt}"] = {"value": r["asr"], "ci95": r["ci95"], "n": labelled, "unlabelled": unlabelled}
        if made := r.get("corrected"):
            corrected = {"value": made["asr"], "ci95": made["ci95"], "n": made["n_labels"]}
            out[f"asr.{prompt}{CORRECTED}"] = corrected
    found = found or {"results": {}}
    for task, r in found["results"].items():
        unlabelled = r.get("unlabelled", 0)
        n = found["n-samples"][task]["effective"] - unlabelled
        for key, value in r.items():
            name, _, kind = key.partition(",")
            if not kind or name.endswith(("_stderr", "_ci95")):
                continue
            lead, interval = SHORT.get(task, task), f"{name}_ci95,{kind}"
            out[f"{lead}.{name}"] = {"value": value, "ci95": r[interval], "n": n, "unlabelled": unlabelled}
            for category, c in r.get("by_category", {}).items():
                out[f"{lead}.{category}.{name}"] = {"value": c[key], "ci95": c[interval], "n": c["n"]}
    return out


@dataclass(frozen=True)
class Measured:
    """What a battery measured of a model: `measures`, and the results.json of its parts."""
    found: dict[str, dict]
    asr: dict | None
    bench: dict | None

    @property
    def name(self) -> str:
        """The model's."""
        return (self.asr or self.bench or {"model": ""})["model"]

    @property
    def complete(self) -> bool:
        """Whether every part is finished."""
        return all(part["complete"] for part in (self.asr, self.bench) if part)


def measured(asr: dict | None, bench: dict | None) -> Measured:
    """What was measured. asr, bench: see `measures`."""
    return Measured(measures(asr, bench), asr, bench)


def summary(ours: Measured, theirs: Measured | None, paired: dict | None, settings: dict) -> dict:
    """What a scorecard's results.json holds, but for its gates.

    theirs    of the baseline
    paired    its differences
    settings  what `report` needs to make the page anew; kept as it is
    """
    few = [f"{side.name}: {said}" for side in (ours, theirs)
           if side and side.asr and (said := results.too_few(side.asr))]
    return {"model": ours.name, "baseline": theirs and theirs.name, **settings, "measures": ours.found,
            "baseline_measures": theirs and theirs.found, "paired": paired,
            "truncated": (ours.bench or {}).get("truncated", {}), "too_few": " ".join(few),
            "judges": {"harm": (ours.asr or {}).get("judge"), "refusal": (ours.bench or {}).get("judge")}}


def known_measures(battery: Battery) -> list[str]:
    """The names that `measures` will have once the battery has run."""
    nothing = {"asr": None, "ci95": None, **dict.fromkeys(LABELS, 0),
               "corrected": {"asr": None, "ci95": None, "n_labels": 0}}
    asr = {"prompts": {prompt.name: nothing for prompt in battery.prompts}}
    with tempfile.TemporaryDirectory() as empty:
        return list(measures(asr, bench_results.results(Path(empty), [*battery.tasks, *battery.refusals])))


def paired_differences(folder: Path, baseline: Path, seed: int, alike: bool = True) -> dict[str, dict]:
    """`compare.compare` of a scorecard and its baseline, under the names of `measures`.

    alike  both were made by one command, so that only the models' own chat formats may differ; otherwise
           what else differs is refused
    """
    found: dict[str, dict] = {}
    ours, theirs = runs.parts_of(folder), runs.parts_of(baseline)
    for part in ours:
        if part in theirs:
            sides = compare.read(theirs[part]), compare.read(ours[part])
            if not alike:
                compare.check_alike(*sides)
            found |= compare.compare(*sides, seed, anyway=True)
    renamed = {}
    for name, r in found.items():
        first, _, rest = name.partition(".")
        renamed[f"{SHORT.get(first, first)}.{rest}"] = r
    return renamed


def table(name: str, found: dict[str, dict], baseline: dict[str, dict] | None = None,
          paired: dict[str, dict] | None = None, names: list[str] | None = None) -> list[list[str]]:
    """Rows: measure, value, interval, n, and beside a baseline its value and the difference with its
    interval.

    names  the measures shown; None: those of the summary
    """
    rows = [["measure", name, "95% interval", "n"]]
    if baseline:
        rows[0] += ["baseline", "difference", "95% interval"]
    for measure in main_names(found) if names is None else names:
        r = found[measure]
        low, high = r["ci95"]
        row = [measure, percent(r["value"]), f"{100 * low:.1f}–{100 * high:.1f}%", str(r["n"])]
        if baseline:
            row.append(percent(baseline.get(measure, {}).get("value")))
            row += _difference((paired or {}).get(measure, {}))
        rows.append(row)
    return rows


def _difference(pair: dict) -> list[str]:
    """The difference and its interval, over the examples that have a label in both runs."""
    difference, span = pair.get("difference"), pair.get("ci95")
    return ["–" if difference is None else points(difference),
            f"{points(span[0])} to {points(span[1])}" if span else "–"]
