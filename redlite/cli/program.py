"""What the command-line programs share: the closed network, errors as one line, exit codes."""
import argparse
import gc
import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType

from redlite.cli.config_file import from_config
from redlite.cli.options import Add, Parser, check_once, closest, options_of, respelled
from redlite.cli.progress import note, note_kernels
from redlite.errors import Error, Incomplete
from redlite.net import kernel, offline
from redlite.net.names import is_api
from redlite.store import run_directory
from redlite.store.files import BAD_LUCK, GO_ON
from redlite.store.text import Plain

DONE, FAILED, USAGE, GATE, INTERRUPTED = 0, 1, 2, 100, 130
# When garbage is collected. torch alone makes 170,000 objects that stay; Python's own threshold of 700 would
# visit them again and again while they are made.
GARBAGE = (100_000, 10, 10)
Body = Callable[[list[str]], int]   # a program: its arguments → its exit code
# A command: its name in messages → its options; and those options, with the command line → its exit code.
Command = tuple[Callable[[str], Parser], Callable[[argparse.Namespace, str], int]]

# What torch, Python's threads and the loader of libraries say when there is no memory left.
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "can't start new thread",
             "failed to map segment", "annot allocate memory")

_options: Collection[str] | None = None   # those of the command that is running
_is_program = False  # whether this process is one of our programs, rather than somebody's that calls one


def parse(parser: Parser, arguments: list[str], seals_later: bool = False) -> argparse.Namespace:
    """The options of a command. The command line wins over the file of --config.

    A program has its kernel close the network as well, unless the options name an endpoint or torchrun
    started the command, whose processes talk to each other. seals_later: the command calls `seal` itself.
    """
    global _options
    _options = parser._option_string_actions
    arguments = respelled(parser, arguments)
    check_once(parser, arguments)
    first = Parser(prog=parser.prog, add_help=False)
    first.add_argument("--config")
    path = first.parse_known_args(arguments)[0].config
    if path:
        named = {argument.partition("=")[0] for argument in arguments}
        repeated = {
            f"--{action.dest.replace('_', '-')}"
            for action in parser._actions if isinstance(action, Add)
        }
        ours = named & repeated     # the command line replaces a file's list, it does not add to it
        arguments = [*from_config(parser, Path(path), ours), *arguments]
    args = parser.parse_args(arguments)
    for name in ("config", "model", "output_dir"):
        if getattr(args, name, None) == "":     # as "$UNSET" gives it
            raise Error(f"--{name.replace('_', '-')} is empty; name one, or leave the option out")
    together = parser.many_processes and {"RANK", "WORLD_SIZE"} <= os.environ.keys()
    if not (seals_later or together or endpoints(args)):
        seal(args.quiet)
    return args


def seal(quiet: bool) -> None:
    """Have the kernel close a program's network as well, for good."""
    if _is_program and not offline.seal() and not quiet:
        note("this kernel cannot refuse network sockets to a program (seccomp); "
             "the audit hook alone keeps the network closed")


def dispatch(program: str, commands: Mapping[str, Command], default: str, arguments: list[str],
             parse: Callable[[Parser, list[str]], argparse.Namespace] = parse) -> int:
    """Run the command that the first argument names, or the default one."""
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    if name is not None and name not in commands:
        close = closest(name, commands)
        hint = f"did you mean {close}?" if close else f"use {', '.join(commands)}"
        raise Error(f"{name!r} is no command; {hint} (see {program} --help)")
    describe, body = commands[name or default]
    parser = describe(f"{program} {name or f'[{default}]'}")
    args = parse(parser, arguments[1:] if name else arguments)
    with json_alone(args):
        return body(args, command_line(program, arguments))


@contextmanager
def json_alone(args: argparse.Namespace) -> Iterator[None]:
    """With --json, the JSON line that a command prints last is alone on stdout; the rest goes to stderr."""
    if not getattr(args, "json", False):
        yield
        return
    said, result = io.StringIO(), ""
    try:
        with redirect_stdout(said):
            yield
        *lines, last = said.getvalue().splitlines() or [""]
        result = last if last.startswith(("{", "[")) else ""
    finally:
        words = said.getvalue().removesuffix("\n").removesuffix(result).rstrip("\n")
        if words and not args.quiet:
            note(words)
    if result:
        print(result)


def endpoints(args: argparse.Namespace) -> list[str]:
    """The names of API models among a command's options."""
    values: list[object] = []
    for value in vars(args).values():
        values += value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, str) and is_api(v)]


