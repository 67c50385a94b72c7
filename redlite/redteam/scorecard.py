"""The paper's whole evaluation of a model in one run directory: RED-EVAL, over-refusal, HHH, TruthfulQA, MMLU, BBH.

A battery writes two runs below the directory, redeval/ and bench/, each complete in itself and resumable. A baseline gets the
same battery below baseline/, and every difference is paired by example (compare.py). Gates turn figures into an exit code.
"""
import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from redlite import __version__
from redlite.bench import runner, xstest
from redlite.bench import task as bench_task
from redlite.errors import Error
from redlite.redteam import answerers, compare, journals, redeval, results
from redlite.report import html, redeval_page
from redlite.store.files import write_atomic, write_json
from redlite.store.run_directory import Run
from redlite.store.text import percent

RESULTS = "results.json"
QUICK = {"questions": 20, "hhh": 48, "truthfulqa": 24, "mmlu": 1, "bbh": 1, "xstest": 30}  # examples a task; MMLU and BBH a subject
QUICK_SEED = 20230818
SHORT = {"bigbench_hhh_alignment_multiple_choice": "hhh", "xstest_safe": "xstest", "xstest_unsafe": "xstest"}  # task → its measures' first part


@dataclass(frozen=True)
class Battery:
    """What is asked of a model. tasks: of bench.load; refusals: XSTest's; questions: all of the file."""
    question_path: Path | None
    questions: list
    asked: list
    prompts: list
    decoding: answerers.Decoding
    tasks: list
    refusals: list
    refusal_tokens: int
    protocol: str
    chat: bool
    judge: answerers.Choice | None
    refusal_judge: answerers.Choice | None
    seed: int


def bench_manifest(command: str, model: answerers.Choice, battery: Battery, info: dict | None = None) -> dict:
    """What decides the results of a bench run, in the form that `journal.Run` guards."""
    tasks = {t.name: {"n": len(t.examples), "sha256": t.fingerprint(), "metrics": list(t.metrics), "groups": list(t.groups), "mean": t.mean} for t in (*battery.tasks, *battery.refusals)}
    judge = None if not battery.refusals else {"name": battery.refusal_judge.name, **battery.refusal_judge.identity}
    return {"command": command, "version": __version__, "seed": battery.seed, "model": model.identity, "protocol": battery.protocol, "chat": battery.chat,
            "tasks": tasks, "judge": judge, "refusal_tokens": battery.refusal_tokens if battery.refusals else None, "info": info or {}}


def run_bench(folder: Path, command: str, model: answerers.Choice, battery: Battery, progress=None, info: dict | None = None, reach=None) -> dict:
    """Run the battery's benches into a run directory; what its results.json holds. Under torchrun every rank calls this, and rank 0 counts."""
    rank, world = bench_task.ranks()
    if world > 1:
        import torch.distributed as dist
        if not dist.is_initialized():
            dist.init_process_group("gloo")
    with Run(folder if rank == 0 else folder / f"rank-{rank}", bench_manifest(command, model, battery, info)) as directory:
        if reach:  # an `api.Network` keeps its answers in the run
            reach.run = directory
        runner.run(directory, folder, lambda: model.load().lm, battery.tasks, battery.chat, progress, rank, world)
        if battery.refusals:
            xstest.run(directory, folder, model, battery.refusal_judge, battery.refusals, battery.refusal_tokens, progress, rank, world)
        if world > 1:
            dist.barrier()
        if rank:
            return {}
        found = runner.results(folder, [*battery.tasks, *battery.refusals])
        found = {"version": __version__, "model": model.name, "protocol": battery.protocol, "chat": battery.chat,
                 "judge": battery.refusal_judge.name if battery.refusals else None, **found}
        write_json(folder / RESULTS, found)
    return found


def run_redeval(folder: Path, command: str, model: answerers.Choice, battery: Battery, progress=None, info: dict | None = None) -> dict:
    """Run RED-EVAL of the battery into a run directory, with its page; what its results.json holds."""
    made = redeval.manifest(command, battery.seed, model, battery.question_path, battery.questions, len(battery.asked), battery.prompts,
                            battery.judge, battery.decoding, None, info)
    with Run(folder, made) as directory:
        answers = redeval.run(directory, model, battery.asked, battery.prompts, battery.decoding, battery.seed, None, progress)
        if battery.judge:
            redeval.judge(directory, battery.judge, answers, progress)
        found = results.results(folder, battery.judge.name if battery.judge else "none")
        write_json(folder / journals.RESULTS, found)
        write_atomic(folder / html.PAGE, redeval_page.redeval_page(folder))
    return found


