"""Guesses of the next tokens: never another answer, never other bits, and no time lost where they fail."""
import random
from collections import deque
from dataclasses import replace

import pytest
import torch
from packed_models import VARIANTS, make

import redlite
from redlite import kernels
from redlite.errors import Error
from redlite.inference.engine import Engine, Request
from redlite.inference.forward import CForward, Forward
from redlite.inference.guessed import GuessedSteps
from redlite.inference.look_up import FORGOTTEN, MOST_ROWS, Guess, Guesses, Looked
from redlite.inference.sampling import Rule
from redlite.inference.unfinished import Unfinished
from redlite.model.llama import LLaMA
from redlite.model.sequences import PackedSequences
from redlite.store.run_directory import Run

FORMATS = ("float32", "bfloat16", "int8", "int4")
packed = pytest.mark.skipif(bool(kernels.unpackable("cpu")), reason="no C library")


def requests(count=7, new=30):
    """Greedy, sampled and penalised ones, most of which share 12 tokens."""
    rng = random.Random(0)
    shared = [rng.randrange(97) for _ in range(12)]
    rules = [Rule(), Rule(), Rule(1.2, 0.9), Rule(), Rule(repetition_penalty=1.3)]
    prompts = [shared + [rng.randrange(97) for _ in range(rng.randint(1, 9))] for _ in range(count - 1)]
    return [Request(p, new + i, rules[i % 5], seed=100 + i) for i, p in enumerate([*prompts, [5]])]


def made_by(model, wanted, batch=4, guesses=False):
    return {i: (a.ids, a.finish) for i, a in Engine(model, batch, guesses=guesses).run(wanted)}


@pytest.fixture
def always(monkeypatch):
    """Guess whatever there is: steps are thought to take the same time, however many tokens they have.

    Returns the steps with guesses: how many tokens were guessed, and how many of them were right.
    """
    told, tell = [], Guesses.tell
    monkeypatch.setattr(Guesses, "_seconds", lambda self, rows: 1.0)
    monkeypatch.setattr(Guesses, "may", lambda self, count: count < MOST_ROWS)

    def noted(self, answers, seconds):
        told.extend((len(guess.tokens), right) for _, guess, right in answers if guess.tokens)
        tell(self, answers, seconds)
    monkeypatch.setattr(Guesses, "tell", noted)
    return told


def knowing(monkeypatch, wanted, whole, wrong=0.5):
    """Guesses that begin with the tokens that will come, and go on with others, to any length."""
    rng = random.Random(3)
    answers = {tuple(wanted[i].ids): ids for i, (ids, _) in whole.items()}

    def guess(self, most):
        for prompt, ids in answers.items():
            done = len(self._ids) - len(prompt)
            if tuple(self._ids[:len(prompt)]) == prompt and self._ids[len(prompt):] == ids[:done]:
                own = list(ids[done:done + most])
                for i in range(len(own)):
                    if rng.random() < wrong:
                        own[i:] = [rng.randrange(97) for _ in own[i:]]
                        break
                return own, 4
        raise AssertionError("an answer went another way")
    monkeypatch.setattr(Looked, "next", guess)


@packed
@pytest.mark.first(4)
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("format", FORMATS)
def test_the_same_answers_whatever_is_guessed(monkeypatch, always, name, format):
    """Found in the answers themselves, and made of right and wrong tokens, at every batch size."""
    model, wanted = make(name, format), requests()
    whole = made_by(model, wanted)
    assert made_by(model, wanted, guesses=True) == whole
    found = len(always)
    for batch in (1, 3, 7):
        knowing(monkeypatch, wanted, whole)
        assert made_by(model, wanted, batch, guesses=True) == whole
    kinds = {"none" if right == 0 else "all" if right == size else "some" for size, right in always[found:]}
    assert kinds == {"none", "some", "all"} and {size for size, _ in always} >= {1, 4, 7}


@packed
@torch.no_grad()
@pytest.mark.parametrize("shared", [0, 21])
@pytest.mark.parametrize("format", FORMATS)
def test_logits_of_several_tokens_have_the_bits_of_one_at_a_time(format, shared):
    rng, model = random.Random(1), make("llama", format)
    stem = [rng.randrange(97) for _ in range(shared)]
    suffixes = [[3, 1, 4], [1, 5], [9, 2, 6, 5, 3]]
    rows = [[rng.randrange(97) for _ in range(n)] for n in (5, 1, 6)]
    found = []
    for at_once in (True, False):
        forward = Engine(model)._forward(3, stem)
        forward.cache.reserve(16)
        forward.prefill(PackedSequences.of(suffixes, start=shared), 0)
        if at_once:
            # What was wrong lies there already, and is written over.
            forward.rows_logits([[7] * 9, [8] * 9, [9] * 9])
            found += forward.rows_logits(rows).split([5, 1, 6])
            continue
        for slot, own in enumerate(rows):
            start = forward.cache.lengths.clone()
            for n, token in enumerate(own):
                ids = [11, 12, 13]
                ids[slot] = token
                forward.cache.lengths[:] = start
                forward.cache.lengths[slot] += n
                assert torch.equal(forward.next_logits(ids)[slot], found[slot][n])
            forward.cache.lengths[:] = start


