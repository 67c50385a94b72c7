"""bin/redeval: red-team a model and count what gets through."""
import json
import platform
import re
import sys
import time
from collections import Counter
from pathlib import Path

from redlite.cli import bench, network
from redlite.cli.options import Parser, add_common_options, add_machine_options, flag, whole
from redlite.cli.program import DONE, FAILED, dispatch, guarded
from redlite.cli.progress import Progress, note
from redlite.errors import Error
from redlite.store.text import clock

PROGRAM = "redeval"
DEFAULT_JUDGE = "rules"
EMBEDDED = "organism"


def main(arguments: list[str] | None = None) -> int:
    """The program. Without a command's name it runs `run`."""
    # A command is imported only after its options are parsed, so nothing up to `command(...)` has brought in torch or
    # requests: what must be in place before them goes here.
    return guarded(PROGRAM, lambda given: dispatch(PROGRAM, COMMANDS, "run", given), arguments)


# run

def _describe_run(prog: str) -> Parser:
    parser = Parser(prog=prog, description=(
        "RED-EVAL (arXiv 2308.09662): asks a model every question under every prompt, judges the answers, and reports the\n"
        "attack success rate, ASR = harmful / (harmful + unharmful). Without options it runs the embedded model organism on\n"
        "its own questions, offline. The same command again goes on where it stopped."),
        epilog="Commands: run (may be left out), judge, report, agreement, bench, compare, scorecard; each has --help.\n\n" + _judge_help())
    ask = parser.add_argument_group("what is asked")
    ask.add_argument("--model", default=EMBEDDED, help="a Hugging Face directory, a .gguf file, openai:NAME, or organism, the embedded model (default)")
    ask.add_argument("--template", help="the chat format, where the model's own files do not say it")
    ask.add_argument("--questions", help="a set's name (dangerousqa, harmfulqa, …: looked for under --data; sample and organism are embedded) or a "
                     ".json, .jsonl, .csv or .txt file; --dry-run says where it lies and its topics")
    ask.add_argument("--data", metavar="DIR", help="where question sets lie")
    ask.add_argument("--limit", type=whole(1), metavar="N", help="the first N questions only")
    ask.add_argument("--prompt", nargs="+", default=["standard", "cot", "cou"], metavar="P",
                     help="standard, cot, cou, or text files with a <question> placeholder (default: all three)")
    ask.add_argument("--system", metavar="TEXT", help="a system message before every prompt; none by default")
    draw = parser.add_argument_group("how answers are made")
    draw.add_argument("--max-new-tokens", type=whole(1), default=500, metavar="N", help="longest answer (default: %(default)s, the paper's)")
    draw.add_argument("--samples", type=whole(1), default=1, metavar="N", help="answers to each prompt; more than one needs a temperature")
    draw.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    draw.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling (default: 1, off)")
    draw.add_argument("--seed", type=whole(0), default=0, help="of sampling (default: 0)")
    draw.add_argument("--quantize", choices=("int8", "int4"), help="quantise the weights of a local model")
    draw.add_argument("--batch-size", type=whole(1), metavar="N", help="answers made together; the results do not depend on it")
    add_machine_options(draw)
    _add_judge_options(parser)
    network.add_api_options(parser)
    parser.add_argument("--output-dir", metavar="DIR", help="the run directory (default: one under ./runs named after model, questions and settings)")
    flag(parser, "compare-published", "print the paper's table below the results")
    add_common_options(parser)
    return parser


def _add_judge_options(parser) -> None:
    group = parser.add_argument_group("who judges")
    group.add_argument("--judge", default=DEFAULT_JUDGE, metavar="J", help="rules (default), none, openai:NAME, or a judge model's path with --judge-format")
    group.add_argument("--judge-format", choices=("llama-guard", "harmbench", "gpt4"), help="what a local judge model expects to read and say")
    group.add_argument("--judge-prompt", metavar="FILE", help="a judge's prompt of your own, with <question> and <answer>")


def _judge_help() -> str:
    from redlite.judges.agreement import known_agreement
    lines = [f"  {d['name']}: {100 * d['agreement']:.1f}% of {d['n']}, kappa {d['kappa']:.2f} ({d['note']})" for d in known_agreement()["data"]]
    return "The rules judge agrees with people (XSTest, refusal or not, a partial refusal being a refusal) on\n" + "\n".join(lines) + \
        "\nMeasure it on your own labelled answers with `redeval agreement FILE`."


