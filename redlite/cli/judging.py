"""bin/redeval judge and bin/redeval agreement: who judges, what is judged again, and how well a judge agrees
with people.
"""
import json
import re
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from redlite.cli import bench, label, network
from redlite.cli.options import Add, Parser, add_common_options, add_machine_options, number
from redlite.cli.program import DONE
from redlite.cli.progress import Progress
from redlite.errors import Error

if TYPE_CHECKING:
    from redlite.judges.choice import JudgeChoice, Panel
    from redlite.redteam.api import Network
    from redlite.store.run_directory import Run

DEFAULT_JUDGE, ORGANISM_JUDGE = "linear", "rules"  # the organism's toy answers are made for the rules
GATE = "a bound such as asr.cou<=0.1 or asr.cou.corrected<=0.1; exit code 100 if one fails"


def add_judge_options(parser: Parser, default: str | None = DEFAULT_JUDGE) -> None:
    """The options that say who judges, in a group of their own. default: of --judge."""
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


def judge_help() -> str:
    """What --help says of judges at its end."""
    from redlite.judges.agreement import on_harm_in_words
    return (f"{on_harm_in_words(DEFAULT_JUDGE)}\n"
            "Measure a judge on answers that your own people labelled with `redeval agreement FILE`;\n"
            "correct a run's ASR by labels of some of its answers with `redeval label RUN`.")


# Judging again

def describe_judge(prog: str) -> Parser:
    """The options of `redeval judge`."""
    parser = Parser(prog=prog, epilog=judge_help(), description=(
        "Judges a run's answers with another judge. Each judge's labels are kept; results.json and "
        "report.html\nbecome this judge's. With --labels, labels of people correct the ASR; "
        "without --judge, that of the last judge."))
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--labels", nargs="+", default=[], metavar="FILE",
                        help="labels of people: what the page of `redeval label` saved, or CSV with id, "
                             "prompt, sample, label (harmful, unharmful, skip)")
    add_judge_options(parser, default=None)
    network.add_api_options(parser)
    add_machine_options(parser)
    bench.add_gate_options(parser, GATE)
    add_common_options(
        parser,
        "In RUN: judgments.jsonl, judges.json, labels.jsonl, results.json and report.html; of "
        "endpoints api.jsonl.")
    return parser


def _named(args: Namespace, reach: "Network | None") -> "JudgeChoice | Panel":
    judge = network.judges(args, reach)
    if judge is None:
        raise Error("--judge none judges nothing; name a judge")
    return judge


def judge(args: Namespace, command: str) -> int:
    """The body of `redeval judge`."""
    from redlite.redteam import runs
    if args.judge == ["none"]:
        raise Error("--judge none judges nothing; name a judge")
    kind = runs.kind_of(args.run)
    if args.labels and args.judge is None:
        return _correct(args) if kind == "redeval" else _judge_parts(args, None)
    args.judge = args.judge or [DEFAULT_JUDGE if kind == "redeval" else ORGANISM_JUDGE]
    reach = network.network(args, *args.judge)
    from redlite.cli.results_files import finish
    from redlite.redteam import journals, redeval
    from redlite.store.run_directory import Run
    judge = _named(args, reach)
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
        return finish(args, found, judge.name)


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
    from redlite.cli.results_files import finish
    with Run(args.run) as directory:
        label.take(directory, args.labels)
        return finish(args, journals.read_journals(directory), judge)


# Agreement with people

def describe_agreement(prog: str) -> Parser:
    """The options of `redeval agreement`."""
    parser = Parser(prog=prog, epilog=judge_help(), description=(
        "Compares a judge with people's labels. A file is CSV with columns prompt, completion, final_label "
        "(XSTest's\nlabelled answers as they are) or question, answer, label (harmful or unharmful)."))
    parser.add_argument("files", nargs="+", metavar="FILE", help="labelled answers")
    add_judge_options(parser)
    network.add_api_options(parser)
    add_machine_options(parser)
    add_common_options(
        parser,
        "Nothing but what is printed; what an endpoint said is kept in runs/agreement-JUDGE.")
    return parser


def agreement(args: Namespace, command: str) -> int:
    """The body of `redeval agreement`."""
    reach = network.network(args, *args.judge)
    from redlite.judges import agreement
    from redlite.store.run_directory import Run
    files = {file: agreement.read_labelled(file) for file in args.files}
    judge = _named(args, reach)
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
              f"{agreement.kappa_in_words(r['kappa'])}; of the harmful by people {r['harmful_as_harmful']} "
              f"labelled harmful and {r['harmful_as_unharmful']} unharmful, of the unharmful "
              f"{r['unharmful_as_harmful']} and {r['unharmful_as_unharmful']}, {r['unlabelled']} without a "
              "label")
    return found
