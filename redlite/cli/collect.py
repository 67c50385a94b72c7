"""bin/collect: harmful questions, and harmful and safe conversations about them, from a model (HARMFULQA)."""
import json
import re
import sys
from pathlib import Path

from redlite.cli import network
from redlite.cli.options import Parser, add_common_options, add_machine_options, whole
from redlite.cli.program import DONE, FAILED, command_line, guarded, parse
from redlite.cli.progress import Progress, note
from redlite.errors import Error

PROGRAM = "collect"


def main(arguments: list[str] | None = None) -> int:
    """The program."""
    return guarded(PROGRAM, _collect, arguments)


def _parser() -> Parser:
    parser = Parser(prog=PROGRAM, description=(
        "HARMFULQA (arXiv 2308.09662): four stages, each of which leaves a file that you may read, edit and go on from: topics.json, questions.json,\n"
        "red.json (harmful conversations), harmfulqa.json (safe ones beside them: what bin/safealign takes). The same command again goes on where it\n"
        "stopped; delete a file to have its stage done again, from answers that are kept. Without options it talks to the embedded organism about its\n"
        "own questions, offline; the organism names no topics and questions of its own, so give it --questions."),
        epilog="Two questions of a topic are near-duplicates if the sets of their runs of four characters have a Jaccard index of 0.7 or more.")
    parser.add_argument("--model", default="organism", help="openai:NAME, a Hugging Face directory, a .gguf file, or organism, the embedded model (default)")
    parser.add_argument("--template", help="the chat format, where a local model's own files do not say it")
    parser.add_argument("--quantize", choices=("int8", "int4"), help="weights of a local model")
    parser.add_argument("--batch-size", type=whole(1), metavar="N", help="answers of a local model made together")
    add_machine_options(parser)
    what = parser.add_argument_group("how much")
    what.add_argument("--topics", metavar="FILE", help="JSON: a list of topics, or {topic: [subtopic, …]} (default: the paper's ten topics)")
    what.add_argument("--questions", metavar="FILE", help="JSON {topic: {subtopic: [question, …]}}: your own, in place of the first two stages")
    for name, default, help in (("subtopics", 10, "subtopics of a topic"), ("questions-per-subtopic", 20, "questions of a subtopic"),
                                ("conversations", 5, "conversations of each colour a question, at most"), ("turns", 4, "questions of a red conversation"),
                                ("rounds", 3, "rounds in a row without a new question that end a subtopic"), ("max-new-tokens", 1000, "longest reply")):
        what.add_argument(f"--{name}", type=whole(1), default=default, metavar="N", help=f"{help} (default: %(default)s)")
    what.add_argument("--red-prompt", metavar="FILE", help="a prompt of your own for red conversations, with <question> and <turns>; 'cou' is RED-EVAL's")
    what.add_argument("--temperature", type=float, default=1.0, help="default: %(default)s")
    what.add_argument("--limit", type=whole(1), metavar="N", help="the first N topics only")
    what.add_argument("--seed", type=whole(0), default=0, help="of a local model's sampling (default: 0)")
    parser.add_argument("--output-dir", metavar="DIR", help="the run directory (default: one under ./runs)")
    network.add_api_options(parser)
    add_common_options(parser)
    return parser


def _collect(arguments: list[str]) -> int:
    args = parse(_parser(), arguments)
    reach = network.network(args, args.model)
    if not 0 < args.temperature < 10:
        raise Error(f"--temperature {args.temperature}: must be above 0, or all conversations of a question are the same")
    from redlite.redteam import answerers, collect, collect_files
    from redlite.store.files import sha256_file, sha256_json, write_json
    from redlite.store.run_directory import Run
    settings = collect.Settings(args.subtopics, args.questions_per_subtopic, args.conversations, args.turns, args.rounds, args.max_new_tokens, args.temperature, args.seed)
    given = _given_questions(args)
    topics = {t: list(s) for t, s in given.items()} if given else _topics(args)
    topics = dict(list(topics.items())[:args.limit]) if isinstance(topics, dict) else topics[:args.limit]
    given = {t: given[t] for t in topics} if given else None
    red_prompt = _red_prompt(args)
    model = network.model(args, reach, args.model)
    output = Path(args.output_dir or f"runs/collect-{re.sub(r'[^A-Za-z0-9._-]+', '-', model.name)}")
    if args.dry_run:
        return _plan(args, reach, collect.plan(settings, topics, red_prompt, given), model, output)
    prompts = {p.name: sha256_file(p) for p in sorted(collect.PROMPTS.iterdir())}
    made = {"command": command_line(PROGRAM, arguments), "model": model.identity, "settings": vars(settings), "topics": topics, "questions": given,
            "prompts": {**prompts, "red": sha256_json(red_prompt)}}
    with Run(output, made) as directory:
        if given and not (output / collect_files.STAGES[1]).exists():
            write_json(output / collect_files.STAGES[1], given)
        if reach:
            asker = reach.client(args.model.removeprefix(network.PREFIX), directory)
        else:
            asker = _Late(lambda: collect.LocalAsker(answerers.local_lm(model, directory), model.name, directory, args.seed))
        rows = collect.Pipeline(directory, asker, settings, topics, red_prompt, Progress(args.quiet)).run()
        return _finish(args, output, model, rows, directory)


