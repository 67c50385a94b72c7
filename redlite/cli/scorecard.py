"""bin/redeval scorecard: the paper's whole evaluation of a model, beside a baseline's."""
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from redlite import __version__
from redlite.bench import SUITES
from redlite.cli import bench, network
from redlite.cli.options import Parser, add_common_options, flag, output_options, whole
from redlite.cli.progress import Progress, note
from redlite.errors import Error
from redlite.net.names import is_api

if TYPE_CHECKING:
    from redlite.redteam.answerers import ModelChoice
    from redlite.redteam.api import Network
    from redlite.redteam.scorecard import Battery, Measured
    from redlite.store.run_directory import Run


def describe(prog: str) -> Parser:
    """The options of `redeval scorecard`."""
    parser = Parser(prog=prog, description=(
        "The whole evaluation of the paper in one run directory and one page: RED-EVAL under three prompts, "
        "over-refusal (XSTest), HHH,\nTruthfulQA, MMLU and BBH, each with its interval and, with --baseline, "
        "its difference. Benches whose folder --data lacks are left\nout, and said so."))
    bench.add_model_options(parser, needed=False).add_argument(
        "--baseline", metavar="M0",
        help="a model to run the same on, below baseline/ of the run directory; or a finished run directory "
             "(scorecard, run or bench) that was made alike. A scorecard that has none can be given one")
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
    output_options(parser).add_argument(
        "--output-dir", metavar="DIR", help="the run directory (default: one under ./runs)")
    bench.add_gate_options(
        parser, "such as asr.cou<=0.1, asr.cou.corrected<=0.1 (by labels of people: redeval label "
        "RUN/redeval) or mmlu.acc>=baseline-0.02; exit code 100 if one fails")
    network.add_api_options(parser)
    add_common_options(
        parser,
        "manifest.json, results.json and report.html; the parts in redeval/ and bench/, and the "
        "baseline's in baseline/, as redeval run and redeval bench write them.")
    return parser


def run(args: Namespace, command: str) -> int:
    """The body of `redeval scorecard`."""
    from redlite.cli import scorecard_files
    suites = _suites(args)
    if missing := [s for s in SUITES if s not in suites]:
        note("redeval: left out, since --data does not hold them or --tasks does not name them: "
             + ", ".join(missing))
    from redlite.bench import task as bench_task
    gates = bench.gates_of(args)
    if any(spec and is_api(spec) for spec in (args.model, args.baseline)):
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
    finished = _finished(args.baseline, output)
    if args.dry_run:
        return bench.show_plan(args, output, model, battery)
    baseline = None
    if args.baseline and not finished:
        baseline = network.model(args, reach, args.baseline)
    summary, complete = _measure(args, command, output, battery, model, baseline, finished)
    return scorecard_files.finish(args, output, summary, complete)


def _finished(baseline: str | None, output: Path) -> Path | None:
    """The directory of a finished run that --baseline names; None where it names a model, or nothing."""
    if not baseline or not (Path(baseline) / "manifest.json").is_file():
        return None
    from redlite.redteam import compare, runs
    folder = Path(baseline)
    if folder.resolve() == output.resolve():
        raise Error(f"--baseline {baseline}: is this run itself; name another")
    for part in runs.parts_of(folder).values():
        if left := compare.read(part).unfinished:
            raise Error(f"--baseline {baseline}: {part} lacks results of {bench.counted(left)}; "
                        "finish it first, with its own command")
    return folder


def _suites(args: Namespace) -> list[str]:
    if args.tasks:
        return bench.suites_of(args.tasks)
    if not args.data:
        return []
    return [suite for suite in SUITES if any((Path(args.data) / suite).glob("*"))]


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
             baseline: "ModelChoice | None", finished: Path | None) -> tuple[dict, bool]:
    """Run the battery on both models and write results.json and report.html.

    finished  a finished run in the baseline's place
    Returns what results.json holds, and whether all of it is there.
    """
    from redlite.cli import scorecard_files
    from redlite.inference import unfinished
    from redlite.redteam import runs, scorecard
    from redlite.store.run_directory import Run
    if finished:
        scorecard.check_baseline(finished, output, model, battery)
    progress, info = Progress(args.quiet), bench.information(args)
    made = {"command": command, "kind": "scorecard", "model": model.identity, "info": info}
    # The baseline is guarded by its own manifests, below baseline/, so that it may come later.
    with Run(output, made) as directory:
        def measured(folder: Path, choice: "ModelChoice") -> scorecard.Measured:
            return _run_battery(folder, command, choice, battery, directory, progress, info)
        ours = measured(output, model)
        theirs, against = None, None
        if baseline:
            theirs, against = measured(output / "baseline", baseline), output / "baseline"
        elif finished:
            theirs, against = scorecard.measured(*runs.counted(runs.parts_of(finished))), finished
        unfinished.end(directory)
        paired = None
        if theirs and against:
            differences = scorecard.paired_differences(output, against, args.seed, alike=not finished)
            paired = {name: r for name, r in differences.items() if name in ours.found}  # without topics
        summary = scorecard.summary(ours, theirs, paired, {
            "protocol": args.protocol, "quick": args.quick, "seed": args.seed,
            "baseline_run": finished and str(finished), "gate_by": args.gate_by,
            "max_unlabelled": args.max_unlabelled, "how": _how(args, battery, directory.manifest)})
        summary = scorecard_files.write(output, summary, args.gate)
    return summary, ours.complete and (theirs is None or theirs.complete)


def _run_battery(folder: Path, command: str, model: "ModelChoice", battery: "Battery", directory: "Run",
                 progress: Progress, info: dict) -> "Measured":
    """The whole battery, with RED-EVAL's own page; what it measured.

    directory  the scorecard's run, which keeps what a judge behind an API is paid for
    """
    from redlite.cli.results_files import write_bench_page, write_page
    from redlite.redteam import scorecard
    from redlite.redteam.answerers import once_loaded
    model, battery = once_loaded(model, directory), scorecard.kept_in(battery, directory)
    asr, found = None, None
    if battery.prompts:
        journals, asr = scorecard.run_redeval(folder / "redeval", command, model, battery, progress, info)
        write_page(journals, asr)
    if battery.tasks or battery.refusals:
        found = scorecard.run_bench(folder / "bench", command, model, battery, progress, info)
        write_bench_page(folder / "bench", found)
    return scorecard.measured(asr, found)


def _how(args: Namespace, battery: "Battery", made: dict) -> "list[tuple[str, object]]":
    """Rows of the page's last table, which stay when judges change. made: the scorecard's manifest."""
    from redlite.redteam.scorecard import QUICK_SEED
    from redlite.report import html
    rows = html.run_facts({**made, "version": __version__, "seed": args.seed})
    rows += html.model_facts(made["model"])
    if args.baseline:
        rows.append(("baseline", args.baseline))
    extent = f"quick: fixed subsets, sampled with seed {QUICK_SEED}" if args.quick else "everything"
    asked = f"{len(battery.asked)} of {len(battery.questions)}"
    if battery.question_path:
        asked += f" of {battery.question_path.stem}"
    return [*rows, ("extent", extent), ("questions", asked), ("protocol", args.protocol),
            ("chat format", "yes" if args.apply_chat_template else "no")]
