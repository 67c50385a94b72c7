"""What the options of bin/safealign say of a training: its files, plan and recipe."""
import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redlite.cli.options import number
from redlite.errors import Error
from redlite.store import run_directory
from redlite.store.files import sha256_file

if TYPE_CHECKING:
    from redlite.training.plan import Plan
    from redlite.training.trainer import Recipe

PROGRAM = "safealign"
EMBEDDED = "organism"
Files = Mapping[str, Sequence[str]]     # colour → files of conversations


def files_of(args: argparse.Namespace, demo: bool) -> Files:
    """The files of each colour; in the demonstration, the organism's where none is named."""
    named = {c: getattr(args, c) or [] for c in ("blue", "red", "helpful")}
    if not demo:
        return named
    from redlite.organism import world
    return {c: files or [str(world.FILES[c])] for c, files in named.items()}


def hashes(files: Files) -> dict[str, list[str]]:
    """The SHA-256 of each colour's files."""
    return {colour: [sha256_file(f) for f in own] for colour, own in files.items()}


def chosen_objective(args: argparse.Namespace) -> str:
    """The objective that the strategy and --objective say."""
    if args.strategy == "B":
        return str(args.objective or "B")
    if args.objective:
        raise Error(f"--objective {args.objective} is for --strategy B, and strategy A has no red term; "
                    "leave it out, or use --strategy B")
    return "A"


def check_output(output: Path, manifest: dict[str, Any], model: Path) -> None:
    """Raise what making the run directory would raise, and an Error where it is the model's own directory."""
    if output.resolve() == model.resolve():
        raise Error(f"--output-dir {output}: is the model's own directory, which would be overwritten; "
                    "name another")
    run_directory.check(output, manifest)


def mix_of(args: argparse.Namespace) -> dict[str, float]:
    """Each colour's part in a step, as --mix says. Raises Error for a colour or part that it cannot have."""
    mix = {"helpful": 1.0, "blue": 1.0, "red": 1.0}
    named = [text.partition("=")[0] for text in args.mix]
    for colour, text in zip(named, args.mix, strict=True):
        if colour not in mix or named.count(colour) > 1:
            raise Error(f"--mix {text!r}: must be COLOUR=PART with a colour of {', '.join(mix)}, "
                        "each at most once")
        try:
            mix[colour] = number(0, 1e9)(text.partition("=")[2])
        except argparse.ArgumentTypeError as error:
            raise Error(f"--mix {text!r}: {error}") from None
    return mix


def plan_of(args: argparse.Namespace) -> "Plan":
    """The plan of a training. Raises Error for options that contradict each other."""
    from redlite.training import plan
    objective = chosen_objective(args)
    parameters = plan.parameters(objective, args.preset, args.parameter)
    return plan.Plan(args.strategy, objective, parameters, args.steps_a, args.epochs, args.steps,
                     args.batch_size, mix_of(args), args.max_tokens, args.validation, args.seed,
                     _prompts(args), args.plain_helpful, args.answer_tokens)


def _prompts(args: argparse.Namespace) -> dict[str, str]:
    """What --prompt names, name → text; none where questions are asked as they stand."""
    from redlite.redteam.questions import load_prompt
    prompts = [load_prompt(name) for name in args.prompt or ()]
    if args.plain_helpful and not prompts:
        raise Error("--plain-helpful leaves helpful conversations out of --prompt, which names none; add one")
    names = [p.name for p in prompts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise Error(f"--prompt: {twice[0]!r} is named twice; name each prompt once")
    if several := [p.name for p in prompts if p.several]:
        raise Error(f"--prompt {several[0]}: has several user's turns; training takes prompts of one turn")
    return {p.name: p.text for p in prompts}


def recipe_of(args: argparse.Namespace, steps: int) -> "Recipe":
    """The recipe of a training of so many steps."""
    from redlite.training import trainer
    return trainer.Recipe(
        args.learning_rate, args.final_rate, math.ceil(args.warmup * steps), args.weight_decay,
        clip=args.clip, tokens_per_batch=args.tokens_per_batch, per=args.per,
        checkpoint_every=args.checkpoint_every, evaluate_every=args.evaluate_every,
        helpful_rise=args.helpful_rise, recompute=args.recompute,
        seed=args.seed)