class _Late:
    """An asker that is made when something is asked: a run that is complete loads no model."""

    def __init__(self, make):
        self.make, self.made = make, None

    def ask(self, calls):
        self.made = self.made or self.make()
        return self.made.ask(calls)


def _topics(args):
    from redlite.redteam.questions import DATA
    from redlite.store.files import read_json
    path = Path(args.topics) if args.topics else DATA / "topics.json"
    found = read_json(path)
    names = found if isinstance(found, list) else list(found) if isinstance(found, dict) else []
    lists = found.values() if isinstance(found, dict) else ()
    if not names or any(not isinstance(n, str) or not n.strip() for n in names) or any(
            not isinstance(s, list) or not s or any(not isinstance(x, str) or not x.strip() for x in s) for s in lists):
        raise Error(f"{path}: must hold a list of topics, or {{topic: [subtopic, …]}}, texts that are not empty")
    return found


def _given_questions(args) -> dict | None:
    """--questions as {topic: {subtopic: [question]}}; the organism's own where nothing is named."""
    from redlite.redteam import questions
    if args.questions is None and not (args.model == "organism" and args.topics is None):
        return None
    if args.questions is None and not args.quiet:
        note(f"{PROGRAM}: offline, with the embedded model organism and its own questions; it says nothing about real models")
    found: dict = {}
    for q in questions.load_questions(questions.find_questions(args.questions or "organism", None)):
        found.setdefault(q.topic or "none", {}).setdefault(q.subtopic or "none", []).append(q.question)
    return found


def _red_prompt(args) -> str:
    from redlite.redteam.questions import DATA
    own = args.red_prompt or ("cou" if args.model == "organism" else None)  # the organism knows RED-EVAL's prompt only
    path = DATA / "prompts" / "cou.txt" if own == "cou" else Path(own) if own else DATA / "prompts" / "collect" / "red.txt"
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"--red-prompt {path}: cannot be read ({error})") from None
    if "<question>" not in text:
        raise Error(f"--red-prompt {path}: must contain <question>")
    return text


def _plan(args, reach, plan: dict, model, output: Path) -> int:
    cost = reach.bound(args.model.removeprefix(network.PREFIX), plan["prompt_tokens_at_most"], plan["new_tokens_at_most"]) if reach else 0.0
    print(f"at most {sum(plan['requests'].values())} requests to {model.name} into {output}: " + ", ".join(f"{n} for {stage}" for stage, n in plan["requests"].items())
          + f"\nat most {plan['prompt_tokens_at_most']} prompt tokens and {plan['new_tokens_at_most']} new ones\ncost: "
          + ("unknown; give --price-file FILE" if cost is None else f"{cost:.2f} dollars at most" if reach else "0 (this machine)"))
    if args.json:
        print(json.dumps({**plan, "cost_at_most": cost, "output_dir": str(output)}))
    return DONE


def _finish(args, output: Path, model, rows: list[dict], directory) -> int:
    from redlite.redteam import collect, collect_files
    from redlite.report import collect_page
    from redlite.store.files import write_atomic, write_json
    from redlite.store.text import columns
    if model.seconds:  # a local model has a tokenizer
        from redlite.inference import lm
        words = lm.parts(args.model, args.template).tokenizer
        count, unit = (lambda text: len(words.encode(text))), "tokens of the model's tokenizer"
    else:
        count, unit = (lambda text: len(text.split())), "words"
    found = {"unit": unit, **collect.statistics(rows, directory.read(collect.DROPS), count)}
    write_json(output / collect.STATISTICS, found)
    write_atomic(output / "report.html", collect_page.page(model.name, rows, found))
    print("\n".join(columns([["", "conversations", "turns", unit.split()[0]], *([colour, *(str(found[colour][k]) for k in ("conversations", "turns", "tokens"))] for colour in ("blue", "red"))])))
    print(f"{found['questions']} questions; dropped: " + (", ".join(f"{n} {stage} ({reason})" for stage, reasons in found["drops"].items() for reason, n in reasons.items()) or "nothing"))
    print(f"{output / collect_files.STAGES[3]}\nReport: {output / 'report.html'}", file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps({**found, "output_dir": str(output)}, ensure_ascii=False))
    return DONE if found["red"]["conversations"] or found["blue"]["conversations"] else FAILED


if __name__ == "__main__":
    sys.exit(main())
