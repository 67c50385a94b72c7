"""What else is measured of the weights while they are trained, and whether training is to end there.

The trainer asks; who measures (RED-EVAL, benches) is the caller's affair: redlite/cli/evaluation.py.
"""
from typing import Protocol


class Watch(Protocol):
    """Measures the weights after a number of steps, 0 being before the first, each at most once."""

    def measure(self, step: int) -> dict[str, float | None]:
        """Figures of the weights as they are now, after `step` steps, for the log; None: no value."""

    def fault(self, step: int) -> str:
        """Why the weights after `step` steps must not be written, "" if they may be.

        Where there is a condition to keep, weights that were never measured have a fault too.
        """

    def reached(self, step: int) -> str:
        """What was aimed at and is reached by the weights after `step` steps; "" where it is not."""
