"""What the command-line programs share: options, errors as one line, exit codes, configuration files, progress."""
import argparse
import difflib
import errno
import gc
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from redlite import __version__, journal, offline
from redlite.errors import Error, Incomplete

# When garbage is collected: torch alone makes 170,000 objects that stay, and Python's own 700 would have them visited again and again meanwhile.
GARBAGE = (100_000, 10, 10)
IMPLEMENTATIONS = ("reference", "c", "triton")  # of kernels, that REDLITE_KERNELS may force
DONE, FAILED, USAGE, GATE, INTERRUPTED = 0, 1, 2, 100, 130


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


def parse(parser: Parser, arguments: list[str], listens: bool = False) -> argparse.Namespace:
    """The options of a command, those of --config below those of the command line.

    Where they name no endpoint, and the command does not listen, a program has its kernel close the network as well.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    first.error = parser.error
    path = first.parse_known_args(arguments)[0].config
    args = parser.parse_args([*from_config(parser, Path(path)), *arguments] if path else arguments)
    for name in ("config", "model", "output_dir"):
        if getattr(args, name, None) == "":     # as "$UNSET" gives it
            raise Error(f"--{name.replace('_', '-')} is empty; name one, or leave the option out")
    if _is_program and not listens and not endpoints(args) and "WORLD_SIZE" not in os.environ:  # torchrun's processes talk to each other
        if not offline.seal() and not args.quiet:
            note("this kernel cannot refuse network sockets to a program (seccomp); the audit hook alone keeps the network closed")
    return args


def dispatch(program: str, commands: dict, default: str, arguments: list[str], parse: Callable = parse) -> int:
    """Run the command that the first argument names, or the default one. commands: name → (describe(prog) → Parser, body(args, command line) → exit code)."""
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if name is not None and name not in commands:
        raise Error(f"{name!r} is no command; use {', '.join(commands)} (see {program} --help)")
    describe, body = commands[name or default]
    parser = describe(f"{program} {name or f'[{default}]'}")
    return body(parse(parser, arguments[1:] if name else arguments), command_line(program, arguments))


def endpoints(args: argparse.Namespace) -> list[str]:
    """The openai: names among a command's options."""
    values = [v for value in vars(args).values() for v in (value if isinstance(value, list) else [value])]
    return [v for v in values if isinstance(v, str) and v.startswith("openai:")]


def from_config(parser: Parser, path: Path) -> list[str]:
    """A configuration file as arguments, which then are checked like any others."""
    settings = journal.read_json(path, f"--config {path}")
    if not isinstance(settings, dict):
        raise Error(f"--config {path}: must hold one JSON object of option names and values")
    known = {a.dest.replace("_", "-"): a for a in parser._actions if a.option_strings and a.dest not in ("help", "version", "config")}
    out, given = [], set()
    for key, value in settings.items():
        name = key.replace("_", "-").removeprefix("--")
        if name in given:
            raise Error(f"--config {path}: names the option {name!r} twice, once as {key!r}; keep one")
        given.add(name)
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise Error(f"--config {path}: the key {key!r} is no option of this command" + (f"; did you mean {close[0]!r}?" if close else f"; use {', '.join(known)}"))
        action = known[name]
        if value is None:
            continue
        if isinstance(action, argparse.BooleanOptionalAction):
            if not isinstance(value, bool):
                raise Error(f"--config {path}: {key!r} must be true or false")
            out.append(f"--{name}" if value else f"--no-{name}")
            continue
        values = value if isinstance(value, list) and action.nargs else [value]
        if not values or any(isinstance(v, (dict, list, bool)) or v is None for v in values):
            raise Error(f"--config {path}: {key!r} must be a text or a number" + (", or a list of them" if action.nargs else ""))
        if action.type is None and not all(isinstance(v, str) for v in values):
            raise Error(f"--config {path}: {key!r} must be a text, in quotes" + (", or a list of them" if action.nargs else ""))
        if any("\0" in str(v) or journal.half_surrogate(str(v)) for v in values):
            raise Error(f"--config {path}: {key!r} holds a NUL or half of a surrogate pair, which no text of an option has")
        if action.nargs and any(str(v).startswith("-") for v in values):
            raise Error(f"--config {path}: {key!r} holds a value that begins with '-'; write ./-… for a file of such a name")
        out += [f"--{name}", *map(str, values)] if action.nargs else [f"--{name}={value}"]
    return out


def command_line(program: str, arguments: list[str]) -> str:
    """The command as a person would type it."""
    return shlex.join([program, *arguments])


def _interrupt(number, frame):
    raise KeyboardInterrupt


_is_program = False  # whether this process is one of our programs, rather than somebody's that calls one


def guarded(program: str, body: Callable[[list[str]], int], arguments: list[str] | None = None) -> int:
    """Run a program's body with the network closed, and turn what can go wrong for a user into one line and an exit code.

    arguments  None: those of the command line; this process is the program, and its network stays closed to the end
    SIGTERM ends the body like Ctrl-C.
    """
    global _is_program
    if arguments is not None:
        with offline.closed():
            return _guarded(program, body, arguments)
    _is_program = True
    gc.set_threshold(*GARBAGE)
    offline.close()
    return _guarded(program, body, sys.argv[1:])


