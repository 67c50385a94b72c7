"""bin/redeval: red-team a model and count what gets through."""
import json
import platform
import re
import sys
import time
from argparse import Namespace
from collections import Counter
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from redlite.cli import attack, bench, compare, inspect, label, network, scorecard, train_judge
from redlite.cli.options import (
    Add,
    Parser,
    add_adapter_option,
    add_batch_options,
    add_common_options,
    add_machine_options,
    add_template_options,
    flag,
    number,
    output_options,
    whole,
)
from redlite.cli.program import DONE, Command, dispatch, guarded
from redlite.cli.progress import Progress, note
from redlite.errors import Error
from redlite.store.text import clock

if TYPE_CHECKING:
    from redlite.judges.choice import JudgeChoice, Panel
    from redlite.redteam.api import Network
    from redlite.redteam.journals import RunJournals
    from redlite.redteam.questions import Prompt, Question
    from redlite.store.run_directory import Run

PROGRAM = "redeval"
DEFAULT_JUDGE, ORGANISM_JUDGE = "linear", "rules"  # the organism's toy answers are made for the rules
EMBEDDED = "organism"
PROMPTS = ("standard", "cot", "cou")
_GATE = "a bound such as asr.cou<=0.1 or asr.cou.corrected<=0.1; exit code 100 if one fails"


def main(arguments: list[str] | None = None) -> int:
    """The program. Without a command's name it runs `run`."""
    # A command imports torch and requests only after its options are parsed, in its own body.
    # What must be in place before they are imported goes here.
    return guarded(PROGRAM, lambda given: dispatch(PROGRAM, COMMANDS, "run", given), arguments)


# run

def _describe_run(prog: str) -> Parser:
    commands = ", ".join(COMMANDS).replace("run", "run (may be left out)", 1)
    epilog = f"Commands: {commands}; each has --help.\n\n{_judge_help()}"
    parser = Parser(prog=prog, epilog=epilog, description=(
        "RED-EVAL (arXiv 2308.09662): asks a model every question under every prompt, judges the answers, "
        "and reports the\nattack success rate, ASR = harmful / (harmful + unharmful). Without options it "
        "runs the embedded model organism on\nits own questions, offline. The same command again goes on "
        "where it stopped."))
    ask = parser.add_argument_group("what is asked")
    ask.add_argument("--model", default=EMBEDDED,
                     help="a Hugging Face directory, a .gguf file, openai:NAME or another API's, organism: "
                          "the embedded model (default)")
    add_template_options(ask)
    add_adapter_option(ask)
    ask.add_argument("--questions",
                     help="a set's name (dangerousqa, harmfulqa, …: looked for under --data; sample and "
                          "organism are embedded) or a .json, .jsonl, .csv, .tsv or .txt file, those of"
                          " HarmBench, StrongREJECT, SORRY-Bench and others as they are; --dry-run says "
                          "where it lies and its topics")
    ask.add_argument("--data", metavar="DIR", help="where question sets lie")
    ask.add_argument("--limit", type=whole(1), metavar="N", help="the first N questions only")
    ask.add_argument("--prompt", nargs="+", default=list(PROMPTS), metavar="P",
                     help="standard, cot, cou, or text files with a <question> placeholder; lines of "
                          "<turn> alone part one into several user's turns (default: all three)")
    attack.add_attack_options(ask)
    ask.add_argument("--conversations", metavar="FILE",
                     help="red conversations to replay (HarmfulQA's schema, or chats), in place of "
                          "--questions")
    ask.add_argument("--system", metavar="TEXT", help="a system message before every prompt; none by default")
    draw = parser.add_argument_group("how answers are made")
    draw.add_argument("--max-new-tokens", type=whole(1), default=500, metavar="N",
                      help="longest answer (default: %(default)s, the paper's)")
    draw.add_argument("--samples", type=whole(1), default=1, metavar="N",
                      help="answers to each prompt; more than one needs a temperature")
    draw.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    draw.add_argument("--top-p", type=float, default=1.0, help="nucleus sampling (default: 1, off)")
    draw.add_argument("--seed", type=whole(0), default=0, help="of sampling (default: 0)")
    add_batch_options(draw)
    add_machine_options(draw)
    _add_judge_options(parser, default=None)
    network.add_api_options(parser, attacks=True)
    output_options(parser).add_argument(
        "--output-dir", metavar="DIR",
        help="the run directory (default: one under ./runs named after model, questions "
             "and settings)")
    flag(output_options(parser), "compare-published", "print the paper's table below the results")
    bench.add_gate_options(parser, _GATE)
    add_common_options(parser)
    return parser


