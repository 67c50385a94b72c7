"""The retry rule: which requests are made again, and when.

Made again: status 408, 409, 429 and 5xx; time-outs and broken connections; bodies that are cut off, too
large, too slow, or no chat completion. Not made again: every other status. Redirects are never followed.

A wait that the server asks for (Retry-After) counts as no failure. After any other failure the wait doubles.
"""
import random
import time

from redlite.errors import Error, Incomplete
from redlite.net.reply import Failure

RETRIED = {408, 409, 429}
FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0      # seconds
# What to do about a status, and the setting that it is about.
MEND = {401: ("check OPENAI_API_KEY", ""), 403: ("check what OPENAI_API_KEY may do", ""),
        404: ("check the address and the model's name", "base_url")}


class Retry(Exception):
    """An attempt that may be made again.

    wait     seconds that the server asks for; None if it does not say
    limited  whether it says that there are too many requests
    """

    def __init__(self, reason: str, wait: float | None = None, limited: bool = False):
        super().__init__(reason)
        self.wait, self.limited = wait, limited


def fault(failure: Failure, wait: float | None, where: str) -> Retry | Error:
    """What to raise for a reply that says what went wrong.

    wait   the seconds of its Retry-After header, None without one
    where  the endpoint, for the message
    """
    status = failure.status
    if status in RETRIED or status >= 500:
        if failure.code == "insufficient_quota":
            return Incomplete(f"{where}: {failure.detail}")
        return Retry(f"status {status}", wait, limited=status in (429, 503))
    if 300 <= status < 400:
        return Error(f"{where} redirects elsewhere (status {status}), which is not followed; "
                     "give the address itself", "base_url")
    mend, setting = MEND.get(status, ("check the address", "base_url"))
    return Error(f"{where}: {failure.detail}; {mend}", setting)


def backoff(failures: int, first: float = FIRST_DELAY) -> float:
    """Seconds to wait after so many failures: doubling, and by chance up to half of it less."""
    return min(LONGEST_DELAY, first * 2 ** (failures - 1)) * random.uniform(0.5, 1)


class Attempts:
    """The attempts at one call, and whether there may be another.

    tries         failures after which the call is given up
    first_delay   seconds, after the first failure
    longest_wait  seconds since the first attempt until which the server may have us wait
    """

    def __init__(self, where: str, tries: int, first_delay: float, longest_wait: float):
        self.where, self.tries, self.first_delay, self.longest_wait = where, tries, first_delay, longest_wait
        self.began, self.failures, self.reason = time.monotonic(), 0, ""

    def failed(self, error: Retry) -> float:
        """Seconds to wait before the next attempt, beside what the server asks all requests to wait.

        Raises Incomplete where the server asks for too long a wait.
        """
        self.reason = str(error)
        if error.wait:
            if error.wait + time.monotonic() - self.began > self.longest_wait:
                raise Incomplete(f"{self.where} asks for more patience than {self.longest_wait:.0f} s "
                                 f"({self.reason}); run the same command again later")
            return 0.0
        self.failures += 1
        return 0.0 if self.over else backoff(self.failures, self.first_delay)

    @property
    def over(self) -> bool:
        """Whether the call is given up."""
        return self.failures == self.tries