def command_line(program: str, arguments: list[str]) -> str:
    """The command as a person would type it, without the values of headers, which may be secrets."""
    shown = list(arguments)
    for i, argument in enumerate(arguments):
        name, given, value = argument.partition("=")
        if name not in ("--header", "--judge-header"):
            continue
        if given:
            shown[i] = f"{name}={value.partition(':')[0]}:[redacted]"
        elif i + 1 < len(arguments):
            shown[i + 1] = f"{arguments[i + 1].partition(':')[0]}:[redacted]"
    return shlex.join([program, *shown])


def guarded(program: str, body: Body, arguments: list[str] | None = None) -> int:
    """Run a program's body with the network closed, and turn a user's faults into one line and an exit code.

    arguments  None: those of the command line. This process then is the program; its network stays closed to
               the end.

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


def _guarded(program: str, body: Body, arguments: list[str]) -> int:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    if sys.stdout is None:  # closed by the caller (>&-); there is nobody to print to
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (it stays open to the end)
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that is not Unicode must not end a run that is done
        sys.stdout.reconfigure(errors="backslashreplace")
    global _options
    _options, opened = None, len(run_directory.opened)
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Plain(sys.stdout), Plain(sys.stderr)
    try:
        return _ended(program, body, arguments, opened)
    finally:
        sys.stdout, sys.stderr = streams


def _ended(program: str, body: Body, arguments: list[str], opened: int) -> int:
    """How a program's body ended, as an exit code. opened: run directories that were there before."""
    try:
        _check_forced_kernels()
        code = body(arguments)
        note_kernels()  # for commands that have not said so as soon as they knew
        sys.stdout.flush()
        # An attempt that was stopped in a child or in native code was named, and the command went on.
        return FAILED if code == DONE and kernel.attempted() else code
    except Error as error:
        option = options_of(error.setting, _options)
        line = " ".join(str(error).splitlines()) + (f" ({option})" if option else "")
        print(f"{program}: {line}", file=sys.stderr)
        return FAILED if isinstance(error, Incomplete) else USAGE
    except KeyboardInterrupt:
        _say_interrupted(program, run_directory.opened[opened:])
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout went away (| head). What was made is on disk; nothing can be said any more.
        _discard_output()
        return FAILED
    except OSError as error:
        # What no module could name better: a folder without permission, or a full disk under stdout.
        return _say_os_error(program, error)
    except (MemoryError, RuntimeError, ImportError, SystemError) as error:
        if not _is_no_memory(error):
            raise
        print(f"{program}: there is not enough memory; what is finished is kept. Lower --batch-size or "
              "--tokens-per-batch, add --quantize, or close other programs, and run the same command again",
              file=sys.stderr)
        return FAILED


def _is_no_memory(error: Exception) -> bool:
    """Whether a fault says that there is no memory. Under a limit (ulimit -v) Python itself may break."""
    if isinstance(error, SystemError):
        import resource
        return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


def _say_os_error(program: str, error: OSError) -> int:
    """One line for what the system refused; the exit code. Raises the error again if nothing is known."""
    named = isinstance(error.filename, str | bytes | os.PathLike)
    where = os.fsdecode(error.filename) if named else "the output"
    if error.errno in BAD_LUCK:
        print(f"{program}: {where}: cannot be written ({error.strerror}); {GO_ON}", file=sys.stderr)
        if not named:
            _discard_output()
        return FAILED
    if not named:
        raise error
    print(f"{program}: {where}: {error.strerror}; correct it, or name another", file=sys.stderr)
    return USAGE


def _check_forced_kernels() -> None:
    """The kernels read the environment when they are imported, and refuse what they do not have."""
    for name, forced in (("REDLITE_KERNELS", "FORCED"), ("REDLITE_ISA", "FORCED_ISA")):
        wanted = os.environ.get(name)
        if not wanted:
            continue
        from redlite import kernels
        if wanted != getattr(kernels, forced):
            raise Error(f"{name}={wanted!r} comes too late: the kernels are imported; set it before")


def _say_interrupted(program: str, opened: list[Path]) -> None:
    kept = next((d for d in opened if d.exists()), None)   # the outermost; a benchmark's own was temporary
    line = f"{program}: interrupted"
    if kept:
        line += f"; what is finished is kept in {kept}, and the same command goes on from there"
    print(("\n" if sys.stderr.isatty() else "") + line, file=sys.stderr)


def _discard_output() -> None:
    """What stdout still holds goes nowhere when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
