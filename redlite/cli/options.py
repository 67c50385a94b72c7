"""The options that commands share, and which option stands for which setting of the library."""
import argparse
import datetime
import math
import os
import re
import runpy
from collections.abc import Callable, Collection
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from textwrap import fill
from typing import Any, NoReturn

from redlite import __version__
from redlite.errors import Error

OUTPUT = "what is written"
MOST = 1 << 53      # the whole numbers that every reader of JSON keeps exactly
# A setting that an Error names, or a manifest's field that differs (a pattern) → the options that set it.
SET_BY = {
    r"(questions|tasks\..+)\.n": "--limit or --quick", r"tasks\.[^.]+": "--tasks",
    "chat": "--apply-chat-template", "refusal_tokens": "--xstest-tokens",
    r"topics(\..+)?": "--topics or --limit", "output_dir": "--output-dir", "base_url": "--base-url",
    "price_file": "--price-file", "max_requests": "--max-requests", "max_tokens_total": "--max-tokens-total",
    "max_cost": "--max-cost", "data": "--data", "protocol": "--protocol", "device": "--device",
    "dtype": "--dtype", "template": "--template", "quantize": "--quantize", "adapter": "--adapter",
    "blue": "--blue", "red": "--red", "helpful": "--helpful", "mix": "--mix",
    "epochs": "--epochs", "steps_a": "--steps-a",
    "batch_size": "--batch-size", "objective": "--objective", "preset": "--preset",
    "parameter": "--parameter", "judge": "--judge", "verdict": "--verdict",
    "threshold": "--threshold",
    "judge_template": "--judge-template", "judge_format": "--judge-template or --judge-format",
    "header": "--header", "provider": "--provider", "anyway": "--anyway", "max_tokens": "--max-tokens",
    "plain": "--plain",
    "tokens_per_batch": "--tokens-per-batch"}


