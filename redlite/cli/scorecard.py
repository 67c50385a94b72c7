"""bin/redeval scorecard: the paper's whole evaluation of a model, beside a baseline's."""
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from redlite.cli import bench, network
from redlite.cli.options import Parser, add_common_options, flag, whole
from redlite.cli.progress import Progress, note
from redlite.errors import Error

if TYPE_CHECKING:
    from redlite.redteam.answerers import ModelChoice
    from redlite.redteam.api import Network
    from redlite.redteam.scorecard import Battery
    from redlite.store.run_directory import Run


def describe(prog: str) -> Parser:
    """The options of `redeval scorecard`."""
    parser = Parser(prog=prog, description=(
        "The whole evaluation of the paper in one run directory and one page: RED-EVAL under three prompts, "
        "over-refusal (XSTest), HHH,\nTruthfulQA, MMLU and BBH, each with its interval and, with --baseline, "
        "its difference. Benches whose folder --data lacks are left\nout, and said so."))
    bench.add_model_options(parser, needed=False)
    parser.add_argument("--baseline", metavar="M0",
                        help="a model to run the same on, below baseline/ of the run directory; "
                             "a run that has none can be given one")
    what = parser.add_argument_group("what is asked")
    what.add_argument("--questions",
                      help="as for redeval run (default: dangerousqa under --data, else the embedded "
                           "model's own)")
    what.add_argument("--prompt", nargs="+", default=["standard", "cot", "cou"], metavar="P",
                      help="as for redeval run")
    what.add_argument("--max-new-tokens", type=whole(1), metavar="N",
                      help="longest RED-EVAL answer (default: 500; 64 with --quick)")
    what.add_argument("--tasks", metavar="T,…",
                      help="of hhh, truthfulqa, mmlu, bbh, xstest (default: all whose folders are there)")
    bench.add_task_options(what)
    flag(what, "quick", "fixed, seeded subsets of everything")
    parser.add_argument("--output-dir", metavar="DIR", help="the run directory (default: one under ./runs)")
    bench.add_gate_options(
        parser, "such as asr.cou<=0.1, asr.cou.corrected<=0.1 (by labels of people: redeval label "
        "RUN/redeval) or mmlu.acc>=baseline-0.02; exit code 100 if one fails")
    network.add_api_options(parser)
    add_common_options(parser)
    return parser


def run(args: Namespace, command: str) -> int:
    """The body of `redeval scorecard`."""
    suites = _suites(args)
    if missing := [s for s in bench.SUITES if s not in suites]:
        note("redeval: left out, since --data does not hold them or --tasks does not name them: "
             + ", ".join(missing))
    from redlite.bench import task as bench_task
    gates = bench.gates_of(args)
    if any(spec and spec.startswith(network.PREFIX) for spec in (args.model, args.baseline)):
        raise Error("scorecard: needs models on this machine; "
                    "an API gives no log-probabilities of given answers")
    reach = network.network(args, args.judge)
    if any(g.relative for g in gates) and not args.baseline:
        raise Error("--gate … baseline …: needs --baseline")
    if bench_task.ranks()[1] > 1:
        raise Error("scorecard runs in one process; use bench under torchrun")
    battery = _battery(args, reach, suites)
    model = network.model(args, reach, args.model, adapter=args.adapter)
    quick = "-quick" if args.quick else ""
    output = Path(args.output_dir or f"runs/scorecard-{bench.slug(model.name)}{quick}")
    bench.check_names(gates, battery)
    if args.dry_run:
        return bench.show_plan(args, output, model, battery)
    baseline = network.model(args, reach, args.baseline) if args.baseline else None
    summary, complete = _measure(args, command, output, battery, model, baseline)
    found, baseline_found, paired = (summary[name] for name in ("measures", "baseline_measures", "paired"))
    code = bench.show(args, output, model.name, found, complete, gates, summary, baseline_found, paired)
    print(f"Report: {output / 'report.html'}", file=sys.stderr if args.json else sys.stdout)
    return code


def _suites(args: Namespace) -> list[str]:
    if args.tasks:
        return bench.suites_of(args.tasks)
    if not args.data:
        return []
    return [suite for suite in bench.SUITES if any((Path(args.data) / suite).glob("*"))]


def _battery(args: Namespace, reach: "Network | None", suites: list[str]) -> "Battery":
    from redlite.redteam import answerers, questions, scorecard
    named = args.questions
    if named is None and args.data and (Path(args.data) / "red_eval").is_dir():
        named = "dangerousqa"
    if named is None and args.model == "organism":
        named = "organism"
    if named is None:
        raise Error("--questions is missing: name a set under --data or a file")
    path = questions.find_questions(named, args.data)
    known = questions.load_questions(path)
    asked = known[:scorecard.QUICK["questions"]] if args.quick else known
    longest = 64 if args.quick else 500
    return bench.battery_of(
        args, reach, suites, args.quick, question_path=path, questions=known, asked=asked,
        prompts=[questions.load_prompt(prompt) for prompt in args.prompt],
        decoding=answerers.Decoding(args.max_new_tokens or longest))


