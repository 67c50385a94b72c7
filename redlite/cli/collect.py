"""bin/collect: harmful questions, and harmful and safe conversations about them, from a model (HARMFULQA)."""
import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from redlite.cli import network
from redlite.cli.options import (
    Parser,
    add_batch_options,
    add_common_options,
    add_machine_options,
    add_template_options,
    output_options,
    whole,
)
from redlite.cli.program import DONE, FAILED, command_line, guarded, json_alone, parse
from redlite.cli.progress import Progress, note
from redlite.errors import Error

if TYPE_CHECKING:
    from redlite.answer import Answer
    from redlite.net.client import Call
    from redlite.redteam.answerers import ModelChoice
    from redlite.redteam.api import Network
    from redlite.redteam.collect import Asker, Questions, Row
    from redlite.store.run_directory import Run

PROGRAM = "collect"
EMBEDDED = "organism"
DESCRIPTION = """\
HARMFULQA (arXiv 2308.09662): four stages, each of which leaves a file that you may read, edit and go on from:
topics.json, questions.json, red.json (harmful conversations), harmfulqa.json (safe ones beside them: what
bin/safealign takes). The same command again goes on where it stopped; delete a file to have its stage done
again, from answers that are kept. Without options it talks to the embedded organism about its own questions,
offline; the organism names no topics and questions of its own, so give it --questions."""
EPILOG = ("Two questions of a topic are near-duplicates if the sets of their runs of four characters have a "
          "Jaccard index of 0.7 or more.")
AMOUNTS = (("subtopics", 10, "subtopics of a topic"), ("questions-per-subtopic", 20,
                                                       "questions of a subtopic"),
           ("conversations", 5, "conversations of each colour a question, at most"),
           ("turns", 4, "questions of a red conversation"),
           ("rounds", 3, "rounds in a row without a new question that end a subtopic"),
           ("max-new-tokens", 1000, "longest reply"))


def main(arguments: list[str] | None = None) -> int:
    """The program."""
    return guarded(PROGRAM, _collect, arguments)


def _parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--model",
                        default=EMBEDDED,
                        help="openai:NAME, a Hugging Face directory, a .gguf file, or "
                        "organism, the embedded model (default)")
    add_template_options(parser)
    add_batch_options(parser)
    add_machine_options(parser)
    what = parser.add_argument_group("how much")
    what.add_argument("--topics", metavar="FILE", help="JSON: a list of topics, or {topic: [subtopic, …]} "
                      "(default: the paper's ten topics)")
    what.add_argument("--questions",
                      metavar="FILE",
                      help="JSON {topic: {subtopic: [question, …]}}: your own, "
                      "in place of the first two stages")
    for name, default, help in AMOUNTS:
        what.add_argument(f"--{name}", type=whole(1), default=default, metavar="N",
                          help=f"{help} (default: %(default)s)")
    what.add_argument("--red-prompt", metavar="FILE", help="a prompt of your own for red conversations, with "
                      "<question> and <turns>; 'cou' is RED-EVAL's")
    what.add_argument("--judge", choices=("linear", "rules", "none"), default="linear",
                      help="drops safe answers that it calls harmful; none keeps all (default: %(default)s)")
    what.add_argument("--temperature", type=float, default=1.0, help="default: %(default)s")
    what.add_argument("--limit", type=whole(1), metavar="N", help="the first N topics only")
    what.add_argument("--seed", type=whole(0), default=0, help="of a local model's sampling (default: 0)")
    output_options(parser).add_argument(
        "--output-dir", metavar="DIR", help="the run directory (default: one under ./runs)")
    network.add_api_options(parser, judges=False)
    add_common_options(
        parser,
        "topics.json, questions.json, red.json and harmfulqa.json, which may be edited; "
        "manifest.json, drops.jsonl (what was dropped, and why), statistics.json and report.html; "
        "api.jsonl, the answers.")
    return parser


def _collect(arguments: list[str]) -> int:
    args = parse(_parser(), arguments)
    with json_alone(args):
        return _run(args, arguments)


def _run(args: argparse.Namespace, arguments: list[str]) -> int:
    reach = network.network(args, args.model)
    if not 0 < args.temperature < 10:
        raise Error(f"--temperature {args.temperature}: must be above 0, "
                    "or all conversations of a question are the same")
    from redlite.judges import choice
    from redlite.redteam import collect, collect_figures, collect_files
    from redlite.redteam.questions import DATA
    from redlite.store.files import sha256_file, sha256_json, write_json
    from redlite.store.run_directory import Run
    settings = collect.Settings(
        args.subtopics, args.questions_per_subtopic, args.conversations, args.turns, args.rounds,
        args.max_new_tokens, args.temperature, args.seed)
    given = _given_questions(args)
    topics: collect.Topics
    if given:
        given = dict(list(given.items())[:args.limit])
        topics = {topic: list(subtopics) for topic, subtopics in given.items()}
    else:
        topics = collect_files.read_topics(args.topics or DATA / "topics.json")
        topics = dict(list(topics.items())[:args.limit]) if isinstance(topics, dict) else topics[:args.limit]
    red_prompt = _red_prompt(args)
    judge = choice.local_judge(args.judge, None, None, args.dtype, args.device)
    model = network.model(args, reach, args.model)
    output = Path(args.output_dir or f"runs/collect-{re.sub(r'[^A-Za-z0-9._-]+', '-', model.name)}")
    if args.dry_run:
        return _plan(args, reach, collect_figures.plan(settings, topics, red_prompt, given), model.name,
                     output)
    prompts = {path.name: sha256_file(path) for path in sorted(collect.PROMPTS.iterdir())}
    made = {"command": command_line(PROGRAM, arguments), "model": model.identity, "settings": vars(settings),
            "judge": judge.identity if judge else None, "topics": topics, "questions": given,
            "prompts": {**prompts, "red": sha256_json(red_prompt)}}
    with Run(output, made) as directory:
        if given and not (output / collect_files.STAGES[1]).exists():
            write_json(output / collect_files.STAGES[1], given)
        asker = _asker(args, reach, model, directory)
        pipeline = collect.Pipeline(directory, asker, settings, topics, red_prompt, Progress(args.quiet),
                                    judge.load(directory) if judge else None)
        return _finish(args, output, model, pipeline.run(), directory)


