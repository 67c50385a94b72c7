"""bin/redeval bench, compare, scorecard: utility and over-refusal beside the attack success rate."""
import json
import re
import sys
from pathlib import Path

from redlite.cli import network
from redlite.cli.options import Parser, add_common_options, add_machine_options, flag, whole
from redlite.cli.program import DONE, FAILED, GATE
from redlite.cli.progress import Progress, note
from redlite.errors import Error

SUITES = ("hhh", "truthfulqa", "mmlu", "bbh", "xstest")


def describe_bench(prog: str) -> Parser:
    parser = Parser(prog=prog, description=(
        "Utility and over-refusal of a model by the rules of lm-evaluation-harness 0.4.13 (lm_eval) or of the paper's own evaluation code (paper).\n"
        "The same command again goes on where it stopped. Under torchrun (python -m redlite.cli.redeval bench …) the ranks share the examples."))
    _add_model(parser, needed=True)
    what = parser.add_argument_group("what is asked")
    what.add_argument("--tasks", default=",".join(SUITES), metavar="T,…", help="of hhh, truthfulqa, mmlu, bbh, xstest (default: all)")
    _add_tasks(what)
    what.add_argument("--limit", type=whole(1), metavar="N", help="the first N examples of every task (a subject of MMLU is a task)")
    parser.add_argument("--output-dir", metavar="DIR", help="the run directory (default: one under ./runs)")
    parser.add_argument("--gate", action="append", default=[], metavar="G", help="a bound such as mmlu.acc>=0.4; exit code 100 if one fails")
    network.add_api_options(parser)
    add_common_options(parser)
    return parser


def _add_model(parser, needed: bool) -> None:
    parser.add_argument("--model", required=needed, default=None if needed else "organism", help="a Hugging Face directory, a .gguf file, or organism, the embedded model")
    parser.add_argument("--template", help="the chat format, where the model's own files do not say it")
    parser.add_argument("--quantize", choices=("int8", "int4"), help="quantise the weights of a local model")
    add_machine_options(parser)
    parser.add_argument("--batch-size", type=whole(1), metavar="N", help="answers made together; the results do not depend on it")


def _add_tasks(group) -> None:
    group.add_argument("--data", metavar="DIR", help="holds the folders hhh, truthfulqa, mmlu, bbh, xstest with the upstream repositories' files")
    group.add_argument("--protocol", choices=("lm_eval", "paper"), default="lm_eval", help="default: %(default)s")
    flag(group, "apply-chat-template", "put every context as a user's message in the model's chat format")
    group.add_argument("--xstest-tokens", type=whole(1), default=128, metavar="N", help="longest answer to an XSTest prompt (default: %(default)s)")
    group.add_argument("--judge", default="rules", metavar="J", help="who decides what refuses: rules (default), or a judge model's path with --judge-format refusal")
    group.add_argument("--judge-format", choices=("llama-guard", "harmbench", "gpt4", "refusal"), help="what a judge model expects to read and say; refusal for XSTest")
    group.add_argument("--judge-prompt", metavar="FILE", help="a judge's prompt of your own, with <question> and <answer>")
    group.add_argument("--seed", type=whole(0), default=0, help="of sampling and of the bootstrap (default: 0)")


def _suites(text: str) -> list[str]:
    names = [n.strip() for n in text.split(",") if n.strip()]
    if not names:
        raise Error(f"--tasks {text!r}: names no task; use {', '.join(SUITES)}")
    for name in names:
        if name not in SUITES:
            raise Error(f"--tasks {text}: {name!r} is not known; use {', '.join(SUITES)}")
    return list(dict.fromkeys(names))


def _battery(args, reach, suites: list[str], quick: bool = False, **red_eval):
    """The battery of the options; without questions there is no RED-EVAL in it."""
    from redlite.bench import runner, xstest
    from redlite.bench import task as bench_task
    from redlite.judges import choice
    from redlite.redteam import answerers, scorecard

    def cut(task, suite):
        if quick:
            return bench_task.subset(task, scorecard.QUICK[suite], scorecard.QUICK_SEED)
        return bench_task.subset(task, args.limit) if getattr(args, "limit", None) else task
    tasks = [cut(t, s) for s in suites if s != "xstest" for t in runner.load(s, args.data, args.protocol)]
    refusals = [cut(t, "xstest") for t in xstest.load(bench_task.folder(args.data, "xstest"))] if "xstest" in suites else []
    judge = network.judge(args, reach)
    refusal_judge = judge
    if refusals and not xstest.can_judge(judge):
        if red_eval.get("prompts"):
            refusal_judge = choice.rules_judge()
            note(f"redeval: {args.judge} judges harm, not refusal; XSTest is judged by the rules")
        else:
            raise Error(f"--judge {args.judge}: XSTest needs a judge of refusals; use rules, or a model with --judge-format refusal")
    defaults = {"question_path": None, "questions": [], "asked": [], "prompts": [], "decoding": answerers.Decoding()}
    return scorecard.Battery(**{**defaults, **red_eval}, tasks=tasks, refusals=refusals, refusal_tokens=args.xstest_tokens, protocol=args.protocol,
                             chat=args.apply_chat_template, judge=judge, refusal_judge=refusal_judge, seed=args.seed)


