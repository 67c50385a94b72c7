"""What prompts share at their start, which is computed once for all of them.

Everything here works on token ids: how long a common prefix is, whether it may be computed separately,
and which prompts to group so that sharing saves the most.
"""
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from redlite.model.config import Config

# Prefixes of at least this many tokens are computed once and shared by all requests.
# `redlite.cli.perf shared-prefix` measured unshared time / shared time, 32 requests on 2 cores:
#   common tokens    4     8    16    64   362 (CoU)
#   SmolLM2-135M  1.08  1.04  1.14  1.60  3.64
#   organism      0.99  1.07  0.97  1.42  3.41
# So sharing costs next to nothing from 8 on, and saves more the longer the prefix.
SHARED_AT_LEAST = 8
# An extra group must save this many tokens, to pay for its prefix pass and its half-empty last batches.
GROUP_COST = 256
Ids = Any   # a list, tuple or array of ids: of one kind throughout, so that they compare


def common_prefix(sequences: Sequence[Ids]) -> int:
    """Length of the longest prefix shared by all, at least one token of each left over."""
    first, last = min(sequences), max(sequences)  # in lexical order, all others lie between these two
    longest = min(map(len, sequences)) - 1
    return next((i for i in range(longest) if first[i] != last[i]), max(longest, 0))


def shareable(config: Config, shared: int, longest: int) -> int:
    """`shared`, or 0 where sharing a prefix would be wrong.

    It is wrong for a window shorter than a sequence, and for RoPE that depends on the total length.

    longest  tokens of the longest sequence that will be attended to, generated ones included
    """
    windows = [w for w in config.windows if w is not None]
    if windows and longest > min(windows):
        return 0
    if (config.rope_scaling or {}).get("rope_type") == "dynamic" and longest > config.max_positions:
        return 0
    if 0 < rotation_changes_at(config) <= longest:
        return 0
    return shared


def rotation_changes_at(config: Config) -> int:
    """The length from which on LongRoPE rotates a sequence's keys otherwise; 0 for models without it."""
    scaling = config.rope_scaling or {}
    return scaling["original_max_position_embeddings"] + 1 if scaling.get("rope_type") == "longrope" else 0


class _Run(NamedTuple):
    """Neighbours in lexical order, places [first, end) of that order.

    saved  tokens that grouping them saves
    parts  the two runs to keep separate, each of which may be split again; None if this run is one group
    """
    first: int
    end: int
    saved: int
    parts: tuple["_Run", "_Run"] | None = None


def prefix_groups(prompts: Sequence[Ids]) -> list[list[int]]:
    """Indices of the prompts in groups, chosen so that computing each group's prefix once saves the most.

    Prompts that share a prefix are neighbours in lexical order, so groups are runs of that order. Runs are
    joined from the longest shared prefix to the shortest. Two runs stay separate when that saves more
    than joining them. Prompts left alone are put into one group, so that they decode as one batch.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    if len(order) < 2:
        return [order] if order else []
    shared_with_next = [common_prefix([prompts[a], prompts[b]]) for a, b in pairwise(order)]
    runs = {place: _Run(place, place + 1, 0) for place in range(len(order))}  # by first place
    firsts = {place + 1: place for place in range(len(order))}                # end of a run → its first place
    # `cut` is the gap between the places cut and cut + 1. The longest prefix comes first, so the one at a cut
    # is the shortest in the joined run.
    for cut in sorted(range(len(shared_with_next)), key=lambda i: -shared_with_next[i]):
        left, right = runs.pop(firsts.pop(cut + 1)), runs.pop(cut + 1)
        joined = _joined(left, right, shared_with_next[cut])
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
