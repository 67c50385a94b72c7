"""RED-EVAL and benches of the weights that are being trained, and gates that end the training.

An evaluation is a pair of ordinary run directories, evaluations/step-N/redeval and bench below the training's
own. So it goes on where it was killed, nothing is asked twice, and `redeval report` and `compare` read it.
"""
import argparse
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redlite.cli.options import Options, number, whole
from redlite.cli.progress import Progress, note
from redlite.errors import Error
from redlite.store.files import read_json, sha256_json, write_json
from redlite.store.run_directory import INFORMATION
from redlite.store.text import percent

if TYPE_CHECKING:
    from redlite.inference.lm import LM
    from redlite.redteam.answerers import Messages, ModelChoice
    from redlite.redteam.gates import Gate, Strictness
    from redlite.redteam.scorecard import Battery
    from redlite.training.plan import Corpus

FOLDER, MEASURES = "evaluations", "results.json"
NEEDS = ("evaluate_limit", "evaluate_prompt", "evaluate_judge", "evaluate_tokens", "evaluate_data", "until",
         "while", "max_unlabelled")


def add_options(group: Options) -> None:
    """The options of evaluation during training, beside --evaluate-every."""
    group.add_argument("--evaluate-questions", metavar="Q",
                       help="RED-EVAL of the weights being trained, before the first step, every "
                            "--evaluate-every steps and after the last; Q as for redeval run --questions")
    group.add_argument("--evaluate-tasks", metavar="T,…",
                       help="of hhh, truthfulqa, mmlu, bbh, xstest: the subsets of redeval scorecard --quick")
    group.add_argument("--evaluate-data", metavar="DIR", help="where question sets and benchmarks lie")
    group.add_argument("--evaluate-limit", type=whole(1), metavar="N",
                       help="the first N questions only (default: 20)")
    group.add_argument("--evaluate-prompt", nargs="+", metavar="P",
                       help="as for redeval run (default: standard, cot and cou)")
    group.add_argument("--evaluate-judge", choices=("linear", "rules"),
                       help="default: linear; rules for the organism")
    group.add_argument("--evaluate-tokens", type=whole(1), metavar="N",
                       help="longest answer (default: 128)")
    group.add_argument("--until", action="append", default=[], metavar="G",
                       help="end as soon as an evaluation passes, such as asr.cou<=0.3; all of them, if "
                            "repeated; exit code 100 if none did")
    group.add_argument("--while", action="append", default=[], metavar="G",
                       help="end when an evaluation fails, such as mmlu.acc>=baseline-0.02 (baseline: before "
                            "the first step), and write the last checkpoint that passed; exit code 100")
    group.add_argument("--max-unlabelled", type=number(0, 1), metavar="SHARE",
                       help="--until and --while fail where a larger share of their measure's examples has "
                            "no label (default: 0.05)")


def check(args: argparse.Namespace, many: bool) -> None:
    """Raises Error for options of evaluation that do not go together."""
    asked = args.evaluate_questions or args.evaluate_tasks
    given = [name for name in NEEDS if getattr(args, name) not in (None, [])]
    if given and not asked:
        option = given[0].replace("_", "-")
        raise Error(f"--{option}: nothing is evaluated; add --evaluate-questions Q or --evaluate-tasks T")
    if asked and many:
        raise Error("--evaluate-questions and --evaluate-tasks: run in one process; leave torchrun out, or "
                    "evaluate the model that is written")
    gates = args.until or getattr(args, "while")
    if args.max_unlabelled is not None and not gates:
        raise Error("--max-unlabelled: no gate looks at it; add --until G or --while G")
    if gates and not args.evaluate_every:
        raise Error("--until and --while look at evaluations; say how often with --evaluate-every N")


