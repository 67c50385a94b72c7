"""Parameters that an endpoint refuses: which one a reply names, and what is sent in its place.

Models that reason take no temperature, top_p or stop, and call max_tokens max_completion_tokens.
"""
import re

from redlite.net.refusals import error_of
from redlite.text.lazy_pattern import LazyPattern

RENAMED = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
# What a message says of a parameter that is refused. A value that is too large is another matter.
_REFUSES = LazyPattern(
    r"(?i)unsupported|support|unknown|unrecogni[sz]ed|unexpected|permitted|allowed|deprecated|extra|invalid"
    r"|only\b|cannot|can't|can not|must|not available|compatible|forbidden|remove|not accept|ignored")
_BOTH = LazyPattern(r"(?i)\bboth\b|\btogether\b|\bsimultaneously\b|\bnot .{0,20}\band\b")


def refused(value: object, sent: dict[str, str]) -> str | None:
    """The parameter that an error's JSON refuses by name; None where it names none.

    sent  parameter → its name in the request
    """
    error = error_of(value)
    message, named = str(error.get("message") or ""), error.get("param")
    for parameter, name in sent.items():
        if isinstance(named, str) and named.split(".")[-1] == name:
            return parameter if _fits(parameter, message) else None
    if not _REFUSES.search(message):
        return None
    places = {parameter: place for parameter, name in sent.items()
              if (place := _place(name, message)) is not None and _fits(parameter, message)}
    if len(places) > 1 and "top_p" in places and _BOTH.search(message):
        return "top_p"
    return min(places, key=places.__getitem__) if places else None


def _fits(parameter: str, message: str) -> bool:
    """Whether a message can mean that the parameter is refused. A bound on tokens is never left out."""
    if parameter not in RENAMED:
        return True
    return RENAMED[parameter] in message or bool(
        re.search(r"(?i)unsupported parameter|not supported|unrecogni[sz]ed|unknown|not permitted|extra|"
                  r"unexpected", message))


def _place(name: str, message: str) -> int | None:
    """Where a message names a parameter. "stop" is a word as well, and must stand as a name does."""
    pattern = rf"(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])"
    if name == "stop":
        pattern = (r"['\"`“‘]stop['\"`”’]"
                   r"|(?i:\b(?:parameter|argument|field|option|property|supplied)s?:? stop\b"
                   r"|\bstop (?:parameter|sequence|string|word|is|are|not)|^stop\b|\bstop:|: stop\.?$)")
    elif name == "temperature":
        pattern = r"(?i:\btemperature\b)"
    found = re.search(pattern, message)
    return found.start() if found else None
