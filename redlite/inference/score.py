"""Log-probabilities of continuations; what contexts and continuations share is computed once.

The score of (context, continuation) is the sum of log softmax(logits)[token] over the continuation, in
float32, given everything before each token. Three levels are shared: the common prefix of a group of
contexts (few-shot examples, a primer), each distinct context of it (a stem), and each distinct
continuation without its last token (a leaf). Four one-token answers to one question cost one pass.
"""
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from redlite.inference.cache import Cache, shareable
from redlite.inference.engine import SHARED_AT_LEAST, prefix_groups
from redlite.inference.forward import Forward, PackedForward
from redlite.model.llama import LLaMA
from redlite.model.sequences import PackedSequences

ROWS = 128  # rows of logits held at once: [ROWS, V] float32


@dataclass(frozen=True)
class Score:
    """logprob: sum over the continuation in nats; greedy: whether every token was the most likely; per_token: each one's part."""
    logprob: float
    greedy: bool
    per_token: list[float]


@dataclass
class _Stem:
    """A distinct context, the distinct leaves under it, and which pairs want which leaf; () where none is needed."""
    context: tuple[int, ...]
    leaves: dict[tuple[int, ...], None] = field(default_factory=dict)
    wanted: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)


def score(model: LLaMA, pairs: list[tuple[list[int], list[int]]], tokens_per_pass: int = 4096) -> list[Score]:
    """Score each (context ids, continuation ids); a context needs at least one token (BOS, say)."""
    return [s for _, s in sorted(stream(model, pairs, tokens_per_pass), key=lambda item: item[0])]


@torch.no_grad()
def stream(model: LLaMA, pairs: list[tuple[list[int], list[int]]], tokens_per_pass: int = 4096) -> Iterator[tuple[int, Score]]:
    """Yield (index of the pair, its Score) as passes finish, in no order; about `tokens_per_pass` tokens run at once."""
    stems: dict[tuple, _Stem] = {}
    longest = max((len(context) + len(continuation) for context, continuation in pairs), default=0)
    # A window or dynamic scaling that a sequence outgrows forbids sharing: then each pair is a stem of its own, whole.
    whole = not shareable(model.config, 1, longest)
    for i, (context, continuation) in enumerate(pairs):
        if not continuation:
            yield i, Score(0.0, True, [])
            continue
        key = (*context, *continuation[:-1]) if whole else tuple(context)
        stem = stems.setdefault((key, i if whole else None), _Stem(key))
        leaf = () if whole else tuple(continuation[:-1])
        if leaf:
            stem.leaves[leaf] = None
        stem.wanted.append((i, leaf))
    listed = list(stems.values())
    for group in prefix_groups([list(s.context) for s in listed]):
        yield from _score_group(model, [listed[j] for j in group], pairs, longest, tokens_per_pass)


def _score_group(model: LLaMA, stems: list[_Stem], pairs, longest: int, budget: int) -> Iterator[tuple[int, Score]]:
    cache = Cache(model.config, 0, model.output_weight.dtype, model.output_weight.device)
    steps = PackedForward.of(model, cache) or Forward(model, cache)
    first, last = min(s.context for s in stems), max(s.context for s in stems)
    limit = min(len(s.context) for s in stems) - 1  # a context's last token predicts, so it stays out of the prefix
    shared = next((i for i in range(limit) if first[i] != last[i]), limit) if len(stems) > 1 else 0
    if shareable(model.config, shared, longest) >= SHARED_AT_LEAST:
        steps.prefix(list(first[:shared]))
    batch, tokens = [], 0
    for stem in stems:
        size = len(stem.context) - cache.prefix_length + sum(map(len, stem.leaves))
        if batch and tokens + size > budget:
            yield from _score_pass(steps, batch, pairs)
            batch, tokens = [], 0
        batch.append(stem)
        tokens += size
    yield from _score_pass(steps, batch, pairs)


def _score_pass(steps: Forward, stems: list[_Stem], pairs) -> Iterator[tuple[int, Score]]:
    """One forward over all stems, then all leaves; then the rows that predict each continuation."""
    prefix, device = steps.cache.prefix_length, steps.cache.device
    leaves = [(n, leaf) for n, s in enumerate(stems) for leaf in s.leaves]
    parts = [PackedSequences.of([list(s.context[prefix:]) for s in stems], device, start=prefix)]
    parts += [PackedSequences.of([list(leaf)], device, start=len(stems[n].context)) for n, leaf in leaves]
    offsets = torch.cat((parts[0].offsets, *(p.offsets[1:] for p in parts[1:]))).cpu()
    offsets[len(stems) + 1:] = offsets[len(stems)] + offsets[len(stems) + 1:].cumsum(0)
    ends = offsets.tolist()[1:]
    stem_ends, leaf_starts = ends[:len(stems)], dict(zip(leaves, ends[len(stems) - 1:]))
    ids, positions, lengths = (torch.cat([getattr(p, x) for p in parts]) for x in ("ids", "positions", "lengths"))
    hidden = steps.tree(PackedSequences(ids, positions, lengths, offsets.to(device)), [-1] * len(stems) + [n for n, _ in leaves])
    rows, targets, owners = [], [], []
    for n, stem in enumerate(stems):
        for i, leaf in stem.wanted:
            continuation = pairs[i][1]
            if leaf or len(continuation) == 1:
                start = leaf_starts.get((n, leaf), 0)
                own = [stem_ends[n] - 1, *range(start, start + len(leaf))]
            else:  # the whole pair is the stem
                own = range(stem_ends[n] - len(continuation), stem_ends[n])
            rows += own
            targets += continuation
            owners.append((i, len(continuation)))
    logprobs, greedy = _target_logprobs(steps.model, hidden, torch.tensor(rows, device=hidden.device), torch.tensor(targets, device=hidden.device))
    start = 0
    for i, size in owners:
        part = slice(start, start + size)
        yield i, Score(float(logprobs[part].double().sum()), bool(greedy[part].all()), logprobs[part].tolist())
        start += size


def _target_logprobs(model: LLaMA, hidden_TD: Tensor, rows_N: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """log p(target) at the hidden state of each row, and whether it is the first largest: both [N]; a row's logits are made once."""
    used, place_N = rows_N.unique(return_inverse=True)
    logprobs, greedy = torch.empty(len(rows_N)), torch.empty(len(rows_N), dtype=torch.bool)
    for start in range(0, len(used), ROWS):
        logits = model.logits(hidden_TD[used[start:start + ROWS]])
        here = ((place_N >= start) & (place_N < start + ROWS)).nonzero()[:, 0]
        place, target = place_N[here] - start, targets_N[here]
        logprobs[here.cpu()] = (logits[place, target] - torch.logsumexp(logits, -1)[place]).cpu()
        greedy[here.cpu()] = (logits.argmax(-1)[place] == target).cpu()
    return logprobs, greedy
