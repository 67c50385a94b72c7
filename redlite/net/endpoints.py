"""Where API models are served, what they cost, and how much may be spent."""
import json
import os
import urllib.parse
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import requests

from redlite.errors import Error
from redlite.net.providers import AZURE_VERSION, MOST_STOPS, PROVIDERS, merged
from redlite.net.refusals import WRONG
from redlite.net.template import Template
from redlite.store.files import read_json, sha256_json
from redlite.store.records import is_kind
from redlite.text.lazy_pattern import LazyPattern

# Names of headers and of queries whose values are secrets.
SECRET_NAME = LazyPattern(r"(?i)auth|key|token|secret|cookie|password|credential|sig")
VENDOR = PROVIDERS["openai"].base_url
Prices = tuple[float, float]    # dollars for a million tokens: (prompt, completion)


def model_name(spec: str) -> str:
    """The endpoint's name of "openai:NAME". Raises Error if there is none."""
    scheme, _, name = spec.partition(":")
    if not name or name != name.strip():
        raise Error(f"{spec!r}: give the model's name behind {scheme}:")
    return name


@dataclass(frozen=True)
class Endpoint:
    """Where a model is served, and how it is asked. The API key is no part of it and never shown.

    provider  a key of `providers.PROVIDERS`
    headers   (name, value) that go along with each request
    extra     a JSON merge patch of each request's body
    version   Azure's api-version
    template  in place of a provider: an endpoint of the user's own making
    keys      the environment's names for the key; () for the provider's
    Raises Error for a bad address.
    """
    model: str
    base_url: str = VENDOR
    provider: str = "openai"
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    extra: dict | None = field(default=None, hash=False)
    version: str = ""
    template: Template | None = field(default=None, hash=False)
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        try:
            parts = urllib.parse.urlsplit(self.base_url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and self.reached
        except ValueError:  # requests' own InvalidURL is one too
            known = None
        if not known or not self.base_url.isprintable() or " " in self.base_url:
            raise Error(f"address {self.base_url[:80]!r}: is none such as https://host/v1", "base_url")
        queries = [q for q in parts.query.split("&") if q and not q.startswith("api-version=")]
        if self.template:
            queries = [q for q in queries if SECRET_NAME.search(q.partition("=")[0])]
        if parts.username is not None or parts.fragment or queries:
            mend = f"the key comes from the environment variable {self.key_variable}"
            if self.template:
                mend = "put it into a header as {{env:NAME}}"
            raise Error(f"the endpoint's address must hold no user, password, key or fragment; {mend}",
                        "base_url")
        if not self.model:
            raise Error(f"{self.provider}: needs a model's name behind it")

    @property
    def _keys(self) -> tuple[str, ...]:
        return (*self.keys, *PROVIDERS[self.provider].keys)

    @property
    def key_variable(self) -> str:
        """The environment's variable that holds the key; the provider's, where none does."""
        there = [name for name in self._keys if os.environ.get(name, "").strip()]
        return [*there, *PROVIDERS[self.provider].keys][0]

    @property
    def key(self) -> str:
        """The API key, or "". Raises Error for one that is missing or cannot be one."""
        if self.template:
            return ""
        name, provider = self.key_variable, PROVIDERS[self.provider]
        key = os.environ.get(name, "").strip()
        names = {"authorization", provider.key_header[0].lower()}
        own = names & {header.lower() for header, _ in self.headers}
        vendor = self.base_url.rstrip("/") == provider.base_url or self.provider == "azure"
        if not key and vendor and not own:
            raise Error(f"the environment variable {name} is not set; {self.base_url} needs it")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise Error(f"the environment variable {name} holds characters that no key has")
        return "" if own else key

    def all_headers(self) -> dict[str, str]:
        """Those of the provider, of the key and of the user, who has the last word."""
        if self.template:
            return {**self.template.filled_headers(), **dict(self.headers)}
        provider = PROVIDERS[self.provider]
        name, before = provider.key_header
        own = {name: before + self.key} if self.key else {}
        return {**provider.headers, **own, **dict(self.headers)}

    @property
    def identity(self) -> dict:
        """What of it decides the answers, for manifests: no header's value, which may be a secret."""
        found: dict = {"endpoint": self.base_url}
        if self.version:
            found["api_version"] = self.version
        if self.headers:
            found["headers"] = sorted(name.lower() for name, _ in self.headers)
        if self.extra is not None:
            found["extra_body"] = self.extra
        if self.template:
            found["template"] = sha256_json(asdict(self.template))
        return found

    def _address(self, path: Callable[[str, str], str]) -> str:
        parts = urllib.parse.urlsplit(self.base_url)
        made = parts._replace(path=path(parts.path.rstrip("/"), self.model))
        if self.provider == "azure" and not parts.query and not parts.path.rstrip("/").endswith("/v1"):
            made = made._replace(query=f"api-version={self.version or AZURE_VERSION}")
        return urllib.parse.urlunsplit(made)

    @property
    def url(self) -> str:
        """Where completions are asked for."""
        return self.base_url if self.template else self._address(PROVIDERS[self.provider].path)

    @property
    def known_url(self) -> str:
        """Where a GET says whether there is the model; "" where nothing does."""
        path = PROVIDERS[self.provider].known
        return self._address(path) if not self.template and path("", self.model) else ""

    @property
    def reached(self) -> str:
        """`url` as it is sent: a host's name in ASCII."""
        return requests.Request("POST", self.url).prepare().url or ""

    def names(self, instead: dict[str, str | None]) -> dict[str, str]:
        """Parameter → its name in a request. instead: what the endpoint refused → its new name, if any."""
        if self.template:
            return {}
        found = dict(PROVIDERS[self.provider].names)
        if self.base_url.rstrip("/") == VENDOR:     # its newer models refuse the older name
            found["max_tokens"] = "max_completion_tokens"
        for name, new in instead.items():
            if new is None:
                found.pop(name, None)
            else:
                found[name] = new
        return found

    def body(self, messages: list[dict[str, str]], parameters: dict, sample: int,
             names: dict[str, str]) -> bytes:
        """One request's body."""
        if self.template:
            value = self.template.request(messages, parameters, sample)
        else:
            fields = {names[name]: value for name, value in parameters.items() if name in names}
            if "stop" in names and "stop" in parameters:
                fields[names["stop"]] = list(parameters["stop"])[:MOST_STOPS]
            value = PROVIDERS[self.provider].body(self.model, messages, fields)
        return json.dumps(value if self.extra is None else merged(value, self.extra)).encode()

    def read(self, value: object) -> object:
        """A reply's JSON in a chat completion's form, with what says that something went wrong."""
        made: object = value
        if self.template:
            made = self.template.read(value)
        elif isinstance(value, dict):
            made = PROVIDERS[self.provider].read(value)
        if isinstance(made, dict) and isinstance(value, dict):
            return {**made, **{name: value[name] for name in WRONG if value.get(name)}}
        return made


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