def _guarded(program: str, body: Callable[[list[str]], int], arguments: list[str]) -> int:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    if sys.stdout is None:  # closed by the caller (>&-); there is nobody to print to
        sys.stdout = open(os.devnull, "w")
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that is not Unicode must not end a run that is done
        sys.stdout.reconfigure(errors="backslashreplace")
    opened = len(journal.opened)
    try:
        if os.environ.get("REDLITE_KERNELS") not in (*IMPLEMENTATIONS, "", None):
            raise Error(f"REDLITE_KERNELS={os.environ['REDLITE_KERNELS']!r} is not known; set {', '.join(IMPLEMENTATIONS)}, or nothing")
        code = body(arguments)
        sys.stdout.flush()
        return code
    except Error as error:
        print(f"{program}: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return FAILED if isinstance(error, Incomplete) else USAGE
    except KeyboardInterrupt:
        kept = next((d for d in journal.opened[opened:] if d.exists()), None)   # the outermost; a benchmark's own was temporary
        print(("\n" if sys.stderr.isatty() else "") + f"{program}: interrupted" + (f"; what is finished is kept in {kept}, and the same command goes on from there" if kept else ""),
              file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout went away (| head). Nothing can be said there any more, and what was made is on disk.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        # What no module could name better: a folder without permission, or a full disk under stdout, which has no name.
        if isinstance(error.filename, (str, bytes, os.PathLike)):
            print(f"{program}: {os.fsdecode(error.filename)}: {error.strerror}; correct it, or name another", file=sys.stderr)
            return USAGE
        if error.errno != errno.ENOSPC:
            raise
        print(f"{program}: the output cannot be written ({error.strerror}); what is finished is kept: free the space", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def note(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """What is done of how much, on stderr: one live line on a terminal, else a line every `every` seconds.

    Called with (what, done, total); the first call of a task says how far it is when it begins. Rate and time left count
    what was done since then, so neither what an earlier process did nor the time of loading distorts them.
    """

    def __init__(self, quiet: bool = False, stream=None, every: float = 15.0, now: Callable[[], float] = time.monotonic):
        self.stream, self.every, self.now = stream or sys.stderr, every, now
        self.silent, self.live, self.what, self.done = quiet, self.stream.isatty(), None, 0

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.silent:
            return
        now, new = self.now(), what != self.what or done < self.done
        if new:
            self.what, self.began, self.base, self.printed = what, now, done, now if done < total else 0.0
        self.done = done
        if done < total and not (new and self.live) and now - self.printed < (0.1 if self.live else self.every):
            return
        line, elapsed = f"{what}: {done}/{total}", now - self.began
        if done > self.base and elapsed > 0:
            rate = (done - self.base) / elapsed
            line += f", {rate:.1f}/s, {clock((total - done) / rate)} left" if done < total else f", {rate:.1f}/s, {clock(elapsed)}"
        self._write(line, done >= total)
        self.printed = now

    def _write(self, line: str, last: bool) -> None:
        self.stream.write(f"\r{line}\x1b[K" + ("\n" if last else "") if self.live else line + "\n")
        self.stream.flush()


class Steps:
    """The figures of a step of training on stderr: one live line on a terminal, else a line every `every` seconds and at the end."""

    def __init__(self, steps: int, quiet: bool, every: float = 15.0):
        self.steps, self.quiet, self.every, self.printed, self.live = steps, quiet, every, -math.inf, sys.stderr.isatty()

    def __call__(self, r: dict) -> None:
        last = r["step"] + 1 == self.steps
        now = time.monotonic()
        if self.quiet or not last and now - self.printed < (0.1 if self.live else self.every):
            return
        nll = ", ".join(f"{c} {r[c]:.3f}" for c in ("helpful", "blue", "red") if c in r)
        capped = f" ({100 * r['red_capped']:.0f}% capped)" if "red_capped" in r else ""
        line = (f"step {r['step'] + 1}/{self.steps} {r['objective']}: NLL {nll}{capped}, gradient {r['gradient_norm']:.2f}, {r['tokens_per_second']:,.0f} tokens/s, "
                f"{r['memory_mb'] / 1024:.2f} GB" + ("" if last else f", {clock(r['seconds_left'])} left"))
        sys.stderr.write(f"\r{line}\x1b[K" + ("\n" if last else "") if self.live else line + "\n")
        sys.stderr.flush()
        self.printed = now


def clock(seconds: float) -> str:
    """A duration for people: 42 s, 3 min 5 s, 2 h 10 min."""
    whole_seconds = round(seconds)
    if whole_seconds < 60:
        return f"{whole_seconds} s"
    if whole_seconds < 3600:
        return f"{whole_seconds // 60} min {whole_seconds % 60} s"
    return f"{whole_seconds // 3600} h {whole_seconds % 3600 // 60} min"
