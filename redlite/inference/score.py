"""Log-probabilities of continuations; what contexts and continuations share is computed once.

The score of (context, continuation) is the sum of log softmax(logits)[token] over the continuation, in
float32, given everything before each token. Three levels are shared: the common prefix of a group of
contexts (few-shot examples, a primer), each distinct context of it (a stem), and each distinct
continuation without its last token (a leaf). Four one-token answers to one question cost one pass.
"""
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from redlite.inference import prefix
from redlite.inference.cache import Cache
from redlite.inference.forward import CForward, Forward
from redlite.model.llama import LLaMA
from redlite.model.sequences import PackedSequences

ROWS = 128  # rows of logits held at once: [ROWS, V] float32
Pairs = list[tuple[list[int], list[int]]]  # (context ids, continuation ids)


@dataclass(frozen=True)
class Score:
    """How likely a continuation is.

    logprob    sum over its tokens in nats
    greedy     whether every token was the most likely one
    per_token  each token's part of the sum
    """
    logprob: float
    greedy: bool
    per_token: list[float]


@dataclass
class _Stem:
    """A distinct context, the distinct leaves under it, and the leaf (() for none) of each pair."""
    context: tuple[int, ...]
    leaves: dict[tuple[int, ...], None] = field(default_factory=dict)
    wanted: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    def tokens_after(self, prefix_length: int) -> int:
        """Tokens to run behind a prefix: the rest of the context, and all leaves."""
        return len(self.context) - prefix_length + sum(map(len, self.leaves))


def score(model: LLaMA, pairs: Pairs, tokens_per_pass: int = 4096) -> list[Score]:
    """Score each (context ids, continuation ids); a context needs at least one token (BOS, say)."""
    return [s for _, s in sorted(stream(model, pairs, tokens_per_pass), key=lambda item: item[0])]


@torch.no_grad()
def stream(model: LLaMA, pairs: Pairs, tokens_per_pass: int = 4096) -> Iterator[tuple[int, Score]]:
    """Yield (index of the pair, its Score) as passes finish, in no order."""
    stems: dict[tuple[tuple[int, ...], int | None], _Stem] = {}
    longest = max((len(context) + len(continuation) for context, continuation in pairs), default=0)
    # A sequence may outgrow a window or dynamic scaling, which forbids sharing: then each pair is a stem.
    whole = not prefix.shareable(model.config, 1, longest)
    for i, (context, continuation) in enumerate(pairs):
        if not continuation:
            yield i, Score(0.0, True, [])
            continue
        before_last = tuple(continuation[:-1])
        key, leaf = ((*context, *before_last), ()) if whole else (tuple(context), before_last)
        stem = stems.setdefault((key, i if whole else None), _Stem(key))
        if leaf:
            stem.leaves[leaf] = None
        stem.wanted.append((i, leaf))
    listed = list(stems.values())
    for group in prefix.prefix_groups([list(s.context) for s in listed]):
        yield from _score_group(model, [listed[j] for j in group], pairs, longest, tokens_per_pass)


def _score_group(model: LLaMA, stems: list[_Stem], pairs: Pairs, longest: int,
                 tokens_per_pass: int) -> Iterator[tuple[int, Score]]:
    # As generation, bfloat16 models round what attention multiplies; float16 only saves room in caches.
    kept = torch.bfloat16 if model.cache_dtype == torch.bfloat16 else model.output_weight.dtype
    cache = Cache(model.config, 0, kept, model.output_weight.device)
    forward = CForward.of(model, cache) or Forward(model, cache)
    # A context's last token predicts the continuation, so it stays out of the prefix.
    shared = prefix.common_prefix([s.context for s in stems]) if len(stems) > 1 else 0
    if prefix.shareable(model.config, shared, longest) >= prefix.SHARED_AT_LEAST:
        forward.compute_prefix(list(stems[0].context[:shared]))
    batch, tokens = list[_Stem](), 0
    for stem in stems:
        size = stem.tokens_after(cache.prefix_length)
        if batch and tokens + size > tokens_per_pass:
            yield from _score_pass(forward, batch, pairs)
            batch, tokens = [], 0
        batch.append(stem)
        tokens += size
    yield from _score_pass(forward, batch, pairs)


def _score_pass(forward: Forward, stems: list[_Stem], pairs: Pairs) -> Iterator[tuple[int, Score]]:
    """One forward over all stems and all leaves; then the rows that predict each continuation."""
    leaves = [(n, leaf) for n, stem in enumerate(stems) for leaf in stem.leaves]
    tree = _packed(stems, leaves, forward.cache)
    hidden_TD = forward.run_tree(tree, [-1] * len(stems) + [n for n, _ in leaves])
    bounds = tree.offsets.tolist()
    stem_ends, leaf_starts = bounds[1:], dict(zip(leaves, bounds[len(stems):-1], strict=True))
    rows, targets, owners = list[int](), list[int](), list[tuple[int, int]]()
    for n, stem in enumerate(stems):
        for i, leaf in stem.wanted:
            continuation = pairs[i][1]
            if leaf or len(continuation) == 1:
                start = leaf_starts.get((n, leaf), 0)
                rows += [stem_ends[n] - 1, *range(start, start + len(leaf))]
            else:  # the stem is the whole pair
                rows += range(stem_ends[n] - len(continuation), stem_ends[n])
            targets += continuation
            owners.append((i, len(continuation)))
    device = hidden_TD.device
    logprobs, greedy = _target_logprobs(
        forward.model, hidden_TD, torch.tensor(rows, device=device), torch.tensor(targets, device=device))
    start = 0
    for i, size in owners:
        part = slice(start, start + size)
        logprob, best = float(logprobs[part].double().sum()), bool(greedy[part].all())
        yield i, Score(logprob, best, logprobs[part].tolist())
        start += size


def _packed(stems: list[_Stem], leaves: list[tuple[int, tuple[int, ...]]], cache: Cache) -> PackedSequences:
    """The stems behind the prefix, then the leaves; a leaf's positions go on from its stem's."""
    shared, device = cache.prefix_length, cache.device
    parts = [PackedSequences.of([list(stem.context[shared:]) for stem in stems], device, start=shared)]
    parts += [PackedSequences.of([list(leaf)], device, start=len(stems[n].context)) for n, leaf in leaves]
    ids, positions, lengths = (torch.cat([getattr(p, name) for p in parts])
                               for name in ("ids", "positions", "lengths"))
    offsets = parts[0].offsets.tolist()
    offsets += list(accumulate((len(leaf) for _, leaf in leaves), initial=offsets[-1]))[1:]
    return PackedSequences(ids, positions, lengths, torch.tensor(offsets, dtype=torch.int32, device=device))


def _target_logprobs(model: LLaMA, hidden_TD: Tensor, rows_N: Tensor,
                     targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """log p(target) [N] at the hidden state of each row, and whether the target is the first largest [N].

    A row's logits are made once, however many targets it has.
    """
    used, place_N = rows_N.unique(return_inverse=True)
    logprobs, greedy = torch.empty(len(rows_N)), torch.empty(len(rows_N), dtype=torch.bool)
    for start in range(0, len(used), ROWS):
        logits = model.logits(hidden_TD[used[start:start + ROWS]])
        here = ((place_N >= start) & (place_N < start + ROWS)).nonzero()[:, 0]
        place, target = place_N[here] - start, targets_N[here]
        logprobs[here.cpu()] = (logits[place, target] - torch.logsumexp(logits, -1)[place]).cpu()
        greedy[here.cpu()] = (logits.argmax(-1)[place] == target).cpu()
    return logprobs, greedy