def kernels_here() -> str:
    """Which kernels serve on CPUs here, in a line. It imports no torch, and loads no library to find out."""
    folder = Path(__file__).parents[1] / "kernels"
    forced = os.environ.get("REDLITE_KERNELS")
    if forced:
        return f"Kernels: {forced}, by REDLITE_KERNELS."
    built = [path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_c{suffix}").is_file()]
    digest = runpy.run_path(str(folder / "cpu/sources.py"))["digest"](folder / "c")
    if built and digest.encode() in built[0].read_bytes():
        return "Kernels on CPUs: the C library, built from the sources here."
    return "Kernels on CPUs: the reference kernels, which are slower; any command says why."


def options_of(setting: str, known: Collection[str] | None = None) -> str:
    """The options that set what an Error names as its setting; "" where none is known.

    known  the options of the command, others than which help nobody there; None: not known
    """
    found = next((options for pattern, options in SET_BY.items() if re.fullmatch(pattern, setting)), "")
    return " or ".join(option for option in found.split(" or ") if known is None or option in known)


class Parser(argparse.ArgumentParser):
    """Options in full only; one that takes a list may be repeated and adds up; and an error is one line.

    many_processes  whether the command can be one of several that torchrun starts, which talk to each other
    """
    many_processes = False

    def __init__(self, **settings: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self.register("action", None, _stored)

    def format_help(self) -> str:
        """The help, with the kernels that serve here."""
        return f"{super().format_help()}\n{kernels_here()}\n"

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong as an Error; an option that is not known is compared with those that are."""
        wrong = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        if wrong and (close := closest(wrong[1], self._option_string_actions)):
            message += f"; did you mean {close}?"
        raise Error(f"{message} (see {self.prog} --help)")


# Other programs' names of our options.
SPELLINGS = {"--lora-r": "--lora", "--lora-rank": "--lora", "--max-grad-norm": "--clip",
             "--max-tokens": "--max-new-tokens", "--num-samples": "--samples", "--output": "--output-dir",
             "--out": "--output-dir", "--limit": "--quick", "--lr": "--learning-rate"}
NEAR = 0.7      # how alike names are (difflib) before one is suggested for the other


def closest(name: str, known: Collection[str]) -> str:
    """The option or command that a mistyped one may mean, "" if none is near."""
    import difflib  # for those who mistype
    if SPELLINGS.get(name) in known:
        return SPELLINGS[name]
    found = difflib.get_close_matches(name.replace("_", "-"), known, 1, NEAR)
    return found[0] if found else ""


# Options that take one value where somebody may well mean both. Of all others the last one counts, so that a
# script can put what it is given behind its own.
ONE = ("model", "questions", "attack", "attacker", "conversations", "baseline", "adapter", "add", "minus",
       "format", "provider", "system", "topics", "extra_body", "judge_extra_body", "attacker_extra_body")


def check_once(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Raise Error for an option of `ONE` that is given twice with different values, if it takes one."""
    given: dict[str, str] = {}
    for argument, after in zip(arguments, [*arguments[1:], ""], strict=False):
        if argument == "--":
            return
        name, equals, value = argument.partition("=")
        action = parser._option_string_actions.get(name)
        if isinstance(action, argparse._StoreAction) and action.nargs is None and action.dest in ONE:
            value = value if equals else after
            if given.setdefault(action.dest, value) != value:
                parser.error(f"{name} is given twice ({given[action.dest]}, {value}), and takes one")


def respelled(parser: argparse.ArgumentParser, arguments: list[str]) -> list[str]:
    """The arguments with underscores in the names of options as dashes, where the parser has such an option.

    What stands behind "--" and the values of options stay as they are.
    """
    out: list[str] = []
    known = parser._option_string_actions
    for place, argument in enumerate(arguments):
        if argument == "--":
            return [*out, *arguments[place:]]
        name, equals, value = argument.partition("=")
        plain = name.replace("_", "-")
        if name.startswith("--") and name not in known and plain in known:
            argument = plain + equals + value
        out.append(argument)
    return out


Options = argparse.ArgumentParser | argparse._ArgumentGroup  # what options can be added to


class Add(argparse.Action):
    """An option that may be repeated: what is given adds up to a list, in place of the default."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: object,
                 option_string: str | None = None) -> None:
        there, given = getattr(namespace, self.dest), values if isinstance(values, list) else [values]
        setattr(namespace, self.dest, given if there is self.default else [*there, *given])


def _stored(**settings: Any) -> argparse.Action:
    """What argparse does with an option that names no action: a list adds up, all else is kept as it is."""
    repeats = settings["option_strings"] and settings.get("nargs") == "+"
    return Add(**settings) if repeats else argparse._StoreAction(**settings)


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """An option type: a whole number of at least `least` and at most `most`."""
    def read(text: str) -> int:
        digits = text.lstrip("+-")
        fine = digits.isascii() and digits.isdigit() and len(digits) <= 19 and least <= int(text) <= most
        if not fine:
            bound = f" and at most {most}" if most < MOST or len(digits) > 15 else ""
            raise argparse.ArgumentTypeError(f"{text[:24]!r} is no whole number of at least {least}{bound}")
        return int(text)
    return read


def number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """An option type: a number of at least `least` and at most `most`."""
    def read(text: str) -> float:
        try:
            value = float(text) if text.isascii() and "_" not in text else math.nan
        except ValueError:
            value = math.nan
        if not least <= value <= most or math.isinf(value):
            bound = f" and at most {most:g}" if most < math.inf else ""
            raise argparse.ArgumentTypeError(f"{text[:24]!r} is no number of at least {least:g}{bound}")
        return value
    return read


def flag(parser: Options, name: str, help: str) -> None:
    """An option that is on or off; --no-NAME takes back what a configuration file says."""
    parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=False, help=help)


def date(text: str) -> datetime.datetime:
    """An option type: a day, YYYY-MM-DD."""
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text[:24]!r} is no day YYYY-MM-DD") from None


def add_template_options(parser: Options) -> None:
    """--template and --date."""
    from redlite.text.chat import FORMATS
    parser.add_argument("--template", "--chat-template",
                        help="the chat format of a local model, where its own files do not say it: "
                             f"{', '.join(FORMATS)}, or a file with a Jinja template or (*.json) role "
                             "frames")
    parser.add_argument("--date", type=date, metavar="YYYY-MM-DD",
                        help="today, for chat templates that name the day (default: 2024-07-26, so that a "
                             "run can be repeated)")


def add_adapter_option(parser: Options) -> None:
    """--adapter."""
    parser.add_argument("--adapter", metavar="DIR",
                        help="a LoRA adapter that PEFT wrote, merged into the weights of a local model")


def add_machine_options(parser: Options) -> None:
    """--dtype, --device: how a local model is run."""
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32",
                        help="of weights and activations (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, … (default: %(default)s)")


def add_batch_options(parser: Options) -> None:
    """--quantize, --batch-size, --cache-memory: what a local model's answers take. None changes with the last
    two."""
    parser.add_argument("--quantize", choices=("int8", "int4"), help="quantise the weights of a local model")
    parser.add_argument("--batch-size", type=whole(1), metavar="N",
                        help="answers made together; the results do not depend on it")
    parser.add_argument("--cache-memory", type=number(0.001, 1e6), metavar="GB",
                        help="memory for a local model's keys and values; fewer answers are made together "
                             "where they might need more (default: half of what is free)")


def output_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The group of what is written; a command has one."""
    there = next((group for group in parser._action_groups if group.title == OUTPUT), None)
    return there or parser.add_argument_group(OUTPUT)


def add_common_options(parser: argparse.ArgumentParser, written: str) -> None:
    """The options that every command has. written: the files that the command writes, and where."""
    output = output_options(parser)
    output.description = fill(written, 76)
    flag(output, "quiet", "no progress on stderr")
    flag(output, "json", "print the result as one JSON line, alone on stdout; all else goes to stderr")
    network = parser.add_argument_group("network")
    flag(network, "offline", "refuse every connection; the default unless an API model or judge is named")
    general = parser.add_argument_group("plan and settings")
    flag(general, "dry-run", "print the plan and its cost bound, do nothing")
    general.add_argument("--config", metavar="FILE",
                         help="JSON object of option names and values; the command line wins")
    general.add_argument("--version", action="version", version=f"redlite {__version__}")
