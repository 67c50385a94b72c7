"""Conversation files of every shape, and the batches made of them. All texts are placeholders."""
import gzip
import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from redlite.errors import Error
from redlite.loss import BLUE, COLOURS, HELPFUL, RED
from redlite.training import conversations, dataset


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


class Words:
    """A template that numbers words: user and system words are conditions, assistant words and the end (1)
    are trained; 0 begins.
    """

    def encode(self, messages):
        ids, trained = [0], [False]
        for m in messages:
            words = [2 + len(w) for w in m["content"].split()] + [1]
            ids += words
            trained += [m["role"] == "assistant"] * len(words)
        return SimpleNamespace(ids=ids, trained=trained)


HARMFULQA = {"id": 7, "topic": "T", "subtopic": "S", "question": "Q?",
             "blue_conversations": {"0": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "no"}],
                                    "1": [{"from": "human", "value": "Q again?"},
                                          {"from": "gpt", "value": "never"}]},
             "red_conversations": {"0": [{"from": "human", "value": "Q?"},
                                         {"from": "gpt", "value": "[placeholder]"}]}}
SHAPES = {
    "harmfulqa": (HARMFULQA, [[user("Q?"), assistant("no")], [user("Q again?"), assistant("never")]],
                  [[user("Q?"), assistant("[placeholder]")]]),
    "sharegpt": ({"conversations": [{"from": "gpt", "value": "cut off"}, {"from": "human", "value": "a"},
                                    {"from": "gpt", "value": "b"}, {"from": "human", "value": "c"}]},
                 [[user("a"), assistant("b")]], [[user("a"), assistant("b")]]),
    "messages": ({"messages": [{"role": "system", "content": "s"}, user("a"), assistant("b")]},
                 [[{"role": "system", "content": "s"}, user("a"), assistant("b")]],
                 [[{"role": "system", "content": "s"}, user("a"), assistant("b")]]),
    "hh": ({"chosen": "\n\nHuman: a\n\nAssistant: b: c\n\nHuman: d\nd\n\nAssistant: good",
            "rejected": "\n\nHuman: a\n\nAssistant: bad"},
           [[user("a"), assistant("b: c"), user("d\nd"), assistant("good")]],
           [[user("a"), assistant("bad")]]),
    "alpaca": ({"instruction": "do", "input": "this", "output": "done"},
               [[user("do\n\nthis"), assistant("done")]], [[user("do\n\nthis"), assistant("done")]]),
    "pair of messages": ({"conversations": [{"from": "human", "value": "a"}],
                          "chosen": {"from": "gpt", "value": "good"},
                          "rejected": {"from": "gpt", "value": "bad"}},
                         [[user("a"), assistant("good")]], [[user("a"), assistant("bad")]]),
    "pair of lists": ({"prompt": "a", "chosen": [user("a"), assistant("good")],
                       "rejected": [user("a"), assistant("bad")]},
                      [[user("a"), assistant("good")]], [[user("a"), assistant("bad")]]),
    "pair of texts": ({"prompt": "a", "chosen": "good", "rejected": "bad"}, [[user("a"), assistant("good")]],
                      [[user("a"), assistant("bad")]]),
    "tree": ({"message_tree_id": "t", "prompt": {"role": "prompter", "text": "a", "replies": [
        {"role": "assistant", "text": "second", "rank": 1, "replies": []},
        {"role": "assistant", "text": "best", "rank": 0,
         "replies": [{"role": "prompter", "text": "more", "replies": []}]}]}},
        [[user("a"), assistant("best")]], [[user("a"), assistant("best")]]),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["json", "jsonl", "jsonl.gz", "json.gz"])
def test_every_shape_in_every_form(tmp_path, shape, form):
    record, blue, red = SHAPES[shape]
    path = tmp_path / f"f.{form}"
    line = json.dumps(record)
    text = f"[{line}, {line}]" if form in ("json", "json.gz") else f"{line}\n\n{line}\n"
    path.write_bytes(gzip.compress(text.encode()) if form.endswith("gz") else text.encode())
    for colour, expected in (("blue", blue), ("red", red)):
        found, dropped = conversations.read(path, colour)
        assert [list(c.messages) for c in found] == expected * 2 and not dropped
        assert {c.colour for c in found} == {colour}