def bench_command(args, command: str) -> int:
    """The body of `redeval bench`."""
    suites = _suites(args.tasks)
    from redlite.bench import task as bench_task
    from redlite.redteam import scorecard
    gates = _gates(args)
    if any(g.relative for g in gates):
        raise Error("--gate … baseline …: a bench has no baseline; use scorecard --baseline, or a number")
    if args.model.startswith(network.PREFIX) and suites != ["xstest"]:
        raise Error(f"--model {args.model}: an API gives no log-probabilities of given answers; with it only --tasks xstest can be run")
    reach = network.network(args, args.model, args.judge)
    battery, model = _battery(args, reach, suites), network.model(args, reach, args.model)
    output = Path(args.output_dir or f"runs/bench-{_slug(model.name)}-{args.protocol}-{'-'.join(suites)}")
    _check_names(gates, battery)
    if args.dry_run:
        return _plan(args, output, model, battery)
    rank = bench_task.ranks()[0]
    found = scorecard.run_bench(output, command, model, battery, Progress(args.quiet or rank > 0), _information(args))
    if rank:
        return DONE
    code = _show(args, output, model.name, scorecard.measures(None, found), found["complete"], gates, found)
    print(f"Results: {output / scorecard.RESULTS}", file=sys.stderr if args.json else sys.stdout)
    return code


def _show(args, output: Path, name: str, found: dict, complete: bool, gates: list, summary: dict, baseline=None, paired=None) -> int:
    """Print the table and what the gates say; the exit code."""
    from redlite.redteam import gates as redteam_gates
    from redlite.redteam import scorecard
    from redlite.store.text import columns
    print("\n".join(columns(scorecard.table(name, found, baseline, paired))))
    if cuts := _counted(summary["truncated"]):
        print(f"Contexts cut on the left to fit the window: {cuts}")
    if unlabelled := _counted({measure: r.get("unlabelled") for measure, r in found.items()}):
        print(f"Left out, since the judge gave no label: {unlabelled}")
    checked = redteam_gates.check_gates(gates, found, baseline)
    for g in checked:
        print(f"gate {g['gate']}: {'passed' if g['passed'] else 'FAILED'} ({'no value' if g['value'] is None else g['value']} against {g['bound']})")
    if not complete:
        print("Incomplete: run the same command again.")
    if args.json:
        print(json.dumps({**summary, "measures": found, "gates": checked, "output_dir": str(output)}, ensure_ascii=False))
    if not complete:
        return FAILED
    return DONE if all(g["passed"] for g in checked) else GATE


def _gates(args) -> list:
    from redlite.redteam.gates import parse_gate
    return [parse_gate(text) for text in args.gate]


def _check_names(gates: list, battery) -> None:
    from redlite.redteam import scorecard
    from redlite.redteam.gates import check_names
    if gates:
        check_names(gates, scorecard.known_measures(battery))


def _plan(args, output: Path, model, battery) -> int:
    counts = {t.name: len(t.examples) for t in (*battery.tasks, *battery.refusals)}
    answers = len(battery.asked) * len(battery.prompts) * battery.decoding.samples
    print(f"{sum(counts.values())} examples of {len(counts)} tasks" + (f" and {answers} RED-EVAL answers" if answers else "") + f" by {model.name} into {output}; cost 0 (this machine)")
    if args.json:
        print(json.dumps({"examples": counts, "answers": answers, "output_dir": str(output), "cost_at_most": 0}))
    return DONE


def _information(args) -> dict:
    import torch

    from redlite import kernels
    device = args.device.partition(":")[0]
    return {"kernels": {op: kernels.implementation(op, device) for op in kernels.MODULES}, "torch": torch.__version__, "batch_size": args.batch_size}


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