def battery(args: argparse.Namespace) -> "Battery":
    """What is asked in each evaluation. Raises Error for a gate on what it does not measure."""
    from redlite.cli.bench import check_names, suites_of, tasks_of
    from redlite.judges.choice import local_judge, rules_judge
    from redlite.redteam import answerers, questions, scorecard
    from redlite.redteam.gates import CORRECTED
    longest, path, known, prompts = args.evaluate_tokens or 128, None, [], []
    if args.evaluate_questions:
        path = questions.find_questions(args.evaluate_questions, args.evaluate_data)
        known = questions.load_questions(path)
        prompts = [questions.load_prompt(name) for name in args.evaluate_prompt or questions.PROMPTS]
    suites = suites_of(args.evaluate_tasks, "--evaluate-tasks") if args.evaluate_tasks else []
    tasks, refusals = tasks_of(suites, args.evaluate_data, "lm_eval", quick=True)
    judge = args.evaluate_judge or ("rules" if args.demo else "linear")
    made = scorecard.Battery(
        path, known, known[:args.evaluate_limit or 20], prompts, answerers.Decoding(longest),
        tasks, refusals, longest, "lm_eval", False,
        local_judge(judge, None, None, "float32", "cpu"), rules_judge(), args.seed)
    gates = [*_gates(args.until), *_gates(getattr(args, "while"))]
    check_names(gates, made)
    if by_people := [g.measure for g in gates if g.measure.endswith(CORRECTED)]:
        raise Error(f"--until and --while: {by_people[0]} needs labels of people, and answers made during "
                    f"training have none; use {by_people[0].removesuffix(CORRECTED)}")
    return made


def _gates(texts: list[str]) -> "list[Gate]":
    from redlite.redteam.gates import parse_gate
    return [parse_gate(text) for text in texts]


def require_apart(battery: "Battery", corpus: "Corpus", anyway: bool) -> None:
    """Raises Error where the training data ask the evaluation's questions; with `anyway` a note instead."""
    from redlite.training.conversations import question_key
    known = {example.question for example in corpus.training}
    found = [q.id for q in battery.asked if question_key(q.question) in known]
    if not found:
        return
    said = (f"--evaluate-questions: {len(found)} of {len(battery.asked)} questions are asked in the training "
            f"data too (the first: {found[0]}), so their ASR says little of others")
    if not anyway:
        raise Error(f"{said}; name other questions, or add --anyway")
    note(f"safealign: {said}")


