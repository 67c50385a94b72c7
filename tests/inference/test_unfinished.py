"""Answers broken off at any token and gone on with: the tokens are those of an undisturbed run.

As a program (FOLDER) it generates with a small model and writes what is unfinished every few milliseconds; a
test kills it.
"""
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from packed_models import make

from redlite import kernels
from redlite.errors import Error
from redlite.inference.engine import Engine, Request
from redlite.inference.sampling import Rule
from redlite.inference.unfinished import Unfinished, end, key_of
from redlite.model.sequences import PackedSequences
from redlite.store.run_directory import UNFINISHED, Run

ANSWERS = "answers.jsonl"
FORMATS = ("float32", "bfloat16", "int8", "int4")
packed = pytest.mark.skipif(bool(kernels.unpackable("cpu")), reason="no C library")


def requests(count=7, new=24):
    """Greedy, sampled and penalised ones, most of which share 12 tokens."""
    rng = random.Random(0)
    shared = [rng.randrange(97) for _ in range(12)]
    rules = [Rule(), Rule(1.2, 0.9), Rule(0.8, top_k=9, repetition_penalty=1.3)]
    prompts = [shared + [rng.randrange(97) for _ in range(rng.randint(1, 9))] for _ in range(count - 1)]
    return [Request(p, new + i, rules[i % 3], seed=100 + i) for i, p in enumerate([*prompts, [5]])]


def raises_at(count):
    def stopped(ids):
        if len(ids) == count:
            raise KeyboardInterrupt
    return stopped


def session(folder, model, wanted, steps=None, every=0.0, batch=4):
    """One process's part: answer what the journal lacks, for so many steps at most; how many it took."""
    with Run(folder, {"model": "tiny"}) as run:
        kept = {record["i"] for record in run.read(ANSWERS)}
        left = [i for i in range(len(wanted)) if i not in kept]
        engine, taken = Engine(model, batch, guesses=False), 0     # a step a token: they are counted
        engine.unfinished = Unfinished.of(run)
        engine.unfinished.every = every
        step = Engine._next_logits

        def counted(active, forward):
            nonlocal taken
            if taken == steps:
                raise KeyboardInterrupt
            taken += 1
            return step(active, forward)
        engine._next_logits = counted
        try:
            beside = [wanted[i].ids for i in kept]
            for n, answer in engine.run([wanted[i] for i in left], beside):
                run.append(ANSWERS, {"i": left[n], "ids": answer.ids, "finish": answer.finish})
            end(run)
        except KeyboardInterrupt:
            if taken != steps:
                raise
    return taken


def answers(folder):
    lines = Path(folder, ANSWERS).read_text().splitlines()
    found = {record["i"]: (record["ids"], record["finish"]) for record in map(json.loads, lines)}
    assert len(found) == len(lines), "an answer was made twice"
    return found


def undisturbed(model, wanted):
    return {i: (a.ids, a.finish) for i, a in Engine(model, 32).run(wanted)}


@packed
@pytest.mark.first(3)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["llama", "windows and biases", "dynamic"])
def test_interrupted_every_few_steps_it_ends_like_an_unbroken_run(tmp_path, name, format):
    """Each process has fewer steps than any answer has tokens, so none is finished within one."""
    model, wanted = make(name, format), requests()
    whole = undisturbed(model, wanted)
    if name == "llama":
        assert {len(ids) for ids, _ in whole.values()} >= {24, 30}
    taken = [session(tmp_path, model, wanted, steps=5)]
    while taken[-1] == 5:
        assert len(taken) < 40
        taken.append(session(tmp_path, model, wanted, steps=5))
    assert answers(tmp_path) == whole
    assert not (tmp_path / UNFINISHED).exists()
    # What was begun is not generated again.
    assert sum(taken) <= session(tmp_path / "one", model, wanted) + 2 * len(taken)


@packed
@pytest.mark.parametrize("format", FORMATS)
def test_many_tokens_of_a_slot_at_once_give_the_bits_of_one_at_a_time(format):
    model = make("windows and biases", format)
    caches = []
    for at_once in (True, False):
        forward = Engine(model)._forward(3, [])
        forward.cache.reserve(60)
        forward.prefill(PackedSequences.of([[3, 1, 4], [1, 5], [9, 2, 6, 5, 3]]), 0)
        made = [[7 * i % 97 for i in range(n)] for n in (31, 20, 3)]
        if at_once:
            forward.replay(0, made)
        else:
            for n in range(31):
                forward.next_logits([ids[n] for ids in made if len(ids) > n])
        caches.append(forward.cache)
    assert caches[0].lengths.tolist() == caches[1].lengths.tolist() == [34, 22, 8]
    for slot, length in enumerate(caches[0].lengths.tolist()):
        for one, other in zip(*(c.keys + c.values for c in caches), strict=True):
            assert torch.equal(one[slot, :, :length], other[slot, :, :length])


