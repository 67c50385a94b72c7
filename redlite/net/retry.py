"""The retry rule: which requests are made again, and when.

Made again: status 408, 409, 425, 429 and 5xx; time-outs and broken connections; bodies that are cut off, too
large or too slow. Made again once or twice: what comes whole with status 200 and is no answer, or a part of
one. Not made again: every other status. Redirects are never followed.

A wait that the server asks for (Retry-After) counts as no failure. After any other failure the wait doubles.
"""
import random
import time
from collections import Counter

from redlite.errors import Error, Incomplete
from redlite.net.reply import Failure

RETRIED = {408, 409, 425, 429}
FIRST_DELAY, LONGEST_DELAY = 0.5, 60.0      # seconds
# Attempts, at most, at what comes back whole and is no answer; and at answers that are broken off.
NO_ANSWER, BROKEN_OFF = 2, 3
# What to do about a status, and the setting that it is about. {key}: the key's variable.
MEND = {401: ("check {key}", ""),
        404: ("check the address and the model's name", "base_url")}


class Retry(Exception):
    """An attempt that may be made again.

    wait     seconds that the server asks for; None if it does not say
    limited  whether it says that there are too many requests
    most     attempts after which the call is given up, if that is earlier than elsewhere; None: it is not
    """

    def __init__(self, reason: str, wait: float | None = None, limited: bool = False,
                 most: int | None = None):
        super().__init__(reason)
        self.wait, self.limited, self.most = wait, limited, most


def fault(failure: Failure, wait: float | None, where: str, key: str = "OPENAI_API_KEY") -> Retry | Error:
    """What to raise for a reply that says what went wrong.

    wait   the seconds of its Retry-After header, None without one
    where  the endpoint, for the message
    key    the variable that holds its key
    """
    status = failure.status
    if status == 402:   # the account is empty; what is finished is kept
        return Incomplete(f"{where}: {failure.detail}; the same command goes on when there is credit")
    if status in RETRIED or status >= 500:
        if failure.code == "insufficient_quota":
            return Incomplete(f"{where}: {failure.detail}")
        return Retry(f"status {status}", wait, limited=status in (429, 503))
    if 300 <= status < 400:
        return Error(f"{where} redirects elsewhere (status {status}), which is not followed; "
                     "give the address itself", "base_url")
    mend, setting = MEND.get(status, ("check the address", "base_url"))
    return Error(f"{where}: {failure.detail}; {mend.format(key=key)}", setting)


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
        self._alike: Counter[int] = Counter()

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
        if error.most is not None:
            self._alike[error.most] += 1
        return 0.0 if self.over else backoff(self.failures, self.first_delay)

    @property
    def broken_off(self) -> int:
        """How many answers came that were broken off."""
        return self._alike[BROKEN_OFF]

    @property
    def short(self) -> bool:
        """Whether the call is given up since what came back is no answer, or a part of one."""
        return any(count >= most for most, count in self._alike.items())

    @property
    def over(self) -> bool:
        """Whether the call is given up."""
        return self.short or self.failures >= self.tries