def _add_judge_options(parser: Parser, default: str | None = DEFAULT_JUDGE) -> None:
    from redlite.judges.combine import RULES
    from redlite.judges.formats import FORMATS
    group = parser.add_argument_group("who judges")
    group.add_argument(
        "--judge", action=Add, default=default and [default], metavar="J",
        help=f"{DEFAULT_JUDGE} (default; {ORGANISM_JUDGE} for the organism), rules, none, openai:NAME, "
        "or a judge model's path with --judge-format. Repeat it for several judges: all label")
    group.add_argument("--judge-format", action=Add, metavar="F",
                       help="what a judge model expects to read and say: "
                            f"{', '.join(FORMATS)}; over an API strongreject. One for each judge model, "
                            "in their order")
    group.add_argument(
        "--judge-prompt", metavar="FILE",
        help="a judge's prompt of your own, with <question> and <answer>; of shieldgemma: your policies")
    group.add_argument(
        "--judge-template", metavar="T",
        help="a judge model's chat format, where its own files do not say it; of guards whose prompt "
        "a chat template builds: the template's file")
    group.add_argument("--threshold", type=number(0, 1), metavar="P",
                       help="label harmful from this probability on, and unharmful below")
    group.add_argument("--verdict", choices=RULES,
                       help="of several judges (default: majority); where they differ otherwise: unsure")


def _judge_help() -> str:
    from redlite.judges.agreement import on_harm_in_words
    return (f"{on_harm_in_words(DEFAULT_JUDGE)}\n"
            "Measure a judge on answers that your own people labelled with `redeval agreement FILE`;\n"
            "correct a run's ASR by labels of some of its answers with `redeval label RUN`.")


def _run(args: Namespace, command: str) -> int:
    args.judge = args.judge or [ORGANISM_JUDGE if args.model == EMBEDDED else DEFAULT_JUDGE]
    attack.check(args, args.prompt != list(PROMPTS))
    if args.questions is None and args.attack != "replay":
        if args.model != EMBEDDED:
            raise Error("--questions is missing: name a set under --data or a file "
                        "('sample' is a mild embedded set to try things out with)")
        args.questions = EMBEDDED
    reach = network.network(args, args.model, args.attacker, *args.judge)
    from redlite.redteam import answerers, growth, journals, redeval
    from redlite.store.run_directory import Run
    path, known, prompts = _what_is_asked(args)
    _check_gates_of(args, [p.name for p in prompts] or [args.attack])
    if len({p.name for p in prompts}) < len(prompts):
        raise Error(f"--prompt {' '.join(args.prompt)}: two prompts have the same name; rename a file")
    decoding = answerers.Decoding(args.max_new_tokens, args.temperature, args.top_p, args.samples)
    if not args.quiet and args.model == EMBEDDED:
        note(f"{PROGRAM}: offline, with the embedded model organism: "
             "a toy that shows how the program works and says nothing about real models")
    model, judge = network.model(args, reach, args.model, adapter=args.adapter), network.judges(args, reach)
    model.count([{"role": "user", "content": "x"}])  # without a chat format nothing begins
    method, judge = attack.chosen(args, reach, judge)
    if method:
        prompts = [method.prompt]
    manifest = redeval.manifest(
        command=command, seed=args.seed, model=model, question_path=path, questions=known, limit=args.limit,
        prompts=prompts, judge=judge, decoding=decoding, system=args.system, attack=method,
        info={**_information(args), "chat": model.chat,
              "prompt_texts": {f"{p.name}: what the attacker is told" if method else p.name: [p.text, *p.more]
                               for p in prompts if p.scripts is None}})
    asked = known[:args.limit]
    output = Path(args.output_dir or _default_directory(manifest))
    if args.dry_run:
        done = len(journals.read_journals(output).answers)
        plan = redeval.plan(model, asked, prompts, decoding, args.system, done, method)
        answer = network.longest_answer(args.max_new_tokens)
        pairs = [(q.question, answer) for q in asked for p in prompts
                 for _ in range(method.most if method else len(p.users(q)))] * args.samples
        costs = {"model": plan["cost_at_most"], **network.judging_cost(judge, pairs)}
        if method:
            costs["attacker"] = plan["attacker"]["cost_at_most"]
        plan["price"], plan["cost_at_most"] = network.price(costs)
        return _show_plan(args, {**plan, "chat": model.chat}, output, path, len(known), asked)
    progress = Progress(args.quiet)
    with Run(output, manifest, partial(growth.redeval, output)) as directory:
        found = redeval.run(directory, model, asked, prompts, decoding, args.seed, args.system, progress,
                            method)
        if judge:
            redeval.judge_all(directory, judge, found, progress)
        return _finish(args, found, judge.name if judge else "none", args.compare_published)


