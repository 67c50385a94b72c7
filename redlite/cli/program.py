"""What the command-line programs share: options, errors as one line, exit codes, configuration files, progress."""
import argparse
import difflib
import errno
import gc
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from redlite.cli.options import IMPLEMENTATIONS, Parser
from redlite.cli.progress import note
from redlite.errors import Error, Incomplete
from redlite.net import offline
from redlite.store import run_directory
from redlite.store.files import half_surrogate, read_json

# When garbage is collected: torch alone makes 170,000 objects that stay, and Python's own 700 would have them visited again and again meanwhile.
GARBAGE = (100_000, 10, 10)
DONE, FAILED, USAGE, GATE, INTERRUPTED = 0, 1, 2, 100, 130


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
    settings = read_json(path, f"--config {path}")
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
        if any("\0" in str(v) or half_surrogate(str(v)) for v in values):
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
    opened = len(run_directory.opened)
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
        kept = next((d for d in run_directory.opened[opened:] if d.exists()), None)   # the outermost; a benchmark's own was temporary
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