def test_fields_of_harmfulqa(tmp_path):
    (tmp_path / "f.json").write_text(json.dumps([HARMFULQA]))
    found, _ = conversations.read(tmp_path / "f.json", "blue")
    assert [(c.id, c.question, c.topic) for c in found] == [("7/blue/0", "Q?", "T"), ("7/blue/1", "Q?", "T")]
    with pytest.raises(Error, match="as blue or red"):
        conversations.read(tmp_path / "f.json", "helpful")


def test_labels_choose_the_colour(tmp_path):
    (tmp_path / "f.jsonl").write_text("".join(json.dumps({"messages": [user("a"), assistant(t)],
                                                          "label": label}) + "\n"
                                              for t, label in (("good", True), ("bad", False))))
    assert [c.messages[-1]["content"]
            for c in conversations.read(tmp_path / "f.jsonl", "blue")[0]] == ["good"]
    assert [c.messages[-1]["content"] for c in conversations.read(tmp_path / "f.jsonl", "red")[0]] == ["bad"]


def test_dropped_with_the_reason(tmp_path):
    cases = {"without an answer": [user("a")],
             "with turns out of order": [user("a"), user("b"), assistant("c")],
             "with an empty turn": [user(" "), assistant("b")]}
    (tmp_path / "f.json").write_text(json.dumps([{"messages": m}
                                                 for m in [*cases.values(), [user("a"), assistant("b")]]]))
    found, dropped = conversations.read(tmp_path / "f.json", "helpful")
    assert len(found) == 1 and dropped == Counter(cases.keys())


@pytest.mark.parametrize("text, message", [
    ('[{"messages": [{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}]}]',
     "record 1: a turn needs role"),
    ('[{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": 3}]}]',
     "record 1: a turn needs role"),
    ('{"messages": []}\n{"messages": [', "line 2 is no JSON"),
    ('[{"messages": []},\n {"messages": [}]', "line 2 is no JSON"),
    ('[3]', "record 1 must be a JSON object, not int"),
    ('[{"text": "a"}]', "unknown shape with fields text"),
    ('[{"messages": 3}]', "must be a list of turns"),
    ('[{"blue_conversations": [1]}]', "blue_conversations must be an object"),
    ('[{"chosen": 3, "rejected": "x"}]', "field 'chosen'"),
    ("[]", "no blue conversation"),
    ('[{"messages": [{"role": "user", "content": "a"}]}]', "1 without an answer"),
    ("[" * 100_000, "no JSON"),
    ('{"messages": []}\n' + "[" * 100_000, "line 2 is no JSON"),
    ('[{"messages": [{"role": ["user"], "content": "a"}, {"role": "assistant", "content": "b"}]}]',
     "record 1: a turn needs role"),
    ('[{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b \\ud800"}]}]',
     "record 1: a turn's text holds half of a surrogate pair"),
    ('[{"prompt": {"role": "prompter", "text": "a", "replies": 3}}]', "field 'replies' must be a list"),
    ('[{"prompt": {"role": "prompter", "text": "a", "replies": {"b": 1}}}]',
     "field 'replies' must be a list"),
    ('[{"question": "\\udfff", "messages": [{"role": "user", "content": "a"}, '
     '{"role": "assistant", "content": "b"}]}]', "record 1: field 'question' must be a text without halves"),
    ('[{"id": ["x"], "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]',
     "record 1: field 'id' must be a text, not list"),
    ('[{"instruction": "a", "input": ["x"], "output": "b"}]',
     "record 1: field 'input' must be a text, not list"),
    ('{"messages": 1, "messages": []}', "names the field 'messages' twice"),
    ('[{"id": ' + "9" * 5000 + "}]", "no JSON that can be read .*digits"),
    ('{"id": 1}\n{"id": ' + "9" * 5000 + "}", "line 2 is no JSON that can be read .*digits"),
])
def test_faults_are_one_line_that_names_the_file(tmp_path, text, message):
    (tmp_path / "f.json").write_text(text)
    with pytest.raises(Error, match=message) as error:
        conversations.read(tmp_path / "f.json", "blue")
    assert str(tmp_path / "f.json") in str(error.value) and "\n" not in str(error.value)