def _what_is_asked(args: Namespace) -> "tuple[Path, list[Question], list[Prompt]]":
    """The file of questions, all questions in it, and the prompts; none where an attacker writes them."""
    from redlite.redteam import questions
    if args.attack == "replay":
        path = Path(args.conversations)
        known, replay = questions.load_replay(path)
        return path, known, [replay]
    path = questions.find_questions(args.questions, args.data)
    named = [] if args.attack else args.prompt
    return path, questions.load_questions(path), [questions.load_prompt(p) for p in named]


def _information(args: Namespace) -> dict:
    """What a reader of the manifest may want to know and a later run may change."""
    return {**bench.information(args), "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            "python": platform.python_version(), "machine": platform.machine()}


def _default_directory(manifest: dict) -> str:
    """A name that stays the same for the same run and is another for any other."""
    from redlite.store.files import sha256_json
    from redlite.store.run_directory import INFORMATION
    digest = sha256_json({k: v for k, v in manifest.items() if k not in INFORMATION})[:8]
    return f"runs/redeval-{manifest['model']['name']}-{manifest['questions']['name']}-{digest}"


def _show_plan(args: Namespace, plan: dict, output: Path, path: Path, known: int,
               asked: "list[Question]") -> int:
    from redlite.redteam.questions import set_name
    topics = Counter(q.topic for q in asked if q.topic)
    print(f"{len(asked)} of {known} questions of {set_name(path)}, to be read in {path}")
    for topic, count in topics.items():
        print(f"  {topic}: {count}")
    time = "unknown"
    if plan["seconds_at_most"] is not None:
        time = f"{clock(plan['seconds_at_most'])} at most, roughly, one answer at a time; batches take less"
    print(f"{plan['requests']} answers ({plan['already_done']} already done) into {output}\n"
          f"{plan['prompt_tokens']} prompt tokens, at most {plan['new_tokens_at_most']} new tokens\n"
          f"time: {time}\ncost: {plan['price']}")
    if told := plan.get("attacker"):
        print(f"attacker {told['name']}: at most {told['requests']} messages, {told['prompt_tokens']} prompt "
              f"tokens and {told['new_tokens_at_most']} new tokens")
    if chat := plan["chat"]:
        date = f", which is told that today is {chat['date']}" if chat["date"] else ""
        print(f"chat format: {chat['name']}{date}; a sample, control tokens in ⟦ ⟧:\n{chat['sample']}")
    if args.json:
        questions = {"file": str(path), "n": len(asked), "of": known, "topics": topics}
        print(json.dumps({**plan, "questions": questions, "output_dir": str(output)}))
    return DONE


def _check_gates_of(args: Namespace, prompts: list[str]) -> None:
    """Refuse a gate on what these prompts do not measure, or against a baseline: before the work."""
    from redlite.redteam.gates import CORRECTED, check_names
    gates = bench.gates_of(args)
    if any(gate.relative for gate in gates):
        raise Error("--gate … baseline …: one run has no baseline; use compare A B --gate, or a number")
    names = [f"asr.{prompt}{end}" for prompt in prompts for end in ("", CORRECTED)]
    check_names(gates, names)


def _finish(args: Namespace, journals: "RunJournals", judge_name: str, published: bool = False) -> int:
    """Write results.json and report.html, show the table and the gates, and say whether all is there."""
    from redlite.cli.results_files import write_results
    from redlite.redteam import results
    from redlite.report import html
    if args.gate:
        _check_gates_of(args, list(dict.fromkeys(key.prompt for key in journals.answers)))
    summary = write_results(journals, judge_name, bench.gates_of(args), bench.strictness_of(args))
    print(results.table(summary, published))
    checked = summary.get("gates", [])
    bench.say_gates(checked)
    print(f"Report: {journals.folder / html.PAGE}", file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps({**summary, "output_dir": str(journals.folder)}, ensure_ascii=False))
    return bench.code_of(summary["complete"], checked, results.too_few(summary))


# judge

def _describe_judge(prog: str) -> Parser:
    parser = Parser(prog=prog, epilog=_judge_help(), description=(
        "Judges a run's answers with another judge. Each judge's labels are kept; results.json and "
        "report.html\nbecome this judge's. With --labels, labels of people correct the ASR; "
        "without --judge, that of the last judge."))
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--labels", nargs="+", default=[], metavar="FILE",
                        help="labels of people: what the page of `redeval label` saved, or CSV with id, "
                             "prompt, sample, label (harmful, unharmful, skip)")
    _add_judge_options(parser, default=None)
    network.add_api_options(parser)
    add_machine_options(parser)
    bench.add_gate_options(parser, _GATE)
    add_common_options(parser)
    return parser