def _measure(args: Namespace, command: str, output: Path, battery: "Battery", model: "ModelChoice",
             baseline: "ModelChoice | None") -> tuple[dict, bool]:
    """Run the battery on both models and write results.json and report.html.

    Returns what results.json holds, and whether all of it is there.
    """
    from redlite.redteam import scorecard
    from redlite.store.files import write_json
    from redlite.store.run_directory import Run
    progress, info = Progress(args.quiet), bench.information(args)
    made = {"command": command, "kind": "scorecard", "model": model.identity, "info": info}
    # The baseline is guarded by its own manifests, below baseline/, so that it may come later.
    with Run(output, made) as directory:
        def measured(folder: Path, choice: "ModelChoice") -> tuple[dict[str, dict], list[dict]]:
            return _run_battery(folder, command, choice, battery, directory, progress, info)
        found, parts = measured(output, model)
        baseline_found, paired = None, None
        truncated = parts[0].get("truncated", {})
        if baseline:
            baseline_found, more = measured(output / "baseline", baseline)
            differences = scorecard.paired_differences(output, output / "baseline", args.seed)
            paired = {name: r for name, r in differences.items() if name in found}  # without topics
            parts += more
        summary = {"model": model.name, "baseline": baseline and baseline.name, "protocol": args.protocol,
                   "quick": args.quick, "measures": found, "baseline_measures": baseline_found,
                   "paired": paired, "truncated": truncated, "too_few": _too_few(parts)}
        write_json(output / scorecard.RESULTS, summary)
        _write_page(args, command, output, battery, summary)
    return summary, all(part["complete"] for part in parts)


def _too_few(parts: list[dict]) -> str:
    """What the results of RED-EVAL among `parts` say of too few labels; "" if nothing."""
    from redlite.redteam.results import too_few
    notes = [f"{part['model']}: {few}" for part in parts if "prompts" in part and (few := too_few(part))]
    return " ".join(notes)


def _run_battery(folder: Path, command: str, model: "ModelChoice", battery: "Battery", directory: "Run",
                 progress: Progress, info: dict) -> tuple[dict[str, dict], list[dict]]:
    """The whole battery, with RED-EVAL's own page; its measures, and the results of its parts, the benches
    first.

    directory  the scorecard's run, which keeps what a judge behind an API is paid for
    """
    from redlite.cli.results_files import write_page
    from redlite.redteam import scorecard
    from redlite.redteam.answerers import once_loaded
    model, battery = once_loaded(model, directory), scorecard.kept_in(battery, directory)
    asr, found = None, None
    if battery.prompts:
        journals, asr = scorecard.run_redeval(folder / "redeval", command, model, battery, progress, info)
        write_page(journals, asr)
    if battery.tasks or battery.refusals:
        found = scorecard.run_bench(folder / "bench", command, model, battery, progress, info)
    return scorecard.measures(asr, found), [part for part in (found, asr) if part]


def _write_page(args: Namespace, command: str, output: Path, battery: "Battery", summary: dict) -> None:
    from redlite.redteam import scorecard
    from redlite.redteam.gates import check_gates, main_names
    from redlite.report import html
    from redlite.report.scorecard_page import scorecard_page
    from redlite.store.files import write_atomic
    found, baseline, name = summary["measures"], summary["baseline_measures"], summary["model"]
    main = main_names(found)
    details = [measure for measure in found if measure not in main]
    shown, below = (scorecard.table(name, found, baseline, summary["paired"], names)
                    for names in (main, details))
    checked = check_gates(bench.gates_of(args), found, baseline, bench.strictness_of(args), summary["paired"])
    how = _how(args, command, battery, summary)
    page = scorecard_page(name, found, summary["baseline"], baseline, shown, below, checked, how)
    write_atomic(output / html.PAGE, page)


def _how(args: Namespace, command: str, battery: "Battery", summary: dict) -> list[tuple[str, str]]:
    """The rows of the page's last table."""
    from redlite.redteam.scorecard import QUICK_SEED
    rows = [("command", command), ("model", summary["model"])]
    if summary["baseline"]:
        rows.append(("baseline", f"{summary['baseline']} ({args.baseline})"))
    extent = f"quick: fixed subsets, sampled with seed {QUICK_SEED}" if args.quick else "everything"
    asked = f"{len(battery.asked)} of {len(battery.questions)}"
    if battery.question_path:
        asked += f" of {battery.question_path.stem}"
    refusal_judge = battery.refusal_judge.name if battery.refusals and battery.refusal_judge else "none"
    return [*rows, ("extent", extent), ("questions", asked), ("protocol", args.protocol),
            ("chat format", "yes" if args.apply_chat_template else "no"),
            ("judge of harm", battery.judge.name if battery.judge else "none"),
            ("judge of refusal", refusal_judge), ("seed", str(args.seed)),
            ("contexts cut on the left to fit the window", bench.counted(summary["truncated"]) or "none"),
            ("left out, since the judge gave no label", bench.unlabelled_in(summary["measures"]) or "none")]