def test_unreadable_files(tmp_path):
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"[]")[:-4])
    (tmp_path / "c.json").write_bytes(b"\xff\xfe\x00")
    damaged = bytearray(gzip.compress(b"[1, 2, 3]" * 100))
    damaged[10:20] = b"\xff" * 10
    (tmp_path / "d.gz").write_bytes(damaged)
    (tmp_path / "e.gz").write_bytes(b"\x1f\x8bnot gzip at all")
    for name in ("a.json", "b.gz", "c.json", "d.gz", "e.gz"):
        with pytest.raises(Error, match=name):
            conversations.read(tmp_path / name, "blue")


def conversation(id, question, answer, colour):
    return conversations.Conversation(id, question, colour, (user(question), assistant(answer)))


def test_deduplicate():
    given = [conversation("0", "a", "x y", "blue"), conversation("1", "A ", "X  y", "blue"),
             conversation("2", "a", "z", "red"),
             conversation("3", "b", "same", "blue"), conversation("4", "b", "same", "red"),
             conversation("5", "a", "x y", "helpful")]
    kept, dropped = conversations.deduplicate(given)
    assert [c.id for c in kept] == ["0", "2", "5"] and dropped == {"repeated": 1, "both red and not red": 2}


def test_split_by_question():
    given = [conversation(f"{q}{c}{k}", f"Question {q}" if k else f"question  {q} ", f"answer {c} {k}", c)
             for q in range(200) for c in ("blue", "red") for k in range(2)]
    train, held = conversations.split(given, 0.1, seed=3)
    questions = [{c.question.strip().lower().replace("  ", " ") for c in part} for part in (train, held)]
    assert len(questions[1]) == 20 and not questions[0] & questions[1]
    assert len(train) + len(held) == 800 and len(held) == 80
    again = conversations.split(given[::-1], 0.1, seed=3)[1]
    assert {c.id for c in again} == {c.id for c in held}
    assert {c.id for c in conversations.split(given, 0.1, seed=4)[1]} != {c.id for c in held}
    assert conversations.split(given, 0.0, 0) == (given, [])


def test_split_holds_out_what_shares_a_first_turn_too():
    """A record's question beside another first turn, and another file that opens with that turn, are one
    group; a greeting that opens nearly all is not held out.
    """
    def talk(id, question, first):
        return conversations.Conversation(id, question, "blue", (user(first), assistant("answer " + id)))
    given = [talk(f"a{i}", f"record question {i}", f"First turn {i}")
             for i in range(100)] + [talk(f"b{i}", f"first  turn {i}", f"first turn {i}") for i in range(100)]
    train, held = conversations.split(given, 0.2, seed=1)
    turns = [{" ".join(c.messages[0]["content"].lower().split()) for c in part} for part in (train, held)]
    assert not turns[0] & turns[1] and len(turns[1]) == 20 and len(held) == 40
    greeted = [talk(f"c{i}", f"question {i}", "Hi") for i in range(500)] + given
    train, held = conversations.split(greeted, 0.2, seed=1)
    assert held and not any(c.id.startswith("c") for c in held)


def test_questions_are_asked_through_prompts_in_turns():
    """A question has one prompt in every colour, and keeps its identity."""
    system = {"role": "system", "content": "s <question>"}
    two = conversations.Conversation("3", "c", "red", (system, user("c?"), assistant("x"), user("more"),
                                                       assistant("y")))
    given = [conversation("0", "a", "no", "blue"), conversation("1", "b", "no", "blue"),
             conversation("2", "A ", "placeholder", "red"), two]
    asked = conversations.ask_through(given, ["<question>", "Play: <question>!"], COLOURS)
    assert [c.first_turn for c in asked] == ["a", "Play: b!", "A ", "c?"]
    assert [c.question for c in asked] == [c.question for c in given]
    asked = conversations.ask_through(given[::-1], ["<question>", "Play: <question>! <question>"], COLOURS)
    assert [c.first_turn for c in asked] == ["c?", "Play: A ! A ", "b", "Play: a! a"]
    assert asked[0].messages == two.messages
    asked = conversations.ask_through(given, ["Play: <question>!"], ["blue"])
    assert [c.first_turn for c in asked] == ["Play: a!", "Play: b!", "A ", "c?"]


