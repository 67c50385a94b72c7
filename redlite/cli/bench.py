"""bin/redeval bench: utility and over-refusal; and what it shares with bin/redeval scorecard."""
import argparse
import json
import re
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redlite.bench import SUITES
from redlite.cli import network
from redlite.cli.options import (
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
from redlite.cli.program import DONE, FAILED, GATE
from redlite.cli.progress import Progress, note
from redlite.errors import Error
from redlite.net.names import is_api

if TYPE_CHECKING:
    from redlite.bench.task import Task
    from redlite.redteam.answerers import ModelChoice
    from redlite.redteam.api import Network
    from redlite.redteam.gates import Gate, Strictness
    from redlite.redteam.scorecard import Battery


def describe(prog: str) -> Parser:
    """The options of `redeval bench`."""
    parser = Parser(prog=prog, description=(
        "Utility and over-refusal of a model by the rules of lm-evaluation-harness 0.4.13 (lm_eval) or of "
        "the paper's own evaluation code (paper).\nThe same command again goes on where it stopped. "
        "Under torchrun (python -m redlite.cli.redeval bench …) the ranks share the examples."))
    parser.many_processes = True
    add_model_options(parser, needed=True)
    what = parser.add_argument_group("what is asked")
    what.add_argument("--tasks", default=",".join(SUITES), metavar="T,…",
                      help="of hhh, truthfulqa, mmlu, bbh, xstest (default: all)")
    add_task_options(what)
    what.add_argument("--limit", type=whole(1), metavar="N",
                      help="the first N examples of every task (a subject of MMLU is a task)")
    output_options(parser).add_argument(
        "--output-dir", metavar="DIR", help="the run directory (default: one under ./runs)")
    add_gate_options(parser, "a bound such as mmlu.acc>=0.4; exit code 100 if one fails")
    network.add_api_options(parser)
    add_common_options(
        parser,
        "manifest.json, samples_TASK.jsonl, results.json and report.html; of XSTest "
        "answers_xstest.jsonl, of endpoints api.jsonl.")
    return parser


def add_model_options(parser: Parser, needed: bool) -> argparse._ArgumentGroup:
    """--model and how it is run, as a group of its own. needed: there is no default."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", required=needed, default=None if needed else "organism",
                       help="a Hugging Face directory, a .gguf file, or organism, the embedded model")
    add_template_options(group)
    add_adapter_option(group)
    add_batch_options(group)
    add_machine_options(group)
    return group


def add_gate_options(parser: Parser, help: str) -> None:
    """--gate, and what a gate asks beyond its bound."""
    group = parser.add_argument_group("gates")
    group.add_argument("--gate", action="append", default=[], metavar="G", help=help)
    group.add_argument("--gate-by", choices=("value", "bound"), default="value",
                        help="what must hold: the value, or the end of its 95%% interval that is nearer to "
                             "failing (default: %(default)s)")
    group.add_argument("--max-unlabelled", type=number(0, 1), default=0.05, metavar="SHARE",
                        help="a gate fails where a larger share of its measure's examples has no label "
                             "(default: %(default)s)")


def add_task_options(group: Any) -> None:
    """Where the tasks lie, how they are put, and who judges. group: a parser, or a group of its options."""
    from redlite.judges.formats import FORMATS
    group.add_argument("--data", metavar="DIR",
                       help="holds the folders hhh, truthfulqa, mmlu, bbh, xstest with the upstream "
                            "repositories' files")
    group.add_argument("--protocol", choices=("lm_eval", "paper"), default="lm_eval",
                       help="default: %(default)s")
    flag(group, "apply-chat-template", "put every context as a user's message in the model's chat format")
    group.add_argument("--xstest-tokens", type=whole(1), default=128, metavar="N",
                       help="longest answer to an XSTest prompt (default: %(default)s)")
    group.add_argument("--judge", default="rules", metavar="J",
                       help="who decides what refuses: rules (default), or a judge model's path with "
                            "--judge-format refusal")
    group.add_argument("--judge-format", choices=tuple(FORMATS),
                       help="what a judge model expects to read and say; refusal for XSTest")
    group.add_argument("--judge-prompt", metavar="FILE",
                       help="a judge's prompt of your own, with <question> and <answer>")
    group.add_argument("--seed", type=whole(0), default=0,
                       help="of sampling and of the bootstrap (default: 0)")


def suites_of(text: str, option: str = "--tasks") -> list[str]:
    """The suites that an option names, each once."""
    names = [n.strip() for n in text.split(",") if n.strip()]
    if not names:
        raise Error(f"{option} {text!r}: names no task; use {', '.join(SUITES)}")
    for name in names:
        if name not in SUITES:
            raise Error(f"{option} {text}: {name!r} is not known; use {', '.join(SUITES)}")
    return list(dict.fromkeys(names))


def tasks_of(suites: list[str], data: str | None, protocol: str, quick: bool,
             limit: int | None = None) -> "tuple[list[Task], list[Task]]":
    """(tasks, refusals): the benches of these suites and XSTest's, whole, cut by `quick`, or to `limit`."""
    from redlite.bench import runner, xstest
    from redlite.bench import task as bench_task
    from redlite.redteam import scorecard

    def cut(task: "Task", suite: str) -> "Task":
        if quick:
            return bench_task.subset(task, scorecard.QUICK[suite], scorecard.QUICK_SEED)
        return bench_task.subset(task, limit) if limit else task
    tasks, refusals = [], []
    for suite in suites:
        if suite == "xstest":
            refusals = [cut(task, suite) for task in xstest.load(bench_task.folder(data, suite))]
        else:
            tasks += [cut(task, suite) for task in runner.load(suite, data, protocol)]
    return tasks, refusals


def battery_of(args: Namespace, reach: "Network | None", suites: list[str], quick: bool = False,
               **red_eval: Any) -> "Battery":
    """The battery that the options ask for.

    red_eval  Battery's fields of RED-EVAL; without them there is no RED-EVAL in it
    """
    from redlite.bench import xstest
    from redlite.judges.choice import rules_judge
    from redlite.redteam import answerers, scorecard
    tasks, refusals = tasks_of(suites, args.data, args.protocol, quick, getattr(args, "limit", None))
    judge = refusal_judge = network.judge(args, reach)
    if refusals and not xstest.can_judge(judge):
        if not red_eval.get("prompts"):
            raise Error(f"--judge {args.judge}: XSTest needs a judge of refusals; "
                        "use rules, or a model with --judge-format refusal")
        refusal_judge = rules_judge()
        note(f"redeval: {args.judge} judges harm, not refusal; XSTest is judged by the rules")
    nothing: dict[str, Any] = {"question_path": None, "questions": [], "asked": [], "prompts": [],
                               "decoding": answerers.Decoding()}
    return scorecard.Battery(
        **{**nothing, **red_eval}, tasks=tasks, refusals=refusals, refusal_tokens=args.xstest_tokens,
        protocol=args.protocol, chat=args.apply_chat_template, judge=judge, refusal_judge=refusal_judge,
        seed=args.seed)


def run(args: Namespace, command: str) -> int:
    """The body of `redeval bench`."""
    suites = suites_of(args.tasks)
    from redlite.bench import task as bench_task
    from redlite.cli.results_files import write_bench_page
    from redlite.redteam import gates as redteam_gates
    from redlite.redteam import scorecard
    from redlite.report import html
    gates = gates_of(args)
    if any(g.relative for g in gates):
        raise Error("--gate … baseline …: a bench has no baseline; use scorecard --baseline, or a number")
    if is_api(args.model) and suites != ["xstest"]:
        raise Error(f"--model {args.model}: an API gives no log-probabilities of given answers; "
                    "with it only --tasks xstest can be run")
    reach = network.network(args, args.model, args.judge)
    battery = battery_of(args, reach, suites)
    model = network.model(args, reach, args.model, adapter=args.adapter)
    output = Path(args.output_dir or f"runs/bench-{slug(model.name)}-{args.protocol}-{'-'.join(suites)}")
    check_names(gates, battery)
    if args.dry_run:
        return show_plan(args, output, model, battery)
    rank = bench_task.ranks()[0]
    progress = Progress(args.quiet or rank > 0)
    found = scorecard.run_bench(output, command, model, battery, progress, information(args))
    if rank:
        return DONE
    measures = scorecard.measures(None, found)
    checked = redteam_gates.check_gates(gates, measures, None, strictness_of(args))
    write_bench_page(output, found, checked)
    code = show(args, output, model.name, measures, found["complete"], checked, found)
    print(f"Report: {output / html.PAGE}", file=sys.stderr if args.json else sys.stdout)
    return code


def show(args: Namespace, output: Path, name: str, found: dict, complete: bool, checked: list[dict],
         summary: dict, baseline: dict | None = None, paired: dict | None = None) -> int:
    """Print the table and what the gates say; the exit code.

    found, baseline  `scorecard.measures` of the model and of the baseline
    checked          the gates, as `check_gates` gives them
    summary          what results.json holds
    """
    from redlite.redteam import scorecard
    from redlite.store.text import columns
    print("\n".join(columns(scorecard.table(name, found, baseline, paired))))
    if cuts := counted(summary["truncated"], 4):
        print(f"Contexts cut on the left to fit the window: {cuts}")
    if unlabelled := unlabelled_in(found):
        print(f"Left out, since the judge gave no label: {unlabelled}")
    say_gates(checked)
    few = summary.get("too_few", "")
    if few:
        print(few)
    if not complete:
        print("Incomplete: run the same command again.")
    if args.json:
        result = {**summary, "measures": found, "gates": checked, "output_dir": str(output)}
        print(json.dumps(result, ensure_ascii=False))
    return code_of(complete, checked, few)


def say_gates(checked: list[dict]) -> None:
    """Print a line for each gate."""
    for g in checked:
        value, bound = ("no value" if g[name] is None else f"{g[name]:.4g}" for name in ("value", "bound"))
        verdict, why = ("passed", "") if g["passed"] else ("FAILED", f": {g['why']}")
        print(f"gate {g['gate']}: {verdict} ({value} against {bound}){why}")


def code_of(complete: bool, checked: list[dict], few: str) -> int:
    """The exit code. few: what is said of too few labels, "" if they are enough."""
    if not complete:
        return FAILED
    if not all(g["passed"] for g in checked):
        return GATE
    return FAILED if few else DONE


def gates_of(args: Namespace) -> "list[Gate]":
    """The gates that --gate gives."""
    from redlite.redteam.gates import parse_gate
    return [parse_gate(text) for text in args.gate]


def strictness_of(args: Namespace) -> "Strictness":
    """What --gate-by and --max-unlabelled ask of every gate."""
    from redlite.redteam.gates import Strictness
    return Strictness(args.gate_by, args.max_unlabelled)


def check_names(gates: "list[Gate]", battery: "Battery") -> None:
    """Raises Error for a gate on a measure that the battery will not have."""
    from redlite.redteam import gates as redteam_gates
    from redlite.redteam import scorecard
    if gates:
        redteam_gates.check_names(gates, scorecard.known_measures(battery))


def show_plan(args: Namespace, output: Path, model: "ModelChoice", battery: "Battery") -> int:
    """What --dry-run prints."""
    counts = {t.name: len(t.examples) for t in (*battery.tasks, *battery.refusals)}
    answers = len(battery.asked) * len(battery.prompts) * battery.decoding.samples
    also = f" and {answers} RED-EVAL answers" if answers else ""
    line, cost = network.price(_costs(model, battery))
    print(f"{sum(counts.values())} examples of {len(counts)} tasks{also} by {model.name} into {output}; "
          f"cost {line}")
    if args.json:
        plan = {"examples": counts, "answers": answers, "output_dir": str(output), "cost_at_most": cost}
        print(json.dumps(plan))
    return DONE


def _costs(model: "ModelChoice", battery: "Battery") -> dict[str, float | None]:
    """Dollars at most for the model's and the judges' part; for `network.price`."""
    asked = [e.document["prompt"] for task in battery.refusals for e in task.examples]
    prompts = sum(model.count([{"role": "user", "content": text}]) for text in asked) if asked else 0
    refusals = [(text, network.longest_answer(battery.refusal_tokens)) for text in asked]
    answers = [(q.question, network.longest_answer(battery.decoding.max_new_tokens))
               for q in battery.asked for _ in battery.prompts for _ in range(battery.decoding.samples)]
    judges = network.judging_cost(battery.judge, answers)
    for name, cost in network.judging_cost(battery.refusal_judge, refusals).items():
        before = judges.get(name, 0.0)
        judges[name] = None if cost is None or before is None else before + cost
    return {"model": model.cost(prompts, len(asked) * battery.refusal_tokens), **judges}


def information(args: Namespace) -> dict:
    """What ran: for the manifest's reader, never compared. A dry run runs nothing, and does without torch."""
    if args.dry_run:
        return {}
    import torch

    from redlite import kernels
    device = args.device.partition(":")[0]
    used = {operation: kernels.implementation(operation, device) for operation in kernels.MODULES}
    return {"kernels": used, "batch_size": args.batch_size, "torch": torch.__version__,
            "started": time.strftime("%Y-%m-%d %H:%M:%S %Z")}


def slug(name: str) -> str:
    """A model's name as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def counted(counts: dict[str, int], most: int | None = None) -> str:
    """The counts that are not 0: "a 1, b 2". most: how many are named; the rest is summed up."""
    there = [(name, n) for name, n in counts.items() if n]
    named = [f"{name} {n}" for name, n in there[:most]]
    if rest := there[len(named):]:
        named.append(f"and {sum(n for _, n in rest)} of {len(rest)} more tasks (results.json has all)")
    return ", ".join(named)


def unlabelled_in(measures: dict[str, dict]) -> str:
    """How many examples of each measure have no label, as `counted` says it."""
    return counted({name: r.get("unlabelled", 0) for name, r in measures.items()})
