"""Configuration files: a JSON object of option names and values, read as if they stood on the command line.
"""
import argparse
import difflib
from collections.abc import Collection
from pathlib import Path

from redlite.cli.options import Add, Parser
from redlite.errors import Error
from redlite.store.files import half_surrogate, read_json

NOT_IN_FILES = ("help", "version", "config")


def from_config(parser: Parser, path: Path, replaced: Collection[str] = ()) -> list[str]:
    """A configuration file as arguments, which are then checked like any others.

    replaced  options ("--prompt") that the command line gives, whose lists in the file do not count
    """
    where = f"--config {path}"
    settings = read_json(path, where)
    if not isinstance(settings, dict):
        raise Error(f"{where}: must hold one JSON object of option names and values")
    known = {action.dest.replace("_", "-"): action for action in parser._actions
             if action.option_strings and action.dest not in NOT_IN_FILES}
    arguments: list[str] = []
    given = set()
    for key, value in settings.items():
        name = key.replace("_", "-").removeprefix("--")
        if name in given:
            raise Error(f"{where}: names the option {name!r} twice, once as {key!r}; keep one")
        given.add(name)
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"use {', '.join(known)}"
            raise Error(f"{where}: the key {key!r} is no option of this command; {hint}")
        if value is not None:
            checked = _arguments(known[name], name, value, f"{where}: {key!r}")
            arguments += [] if f"--{name}" in replaced else checked
    return arguments


def _arguments(action: argparse.Action, name: str, value: object, what: str) -> list[str]:
    """One option and its value. what: the file and the key, as errors name them."""
    if isinstance(action, argparse.BooleanOptionalAction):
        if not isinstance(value, bool):
            raise Error(f"{what} must be true or false")
        return [f"--{name}" if value else f"--no-{name}"]
    several = bool(action.nargs) or isinstance(action, Add)
    values = value if isinstance(value, list) and several else [value]
    or_list = ", or a list of them" if several else ""
    if not values or any(isinstance(v, dict | list | bool) or v is None for v in values):
        raise Error(f"{what} must be a text or a number{or_list}")
    if action.type is None and not all(isinstance(v, str) for v in values):
        raise Error(f"{what} must be a text, in quotes{or_list}")
    texts = [str(v) for v in values]
    if any("\0" in text or half_surrogate(text) for text in texts):
        raise Error(f"{what} holds a NUL or half of a surrogate pair, which no text of an option has")
    if not action.nargs:
        return [f"--{name}={text}" for text in texts]
    if any(text.startswith("-") for text in texts):
        raise Error(f"{what} holds a value that begins with '-'; write ./-… for a file of such a name")
    return [f"--{name}", *texts]
