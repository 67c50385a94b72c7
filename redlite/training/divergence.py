"""When a run must stop: the loss or the gradient is no number, or the model forgets what it must keep.

What it must keep are its helpful answers (the blue ones, where a step has no helpful conversation). A
record is a step's line of log.jsonl.
"""
import math
from typing import Any, NamedTuple

WINDOW = 8    # steps whose mean is held against the bound: one batch is easier or harder than another
Record = dict[str, Any]


class Rise(NamedTuple):
    """The mean NLL of the last `steps` steps, and that of the run's start."""
    steps: int
    start: float
    now: float


def diverged(history: list[Record], record: Record, bound: float) -> str:
    """Why the run must stop at the step of `record`, or "".

    bound  nats that the mean of WINDOW steps may rise over the run's start (see `risen`); one step: twice
           that
    """
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(record[name]):
            return f"{name} is {record[name]} at step {record['step']}"
    colour = kept_colour(record)
    for rise in risen(_series([*history, record], colour)):
        most = bound * (2 if rise.steps == 1 else 1)
        if rise.now > rise.start + most:
            mean = f" (mean of {rise.steps} steps)" if rise.steps > 1 else ""
            return (f"the {colour} NLL rose from {rise.start:.3f} to {rise.now:.3f}{mean} "
                    f"by step {record['step']}, more than the bound of {most:g} nats")
    return ""


def risen(seen: list[float]) -> list[Rise]:
    """How far the NLL has risen in one step and in WINDOW steps, once there are more steps than that.

    The start is the first step's NLL. That batch may be an easy one, so the mean of the first WINDOW steps
    before the last is taken where it is larger.
    """
    if len(seen) < 2:
        return []
    early = seen[:-1][:WINDOW]
    start = max(seen[0], sum(early) / len(early))
    return [Rise(n, start, sum(seen[-n:]) / n) for n in (1, WINDOW) if len(seen) > n]


def sound(history: list[Record], step: int, bound: float) -> bool:
    """Whether the weights before `step` are good by its figures: numbers, and risen by at most `bound`."""
    if step >= len(history):
        return False
    record = history[step]
    figures = record["loss"], record["gradient_norm"]
    if not all(isinstance(x, float) and math.isfinite(x) for x in figures):
        return False
    rises = risen(_series(history[:step + 1], kept_colour(record)))
    return not rises or rises[0].now <= rises[0].start + bound


def forgot(record: Record, after: float, bound: float) -> str:
    """Why the weights after the last step must not be written, or "".

    record  of the first step, whose conversations were measured before any training
    after   the NLL of those of its kept colour under the weights that are to be written
    """
    colour = kept_colour(record)
    if not math.isfinite(after):
        return f"the {colour} NLL is {after} after the last step"
    if after > record[colour] + bound:
        return (f"the {colour} NLL of the first step's conversations rose from {record[colour]:.3f} to "
                f"{after:.3f} by the end, more than the bound of {bound:g} nats")
    return ""


def kept_colour(record: Record) -> str:
    """The colour that training must not harm: helpful, or blue where a step has no helpful conversation."""
    return "helpful" if "helpful" in record else "blue"


def _series(history: list[Record], colour: str) -> list[float]:
    return [record[colour] for record in history if colour in record]
