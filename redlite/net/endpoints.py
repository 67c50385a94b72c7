"""Where API models are served, what they cost, and how much may be asked."""
import json
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

import requests

from redlite.errors import Error
from redlite.store.files import read_json

PREFIX = "openai:"


def model_name(spec: str) -> str:
    """The endpoint's name of "openai:NAME". Raises Error if there is none."""
    name = spec.removeprefix(PREFIX)
    if not name or name != name.strip():
        raise Error(f"{spec!r}: give the model's name behind openai:")
    return name

VENDOR = "https://api.openai.com/v1"


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served. The API key is no part of it and never shown."""
    model: str
    base_url: str = VENDOR

    def __post_init__(self):
        try:
            parts = urllib.parse.urlsplit(self.base_url)
            fine = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0) and self.base_url.isprintable() and " " not in self.base_url
            fine = fine and bool(self.reached)
        except ValueError:  # requests' own InvalidURL is one too
            fine = False
        if not fine:
            raise Error(f"--base-url {self.base_url[:80]!r}: is no address such as https://host/v1")
        if parts.username is not None or parts.fragment or any(not q.startswith("api-version=") for q in filter(None, parts.query.split("&"))):
            raise Error("--base-url: must hold no user, password, key or fragment; the key comes from the environment variable OPENAI_API_KEY")
        if not self.model:
            raise Error("openai: needs a model's name behind it")

    @property
    def url(self) -> str:
        parts = urllib.parse.urlsplit(self.base_url)
        return urllib.parse.urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/chat/completions"))

    @property
    def reached(self) -> str:
        """`url` as it is sent: a host's name in ASCII."""
        return requests.Request("POST", self.url).prepare().url


@dataclass
class Limits:
    """What may be spent in all runs that share the journal; None is no limit. prices: dollars a million tokens, (prompt, completion); prices_of: those of another model in the journal."""
    requests: int | None = None
    tokens: int | None = None
    cost: float | None = None
    prices: tuple[float, float] | None = None
    prices_of: Callable[[str], tuple[float, float]] | None = None

    def __post_init__(self):
        if self.cost is not None and self.prices is None:
            raise Error("--max-cost needs --price-file")


def prices(path, model: str) -> tuple[float, float]:
    """A model's prices from a JSON file {"MODEL": {"prompt": dollars a million tokens, "completion": …}}."""
    entry = read_json(path)
    entry = entry.get(model) if isinstance(entry, dict) else None
    values = [entry.get(k) for k in ("prompt", "completion")] if isinstance(entry, dict) else [None]
    if any(isinstance(v, bool) or not isinstance(v, (int, float)) or not 0 <= v < float("inf") for v in values):
        raise Error(f"{path}: needs {{{json.dumps(model)}: {{\"prompt\": …, \"completion\": …}}}} with dollars a million tokens")
    return tuple(values)
