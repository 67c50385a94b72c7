"""When the next request may start: a bound that adapts to rate limits, waits that servers ask for, and backoff. Knows no HTTP."""
import email.utils
import math
import random
import re
import threading
import time

SHRINK, LEAST_GAP = 0.7, 0.25   # one rate-limit answer takes the bound to 70%, at most once in this many seconds
FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0


class Pace:
    """How many requests run at once, and from when the next one may start. Safe to use from many threads.

    The bound rises by one for each round of successes and falls by 30% when the server says "too many" (additive
    increase, multiplicative decrease). A wait that one answer asks for holds back all requests.
    """

    def __init__(self, most: int):
        self.most, self.bound, self.running = most, float(most), 0
        self._resume, self._shrunk, self._left = 0.0, -math.inf, math.inf
        self._change = threading.Condition()

    def start(self, stopped) -> bool:
        """Wait for leave to start a request; False if `stopped()` became true meanwhile."""
        with self._change:
            while not stopped():
                now = time.monotonic()
                wait = self._resume - now
                if wait <= 0:
                    if self._left < 1 and self._resume:
                        self._left = math.inf  # the server's window is over
                    if self.running < max(1, int(self.bound)):
                        self.running += 1
                        self._left -= 1
                        if self._left < 1:
                            self._resume = max(self._resume, now + self._window)
                        return True
                self._change.wait(min(wait, 0.5) if wait > 0 else 0.5)
            return False

    def end(self, ok: bool = False, limited: bool = False, wait: float = 0.0, left: float | None = None, reset: float = 0.0) -> None:
        """A request came back: ok, or limited (too many); wait: seconds the server asks all to hold; left: requests it still allows within `reset` seconds."""
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

    _window = 0.0

    def wake(self) -> None:
        """Let waiting threads look at `stopped()` again."""
        with self._change:
            self._change.notify_all()


def backoff(tries: int, first: float = FIRST_DELAY) -> float:
    """Seconds to wait after the tries-th failure: doubling, between half and the whole, so that clients do not march in step."""
    return min(LONGEST_DELAY, first * 2 ** (tries - 1)) * random.uniform(0.5, 1)


def seconds(text: str | None) -> float | None:
    """A wait in seconds: "1.5", "20ms", "6m0s" (Go's durations), an HTTP date, or a joined list of these; None if it says nothing."""
    if not text:
        return None
    found = [value for part in (text, *text.split(",")) if (value := _seconds(part.strip())) is not None]
    return max(found) if found else None


def _seconds(text: str) -> float | None:
    if re.fullmatch(r"\d{1,18}(\.\d*)?|\.\d+", text):
        return float(text)
    if re.fullmatch(r"(\d+(\.\d+)?(ms|us|µs|ns|h|m|s))+", text):
        unit = {"h": 3600, "m": 60, "s": 1, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
        return sum(float(n) * unit[u] for n, u in re.findall(r"(\d+(?:\.\d+)?)(ms|us|µs|ns|h|m|s)", text))
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def count(text: str | None) -> float | None:
    """A number of requests in a header, the least of a joined list."""
    found = [float(p) for p in (text or "").split(",") if re.fullmatch(r"\s*\d{1,12}\s*", p)]
    return min(found) if found else None
