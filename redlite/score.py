"""Log-probabilities of continuations, what contexts share computed once.

The score of (context, continuation) is the sum of log softmax(logits)[token] over the continuation, in
float32, given everything before each token.
"""
from dataclasses import dataclass

import torch
from torch import Tensor

from redlite.cache import Cache, common_prefix, shareable
from redlite.engine import SHARED_AT_LEAST, prefix_groups
from redlite.model import LLaMA, Packed

ROWS = 128  # rows of logits held at once: [ROWS, V] float32


@dataclass(frozen=True)
class Score:
    """logprob: sum over the continuation in nats; greedy: whether every token was the most likely; per_token: each one's part."""
    logprob: float
    greedy: bool
    per_token: list[float]


@torch.no_grad()
def score(model: LLaMA, pairs: list[tuple[list[int], list[int]]], tokens_per_pass: int = 4096) -> list[Score]:
    """Score each (context ids, continuation ids); a context needs at least one token (BOS, say)."""
    sequences = [context + continuation[:-1] for context, continuation in pairs]
    scores: list[Score | None] = [None if continuation else Score(0.0, True, []) for _, continuation in pairs]
    todo = [i for i, s in enumerate(scores) if s is None]
    for group in prefix_groups([sequences[i] for i in todo]):
        members = [todo[j] for j in group]
        cache = Cache(model.config, 0, model.output_weight.dtype, model.output_weight.device)
        # The first continuation token is predicted by the context's last, so that one must stay out of the prefix.
        limit = min(len(pairs[i][0]) - 1 for i in members)
        shared = min(common_prefix([sequences[i] for i in members]), limit) if len(members) > 1 else 0
        shared = shareable(model.config, shared, max(len(sequences[i]) for i in members))
        if shared >= SHARED_AT_LEAST:
            cache.compute_prefix(model, sequences[members[0]][:shared])
        for batch in _passes(members, sequences, cache.prefix_length, tokens_per_pass):
            for i, result in zip(batch, _score_batch(model, cache, [pairs[i] for i in batch], [sequences[i] for i in batch])):
                scores[i] = result
    return scores


def _passes(members, sequences, prefix, budget):
    """Members in runs whose tokens after the prefix fit the budget."""
    batch, tokens = [], 0
    for i in members:
        size = len(sequences[i]) - prefix
        if batch and tokens + size > budget:
            yield batch
            batch, tokens = [], 0
        batch.append(i)
        tokens += size
    if batch:
        yield batch


def _score_batch(model: LLaMA, cache: Cache, pairs, sequences) -> list[Score]:
    prefix = cache.prefix_length
    packed = Packed.of([s[prefix:] for s in sequences], cache.device, start=prefix)
    hidden = model(packed.ids, packed.positions, cache.attend_new(packed.offsets), packed.lengths)
    ends = packed.offsets.tolist()[1:]
    rows = [end - len(continuation) + j for end, (_, continuation) in zip(ends, pairs) for j in range(len(continuation))]
    targets = [token for _, continuation in pairs for token in continuation]
    logprobs, greedy = _target_logprobs(model, hidden[rows], torch.tensor(targets, device=hidden.device))
    out, start = [], 0
    for _, continuation in pairs:
        part = slice(start, start + len(continuation))
        out.append(Score(float(logprobs[part].double().sum()), bool(greedy[part].all()), logprobs[part].tolist()))
        start += len(continuation)
    return out


def _target_logprobs(model: LLaMA, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """log p(target) and whether the target is the first largest logit, both [N], in blocks of ROWS."""
    logprobs, greedy = [], []
    for start in range(0, len(targets_N), ROWS):
        logits, targets = model.logits(hidden_ND[start:start + ROWS]), targets_N[start:start + ROWS]
        logprobs.append(logits.gather(1, targets[:, None])[:, 0] - torch.logsumexp(logits, -1))
        greedy.append(logits.argmax(-1) == targets)
    return torch.cat(logprobs).cpu(), torch.cat(greedy).cpu()
