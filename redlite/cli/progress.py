"""Progress on stderr."""
import math
import sys
import time
from collections.abc import Callable
from typing import TextIO

from redlite.store.text import clock, plain

LIVE_SECONDS = 0.1      # between two states of a live line


def note(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


_noted: set[str] = set()    # what this process has said of its kernels


def note_kernels() -> None:
    """Say why slower kernels serve, once, if the kernels are imported and the fast ones cannot be used."""
    kernels = sys.modules.get("redlite.kernels")
    reason = kernels.notice() if kernels else ""
    if reason and reason not in _noted:
        _noted.add(reason)
        note(f"redlite: {reason}")


def _write(stream: TextIO, line: str, live: bool, last: bool) -> None:
    """A line of its own; or, live, the terminal's last line replaced."""
    if live:    # past what keeps other control characters from the terminal
        getattr(stream, "stream", stream).write(f"\r{plain(line)}\x1b[K" + ("\n" if last else ""))
    else:
        stream.write(line + "\n")
    stream.flush()


class Progress:
    """What is done of how much, on stderr: one live line on a terminal, else a line every `every` seconds.

    Called with (what, done, total). The first call of a task says how far it is when it begins. Rate and time
    left count what was done since then, so what an earlier process did does not distort them, and neither
    does loading.
    """

    def __init__(self, quiet: bool = False, stream: TextIO | None = None, every: float = 15.0,
                 now: Callable[[], float] = time.monotonic):
        self.stream, self.now, self.silent = stream or sys.stderr, now, quiet
        self.live = self.stream.isatty()
        self.every = LIVE_SECONDS if self.live else every
        self.what, self.done = "", 0

    def __call__(self, what: str, done: int, total: int) -> None:
        if self.silent:
            return
        now, last = self.now(), done >= total
        new = what != self.what or done < self.done
        if new:
            self.what, self.began, self.base = what, now, done
            self.printed = 0.0 if last else now
        self.done = done
        first_on_terminal = new and self.live
        if not last and not first_on_terminal and now - self.printed < self.every:
            return
        line, elapsed = f"{what}: {done}/{total}", now - self.began
        if done > self.base and elapsed > 0:
            rate = (done - self.base) / elapsed
            left = clock(elapsed) if last else f"{clock((total - done) / rate)} left"
            line += f", {rate:.1f}/s, {left}"
        _write(self.stream, line, self.live, last)
        self.printed = now


class StepProgress:
    """The figures of a training step on stderr, as `Progress` shows what is done."""

    def __init__(self, steps: int, quiet: bool, every: float = 15.0):
        self.steps, self.quiet, self.live = steps, quiet, sys.stderr.isatty()
        self.every, self.printed = LIVE_SECONDS if self.live else every, -math.inf

    def __call__(self, r: dict) -> None:
        last = r["step"] + 1 == self.steps
        now = time.monotonic()
        if self.quiet or not last and now - self.printed < self.every:
            return
        nll = ", ".join(f"{c} {r[c]:.3f}" for c in ("helpful", "blue", "red") if c in r)
        line = f"step {r['step'] + 1}/{self.steps} {r['objective']}: NLL {nll}"
        if "red_capped" in r:
            line += f" ({100 * r['red_capped']:.0f}% capped)"
        line += f", gradient {r['gradient_norm']:.2f}, {r['tokens_per_second']:,.0f} tokens/s"
        line += f", {r['memory_mb'] / 1024:.2f} GB"
        if not last:
            line += f", {clock(r['seconds_left'])} left"
        _write(sys.stderr, line, self.live, last)
        self.printed = now