# compare

def describe_compare(prog: str) -> Parser:
    parser = Parser(prog=prog, description=(
        "Compares two runs of the same questions or examples, paired: difference with interval (bootstrap by question), McNemar's test for\n"
        "binary outcomes, wins and losses (of the second run over the first). For RED-EVAL runs, benches and scorecards alike."))
    parser.add_argument("run_a", metavar="RUN_A")
    parser.add_argument("run_b", metavar="RUN_B")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the bootstrap (default: 0)")
    parser.add_argument("--list", type=whole(0), default=10, metavar="N", help="wins and losses named in the table (default: 10; --json holds all)")
    add_common_options(parser)
    return parser


def compare_command(args, command: str) -> int:
    """The body of `redeval compare`."""
    from redlite.redteam import compare
    found = compare.compare(Path(args.run_a), Path(args.run_b), args.seed)
    names = Path(args.run_a).name, Path(args.run_b).name
    print(compare.table(found, names if len(set(names)) > 1 else (args.run_a, args.run_b), args.list))
    unfinished = {run: left for run in (args.run_a, args.run_b) if (left := compare.read(Path(run)).unfinished)}
    for run, left in unfinished.items():
        print(f"Incomplete: {run} lacks results of {_counted(left)}; run its command again. Only what both runs have is compared.")
    if args.json:
        print(json.dumps({"a": args.run_a, "b": args.run_b, "measures": found, "unfinished": unfinished}, ensure_ascii=False))
    return FAILED if unfinished else DONE


# scorecard

def describe_scorecard(prog: str) -> Parser:
    parser = Parser(prog=prog, description=(
        "The whole evaluation of the paper in one run directory and one page: RED-EVAL under three prompts, over-refusal (XSTest), HHH,\n"
        "TruthfulQA, MMLU and BBH, each with its interval and, with --baseline, its difference. Benches whose folder --data lacks are left\n"
        "out, and said so."))
    _add_model(parser, needed=False)
    parser.add_argument("--baseline", metavar="M0", help="a model to run the same on, below baseline/ of the run directory; a run that has none can be given one")
    what = parser.add_argument_group("what is asked")
    what.add_argument("--questions", help="as for redeval run (default: dangerousqa under --data, else the embedded model's own)")
    what.add_argument("--prompt", nargs="+", default=["standard", "cot", "cou"], metavar="P", help="as for redeval run")
    what.add_argument("--max-new-tokens", type=whole(1), metavar="N", help="longest RED-EVAL answer (default: 500; 64 with --quick)")
    what.add_argument("--tasks", metavar="T,…", help="of hhh, truthfulqa, mmlu, bbh, xstest (default: all whose folders are there)")
    _add_tasks(what)
    flag(what, "quick", "fixed, seeded subsets of everything")
    parser.add_argument("--output-dir", metavar="DIR", help="the run directory (default: one under ./runs)")
    parser.add_argument("--gate", action="append", default=[], metavar="G", help="such as asr.cou<=0.1 or mmlu.acc>=baseline-0.02; exit code 100 if one fails")
    network.add_api_options(parser)
    add_common_options(parser)
    return parser