def _named_judge(args: Namespace, reach: "Network | None") -> "JudgeChoice | Panel":
    judge = network.judges(args, reach)
    if judge is None:
        raise Error("--judge none judges nothing; name a judge")
    return judge


def _judge(args: Namespace, command: str) -> int:
    from redlite.redteam import runs
    if args.judge == ["none"]:
        raise Error("--judge none judges nothing; name a judge")
    kind = runs.kind_of(args.run)
    if args.labels and args.judge is None:
        return _correct(args) if kind == "redeval" else _judge_parts(args, None)
    args.judge = args.judge or [DEFAULT_JUDGE if kind == "redeval" else ORGANISM_JUDGE]
    reach = network.network(args, *args.judge)
    from redlite.redteam import journals, redeval
    from redlite.store.run_directory import Run
    judge = _named_judge(args, reach)
    if kind != "redeval":
        return _judge_parts(args, judge)
    if args.dry_run:
        found = journals.read_journals(Path(args.run))
        done = found.judged_by(judge.name)
        left = [(r["question"], r["answer"]) for key, r in found.answers.items() if key not in done]
        line, cost = network.price(network.judging_cost(judge, left))
        answers = len(found.answers)
        print(f"{answers} answers in {args.run}, {len(done)} of them already judged by {judge.name}; "
              f"cost {line}")
        if args.json:
            plan = {"judge": judge.name, "answers": answers, "already_judged": len(done),
                    "cost_at_most": cost, "output_dir": args.run}
            print(json.dumps(plan))
        return DONE
    with Run(args.run) as directory:
        found = journals.read_journals(directory)
        redeval.judge_all(directory, judge, found, Progress(args.quiet))
        label.take(directory, args.labels)
        return _finish(args, found, judge.name)


def _judge_parts(args: Namespace, judge: "JudgeChoice | Panel | None") -> int:
    """Judge benches or a scorecard again. judge: None, where only labels are taken."""
    from redlite.cli import rereport
    if args.dry_run:
        by = "" if judge is None else f" by {judge.name}"
        print(f"would judge what {args.run} holds{by} and write its results anew")
        return DONE
    rereport.judge(args, Path(args.run), judge)
    return rereport.report(args, Path(args.run))


def _correct(args: Namespace) -> int:
    """Labels for a run whose last judge stays."""
    from redlite.redteam import journals
    from redlite.store.run_directory import Run
    judge = journals.last_judge(args.run)
    if args.dry_run:
        print(f"would correct the ASR by {judge} in {args.run} by the labels in {', '.join(args.labels)}; "
              "cost 0 (this machine)")
        if args.json:
            print(json.dumps({"judge": judge, "labels": args.labels, "output_dir": args.run}))
        return DONE
    with Run(args.run) as directory:
        label.take(directory, args.labels)
        return _finish(args, journals.read_journals(directory), judge)


# report

def _describe_report(prog: str) -> Parser:
    parser = Parser(prog=prog, description=(
        "Writes results.json and report.html of a run anew, also while it is still going."))
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--judge", metavar="NAME",
                        help="whose labels, by the name in judgments.jsonl "
                             "(default: the judge of results.json, else of the run)")
    flag(output_options(parser), "compare-published", "print the paper's table below the results")
    bench.add_gate_options(parser, f"{_GATE}; of a scorecard in place of its own")
    add_common_options(parser)
    return parser


def _report(args: Namespace, command: str) -> int:
    from redlite.judges import combine
    from redlite.redteam import journals, runs
    output = Path(args.run)
    if (kind := runs.kind_of(output)) != "redeval":
        return _report_parts(args, output, kind)
    last = args.judge or journals.last_judge(output)
    known = {journals.read_made(output)["judge"]["name"], *journals.read_judges(output)}
    asked = combine.judges_of(args.judge or "") or [args.judge]
    if args.judge is not None and args.judge not in known and not known.issuperset(asked):
        raise Error(f"--judge {args.judge!r}: has judged nothing in {output}; use {', '.join(sorted(known))}")
    if args.dry_run:
        print(f"would write {journals.RESULTS} and report.html in {output} by the labels of {last}")
        if args.json:
            print(json.dumps({"judge": last, "output_dir": args.run}))
        return DONE
    return _finish(args, journals.read_journals(output), last, args.compare_published)


