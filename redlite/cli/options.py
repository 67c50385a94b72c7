"""The options that commands share."""
import argparse
import math
from collections.abc import Callable

from redlite import __version__
from redlite.errors import Error

IMPLEMENTATIONS = ("reference", "c", "triton")  # of kernels, that REDLITE_KERNELS may force


class Parser(argparse.ArgumentParser):
    """Options in full only, and an error is one line."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def error(self, message):
        raise Error(f"{message} (see {self.prog} --help)")


MOST = 1 << 53      # the whole numbers that every reader of JSON keeps exactly


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """An option type: a whole number of at least `least` and at most `most`."""
    def number(text: str) -> int:
        digits = text.lstrip("+-")
        if not digits.isascii() or not digits.isdigit() or len(digits) > 19 or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text[:24]!r} is no whole number of at least {least}" + (f" and at most {most}" if most < MOST or len(digits) > 15 else ""))
        return int(text)
    return number


def number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """An option type: a number of at least `least` and at most `most`."""
    def read(text: str) -> float:
        try:
            value = float(text) if text.isascii() and "_" not in text else math.nan
        except ValueError:
            value = math.nan
        if not least <= value <= most or math.isinf(value):
            raise argparse.ArgumentTypeError(f"{text[:24]!r} is no number of at least {least:g}" + (f" and at most {most:g}" if most < math.inf else ""))
        return value
    return read


def flag(parser, name: str, help: str) -> None:
    """An option that is on or off; --no-NAME takes back what a configuration file says."""
    parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=False, help=help)


def add_machine_options(parser) -> None:
    """--dtype, --device: how a local model is run."""
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of weights and activations (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, … (default: %(default)s)")


def add_common_options(parser) -> None:
    """The options that every command has."""
    parser.add_argument("--config", metavar="FILE", help="JSON object of option names and values; the command line wins")
    flag(parser, "dry-run", "print the plan and its cost bound, do nothing")
    flag(parser, "offline", "refuse every connection; the default unless an openai: model or judge is named")
    flag(parser, "quiet", "no progress on stderr")
    flag(parser, "json", "print the result as one JSON line, last on stdout")
    parser.add_argument("--version", action="version", version=f"redlite {__version__}")
