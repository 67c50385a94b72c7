"""Where API models are served, what they cost, and how much may be spent."""
import json
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from redlite.errors import Error
from redlite.store.files import read_json
from redlite.store.records import is_kind

PREFIX = "openai:"
VENDOR = "https://api.openai.com/v1"
Prices = tuple[float, float]    # dollars for a million tokens: (prompt, completion)


def model_name(spec: str) -> str:
    """The endpoint's name of "openai:NAME". Raises Error if there is none."""
    name = spec.removeprefix(PREFIX)
    if not name or name != name.strip():
        raise Error(f"{spec!r}: give the model's name behind openai:")
    return name


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served. The API key is no part of it and never shown.

    Raises Error for a bad address.
    """
    model: str
    base_url: str = VENDOR

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.base_url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and self.reached
        except ValueError:  # requests' own InvalidURL is one too
            known = None
        if not known or not self.base_url.isprintable() or " " in self.base_url:
            raise Error(f"address {self.base_url[:80]!r}: is none such as https://host/v1", "base_url")
        queries = [q for q in parts.query.split("&") if q and not q.startswith("api-version=")]
        if parts.username is not None or parts.fragment or queries:
            raise Error("the endpoint's address must hold no user, password, key or fragment; "
                        "the key comes from the environment variable OPENAI_API_KEY", "base_url")
        if not self.model:
            raise Error("openai: needs a model's name behind it")

    @property
    def url(self) -> str:
        """Where completions are asked for."""
        parts = urllib.parse.urlsplit(self.base_url)
        return urllib.parse.urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/chat/completions"))

    @property
    def reached(self) -> str:
        """`url` as it is sent: a host's name in ASCII."""
        return requests.Request("POST", self.url).prepare().url or ""


@dataclass
class Limits:
    """What may be spent in all runs that share the journal; None is no limit.

    cost       dollars; needs prices
    prices     of the model that is asked
    prices_of  those of another model that the journal names
    """
    requests: int | None = None
    tokens: int | None = None
    cost: float | None = None
    prices: Prices | None = None
    prices_of: Callable[[str], Prices] | None = None

    def __post_init__(self) -> None:
        if self.cost is not None and self.prices is None:
            raise Error("a limit of cost needs a file of prices", "price_file")


def prices(path: str | Path, model: str) -> Prices:
    """A model's prices from a JSON file {"MODEL": {"prompt": dollars a million tokens, "completion": …}}."""
    table = read_json(path)
    entry = table.get(model) if isinstance(table, dict) else None
    if isinstance(entry, dict):
        values: Any = [entry.get("prompt"), entry.get("completion")]
        if is_kind(values, [(int, float)]) and min(values) >= 0:
            return values[0], values[1]
    raise Error(f"{path}: needs {{{json.dumps(model)}: {{\"prompt\": …, \"completion\": …}}}} "
                "with dollars a million tokens")
