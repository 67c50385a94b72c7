"""Scores against log-softmax over whole sequences, run one at a time in float64 sums."""
import random

import pytest
import torch

from redlite.inference.score import score
from redlite.model.config import Config
from redlite.model.llama import LLaMA
from redlite.model.sequences import PackedSequences, packed_attention

CONFIG = Config("llama", 97, 32, 3, 4, 2, 8, 64)


@torch.no_grad()
def plain(model, context, continuation):
    packed = PackedSequences.of([context + continuation])
    hidden = model(packed.ids, packed.positions, packed_attention(model.config, packed.offsets),
                   packed.lengths)
    logprob = torch.log_softmax(model.logits(hidden).double(), -1)
    rows = range(len(context) - 1, len(context) + len(continuation) - 1)
    parts = [logprob[r, t].item() for r, t in zip(rows, continuation, strict=True)]
    return sum(parts), all(logprob[r].argmax() == t for r, t in zip(rows, continuation, strict=True)), parts


def made_up(seed=0):
    """Pairs as benches have them: a primer shared by all, contexts shared by several continuations, odd
    ones out.
    """
    rng = random.Random(seed)
    def ids(n):
        return [rng.randrange(97) for _ in range(n)]
    primer, pairs = ids(40), []
    for _ in range(6):
        context = primer + ids(rng.randint(1, 12))
        pairs += [(context, ids(rng.randint(1, 5))) for _ in range(4)]
    return pairs + [(ids(1), ids(3)), (primer, ids(2)), (primer[:20], primer[20:30]), (ids(5), [])]


@pytest.mark.first(1)
@pytest.mark.parametrize("budget", [1, 50, 4096])
@pytest.mark.parametrize("config", [CONFIG, Config("mistral", 97, 32, 3, 4, 2, 8, 64, windows=(6,) * 3)])
def test_scores_equal_the_definition(config, budget):
    model, pairs = LLaMA(config).initialize(0, std=0.3), made_up()
    for (context, continuation), got in zip(pairs, score(model, pairs, budget), strict=True):
        logprob, greedy, parts = plain(model, context, continuation)
        assert got.logprob == pytest.approx(logprob, abs=1e-4)
        assert got.per_token == pytest.approx(parts, abs=1e-4)
        assert got.greedy == greedy


def test_greedy_is_true_for_the_models_own_choice():
    model = LLaMA(CONFIG).initialize(0, std=0.3)
    context, made = [5, 6, 7], []
    for _ in range(4):
        packed = PackedSequences.of([context + made])
        with torch.no_grad():
            hidden = model(packed.ids, packed.positions, packed_attention(CONFIG, packed.offsets))
        made.append(int(model.logits(hidden)[-1].argmax()))
    wrong = made[:-1] + [(made[-1] + 1) % 97]
    assert [s.greedy for s in score(model, [(context, made), (context, wrong)])] == [True, False]


def test_nothing_to_score():
    model = LLaMA(CONFIG).initialize(0)
    assert score(model, []) == []
    empty = score(model, [([1], [])])[0]
    assert (empty.logprob, empty.greedy, empty.per_token) == (0.0, True, [])