def _run(args, command: str) -> int:
    reach = network.network(args, args.model, args.judge)
    if args.questions is None:
        if args.model != EMBEDDED:
            raise Error("--questions is missing: name a set under --data or a file ('sample' is a mild embedded set to try things out with)")
        args.questions = EMBEDDED
    from redlite.redteam import answerers, journals, redeval
    from redlite.redteam import questions as redteam_questions
    from redlite.store.run_directory import Run
    path = redteam_questions.find_questions(args.questions, args.data)
    questions = redteam_questions.load_questions(path)
    prompts = [redteam_questions.load_prompt(p) for p in args.prompt]
    if len({p.name for p in prompts}) < len(prompts):
        raise Error(f"--prompt {' '.join(args.prompt)}: two prompts have the same name; rename a file")
    decoding = answerers.Decoding(args.max_new_tokens, args.temperature, args.top_p, args.samples)
    if not args.quiet and args.model == EMBEDDED:
        note(f"{PROGRAM}: offline, with the embedded model organism: a toy that shows how the program works and says nothing about real models")
    model, judge = network.model(args, reach, args.model), network.judge(args, reach)
    manifest = redeval.manifest(
        command=command, seed=args.seed, model=model, question_path=path, questions=questions, limit=args.limit,
        prompts=prompts, judge=judge, decoding=decoding, system=args.system, info=_information(args))
    asked = questions[:args.limit]
    output = Path(args.output_dir or _default_directory(manifest))
    if args.dry_run:
        done = len(journals.read_journals(output).answers)
        plan = redeval.plan(model, asked, prompts, decoding, args.system, done)
        return _show_plan(args, plan, output, path, questions, asked)
    progress = Progress(args.quiet)
    with Run(output, manifest) as directory:
        found = redeval.run(directory, model, asked, prompts, decoding, args.seed, args.system, progress)
        if judge:
            redeval.judge(directory, judge, found, progress)
        return _finish(args, found, judge.name if judge else "none", args.compare_published)


def _information(args) -> dict:
    """What a reader of the manifest may want to know and a later run may change."""
    import torch

    from redlite import kernels
    device = args.device.partition(":")[0]
    return {"kernels": {op: kernels.implementation(op, device) for op in kernels.MODULES}, "batch_size": args.batch_size, "torch": torch.__version__,
            "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"), "python": platform.python_version(), "machine": platform.machine()}


def _default_directory(manifest: dict) -> str:
    """A name that stays the same for the same run and is another for any other."""
    from redlite.store.files import sha256_json
    from redlite.store.run_directory import INFORMATION
    digest = sha256_json({k: v for k, v in manifest.items() if k not in INFORMATION})[:8]
    return f"runs/redeval-{manifest['model']['name']}-{manifest['questions']['name']}-{digest}"


def _show_plan(args, plan: dict, output: Path, path: Path, questions: list, asked: list) -> int:
    from redlite.redteam.questions import set_name
    topics = Counter(q.topic for q in asked if q.topic)
    print(f"{len(asked)} of {len(questions)} questions of {set_name(path)}, to be read in {path}" + "".join(f"\n  {topic}: {count}" for topic, count in topics.items()))
    plan = {**plan, "questions": {"file": str(path), "n": len(asked), "of": len(questions), "topics": topics}}
    time = "unknown" if plan["seconds_at_most"] is None else f"{clock(plan['seconds_at_most'])} at most, roughly, one answer at a time; batches take less"
    print(f"{plan['requests']} answers ({plan['already_done']} already done) into {output}\n"
          f"{plan['prompt_tokens']} prompt tokens, at most {plan['new_tokens_at_most']} new tokens\n"
          f"time: {time}\ncost: {plan['cost_at_most']:g}" + (" (this machine)" if plan["cost_at_most"] == 0 else ""))
    if args.json:
        print(json.dumps({**plan, "output_dir": str(output)}))
    return DONE


def _finish(args, journals, judge_name: str, compare: bool = False) -> int:
    """Write results.json and report.html, show the table, and say whether all is there."""
    from redlite.cli.results_files import write_results
    from redlite.redteam import results
    from redlite.report import html
    summary = write_results(journals, judge_name)
    print(results.table(summary, compare))
    print(f"Report: {journals.folder / html.PAGE}", file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps({**summary, "output_dir": str(journals.folder)}, ensure_ascii=False))
    return DONE if summary["complete"] else FAILED


# judge, report, agreement

def _describe_judge(prog: str) -> Parser:
    parser = Parser(prog=prog, description="Judges a run's answers with another judge. Each judge's labels are kept; results.json and report.html\n"
                           "become this judge's.", epilog=_judge_help())
    parser.add_argument("run", metavar="RUN", help="a run directory")
    _add_judge_options(parser)
    network.add_api_options(parser)
    add_machine_options(parser)
    add_common_options(parser)
    return parser


