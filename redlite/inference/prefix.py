"""What prompts share at their start, which is computed once for all of them.

Everything here works on token ids: how long a common prefix is, whether it may be computed apart, and
which prompts to group so that sharing saves the most.
"""
from itertools import pairwise
from typing import NamedTuple, TypeVar

from redlite.model.config import Config

# From this many common tokens on, a prefix is computed and attended to once for all. Measured by
# `redlite.cli.perf shared-prefix`, 32 requests on 2 cores, time apart over time shared (SmolLM2-135M |
# organism): 4 tokens 1.08 | 0.99, 8: 1.04 | 1.07, 16: 1.14 | 0.97, 64: 1.60 | 1.42, 362 (CoU): 3.64 | 3.41.
SHARED_AT_LEAST = 8
GROUP_COST = 256  # tokens that one more group must save: its own prefix pass and its thin last batches
Ids = TypeVar("Ids", list[int], tuple[int, ...])


def common_prefix(sequences: list[Ids]) -> int:
    """Length of the longest prefix shared by all, at least one token of each left over."""
    first, last = min(sequences), max(sequences)  # in lexical order, all others lie between these two
    longest = min(map(len, sequences)) - 1
    return next((i for i in range(longest) if first[i] != last[i]), max(longest, 0))


def shareable(config: Config, shared: int, longest: int) -> int:
    """How much of a common prefix may be computed apart: `shared`, or 0 where keys depend on what follows.

    longest  tokens of the longest sequence that will be attended to, generated ones included
    """
    windows = [w for w in config.windows if w is not None]
    if windows and longest > min(windows):
        return 0
    if (config.rope_scaling or {}).get("rope_type") == "dynamic" and longest > config.max_positions:
        return 0
    return shared


class _Run(NamedTuple):
    """Neighbours in lexical order, at the places from `first` to before `end`.

    saved  tokens that grouping them saves
    parts  the two runs that stay groups of their own, since they save more apart; None for one group
    """
    first: int
    end: int
    saved: int
    parts: tuple["_Run", "_Run"] | None = None


def prefix_groups(prompts: list[list[int]]) -> list[list[int]]:
    """Indices of the prompts in groups, chosen so that computing each group's prefix once saves the most.

    Prompts that share a prefix are neighbours in lexical order, so groups are runs of that order. Runs are
    joined from the longest shared prefix to the shortest. Two runs stay apart when that saves more than
    joining them. Prompts that share with nobody make one group, so that they decode as one batch.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    if len(order) < 2:
        return [order] if order else []
    shared = [common_prefix([prompts[a], prompts[b]]) for a, b in pairwise(order)]
    runs = {place: _Run(place, place + 1, 0) for place in range(len(order))}  # by first place
    firsts = {place + 1: place for place in range(len(order))}                # end of a run → its first place
    for cut in sorted(range(len(shared)), key=lambda i: -shared[i]):
        left, right = runs.pop(firsts.pop(cut + 1)), runs.pop(cut + 1)
        joined = _joined(left, right, shared[cut])
        runs[joined.first], firsts[joined.end] = joined, joined.first
    stack, groups, alone = list(runs.values()), [], []
    while stack:
        run = stack.pop()
        if run.parts:
            stack += reversed(run.parts)
        elif run.end - run.first == 1:
            alone.append(order[run.first])
        else:
            groups.append(sorted(order[run.first:run.end]))
    return sorted([*groups, sorted(alone)] if alone else groups)


def _joined(left: _Run, right: _Run, shared: int) -> _Run:
    """Two neighbouring runs as one; `shared`: tokens that all their prompts have in common."""
    saved_apart = left.saved + right.saved
    saved_whole = (right.end - left.first - 1) * shared
    if saved_apart > saved_whole + GROUP_COST:
        return _Run(left.first, right.end, saved_apart, (left, right))
    return _Run(left.first, right.end, saved_whole)