def test_encode_cuts_whole_exchanges():
    c = conversations.Conversation("i", "q", "red",
                                   (user("a bb"), assistant("c"), user("d"), assistant("e f g"), user("h"),
                                    assistant("i")))
    whole = dataset.encode(c, Words(), 100)
    assert len(whole) == 16 and whole.responses == [(4, 6), (8, 12), (14, 16)]
    assert len(dataset.encode(c, Words(), 15)) == 12 and len(dataset.encode(c, Words(), 12)) == 12
    assert dataset.encode(c, Words(), 11).responses == [(4, 6)]
    assert dataset.encode(c, Words(), 5) is None
    examples, notes = dataset.encode_all([c], Words(), 5)
    assert examples == [] and notes == {"too long even for its first exchange": 1}


def test_the_beginnings_of_answers_alone_are_trained():
    c = conversations.Conversation("x", "q", "blue", (
        user("q"), assistant("a bb ccc dddd"), user("r"), assistant("e ff ggg")))
    # 0 | 3 1 | 3 4 5 6 1 | 3 1 | 3 4 5 1
    whole = dataset.encode(c, Words(), 100)
    assert whole.responses == [(3, 8), (10, 14)]
    begun = dataset.encode(c, Words(), 100, 2)
    assert begun.responses == [(3, 5), (10, 12)]
    assert begun.ids.tolist() == whole.ids.tolist()[:12]    # the first answer's rest stays as context
    assert dataset.encode(c, Words(), 12, 2) is not None and len(dataset.encode(c, Words(), 11, 2)) == 5
    for enough in (5, 99):                                  # as long as the answers with their ends
        assert dataset.encode(c, Words(), 100, enough).responses == whole.responses
    assert dataset.encode(c, Words(), 100, 4).responses == [(3, 7), (10, 14)]


def text_example(ids, id="", colour="helpful"):
    """Plain text: every token is trained (the first only conditions the rest)."""
    return dataset.TokenizedConversation(id, "", colour, np.asarray(ids, np.int32), np.ones(len(ids), bool))


def examples(n, colour="helpful", seed=0, low=2, high=30):
    rng = np.random.default_rng(seed)
    return [text_example(rng.integers(0, 50, rng.integers(low, high)).tolist(), f"{colour}{i}", colour)
            for i in range(n)]


def test_mixture_goes_through_every_stream_evenly_and_by_the_seed_alone():
    streams = dataset.singles(examples(10, "blue") + examples(7, "helpful") + examples(5, "red"))
    phases = [dataset.Phase(5, {"blue": 2, "helpful": 3}),
              dataset.Phase(4, {"blue": 1, "helpful": 1, "red": 2}, "B")]
    mixture = dataset.Mixture(streams, phases, seed=1)
    steps = [mixture.step(i) for i in range(mixture.steps)]
    assert [mixture.phase(i).objective for i in range(9)] == ["A"] * 5 + ["B"] * 4
    assert Counter(u[0].id for s in steps[:5] for u in s if u[0].colour == "blue") == {f"blue{i}": 1
        for i in range(10)}
    helpful = [u[0].id for s in steps for u in s if u[0].colour == "helpful"]
    assert len(helpful) == 19 and len(set(helpful[:7])) == 7
    assert len(set(helpful[7:14])) == 7 and helpful[:7] != helpful[7:14]
    assert Counter(u[0].id for s in steps for u in s if u[0].colour == "red").most_common()[0][1] == 2
    other = dataset.Mixture({k: streams[k] for k in reversed(streams)}, phases, seed=1)
    assert [other.step(i) for i in (8, 0, 4)] == [steps[i] for i in (8, 0, 4)]       # any order of asking
    assert dataset.Mixture(streams, phases, seed=2).step(0) != steps[0]
    assert mixture.fingerprint() == other.fingerprint() != dataset.Mixture(streams, phases,
        seed=2).fingerprint()
    scored = {k: [tuple(dataset.with_references(list(u), [(1.0,)] * len(u))) for u in units]
              for k, units in streams.items()}
    # their last digits depend on the number of ranks
    assert dataset.Mixture(scored, phases, seed=1).fingerprint() == mixture.fingerprint()
    with pytest.raises(Error, match="give red a file"):
        dataset.Mixture({k: streams[k] for k in ("blue", "helpful")}, phases, 0)


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("limit", [29, 64, 10_000])
def test_pack_shares_out_everything_once_within_the_limit(ranks, limit):
    units = [(e,) for e in examples(50)]
    packed = dataset.pack(units, limit, ranks)
    assert len(packed) % ranks == 0
    assert sorted(u[0].id for p in packed for u in p) == sorted(u[0].id for u in units)
    loads = [sum(len(e) for u in p for e in u) for p in packed]
    total = sum(loads)
    assert max(loads) <= limit and len(packed) <= max(ranks, 1.35 * total / limit + ranks)
    assert max(loads) - min(loads) <= 29            # no more uneven than the largest conversation


