"""One HTTP request to an endpoint, over requests. Beside serve.py the only file that opens a socket.

Redirects are never followed, so the API key goes to the endpoint's host alone, or through the proxy that the
environment names, as requests does. No session is used, so nothing is read from .netrc.
"""
import os
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any, NamedTuple

import requests

from redlite import __version__
from redlite.errors import Error
from redlite.net.endpoints import SECRET_NAME, Endpoint
from redlite.net.names import OWN_KEYS
from redlite.net.providers import PROVIDERS
from redlite.net.retry import Retry
from redlite.store.text import printable

LARGEST_BODY = 64 << 20     # bytes
PIECE = 1 << 16             # bytes
HTTP_ERROR = requests.packages.urllib3.exceptions.HTTPError  # type: ignore[attr-defined]
LEAST_SECRET = 4            # characters; shorter ones would black out half of every text
LEAST_KEY = 8               # characters; "none" and "test", as local servers get them, are words of answers
LONG_SECRET = 20            # characters, from which on any header's value may be a secret
KEYS = {name for provider in PROVIDERS.values() for name in provider.keys} | {*OWN_KEYS.values()}


class HttpReply(NamedTuple):
    """A reply that came whole. seconds: since its request was sent."""
    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float


class Transport:
    """Sends requests to one endpoint, with the key and the proxy of the environment.

    connections  kept open, at most
    timeouts     (connect, read) seconds; reading a body also ends after twice the second in all
    """

    def __init__(self, endpoint: Endpoint, connections: int, timeouts: tuple[float, float]):
        self.endpoint, self.timeouts = endpoint, timeouts
        self._secrets = _secrets(endpoint)
        self._prepared = _prepared(endpoint)
        self._settings = _environment(self._prepared.url)
        self.adapter = requests.adapters.HTTPAdapter(1, connections, max_retries=0)

    def post(self, body: bytes, key: str) -> HttpReply:
        """Send a body. Raises Retry for what may pass, Error where there is no secure connection.

        key  the Idempotency-Key: a server that honours it makes no answer twice
        """
        prepared, started = self._prepared.copy(), time.monotonic()
        prepared.body = body
        prepared.headers["Content-Length"] = str(len(body))
        prepared.headers["Idempotency-Key"] = key
        try:
            response = self.adapter.send(prepared, stream=True, timeout=self.timeouts, **self._settings)
            try:
                data = self._read(response, started)
            finally:
                response.close()
        except requests.exceptions.SSLError as error:
            # the other side hung up; a certificate or version that does not fit says so
            if "EOF" in str(error):
                raise Retry(f"SSLError: {printable(self.redact(error))}") from None
            raise Error(f"{self.endpoint.base_url}: no secure connection ({self.redact(error)}); "
                        "name your CA file in REQUESTS_CA_BUNDLE") from None
        except (requests.exceptions.RequestException, HTTP_ERROR, OSError) as error:
            raise Retry(f"{type(error).__name__}: {printable(self.redact(error))}") from None
        return HttpReply(response.status_code, response.headers, data, time.monotonic() - started)

    def get(self, url: str, timeout: float) -> HttpReply | None:
        """What a GET answers; None where nothing came back within `timeout` seconds."""
        prepared, started = self._prepared.copy(), time.monotonic()
        prepared.prepare_method("GET")
        prepared.prepare_url(url, None)
        try:
            response = self.adapter.send(prepared, stream=True, timeout=timeout, **self._settings)
            try:
                data = self._read(response, started)
            finally:
                response.close()
        except (requests.exceptions.RequestException, HTTP_ERROR, OSError, Retry):
            return None
        return HttpReply(response.status_code, response.headers, data, time.monotonic() - started)

    def _read(self, response: requests.Response, started: float) -> bytes:
        pieces: list[bytes] = []
        size = 0
        # read1 (urllib3 2) returns whatever came. read would wait for a whole piece, and no bound would hold.
        read = getattr(response.raw, "read1", response.raw.read)
        while piece := read(PIECE, decode_content=True):
            pieces.append(piece)
            size += len(piece)
            if size > LARGEST_BODY or time.monotonic() - started > 2 * self.timeouts[1]:
                raise Retry("too long: the body is too large or too slow")
        return b"".join(pieces)

    def redact(self, text: object) -> str:
        """A text without the API key and without the passwords of proxies."""
        shown = str(text)
        for secret in self._secrets:
            shown = shown.replace(secret, "[redacted]")
        return shown


def _prepared(endpoint: Endpoint) -> requests.PreparedRequest:
    """The request without its body. Raises Error for an API key that is missing or cannot be one."""
    headers = {
        "Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity",
        "User-Agent": f"redlite/{__version__}"
    }
    prepared = requests.Request(endpoint.template.method if endpoint.template else "POST", endpoint.url,
                                headers=headers).prepare()
    try:
        prepared.prepare_headers({**prepared.headers, **endpoint.all_headers()})
    except requests.exceptions.InvalidHeader:
        raise Error("a header holds a line break or a character that no header has", "header") from None
    return prepared


def _environment(url: Any) -> dict[str, Any]:
    """The proxies and certificates that the environment names for an address."""
    found = requests.Session().merge_environment_settings(url, {}, None, None, None)
    bundle = found["verify"]
    if isinstance(bundle, str) and not os.path.exists(bundle):
        raise Error(f"REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names {bundle}, which does not exist; "
                    "name your CA file, or unset it")
    return {name: found[name] for name in ("proxies", "verify", "cert")}


def _secrets(endpoint: Endpoint) -> list[str]:
    """What must never be written: keys, headers that may be secret, and the proxies' passwords.

    Also as they stand in URLs.
    """
    keys = [endpoint.key, *(os.environ.get(name, "").strip() for name in KEYS)]
    found = [key for key in keys if len(key) >= LEAST_KEY]
    found += endpoint.template.secrets() if endpoint.template else []
    for name, value in endpoint.headers:
        if SECRET_NAME.search(name) or len(value) >= LONG_SECRET and " " not in value:
            found += [value, value.rpartition(" ")[2]]
    for address in urllib.request.getproxies().values():
        try:
            password = urllib.parse.urlsplit(address if "://" in address else f"http://{address}").password
        except ValueError:  # no address, but perhaps a password
            password = address
        if password:
            found += [password, urllib.parse.unquote(password)]
    found += [urllib.parse.quote(secret, safe="") for secret in found if secret]
    return sorted({secret for secret in found if len(secret) >= LEAST_SECRET}, key=len, reverse=True)