def once_loaded(model: answerers.Choice) -> answerers.Choice:
    """The same choice, its model loaded at most once."""
    return answerers.Choice(**{**vars(model), "load": cache(model.load)})


def run(folder: Path, command: str, model: answerers.Choice, battery: Battery, progress=None, info: dict | None = None) -> dict[str, dict]:
    """The whole battery; its measures (see `measures`)."""
    model = once_loaded(model)
    asr = run_redeval(folder / "redeval", command, model, battery, progress, info) if battery.prompts else None
    found = run_bench(folder / "bench", command, model, battery, progress, info) if battery.tasks or battery.refusals else None
    return measures(asr, found)


def measures(asr: dict | None, found: dict | None) -> dict[str, dict]:
    """Flat: name ("asr.cou", "over_refusal", "mmlu.acc", "hhh.acc", "hhh.harmless.acc", …) → value, ci95, n (labelled), and unlabelled but for categories."""
    out = {}
    for prompt, r in (asr or {"prompts": {}})["prompts"].items():
        out[f"asr.{prompt}"] = {"value": r["asr"], "ci95": r["ci95"], "n": r["harmful"] + r["unharmful"], "unlabelled": r["unparsed"] + r["not_judged"]}
    for task, r in (found or {"results": {}})["results"].items():
        for key, value in r.items():
            name, _, kind = key.partition(",")
            if kind and not name.endswith(("_stderr", "_ci95")):
                lead = SHORT.get(task, task)
                out[f"{lead}.{name}"] = {"value": value, "ci95": r[f"{name}_ci95,{kind}"], "n": found["n-samples"][task]["effective"] - r.get("unlabelled", 0), "unlabelled": r.get("unlabelled", 0)}
                for category, c in r.get("by_category", {}).items():
                    out[f"{lead}.{category}.{name}"] = {"value": c[key], "ci95": c[f"{name}_ci95,{kind}"], "n": c["n"]}
    return out


# Gates

_GATE = re.compile(r"\s*([\w.-]+)\s*(<=|>=|<|>)\s*(?:(baseline)\s*(?:([+-])\s*([0-9.]+(?:e-?\d+)?))?|(-?[0-9.]+(?:e-?\d+)?))\s*", re.ASCII)


@dataclass(frozen=True)
class Gate:
    """A bound on a measure: a number, or the baseline's value plus `bound`."""
    text: str
    measure: str
    sign: str
    relative: bool
    bound: float


def parse_gate(text: str) -> Gate:
    """"asr.cou<=0.1" or "mmlu.acc>=baseline-0.02"; Error if it is neither."""
    match = _GATE.fullmatch(text)
    if not match:
        raise Error(f"--gate {text!r}: write MEASURE<=NUMBER, or MEASURE>=baseline-NUMBER (also <, >), such as asr.cou<=0.1")
    measure, sign, relative, plus, offset, number = match.groups()
    try:
        bound = float(offset or 0) * (-1 if plus == "-" else 1) if relative else float(number)
    except ValueError:
        raise Error(f"--gate {text!r}: {offset or number!r} is no number") from None
    return Gate(text, measure, sign, bool(relative), bound)


def known_measures(battery: Battery) -> list[str]:
    """The names that `measures` will have once the battery has run."""
    asr = {"prompts": {p.name: {"asr": None, "ci95": None, "harmful": 0, "unharmful": 0, "unparsed": 0, "not_judged": 0} for p in battery.prompts}}
    with tempfile.TemporaryDirectory() as nothing_yet:
        return list(measures(asr, runner.results(Path(nothing_yet), [*battery.tasks, *battery.refusals])))


def check_names(gates: list[Gate], battery: Battery) -> None:
    """Raises Error for a gate on a measure that the battery will not have: before the work, not after."""
    known = known_measures(battery) if gates else []
    for gate in gates:
        if gate.measure not in known:
            raise Error(f"--gate {gate.text!r}: there is no measure {gate.measure!r}; there are {', '.join(main_names(known))}")