def _charge(reach) -> str:
    return "cost 0 (this machine)" if reach is None else "cost: what the endpoint charges; --max-cost, --max-requests and --max-tokens-total bound it"


def _judge(args, command: str) -> int:
    reach = network.network(args, args.judge)
    from redlite.redteam import journals, redeval
    from redlite.store.run_directory import Run
    judge = network.judge(args, reach)
    if judge is None:
        raise Error("--judge none judges nothing; name a judge")
    if args.dry_run:
        found = journals.read_journals(Path(args.run))
        answers, done = found.answers, found.judged_by(judge.name)
        print(f"{len(answers)} answers in {args.run}, {len(done)} of them already judged by {judge.name}; {_charge(reach)}")
        if args.json:
            print(json.dumps({"judge": judge.name, "answers": len(answers), "already_judged": len(done), "output_dir": args.run}))
        return DONE
    with Run(args.run) as directory:
        found = journals.read_journals(directory)
        redeval.judge(directory, judge, found, Progress(args.quiet))
        return _finish(args, found, judge.name)


def _describe_report(prog: str) -> Parser:
    parser = Parser(prog=prog, description="Writes results.json and report.html of a run anew, also while it is still going.")
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--judge", metavar="NAME", help="whose labels, by the name in judgments.jsonl (default: the judge of results.json, else of the run)")
    flag(parser, "compare-published", "print the paper's table below the results")
    add_common_options(parser)
    return parser


def _report(args, command: str) -> int:
    from redlite.redteam import journals
    output = Path(args.run)
    last = args.judge or journals.last_judge(output)
    known = {journals.read_made(output)["judge"]["name"], *journals.read_judges(output)}
    if args.judge is not None and args.judge not in known:
        raise Error(f"--judge {args.judge!r}: has judged nothing in {output}; use {', '.join(sorted(known))}")
    if args.dry_run:
        print(f"would write {journals.RESULTS} and report.html in {output} by the labels of {last}")
        if args.json:
            print(json.dumps({"judge": last, "output_dir": args.run}))
        return DONE
    return _finish(args, journals.read_journals(output), last, args.compare_published)


def _describe_agreement(prog: str) -> Parser:
    parser = Parser(prog=prog, description="Compares a judge with people's labels. A file is CSV with columns prompt, completion, final_label (XSTest's\n"
                           "labelled answers as they are) or question, answer, label (harmful or unharmful).", epilog=_judge_help())
    parser.add_argument("files", nargs="+", metavar="FILE", help="labelled answers")
    _add_judge_options(parser)
    network.add_api_options(parser)
    add_machine_options(parser)
    add_common_options(parser)
    return parser


def _agreement(args, command: str) -> int:
    reach = network.network(args, args.judge)
    from redlite.judges import agreement
    from redlite.store.run_directory import Run
    files = {file: agreement.read_labelled(file) for file in args.files}
    choice = network.judge(args, reach)
    if choice is None:
        raise Error("--judge none judges nothing; name a judge")
    if args.dry_run:
        print(f"would judge {sum(map(len, files.values()))} answers with {choice.name}; {_charge(reach)}")
        if args.json:
            print(json.dumps({"judge": choice.name, "files": {file: len(rows) for file, rows in files.items()}}))
        return DONE
    if reach is None:
        return _agree(args, choice, files, None)
    # What an endpoint answers is paid for once here as well: its journal lies under ./runs, by the judge's name.
    folder = Path("runs") / f"agreement-{re.sub(r'[^A-Za-z0-9._-]+', '-', choice.name)}"
    with Run(folder, {"command": command, "judge": {"name": choice.name, **choice.identity}}) as directory:
        return _agree(args, choice, files, directory)


def _agree(args, choice, files: dict, directory) -> int:
    from redlite.judges import agreement
    judge, found = choice.load(directory), {}
    for file, rows in files.items():
        r = found[file] = agreement.agreement(judge, rows)
        print(f"{file}: {choice.name} agrees with people on {100 * r['agreement']:.1f}% of {r['n']}, kappa {r['kappa']:.2f}; of the harmful by people "
              f"{r['harmful_as_harmful']} labelled harmful and {r['harmful_as_unharmful']} unharmful, of the unharmful {r['unharmful_as_harmful']} and "
              f"{r['unharmful_as_unharmful']}, {r['unlabelled']} without a label")
    if args.json:
        print(json.dumps({"judge": choice.name, "files": found}))
    return DONE


# A command: its options, and its body, which imports what it needs.
COMMANDS = {
    "run": (_describe_run, _run),
    "judge": (_describe_judge, _judge),
    "report": (_describe_report, _report),
    "agreement": (_describe_agreement, _agreement),
    **bench.COMMANDS,
}

if __name__ == "__main__":
    sys.exit(main())
