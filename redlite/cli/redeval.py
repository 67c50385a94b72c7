"""bin/redeval: red-team a model and count what gets through."""
import json
import platform
import sys
from argparse import Namespace
from collections import Counter
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from redlite.cli import attack, bench, compare, inspect, judging, label, network, scorecard, train_judge
from redlite.cli.options import (
    Parser,
    add_adapter_option,
    add_batch_options,
    add_common_options,
    add_machine_options,
    add_template_options,
    flag,
    output_options,
    whole,
)
from redlite.cli.program import DONE, Command, dispatch, guarded
from redlite.cli.progress import Progress, note
from redlite.errors import Error
from redlite.store.text import clock

if TYPE_CHECKING:
    from redlite.redteam.questions import Prompt, Question

PROGRAM = "redeval"
EMBEDDED = "organism"
PROMPTS = ("standard", "cot", "cou")


def main(arguments: list[str] | None = None) -> int:
    """The program. Without a command's name it runs `run`."""
    # A command imports torch and requests only after its options are parsed, in its own body.
    # What must be in place before they are imported goes here.
    return guarded(PROGRAM, lambda given: dispatch(PROGRAM, COMMANDS, "run", given), arguments)


# run

def _describe_run(prog: str) -> Parser:
    commands = ", ".join(COMMANDS).replace("run", "run (may be left out)", 1)
    epilog = f"Commands: {commands}; each has --help.\n\n{judging.judge_help()}"
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
    judging.add_judge_options(parser, default=None)
    network.add_api_options(parser, attacks=True)
    output_options(parser).add_argument(
        "--output-dir", metavar="DIR",
        help="the run directory (default: one under ./runs named after model, questions "
             "and settings)")
    flag(output_options(parser), "compare-published", "print the paper's table below the results")
    bench.add_gate_options(parser, judging.GATE)
    add_common_options(
        parser,
        "manifest.json, asked.json, responses.jsonl, judgments.jsonl, judges.json, results.json "
        "and report.html, beyond 10,000 answers answers-2.html and so on; of conversations "
        "turns.jsonl, of attacks attacker.jsonl and verdicts.jsonl, of endpoints api.jsonl. While a "
        "local model answers, unfinished.jsonl.")
    return parser


def _run(args: Namespace, command: str) -> int:
    args.judge = args.judge or [judging.ORGANISM_JUDGE if args.model == EMBEDDED else judging.DEFAULT_JUDGE]
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
    if args.gate:
        from redlite.cli.results_files import check_gates_of
        check_gates_of(args, [p.name for p in prompts] or [args.attack])
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
    from redlite.cli.results_files import finish  # the pages, which a plan does without
    progress = Progress(args.quiet)
    with Run(output, manifest, partial(growth.redeval, output)) as directory:
        found = redeval.run(directory, model, asked, prompts, decoding, args.seed, args.system, progress,
                            method)
        if judge:
            redeval.judge_all(directory, judge, found, progress)
        return finish(args, found, judge.name if judge else "none", args.compare_published)


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
    return {**bench.information(args), "python": platform.python_version(), "machine": platform.machine()}


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


# report

def _describe_report(prog: str) -> Parser:
    parser = Parser(prog=prog, description=(
        "Writes results.json and report.html of a run anew, also while it is still going."))
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--judge", metavar="NAME",
                        help="whose labels, by the name in judgments.jsonl "
                             "(default: the judge of results.json, else of the run)")
    flag(output_options(parser), "compare-published", "print the paper's table below the results")
    bench.add_gate_options(parser, f"{judging.GATE}; of a scorecard in place of its own")
    add_common_options(
        parser,
        "In RUN: results.json and report.html, beyond 10,000 answers answers-2.html and so on.")
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
    from redlite.cli.results_files import finish
    return finish(args, journals.read_journals(output), last, args.compare_published)


def _report_parts(args: Namespace, output: Path, kind: str) -> int:
    from redlite.cli import rereport
    if args.judge is not None:
        raise Error(f"--judge {args.judge}: {output} is a {kind}; have it judged with "
                    f"redeval judge {output} --judge {args.judge}")
    if args.dry_run:
        print(f"would write the results of the {kind} {output} anew")
        return DONE
    return rereport.report(args, output)


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
    "judge": (judging.describe_judge, judging.judge),
    "report": (_describe_report, _report),
    "label": (label.describe, label.run),
    "agreement": (judging.describe_agreement, judging.agreement),
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