def check_gates(gates: list[Gate], found: dict[str, dict], baseline: dict[str, dict] | None) -> list[dict]:
    """For each gate: text, value, bound, passed. Error for `baseline` without one; no value does not pass. The names are `check_names`'s to check."""
    out = []
    for gate in gates:
        if gate.relative and baseline is None:
            raise Error(f"--gate {gate.text!r}: needs --baseline")
        value, against = found[gate.measure]["value"], (baseline or {}).get(gate.measure, {}).get("value") if gate.relative else 0.0
        bound = None if against is None else against + gate.bound
        passed = value is not None and bound is not None and {"<=": value <= bound, ">=": value >= bound, "<": value < bound, ">": value > bound}[gate.sign]
        out.append({"gate": gate.text, "value": value, "bound": bound, "passed": passed})
    return out


# Showing

READING = ("Better is lower for asr, over_refusal and compliance, higher for acc and exact_match. n counts the examples that have a label.")
PAIRED = ("A difference is this model's value less the baseline's, over the examples that have a label in both; its interval is a bootstrap by question. "
          "An interval without width, such as +0.0 to +0.0, says that all examples changed alike or none did: with few examples that is little evidence.")


def main_names(found) -> list[str]:
    """The measures of the summary: without single subjects, tasks and categories."""
    return [n for n in found if n.count(".") < 2 and not re.match(r"mmlu_(?!stem\.|humanities\.|social_sciences\.|other\.)|bbh_", n)]


def table(name: str, found: dict[str, dict], baseline: dict[str, dict] | None = None, paired: dict[str, dict] | None = None, names: list[str] | None = None) -> list[list[str]]:
    """Rows: measure, value, interval, n, and beside a baseline its value and the difference with its interval."""
    rows = [["measure", name, "95% interval", "n"] + (["baseline", "difference", "95% interval"] if baseline else [])]
    for measure in names or main_names(found):
        r = found[measure]
        row = [measure, percent(r["value"]), f"{100 * r['ci95'][0]:.1f}–{100 * r['ci95'][1]:.1f}%", str(r["n"])]
        if baseline:
            there, pair = baseline.get(measure, {}).get("value"), (paired or {}).get(measure, {})
            difference, span = pair.get("difference"), pair.get("ci95")  # of the examples that have a label in both
            row += [percent(there), "–" if difference is None else f"{100 * difference:+.1f}", "–" if not span else f"{100 * span[0]:+.1f} to {100 * span[1]:+.1f}"]
        rows.append(row)
    return rows


def page(model: str, found: dict, baseline_name: str | None, baseline: dict | None, paired: dict | None, gates: list[dict], how: list[tuple[str, str]]) -> str:
    """The scorecard as one HTML file."""
    names = main_names(found)
    bars = [{"label": n, "colour": i % html.COLOURS, "value": found[n]["value"], "ci": found[n]["ci95"], "bounds": [0, 0], "mark": (baseline or {}).get(n, {}).get("value"),
             "remark": f"{percent(found[n]['value'])} of {found[n]['n']}"} for i, n in enumerate(names)]
    head, *rows = table(model, found, baseline, paired)
    body = html.section("Summary", html.interval_chart("All measures", bars, 720) + html.grid(head, rows) + f"<p>{READING}</p>\n" + (f"<p>{PAIRED}</p>\n" if baseline else ""))
    if gates:
        body += html.section("Gates", html.grid(["gate", "value", "bound", "result"], [
            [g["gate"], percent(g["value"]), percent(g["bound"]), "passed" if g["passed"] else "FAILED"] for g in gates]))
    details = [n for n in found if n not in names]
    if details:
        head, *rows = table(model, found, baseline, paired, details)
        body += html.section("By category, subject and task", html.grid(head, rows))
    body += html.section("How it was run", html.grid(["what", "value"], [list(row) for row in how], left=2))
    lead = "Attack success rate, over-refusal and utility" + (f", beside {baseline_name}: diamonds mark the baseline, differences are paired by example" if baseline else "")
    return html.document(f"Scorecard of {model}", lead, body, None)


def paired_differences(folder: Path, baseline: Path, seed: int) -> dict[str, dict]:
    """compare.compare of a scorecard and its baseline, under the names of `measures`."""
    found = {}
    for part in ("redeval", "bench"):
        if (folder / part / "manifest.json").exists():
            found |= compare.compare(baseline / part, folder / part, seed)
    return {".".join((SHORT.get(first, first), *rest)): r for (first, *rest), r in ((name.split("."), r) for name, r in found.items())}
