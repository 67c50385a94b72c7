"""When the next request may start: a bound that adapts to rate limits, and waits that servers ask for."""
import email.utils
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypedDict

SHRINK, LEAST_GAP = 0.7, 0.25   # "too many" takes the bound to 70%, at most once in this many seconds
GLANCE = 0.5                    # seconds between two looks at whether to stop
UNITS = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
UNIT = "ms|us|µs|ns|h|m|s"


class Hints(TypedDict, total=False):
    """What one request tells about the server's limits; see `Pace.end`."""
    ok: bool
    limited: bool
    wait: float
    left: float
    reset: float


class Pace:
    """How many requests run at once, and from when the next one may start. Safe to use from many threads.

    The bound rises by one for each round of successes and falls by 30% when the server says "too many"
    (additive increase, multiplicative decrease). A wait that one answer asks for holds back all requests.
    """

    def __init__(self, most: int):
        self.most, self.bound, self.running = most, float(most), 0
        self._resume = 0.0              # when requests may start again, on the monotonic clock
        self._shrunk = -math.inf        # when the bound fell last
        # requests that the server allows yet, within so many seconds
        self._left, self._window = math.inf, 0.0
        self._change = threading.Condition()

    def start(self, stopped: Callable[[], object]) -> bool:
        """Wait for leave to start a request; False if `stopped()` became true meanwhile."""
        with self._change:
            while not stopped():
                now = time.monotonic()
                wait = self._resume - now
                if wait > 0:
                    self._change.wait(min(wait, GLANCE))
                    continue
                if self._left < 1 and self._resume:
                    self._left = math.inf  # the server's window is over
                if self.running >= max(1, int(self.bound)):
                    self._change.wait(GLANCE)
                    continue
                self.running += 1
                self._left -= 1
                if self._left < 1:
                    self._resume = max(self._resume, now + self._window)
                return True
            return False

    def end(self, ok: bool = False, limited: bool = False, wait: float = 0.0, left: float | None = None,
            reset: float = 0.0) -> None:
        """A request came back.

        ok       with an answer
        limited  with "too many requests"
        wait     seconds that the server asks all requests to wait
        left     requests that it allows within the next `reset` seconds; None if it does not say
        """
        with self._change:
            self.running -= 1
            now = time.monotonic()
            if ok:
                self.bound = min(self.most, self.bound + 1 / self.bound)
            if limited and now - self._shrunk >= LEAST_GAP:
                self.bound, self._shrunk = max(1.0, self.bound * SHRINK), now
            if left is not None and reset > 0:
                self._left, self._window = left - self.running, reset
                if self._left < 1:
                    wait = max(wait, reset)
            if wait > 0:
                self._resume = max(self._resume, now + wait)
            self._change.notify_all()

    def wake(self) -> None:
        """Let waiting threads look at `stopped()` again."""
        with self._change:
            self._change.notify_all()


def window(headers: Mapping[str, str], longest: float) -> Hints:
    """The requests that a reply's x-ratelimit headers leave; nothing where the window is over `longest` s."""
    left = count(headers.get("x-ratelimit-remaining-requests"))
    reset = seconds(headers.get("x-ratelimit-reset-requests"))
    if count(headers.get("x-ratelimit-remaining-tokens")) == 0:
        left, reset = 0, max(reset or 0, seconds(headers.get("x-ratelimit-reset-tokens")) or 0)
    if left is None or reset is None or reset > longest:
        return {}
    return {"left": left, "reset": reset}


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """The seconds that a reply asks to wait: retry-after-ms where there is one, else Retry-After."""
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        if (milliseconds := seconds(headers.get(name))) is not None:
            return milliseconds / 1000
    return seconds(headers.get("Retry-After"))


def seconds(text: str | None) -> float | None:
    """A wait in seconds; None if the text says none.

    Read are "1.5", "20ms", "6m0s" (Go's durations), an HTTP date, and lists of these, of which the longest
    counts.
    """
    if not text:
        return None
    found = [value for part in (text, *text.split(",")) if (value := _seconds(part.strip())) is not None]
    return max(found) if found else None


def _seconds(text: str) -> float | None:
    if re.fullmatch(r"\d{1,18}(\.\d*)?|\.\d+", text):
        return float(text)
    if re.fullmatch(rf"(\d+(\.\d+)?({UNIT}))+", text):
        return sum(float(n) * UNITS[unit] for n, unit in re.findall(rf"(\d+(?:\.\d+)?)({UNIT})", text))
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def count(text: str | None) -> float | None:
    """A number of requests in a header, the least of a joined list; None if the text says none."""
    found = [float(part) for part in (text or "").split(",") if re.fullmatch(r"\s*\d{1,12}\s*", part)]
    return min(found) if found else None