def _asker(args: argparse.Namespace, reach: "Network | None", model: "ModelChoice",
           directory: "Run") -> "Asker":
    if reach:
        return reach.client(args.model, directory)

    def load() -> "Asker":
        from redlite.redteam.answerers import local_lm
        from redlite.redteam.local_asker import LocalAsker
        return LocalAsker(local_lm(model, directory), model.name, directory, args.seed)
    return _Late(load)


class _Late:
    """An asker that is made when something is asked: a run that is complete loads no model."""

    def __init__(self, make: Callable[[], "Asker"]):
        self.make = make
        self.made: Asker | None = None

    def ask(self, calls: "list[Call]") -> "Iterator[tuple[int, Answer]]":
        self.made = self.made or self.make()
        return self.made.ask(calls)


def _given_questions(args: argparse.Namespace) -> "Questions | None":
    """--questions as {topic: {subtopic: [question]}}; the organism's own where nothing is named."""
    from redlite.redteam import questions
    if args.questions is None:
        if args.model != EMBEDDED or args.topics is not None:
            return None
        if not args.quiet:
            note(f"{PROGRAM}: offline, with the embedded model organism and its own questions; "
                 "it says nothing about real models")
    found: Questions = {}
    for q in questions.load_questions(questions.find_questions(args.questions or EMBEDDED, None)):
        found.setdefault(q.topic or "none", {}).setdefault(q.subtopic or "none", []).append(q.question)
    return found


def _red_prompt(args: argparse.Namespace) -> str:
    from redlite.redteam.questions import DATA
    # the organism knows RED-EVAL's prompt only
    own = args.red_prompt or ("cou" if args.model == EMBEDDED else "")
    path = Path(own)
    if own == "cou":
        path = DATA / "prompts" / "cou.txt"
    elif not own:
        path = DATA / "prompts" / "collect" / "red.txt"
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"--red-prompt {path}: cannot be read ({error})") from None
    if "<question>" not in text:
        raise Error(f"--red-prompt {path}: must contain <question>")
    return text


def _plan(args: argparse.Namespace, reach: "Network | None", plan: dict, name: str, output: Path) -> int:
    """Print what would be asked; the exit code."""
    prompt, new = plan["prompt_tokens_at_most"], plan["new_tokens_at_most"]
    cost: float | None = 0.0
    price = "0 (this machine)"
    if reach:
        cost = reach.bound(args.model, prompt, new)
        price = "unknown; give --price-file FILE" if cost is None else f"{cost:.2f} dollars at most"
    stages = ", ".join(f"{n} for {stage}" for stage, n in plan["requests"].items())
    print(f"at most {sum(plan['requests'].values())} requests to {name} into {output}: {stages}")
    print(f"at most {prompt} prompt tokens and {new} new ones\ncost: {price}")
    if args.json:
        print(json.dumps({**plan, "cost_at_most": cost, "output_dir": str(output)}))
    return DONE


def _finish(args: argparse.Namespace, output: Path, model: "ModelChoice", rows: "list[Row]",
            directory: "Run") -> int:
    """Write statistics.json and report.html, and print what was collected; the exit code."""
    from redlite.redteam import collect, collect_figures, collect_files
    from redlite.report import collect_page, html
    from redlite.store.files import write_atomic, write_json
    from redlite.store.text import columns
    count, unit = _counting(args, model)
    found = {"unit": unit, **collect_figures.statistics(rows, directory.read(collect.DROPS), count)}
    write_json(output / collect_figures.STATISTICS, found)
    write_atomic(output / html.PAGE, collect_page.collect_page(model.name, rows, found))
    table = [["", "conversations", "turns", unit.split()[0]]]
    for colour in ("blue", "red"):
        table.append([colour, *(str(n) for n in found[colour].values())])
    print("\n".join(columns(table)))
    drops = [
        f"{n} {stage} ({reason})" for stage, reasons in found["drops"].items()
        for reason, n in reasons.items()
    ]
    print(f"{found['questions']} questions; dropped: {', '.join(drops) or 'nothing'}")
    print(f"{output / collect_files.STAGES[3]}\nReport: {output / html.PAGE}",
          file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps({**found, "output_dir": str(output)}, ensure_ascii=False))
    return DONE if found["red"]["conversations"] or found["blue"]["conversations"] else FAILED


def _counting(args: argparse.Namespace, model: "ModelChoice") -> tuple[Callable[[str], int], str]:
    """(how to count the tokens of a text, what is counted)."""
    if not model.seconds:   # an API model has no tokenizer here
        return (lambda text: len(text.split())), "words"
    from redlite.inference.parts import parts
    tokenizer = parts(args.model, args.template).tokenizer
    return (lambda text: len(tokenizer.encode(text))), "tokens of the model's tokenizer"


if __name__ == "__main__":
    sys.exit(main())