class Evaluation:
    """What `training.watch.Watch` asks for, measured by a battery with the model as it is in memory."""

    def __init__(self, output: Path, lm: "LM", battery: "Battery", args: argparse.Namespace,
                 manifest: dict[str, Any], command: str):
        self.folder, self.lm, self.battery, self.command = output / FOLDER, lm, battery, command
        self.until, self.keeps = _gates(args.until), _gates(getattr(args, "while"))
        self.strictness = _strictness(args.max_unlabelled)
        self.made = sha256_json({k: v for k, v in manifest.items() if k not in INFORMATION})
        self.progress, self.quiet = Progress(args.quiet), args.quiet
        self.found: dict[int, dict[str, dict]] = {}
        self.name = manifest["model"]["name"]

    def measure(self, step: int) -> dict[str, float | None]:
        """See `Watch`. Steps measured before, by whatever process, are read."""
        if self._known(step) is None:
            self._ask(step)
        own = self.known_names
        values = {name: self.found[step][name]["value"] for name in own}
        if not self.quiet:
            said = ", ".join(f"{name} {percent(value)}" for name, value in values.items())
            note(f"evaluated after {step} steps: {said}")
        return values

    def fault(self, step: int) -> str:
        """See `Watch`."""
        if not self.keeps:
            return ""
        if self._known(step) is None:
            return "was not evaluated"
        failed = [g for g in self._checked(self.keeps, step) if not g["passed"]]
        return "; ".join(f"--while {gate['gate']} does not hold after {step} steps ({_reason(gate)})"
                         for gate in failed)

    def reached(self, step: int) -> str:
        """See `Watch`."""
        if not self.until or self._known(step) is None:
            return ""
        if left := self.left(step):
            if not self.quiet:      # few questions: one without a label may be what fails
                note(f"not reached after {step} steps: {left}")
            return ""
        gates = self._checked(self.until, step)
        return f"--until {', '.join(g['gate'] for g in gates)} is reached after {step} steps"

    def left(self, step: int) -> str:
        """The gates of --until that the weights after `step` steps, which are measured, fail, and why."""
        failed = [g for g in self._checked(self.until, step) if not g["passed"]]
        return ", ".join(f"{g['gate']} ({_reason(g)})" for g in failed)

    @cached_property
    def known_names(self) -> list[str]:
        """The measures of the summary, and those that gates look at."""
        from redlite.redteam import gates, scorecard
        known = scorecard.known_measures(self.battery)
        wanted = {*gates.main_names(known), *(g.measure for g in (*self.until, *self.keeps))}
        return [name for name in known if name in wanted and not name.endswith(gates.CORRECTED)]

    def _checked(self, gates: "list[Gate]", step: int) -> list[dict]:
        from redlite.redteam.gates import check_gates
        baseline = self._known(0)
        if baseline is None and any(gate.relative for gate in gates):
            raise Error(f"{self._place(0)}: holds no evaluation from before the first step, which a gate "
                        "against the baseline needs; begin in another directory", "output_dir")
        return check_gates(gates, self._known(step) or {}, baseline, self.strictness)

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _known(self, step: int) -> dict[str, dict] | None:
        """`scorecard.measures` of a step that is measured, None of another."""
        if step not in self.found and (path := self._place(step) / MEASURES).exists():
            kept = read_json(path)
            if kept.get("run") == self.made and kept.get("battery") == self._battery_hash:
                self.found[step] = kept["measures"]
        return self.found.get(step)

    @cached_property
    def _battery_hash(self) -> str:
        from redlite.redteam import redeval, scorecard
        b, model = self.battery, self._choice(0)
        made = scorecard.bench_manifest("", model, b)
        asked = redeval.questions_fingerprint(b.asked)
        judge = b.judge and [b.judge.name, b.judge.identity]
        return sha256_json([made, asked, {p.name: p.fingerprint() for p in b.prompts}, judge,
                            vars(b.decoding)])

    def _choice(self, step: int) -> "ModelChoice":
        """The weights in memory, as a model to ask."""
        from redlite.redteam.answerers import LocalAnswerer, ModelChoice
        name = f"{self.name} after {step} steps"

        def count(messages: "Messages") -> int:
            return len(self.lm.template.encode(messages, add_generation_prompt=True).ids)
        return ModelChoice(name, {"name": name, "run": self.made, "step": step},
                           lambda run: LocalAnswerer(self.lm), count)

    def _ask(self, step: int) -> None:
        """Run the battery on the weights in memory, and keep what it measured."""
        from redlite.redteam import scorecard
        place, model, asr, bench = self._place(step), self._choice(step), None, None
        if self.battery.prompts:
            _, asr = scorecard.run_redeval(place / "redeval", self.command, model, self.battery,
                                           self.progress)
        if self.battery.tasks or self.battery.refusals:
            bench = scorecard.run_bench(place / "bench", self.command, model, self.battery, self.progress)
        self.found[step] = scorecard.measures(asr, bench)
        write_json(place / MEASURES, {"step": step, "run": self.made, "battery": self._battery_hash,
                                      "measures": self.found[step]})


def _strictness(max_unlabelled: float | None) -> "Strictness":
    from redlite.redteam.gates import Strictness
    return Strictness() if max_unlabelled is None else Strictness(max_unlabelled=max_unlabelled)


def _reason(gate: dict) -> str:
    """Why a gate fails, with the value that was measured."""
    value = "" if gate["value"] is None else f"{gate['value']:.4g}, "
    return f"{value}{gate['why']}"