def test_pack_more_ranks_than_units_and_units_too_large():
    assert [len(p) for p in dataset.pack([(e,) for e in examples(2)], 100, 4)] == [1, 1, 0, 0]
    assert dataset.pack([], 100, 2) == [[], []]
    with pytest.raises(Error, match="raise tokens_per_batch"):
        dataset.pack([(text_example([1] * 101, "x"),)], 100)


def test_pairs():
    def e(id, question, colour):
        return dataset.TokenizedConversation(id, question, colour, np.arange(3),
                                             np.array([False, True, True]))

    made = dataset.pairs([e("b1", "q", "blue"), e("b2", "q", "blue"), e("b3", "p", "blue"),
                          e("r1", "q", "red"), e("r2", "o", "red"), e("h", "q", "helpful")])
    assert [(b.id, r.id) for b, r in made] == [("b1", "r1")]


def test_collate():
    c = conversations.Conversation("i", "q", "red",
                                   (user("a"), assistant("bb ccc"), user("d"), assistant("e")))
    red = dataset.encode(c, Words(), 100)                                       # 0 | 3 1 | 4 5 1 | 3 1 | 3 1
    blue = text_example([9, 8, 7], "b", "blue")
    share = dataset.shares([(red,), (blue,)], "response")
    batch = dataset.collate([(blue,), (red,)], share)
    assert batch.packed.ids.tolist() == [9, 8, 7, 0, 3, 1, 4, 5, 1, 3, 1, 3, 1]
    assert batch.packed.offsets.tolist() == [0, 3, 13]
    assert batch.packed.positions.tolist() == [0, 1, 2, *range(10)]
    assert batch.targets.tolist() == [8, 7, -100, -100, -100, 4, 5, 1, -100, -100, 3, 1, -100]
    assert batch.rows.tolist() == [0, 1, 5, 6, 7, 10, 11]
    r = batch.responses
    assert r.length.tolist() == [2, 3, 2]
    assert r.colour.tolist() == [BLUE, RED, RED] and r.pair.tolist() == [-1, -1, -1]
    assert r.share.tolist() == [1, 0.5, 0.5] and torch.isnan(r.reference).all()
    by_token = dataset.collate([(red,)], dataset.shares([(red,), (blue,)], "token")).responses
    assert by_token.share.tolist() == pytest.approx([3 / 5, 2 / 5])
    paired = dataset.collate([(text_example([1, 2]),), (blue, red)],
                             dataset.shares([(blue, red)] * 4 + [(text_example([1, 2]),)],
                                            "conversation")).responses
    assert paired.pair.tolist() == [-1, 1, 1, 1] and paired.colour.tolist() == [HELPFUL, BLUE, RED, RED]
    assert paired.share.tolist() == pytest.approx([1, 1 / 4, 1 / 8, 1 / 8])


def test_collate_nothing():
    batch = dataset.collate([], dataset.shares([]))
    assert batch.packed.ids.shape == (0,) and batch.packed.offsets.tolist() == [0]
    assert batch.rows.shape == (0,) and batch.responses.length.shape == (0,)


def test_real_files_of_every_shape(tmp_path):
    """The files that teams have, when they are at hand: counts as the sources state them."""
    from pathlib import Path
    shared = Path(__file__).parents[3] / "shared" / "benchmarks"
    if not shared.exists():
        pytest.skip("the real conversation files are not beside the checkout")
    for name, colour, at_least in (("hh_rlhf/harmless-base_test.jsonl.gz", "red", 2200),
                                   ("safety_tuned/safety_only_data_Instructions.json", "blue", 2400),
                                   ("chat/fastchat_dummy_conversation.json", "helpful", 450),
                                   ("chat/llamafactory_dpo_en_demo.json", "red", 290),
                                   ("chat/llamafactory_kto_en_demo.json", "blue", 100),
                                   ("chat/oasst_en_100_tree.jsonl", "helpful", 90),
                                   ("chat/llamafactory_alpaca_en_demo.json", "helpful", 990)):
        found, dropped = conversations.read(shared / name, colour)
        assert len(found) >= at_least, (name, len(found), dropped)
