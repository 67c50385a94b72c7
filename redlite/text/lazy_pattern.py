"""Regular expressions that are compiled at their first use, so that the start of a command pays for none."""
import re
from collections.abc import Callable
from typing import Any


class LazyPattern:
    """Stands for a `re.Pattern` and has its methods.

    pattern  the expression's text, or a function that makes it
    """

    def __init__(self, pattern: str | Callable[[], str], flags: int = 0):
        self._text, self._flags = pattern, flags

    def __getattr__(self, name: str) -> Any:
        # Python asks here only for what is not yet an attribute: the second call costs what `re` costs.
        text = self._text if isinstance(self._text, str) else self._text()
        found = getattr(re.compile(text, self._flags), name)
        setattr(self, name, found)
        return found