def scorecard_command(args, command: str) -> int:
    """The body of `redeval scorecard`."""
    suites = _suites(args.tasks) if args.tasks else [s for s in SUITES if args.data and any((Path(args.data) / s).glob("*"))]
    if missing := [s for s in SUITES if s not in suites]:
        note(f"redeval: left out, since --data does not hold them or --tasks does not name them: {', '.join(missing)}")
    from redlite.bench import task as bench_task
    from redlite.redteam import answerers, gates, scorecard
    from redlite.redteam import questions as redteam_questions
    from redlite.report import html
    from redlite.report.scorecard_page import scorecard_page
    from redlite.store.files import read_json, write_atomic, write_json
    from redlite.store.run_directory import Run
    bounds = _gates(args)
    if any(spec and spec.startswith(network.PREFIX) for spec in (args.model, args.baseline)):
        raise Error("scorecard: needs models on this machine; an API gives no log-probabilities of given answers")
    reach = network.network(args, args.judge)
    if any(g.relative for g in bounds) and not args.baseline:
        raise Error("--gate … baseline …: needs --baseline")
    if bench_task.ranks()[1] > 1:
        raise Error("scorecard runs in one process; use bench under torchrun")
    named = args.questions or ("dangerousqa" if args.data and (Path(args.data) / "red_eval").is_dir() else "organism" if args.model == "organism" else None)
    if named is None:
        raise Error("--questions is missing: name a set under --data or a file")
    path = redteam_questions.find_questions(named, args.data)
    questions = redteam_questions.load_questions(path)
    asked = questions[:scorecard.QUICK["questions"]] if args.quick else questions
    battery = _battery(args, reach, suites, args.quick, question_path=path, questions=questions, asked=asked, prompts=[redteam_questions.load_prompt(p) for p in args.prompt],
                       decoding=answerers.Decoding(args.max_new_tokens or (64 if args.quick else 500)))
    model = network.model(args, reach, args.model)
    output = Path(args.output_dir or f"runs/scorecard-{_slug(model.name)}{'-quick' if args.quick else ''}")
    _check_names(bounds, battery)
    if args.dry_run:
        return _plan(args, output, model, battery)
    progress, info = Progress(args.quiet), _information(args)
    baseline, paired = None, None
    other = network.model(args, reach, args.baseline) if args.baseline else None
    name = other and other.name
    # The baseline's own manifests, below baseline/, guard it: so one may come later.
    with Run(output, {"command": command, "kind": "scorecard", "model": model.identity, "info": info}) as directory:
        battery = scorecard.kept_in(battery, directory)
        found = _run_battery(output, command, answerers.once_loaded(model, directory), battery, progress, info)
        if other:
            below = output / "baseline"
            baseline = _run_battery(below, command, answerers.once_loaded(other, directory), battery, progress, info)
            paired = scorecard.paired_differences(output, below, args.seed)
        checked = gates.check_gates(bounds, found, baseline)
        parts = [read_json(path) for top in (output, output / "baseline")[:2 if name else 1] for path in sorted(top.glob(f"*/{scorecard.RESULTS}"))]
        summary = {"model": model.name, "baseline": name, "protocol": args.protocol, "quick": args.quick, "measures": found, "baseline_measures": baseline, "paired": paired,
                   "truncated": parts[0].get("truncated", {})}
        write_json(output / scorecard.RESULTS, summary)
        how = _how(args, command, battery, model.name, name, summary["truncated"], found)
        main = gates.main_names(found)
        shown = [scorecard.table(model.name, found, baseline, paired, names)
                 for names in (main, [measure for measure in found if measure not in main])]
        write_atomic(output / html.PAGE, scorecard_page(model.name, found, name, baseline, *shown, checked, how))
    complete = all(part["complete"] for part in parts)
    code = _show(args, output, model.name, found, complete, bounds, summary, baseline, paired)
    print(f"Report: {output / html.PAGE}", file=sys.stderr if args.json else sys.stdout)
    return code


def _run_battery(folder: Path, command: str, model, battery, progress, info: dict) -> dict[str, dict]:
    """The whole battery, with RED-EVAL's own page; its measures (see `scorecard.measures`)."""
    from redlite.cli.results_files import write_page
    from redlite.redteam import scorecard
    asr, found = None, None
    if battery.prompts:
        journals, asr = scorecard.run_redeval(folder / "redeval", command, model, battery, progress, info)
        write_page(journals, asr)
    if battery.tasks or battery.refusals:
        found = scorecard.run_bench(folder / "bench", command, model, battery, progress, info)
    return scorecard.measures(asr, found)


def _how(args, command: str, battery, model: str, baseline: str | None, truncated: dict, found: dict) -> list[tuple[str, str]]:
    """The rows of the page's last table."""
    from redlite.redteam import scorecard
    return [("command", command), ("model", model), *([("baseline", f"{baseline} ({args.baseline})")] if baseline else []),
            ("extent", f"quick: fixed subsets, sampled with seed {scorecard.QUICK_SEED}" if args.quick else "everything"),
            ("questions", f"{len(battery.asked)} of {len(battery.questions)} of {battery.question_path.stem}"), ("protocol", args.protocol),
            ("chat format", "yes" if args.apply_chat_template else "no"), ("judge of harm", battery.judge.name if battery.judge else "none"),
            ("judge of refusal", battery.refusal_judge.name if battery.refusals else "none"), ("seed", str(args.seed)),
            ("contexts cut on the left to fit the window", _counted(truncated) or "none"),
            ("left out, since the judge gave no label", _counted({measure: r.get("unlabelled") for measure, r in found.items()}) or "none")]


def _counted(counts: dict) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items() if n)


COMMANDS = {"bench": (describe_bench, bench_command), "compare": (describe_compare, compare_command), "scorecard": (describe_scorecard, scorecard_command)}
