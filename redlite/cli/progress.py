"""Progress on stderr."""
import math
import sys
import time
from collections.abc import Callable

from redlite.store.text import clock


def note(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """What is done of how much, on stderr: one live line on a terminal, else a line every `every` seconds.

    Called with (what, done, total); the first call of a task says how far it is when it begins. Rate and time left count
    what was done since then, so neither what an earlier process did nor the time of loading distorts them.
    """

    def __init__(self, quiet: bool = False, stream=None, every: float = 15.0, now: Callable[[], float] = time.monotonic):
        self.stream, self.every, self.now = stream or sys.stderr, every, now
        self.silent, self.live, self.what, self.done = quiet, self.stream.isatty(), None, 0

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.silent:
            return
        now, new = self.now(), what != self.what or done < self.done
        if new:
            self.what, self.began, self.base, self.printed = what, now, done, now if done < total else 0.0
        self.done = done
        if done < total and not (new and self.live) and now - self.printed < (0.1 if self.live else self.every):
            return
        line, elapsed = f"{what}: {done}/{total}", now - self.began
        if done > self.base and elapsed > 0:
            rate = (done - self.base) / elapsed
            line += f", {rate:.1f}/s, {clock((total - done) / rate)} left" if done < total else f", {rate:.1f}/s, {clock(elapsed)}"
        self._write(line, done >= total)
        self.printed = now

    def _write(self, line: str, last: bool) -> None:
        self.stream.write(f"\r{line}\x1b[K" + ("\n" if last else "") if self.live else line + "\n")
        self.stream.flush()


class StepProgress:
    """The figures of a step of training on stderr: one live line on a terminal, else a line every `every` seconds and at the end."""

    def __init__(self, steps: int, quiet: bool, every: float = 15.0):
        self.steps, self.quiet, self.every, self.printed, self.live = steps, quiet, every, -math.inf, sys.stderr.isatty()

    def __call__(self, r: dict) -> None:
        last = r["step"] + 1 == self.steps
        now = time.monotonic()
        if self.quiet or not last and now - self.printed < (0.1 if self.live else self.every):
            return
        nll = ", ".join(f"{c} {r[c]:.3f}" for c in ("helpful", "blue", "red") if c in r)
        capped = f" ({100 * r['red_capped']:.0f}% capped)" if "red_capped" in r else ""
        line = (f"step {r['step'] + 1}/{self.steps} {r['objective']}: NLL {nll}{capped}, gradient {r['gradient_norm']:.2f}, {r['tokens_per_second']:,.0f} tokens/s, "
                f"{r['memory_mb'] / 1024:.2f} GB" + ("" if last else f", {clock(r['seconds_left'])} left"))
        sys.stderr.write(f"\r{line}\x1b[K" + ("\n" if last else "") if self.live else line + "\n")
        sys.stderr.flush()
        self.printed = now