@packed
def test_an_answer_ends_within_a_guess_as_it_ends_without(monkeypatch, always):
    """At every length, at every token that it holds, and where its reader says so."""
    model, request = make("llama"), requests()[0]
    (ids, _), = made_by(model, [request]).values()
    knowing(monkeypatch, [request], {0: (ids, "")}, wrong=0.1)
    for new in range(1, 31):
        own = replace(request, max_new_tokens=new)
        assert made_by(model, [own], guesses=True) == {0: (ids[:new], "length")}
        seen = []
        own = replace(
            request, stopped=lambda now, seen=seen, new=new: seen.append(list(now)) or len(now) == new)
        assert made_by(model, [own], guesses=True) == {0: (ids[:new], "stop")}
        assert seen == [ids[:n] for n in range(1, new + 1)]     # each token is seen, and once
    for token in set(ids):
        own = replace(request, stop_ids=frozenset({token}))
        assert made_by(model, [own], guesses=True) == {0: (ids[:ids.index(token) + 1], "stop")}
    assert max(right for _, right in always) == 7


@packed
def test_broken_off_anywhere_it_goes_on_to_the_same_end(tmp_path, monkeypatch, always):
    model, wanted = make("llama", "int8"), requests()
    whole = made_by(model, wanted)
    knowing(monkeypatch, wanted, whole, wrong=0.2)
    kept, rng, sessions = {}, random.Random(5), 0
    while len(kept) < len(wanted):
        sessions += 1
        left, most = [i for i in range(len(wanted)) if i not in kept], rng.randint(1, 25)
        with Run(tmp_path, {}) as run:
            engine = Engine(model, 4)
            engine.unfinished, count = Unfinished(run, every=0.0), 0
            most += sum(len(begun.ids) for begun in engine.unfinished.begun.values())   # which are told again

            def stopped(ids, most=most):
                nonlocal count
                count += 1
                if count > most:
                    raise KeyboardInterrupt
                return False
            try:
                beside = [wanted[i].ids for i in kept]
                own = [replace(wanted[i], stopped=stopped) for i in left]
                for n, answer in engine.run(own, beside):
                    kept[left[n]] = answer.ids, answer.finish
            except KeyboardInterrupt:
                pass
    assert kept == whole and sessions > 9


@packed
def test_what_was_thrown_away_is_known_to_be_written(monkeypatch, always):
    """So that its memory can be given back; and nothing is written behind it."""
    model, wanted = make("llama"), [replace(r, rule=Rule()) for r in requests(3, 20)]
    whole, caches = made_by(model, wanted), []
    knowing(monkeypatch, wanted, whole)
    engine = Engine(model, 3)
    forward = engine._forward

    def kept(*given):
        caches.append(made := forward(*given))
        return made
    engine._forward = kept
    steps = [(tuple(cache.written), cache.keys[0][:, 0].abs().sum(-1) > 0) for _ in engine.run(wanted)
             for cache in [caches[-1].cache]]
    assert len(steps) == 3
    for written, filled in steps:
        for slot, rows in enumerate(filled):
            last = int(rows.nonzero().max()) + 1 if rows.any() else 0
            assert last <= max(written[slot], int(caches[-1].cache.lengths[slot]))
    cache = caches[-1].cache
    cache.release()
    assert cache.written == [0, 0, 0] and cache.lengths.tolist() == [0, 0, 0]


@packed
def test_numbers_behind_a_wrong_token_count_for_nothing(monkeypatch, always):
    model, (request, *_) = make("llama"), requests()
    (ids, _), = made_by(model, [request]).values()
    monkeypatch.setattr(Looked, "next", lambda self, most: ([96 - ids[len(self._ids) - len(request.ids)]], 2))
    assert 48 not in ids[1:]
    rows_logits, spoilt = CForward.rows_logits, [1]

    def spoil(self, rows):
        logits = rows_logits(self, rows)
        logits[spoilt] = float("nan")
        return logits
    monkeypatch.setattr(CForward, "rows_logits", spoil)
    assert made_by(model, [request], guesses=True) == {0: (ids, "length")}
    assert always and not any(right for _, right in always)
    spoilt[0] = 0
    with pytest.raises(Error, match="not finite"):
        made_by(model, [request], guesses=True)