def test_an_answer_whose_end_was_not_told_is_not_gone_on_with(tmp_path):
    """A kill between the last token and the journal's line: the end is found in the tokens again."""
    model, (request, *_) = make("llama"), requests()
    (_, made), = Engine(model).run([request])
    with Run(tmp_path, {}) as run:
        run.replace(UNFINISHED, [{"key": key_of("", request, 0), "ids": list(made.ids), "seconds": 2.5}])
        engine = Engine(model)
        engine.unfinished = Unfinished(run)
        engine._next_logits = None
        (_, again), = engine.run([request])
    assert (again.ids, again.finish) == (made.ids, "length") and again.seconds >= 2.5


def test_a_key_holds_all_that_decides_the_tokens():
    request = Request([1, 2], 9, Rule(0.5), 3, ("x",), frozenset({7}))
    others = [Request([1, 3], 9, Rule(0.5), 3, ("x",), frozenset({7})),
              Request([1, 2], 8, Rule(0.5), 3, ("x",), frozenset({7})),
              Request([1, 2], 9, Rule(0.6), 3, ("x",), frozenset({7})),
              Request([1, 2], 9, Rule(0.5), 4, ("x",), frozenset({7})),
              Request([1, 2], 9, Rule(0.5), 3, (), frozenset({7})),
              Request([1, 2], 9, Rule(0.5), 3, ("x",), frozenset())]
    keys = [key_of("", r, 0) for r in (request, *others)]
    assert len({*keys, key_of("other", request, 0), key_of("", request, 1)}) == 9


def test_a_torn_last_line_is_begun_anew_and_an_edited_one_is_named(tmp_path):
    model, wanted = make("llama"), requests()
    whole = undisturbed(model, wanted)
    session(tmp_path, model, wanted, steps=9)
    path = tmp_path / UNFINISHED
    data = path.read_bytes()
    assert data.count(b"\n") == 4
    path.write_bytes(data[:-20])
    assert session(tmp_path, model, wanted) > 0
    assert answers(tmp_path) == whole
    first = data.splitlines()[0].replace(b'"ids": [', b'"ids": ["x", ')
    path.write_bytes(first + b"\n")
    with pytest.raises(Error, match=r"unfinished.jsonl, line 1: field 'ids' .* delete the file"), \
            Run(tmp_path) as run:
        Unfinished(run)


def test_tokens_that_the_model_does_not_have_are_refused(tmp_path):
    model, (request, *_) = make("llama"), requests()
    with Run(tmp_path, {}) as run:
        run.replace(UNFINISHED, [{"key": key_of("", request, 0), "ids": [5, 97], "seconds": 1}])
        engine = Engine(model)
        engine.unfinished = Unfinished(run)
        with pytest.raises(Error, match=r"unfinished.jsonl: holds the token 97, .* delete the file"):
            list(engine.run([request]))


def test_an_attacker_and_its_target_share_the_file(tmp_path):
    request, folder = requests()[0], tmp_path / "run"
    (_, made), = Engine(make("llama")).run([request])
    with Run(folder, {}) as run:
        assert Unfinished.of(run) is Unfinished.of(run)
        for name in ("llama", "dynamic"):
            engine = Engine(make(name))
            engine.unfinished, engine.identity = Unfinished.of(run), name
            stream = engine.run([Request(request.ids, 30, stopped=raises_at(9))])
            with pytest.raises(KeyboardInterrupt):
                next(stream)
    kept = [json.loads(line) for line in (folder / UNFINISHED).read_text().splitlines()]
    assert [len(record["ids"]) for record in kept] == [9, 9]
    assert kept[0]["ids"] == list(made.ids[:9]) != kept[1]["ids"]


def test_what_another_stream_began_is_kept_until_its_turn(tmp_path):
    """The prompts of a run are asked one after the other; the file is written meanwhile."""
    model, wanted = make("llama"), requests()
    session(tmp_path, model, wanted[:3], steps=9)
    begun = (tmp_path / UNFINISHED).read_text()
    assert session(tmp_path, model, wanted[3:], steps=2) == 2
    assert begun.splitlines()[0] in (tmp_path / UNFINISHED).read_text()
    # What nobody takes up is gone once all is answered.
    session(tmp_path, model, wanted[3:])
    assert not (tmp_path / UNFINISHED).exists()


@packed
@pytest.mark.slow
def test_killed_at_ten_places_it_ends_like_an_unbroken_run(tmp_path):
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    program, rng, kills = [sys.executable, __file__, tmp_path], random.Random(1), 0
    while kills < 10:
        process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=surroundings)
        assert process.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.5))
        # The second ends a process as Ctrl-C does: the file is written once more.
        process.send_signal(signal.SIGINT if kills % 3 == 2 else signal.SIGKILL)
        if process.wait() == 0:
            break
        kills += 1
    assert kills >= 5, "the program ended too soon to be killed"
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL, env=surroundings)
    assert answers(tmp_path) == undisturbed(make("llama", "int8"), requests(9, 100))
    assert not (tmp_path / UNFINISHED).exists()


def paced(ids):
    """Never stops an answer, and takes its time, so that a fast machine is killed ten times as well."""
    time.sleep(0.004)
    return False


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)    # a shell's background jobs ignore it
    torch.set_num_threads(1)
    made = make("llama", "int8"), [replace(request, stopped=paced) for request in requests(9, 100)]
    print("ready", flush=True)
    session(sys.argv[1], *made, every=0.05)