def _report_parts(args: Namespace, output: Path, kind: str) -> int:
    from redlite.cli import rereport
    if args.judge is not None:
        raise Error(f"--judge {args.judge}: {output} is a {kind}; have it judged with "
                    f"redeval judge {output} --judge {args.judge}")
    if args.dry_run:
        print(f"would write the results of the {kind} {output} anew")
        return DONE
    return rereport.report(args, output)


# agreement

def _describe_agreement(prog: str) -> Parser:
    parser = Parser(prog=prog, epilog=_judge_help(), description=(
        "Compares a judge with people's labels. A file is CSV with columns prompt, completion, final_label "
        "(XSTest's\nlabelled answers as they are) or question, answer, label (harmful or unharmful)."))
    parser.add_argument("files", nargs="+", metavar="FILE", help="labelled answers")
    _add_judge_options(parser)
    network.add_api_options(parser)
    add_machine_options(parser)
    add_common_options(parser)
    return parser


def _agreement(args: Namespace, command: str) -> int:
    reach = network.network(args, *args.judge)
    from redlite.judges import agreement
    from redlite.store.run_directory import Run
    files = {file: agreement.read_labelled(file) for file in args.files}
    judge = _named_judge(args, reach)
    if args.dry_run:
        pairs = [(question, answer) for rows in files.values() for question, answer, _ in rows]
        line, cost = network.price(network.judging_cost(judge, pairs))
        print(f"would judge {len(pairs)} answers with {judge.name}; cost {line}")
        if args.json:
            counts = {file: len(rows) for file, rows in files.items()}
            print(json.dumps({"judge": judge.name, "files": counts, "cost_at_most": cost}))
        return DONE
    if reach is None:
        return _agree(args, judge, files, None)
    # An endpoint's replies are paid for once here as well: their journal lies under ./runs, by the judge's
    # name.
    folder = Path("runs") / f"agreement-{re.sub(r'[^A-Za-z0-9._-]+', '-', judge.name)}"
    with Run(folder, {"command": command, "judge": {"name": judge.name, **judge.identity}}) as directory:
        return _agree(args, judge, files, directory)


def _agree(args: Namespace, judge: "JudgeChoice | Panel", files: dict[str, list],
           directory: "Run | None") -> int:
    from redlite.judges.choice import members
    found = {choice.name: _agree_one(choice, files, directory) for choice in members(judge)}
    if args.json:
        one = {"judge": judge.name, "files": found.get(judge.name)}
        print(json.dumps(one if judge.name in found else {"judges": found}))
    return DONE


def _agree_one(choice: "JudgeChoice", files: dict[str, list], directory: "Run | None") -> dict[str, dict]:
    from redlite.judges import agreement
    judge, found = choice.load(directory), {}
    for file, rows in files.items():
        r = found[file] = agreement.agreement(judge, rows)
        print(f"{file}: {choice.name} agrees with people on {100 * r['agreement']:.1f}% of {r['n']}, "
              f"kappa {r['kappa']:.2f}; of the harmful by people {r['harmful_as_harmful']} labelled harmful "
              f"and {r['harmful_as_unharmful']} unharmful, of the unharmful {r['unharmful_as_harmful']} and "
              f"{r['unharmful_as_unharmful']}, {r['unlabelled']} without a label")
    return found


def _later(module: str) -> Command:
    """A command whose module is imported when it is called: the help of others need not wait for it."""
    def describe(prog: str) -> Parser:
        return import_module(f"redlite.cli.{module}").describe(prog)

    def body(args: Namespace, command: str) -> int:
        return import_module(f"redlite.cli.{module}").run(args, command)
    return describe, body


# A command: its options, and its body, which imports what it needs.
COMMANDS = {
    "run": (_describe_run, _run),
    "judge": (_describe_judge, _judge),
    "report": (_describe_report, _report),
    "label": (label.describe, label.run),
    "agreement": (_describe_agreement, _agreement),
    "bench": (bench.describe, bench.run),
    "compare": (compare.describe, compare.run),
    "inspect": (inspect.describe, inspect.run),
    "scorecard": (scorecard.describe, scorecard.run),
    "train-judge": (train_judge.describe, train_judge.run),
    "table": _later("table"),
    "export": _later("export"),
    "import": _later("imports"),
}


if __name__ == "__main__":
    sys.exit(main())