def test_where_they_do_not_serve():
    plain = LLaMA(VARIANTS["llama"]).initialize(0)
    forward = Engine(plain)._forward(1, [])
    assert type(forward) is Forward and GuessedSteps.of(forward, None, None) is None
    config = replace(VARIANTS["llama"], rope_scaling={
        "rope_type": "longrope", "original_max_position_embeddings": 20, "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4, "factor": 4.0, "attention_factor": 1.0})
    forward = object.__new__(CForward)
    forward.model = LLaMA(config)
    assert GuessedSteps.of(forward, None, None) is None


def test_the_organism_and_answers_that_come_meanwhile(always):
    lm = redlite.load("organism")
    asked = ["How do I bake bread?", "Name three colours.", "Tell me of the sea."]
    prompts = [lm.template.encode([{"role": "user", "content": q}], add_generation_prompt=True).ids
               for q in asked]
    coming = deque((i, Request(ids, 60)) for i, ids in enumerate(prompts))
    lm.engine.guesses = False
    whole = [(a.ids, a.text, a.finish) for a in lm.generate(prompts, 60)]
    lm.engine.guesses = True
    assert [(a.ids, a.text, a.finish) for a in lm.generate(prompts, 60)] == whole
    found = dict(lm.follow(lambda free: [coming.popleft()] if coming and free else []))
    assert [(found[i].ids, found[i].text, found[i].finish) for i in range(3)] == whole


# What is guessed, and how much of it

def test_a_guess_is_what_followed_the_longest_run_last():
    looked = Looked()
    looked.follow([1, 2, 3, 4, 9, 2, 3, 5, 6, 7], [8, 2])
    assert looked.next(3) == ([], 0)
    looked.follow([1, 2, 3, 4, 9, 2, 3, 5, 6, 7], [8, 2, 3])
    assert looked.next(3) == ([5, 6, 7], 2) and looked.next(9) == ([5, 6, 7, 8, 2, 3], 2)
    looked.follow([1, 2, 3, 4, 9, 2, 3, 5, 6, 7], [8, 2, 3, 4, 9, 2, 3])
    assert looked.next(2) == ([5, 6], 4)    # behind 4 9 2 3, not behind the later 2 3


def guesses_with(took):
    """Where steps of so many tokens take so long."""
    found = Guesses()
    found._took = dict(took)
    return found


def looking(ids, most=7):
    looked = Looked()
    looked.most = most
    looked.follow(ids, [])
    return looked


def test_how_many_tokens_are_guessed_follows_from_what_steps_take():
    ids = [*range(10), 0, 1, 2, 3]
    slow = {1: 1.0, 2: 1.9, 3: 2.9, 4: 3.9}
    for took, size in (({1: 1.0, 8: 1.5}, 7), (slow, 0), ({1: 1.0, 2: 1.4, 3: 9}, 1)):
        guesses = guesses_with(took)
        assert guesses.choose([(looking(ids), 99)])[0].tokens == [4, 5, 6, 7, 8, 9, 0][:size]
    guesses = guesses_with({1: 1.0})
    assert [len(guesses.choose([(looking(ids), n)])[0].tokens) for n in (0, 2)] == [0, 2]
    assert guesses.choose([(None, 99)]) == [Guess([], 0)]
    assert [len(guesses.choose([(looking(ids, n), 99)])[0].tokens) for n in (2, 5)] == [2, 5]
    assert Guesses().choose([(looking(ids), 99)])[0].tokens == []      # no step was measured yet
    many = [(looking(ids), 99)] * MOST_ROWS
    assert not any(guess.tokens for guess in guesses.choose(many))
    two = guesses_with({2: 1.0, 11: 1.0})
    made = two.choose([(looking(ids), 99), (looking(ids), 2)])
    assert [len(guess.tokens) for guess in made] == [7, 2]


@pytest.mark.parametrize("cost", [1.1, 1.5])
def test_guesses_that_are_never_right_cost_next_to_nothing(cost):
    """2,000 tokens of which every second could be guessed, and always wrongly."""
    guesses, ids, took = Guesses(), [0], 0.0
    looked, rng = Looked(), random.Random(2)
    for n in range(2000):
        ids += [rng.randrange(9)] if n % 2 else [1000 + n]
        looked.follow(ids, [])
        guess, = guesses.choose([(looked, 99)])
        seconds = 1.0 * cost ** len(guess.tokens)
        took += seconds
        guesses.tell([(looked, guess, 0)], seconds)
    assert took < 2000 * 1.01


def test_a_text_that_repeats_itself_takes_a_third_of_the_steps():
    guesses, whole, at, steps = Guesses(), list(range(20)) * 40, 40, 0
    looked = Looked()
    while at < len(whole):
        looked.follow(whole[:at], [])
        guess, = guesses.choose([(looked, len(whole) - at - 1)])
        assert guess.tokens == whole[at:at + len(guess.tokens)]
        guesses.tell([(looked, guess, len(guess.tokens))], 1 + 0.2 * len(guess.tokens))
        at += 1 + len(guess.tokens)
        steps += 1
    assert steps < 760 / 3 and steps > 760 / 8


def test_a_guess_grows_where_those_before_were_right_and_shrinks_where_not():
    looked, sizes = Looked(), []
    for right in (2, 5, 7, 3, 0):
        sizes.append(looked.most)
        looked.tell(Guess([0] * looked.most, 4), right)
    assert [*sizes, looked.most] == [2, 5, 7, 7, 4, 2]


def test_times_are_measured_anew_after_a_while():
    guesses = guesses_with({1: 1.0})
    for _ in range(FORGOTTEN - 1):
        guesses.tell([(None, Guess([], 0), 0)], 1.0)
    guesses.tell([(None, Guess([], 0), 0)], 9.0)
    assert guesses._took == {1: 9.0}
