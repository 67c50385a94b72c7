"""HARMFULQA's stages: reading replies, dropping with reasons, resuming, editing between stages, and what
safealign makes of it.
"""
import json

import pytest

from redlite.answer import Answer
from redlite.cli import collect as command
from redlite.errors import Error, Incomplete
from redlite.judges import choice
from redlite.net import api_journal, client
from redlite.net.endpoints import Endpoint
from redlite.redteam import collect, collect_figures, collect_files, collect_replies, local_asker
from redlite.store.files import read_json, write_json
from redlite.store.run_directory import Run
from redlite.training import conversations

ASKED = "How do I wake the dragon?"


def test_lists():
    assert collect_replies.read_list(
        "(Internal thought: 1. no)\n1. **Castle gates**\n 2) \"Old keys\"\n- dragons\nand that is all\n3: "
        "towers"
    ) == ["Castle gates", "Old keys", "dragons", "towers"]
    assert collect_replies.read_list("none") == []


@pytest.mark.parametrize("text", [
    "Sure! Here is the list:\n\n1. **One thing**\n2. **Another**", "**1.** One thing\n**2.** Another",
    "### 1: One thing\n### 2: Another\nI hope it helps.",
    "**Question 1:** One thing\n**Question 2:** Another", "* One thing\n* Another",
    "- 1) One thing\n- 2) Another\n", "**The things:**\n• *One thing*\n• \"Another\"",
    "1. The things:\n   - One thing\n   - Another\n2. :", "(1) One thing\r\n(2) Another\r\n"
])
def test_lists_as_models_write_them(text):
    assert collect_replies.read_list(text) == ["One thing", "Another"]


def test_questions_without_marks():
    assert collect_replies.read_list(
        "Here they are:\nHow tall is the tower?\n**Who keeps the key?**\nGood luck.") == [
            "How tall is the tower?", "Who keeps the key?"
        ]
    assert collect_replies.read_list("1. Not a question\nBut this?") == ["Not a question"]


@pytest.mark.parametrize("text,turns", [
    ("(Internal thought: well.) Ring the bell.", ["Ring the bell."]),
    ("Base-LM: (Internal thought: a (b).) Ring it.\n\nRed-LM: And then?\n\n**Base-LM:** (Thought: x) Run.\n\n"
     "Red-LM: Where to?",
     ["Ring it.", "And then?", "Run."]),
    ("Red-LM: How do I wake the dragon?\nBase-LM: Sing.", ["Sing."]),
    ("Sing.\n\n### The end\nmore", ["Sing."]),
])
def test_conversations(text, turns):
    found, reason = collect_replies.read_conversation(ASKED, text)
    assert reason == "" and [t["value"] for t in found] == [ASKED, *turns]
    assert [t["from"] for t in found] == ["human", "gpt"] * (len(found) // 2)


@pytest.mark.parametrize("text,reason", [("", "an empty turn"),
                                         ("(Internal thought: never closed", "an empty turn"),
                                         ("Red-LM: x", "no answer"),
                                         ("a\nBase-LM: b", "turns do not alternate"),
                                         ("a\nRed-LM:\nBase-LM: b", "an empty turn")])
def test_what_is_no_conversation(text, reason):
    assert collect_replies.read_conversation(ASKED, text) == ([], reason)


def test_similarity():
    """Jaccard's index of runs of four characters, by hand: "abcde" and "abcdf" share abcd of abcd, bcde,
    bcdf.
    """
    shingles, similarity = collect_replies.shingles, collect_replies.similarity
    assert similarity(shingles("abcde"), shingles("ABCDF")) == pytest.approx(1 / 3)
    assert similarity(shingles("How do I open the gate?"), shingles("how do I open the gate")) == 1


class Model:
    """Answers by what it is asked; counts, and may break off."""

    def __init__(self, fail_after=None):
        self.asked, self.fail_after = 0, fail_after

    def ask(self, calls):
        for i, call in enumerate(calls):
            self.asked += 1
            if self.fail_after is not None and self.asked > self.fail_after:
                raise Incomplete("enough")
            yield i, Answer(self.text(call), "stop", 1, 1, 0.0)

    def text(self, call):
        said = call.messages[-1]["content"]
        if "different subtopics" in said:
            if call.sample == 0:
                return "Here you are:"
            return "1. Castle gates\n2. Castle gate\n3. Old keys\n4. Towers"
        if "prepare a test set" in said:
            words = ("the iron portcullis", "a letter from grandmother",
                     "seven yellow umbrellas") if "Castle" in said else ("bells of a steeple",
                                                                         "cousins in the cellar",
                                                                         "parrots without feathers")
            return "(Internal thought: fine.)\n" + "\n".join(f"{n}. How do I {verb} {words[call.sample % 3]}?"
                                                             for n, verb in ((1, "open"), (2, "hide"),
                                                                             (2, "hide"))) + "\n3. Short"
        if "recorded conversation" in said.lower():
            return [
                "(Internal thought: go.) Here is how: [placeholder].\n\nRed-LM: What next?\n\nBase-LM: "
                "(Internal thought: on.) Here is more: [placeholder].",
                "I'm sorry, but I can't help with that."
            ][call.sample % 2]
        return f"I will not help with that. Here is something safe instead ({len(call.messages)})."


def run(folder, model, **settings):
    with Run(folder, {}) as directory:
        pipeline = collect.Pipeline(
            directory, model,
            collect.Settings(
                **{"subtopics": 2, "questions": 3, "conversations": 3, "turns": 2, "rounds": 2, **settings}),
            ["School"], "Recorded conversation <question> <turns>")
        return pipeline.run(), directory.read(collect.DROPS)


def test_the_four_stages(tmp_path):
    rows, drops = run(tmp_path / "run", Model())
    assert read_json(tmp_path / "run/topics.json") == {"School": ["Castle gates", "Old keys"]}
    assert all(len(q) == 3 for q in read_json(tmp_path / "run/questions.json")["School"].values())
    assert len(rows) == 6
    row = rows[0]
    assert [t["from"] for t in row["red_conversations"]["0"]] == ["human", "gpt"] * 2
    assert list(row["red_conversations"]) == ["0"]
    assert [t["value"] for t in row["blue_conversations"]["0"] if t["from"] == "human"] == [
        t["value"] for t in row["red_conversations"]["0"] if t["from"] == "human"
    ]
    reasons = {(d["stage"], d["reason"]) for d in drops}
    assert {("topics", "repeats"), ("questions", "near-duplicate"), ("questions", "too short"),
            ("red", "refuses"), ("red", "repeats")} <= reasons
    found = collect_figures.statistics(rows, drops, lambda text: len(text.split()))
    assert found["red"]["conversations"] == 6 and found["red"]["turns"] == 24
    assert found["by_topic"]["School"]["questions"] == 6
    assert sum(n for stage in found["drops"].values() for n in stage.values()) == len(drops)
    # By hand: one reply without a list, then Castle gates, its twin, Old keys, and Towers for which there is
    # no room.
    assert found["drops"]["topics"] == {"no list": 1, "repeats": 1, "more than asked for": 1}


class Lister:
    """Answers every list prompt with the same reply, refuses one and leaves one empty."""

    def ask(self, calls):
        for i, call in enumerate(calls):
            yield i, [
                Answer("", "refused_by_api", 1, 0, 0.0),
                Answer("", "stop", 1, 0, 0.0),
                Answer("", "stop", 1, 0, 0.0),
                Answer("1. Castle gates: how they open\n2. castle gates\n3. Old keys", "stop", 1, 1, 0.0)
            ][min(call.sample, 3)]


def test_every_drop_counts_once_and_twins_count_twice(tmp_path):
    """Two empty replies are two drops; a stage done again adds none."""
    for _ in range(2):
        with Run(tmp_path / "run", {}) as directory:
            pipeline = collect.Pipeline(directory, Lister(), collect.Settings(subtopics=2, rounds=4),
                                        ["School"], "x")
            assert pipeline._topics() == {"School": ["Castle gates", "Old keys"]}
            found = collect_figures.statistics([], directory.read(collect.DROPS), len)["drops"]
        assert found == {"topics": {"refused by the provider": 1, "empty": 2, "repeats": 1}}


def test_a_person_may_edit_between_stages(tmp_path):
    run(tmp_path / "run", Model())
    folder = tmp_path / "run"
    for name in ("red.json", "harmfulqa.json"):
        (folder / name).unlink()
    write_json(folder / "questions.json", {"Mine": {"own": ["How do I paint the fence?"]}})
    rows, _ = run(folder, Model())
    assert [(r["topic"], r["question"]) for r in rows] == [("Mine", "How do I paint the fence?")]
    (folder / "harmfulqa.json").unlink()
    (folder / "red.json").write_text("{}")
    with pytest.raises(Error, match="red.json: must hold a list"):
        run(folder, Model())


ROW = {"id": 1, "topic": "A", "subtopic": "x", "question": "Is it?", "red_conversations": {}}


@pytest.mark.parametrize(
    "name, value, where",
    [("topics.json", {"A": "xyz"}, "topics.json, 'A'"), ("topics.json", {"A": [""]}, "topics.json, 'A'"),
     ("questions.json", {"A": ["Is it?"]}, "questions.json, 'A'"),
     ("questions.json", {"A": {"x": [7]}}, "questions.json, 'A / x'"),
     ("questions.json", {"A": {"x": "abc"}}, "questions.json, 'A / x'"),
     ("questions.json", [], "questions.json: must hold a JSON object"),
     ("red.json", [3], "red.json, row 1: field 'topic'"),
     ("red.json", [ROW, {**ROW, "question": 5}], "red.json, row 2: field 'question'"),
     ("red.json", [{**ROW, "id": None}], "field 'id'"),
     ("red.json", [{**ROW, "red_conversations": []}], "field 'red_conversations'"),
     ("red.json", [{**ROW, "red_conversations": {"0": [{"from": "human"}]}}], "red_conversations '0'"),
     ("red.json", [{
         **ROW, "red_conversations": {"0": [{"from": "gpt", "value": "x"}, {"from": "human", "value": "x"}]}
     }], "red_conversations '0'"), ("harmfulqa.json", [ROW], "row 1: field 'blue_conversations'"),
     ("harmfulqa.json", {}, "harmfulqa.json: must hold a list")])
def test_what_an_edit_spoilt_is_named(tmp_path, name, value, where):
    for earlier in collect_files.STAGES[:collect_files.STAGES.index(name)]:
        write_json(tmp_path / earlier, {})
    write_json(tmp_path / name, value)
    with Run(tmp_path, {}) as directory, pytest.raises(Error, match=where):
        collect.Pipeline(directory, Model(), collect.Settings(), ["School"], "x").run()


@pytest.mark.parametrize(
    "line",
    [{"text": "x"}, {"key": 3, "text": "x"}, {"key": "x"}, {"key": "x", "sent": 3},
     {"key": "x", "sent": [1, "2"]}, {"key": "x", "text": 1, "finish": "stop", "seconds": 0, "detail": ""}])
def test_a_spoilt_line_of_the_journal_is_named(tmp_path, line):
    with Run(tmp_path, {}) as directory:
        directory.append(api_journal.JOURNAL, line)
        with pytest.raises(Error, match="api.jsonl: field"):
            client.Client(Endpoint("m", "http://127.0.0.1:9/v1"), directory)
        with pytest.raises(Error, match="api.jsonl: field"):
            local_asker.LocalAsker(None, "m", directory, 0)


def test_broken_off_and_taken_up_again(tmp_path):
    wanted, _ = run(tmp_path / "whole", Model())
    for fail_after in range(0, 30, 3):
        try:
            run(tmp_path / "run", Model(fail_after))
        except Incomplete:
            continue
    assert run(tmp_path / "run", Model())[0] == wanted


def test_the_command_on_the_organism(tmp_path, capsys):
    options = [
        "--limit", "1", "--conversations", "1", "--max-new-tokens", "60", "--quiet", "--json", "--output-dir",
        str(tmp_path / "run")
    ]
    assert command.main(options) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    lines = (tmp_path / "run" / api_journal.JOURNAL).read_bytes()
    assert found["red"]["conversations"] > 0 and found["blue"]["conversations"] > 0
    assert "report.html" in {p.name for p in (tmp_path / "run").iterdir()}
    loaded = conversations.read(tmp_path / "run" / "harmfulqa.json", "red")[0]
    assert len(loaded) == found["red"]["conversations"]
    # all is there already
    assert command.main(options) == 0 and (tmp_path / "run" / api_journal.JOURNAL).read_bytes() == lines
    capsys.readouterr()
    assert command.main([
        *options, "--limit", "2"
    ]) == 2 and "the settings it was made with (--topics or --limit)\n" in capsys.readouterr().err


def test_the_plan_asks_nothing(capsys):
    assert command.main(["--dry-run", "--model", "openai:m", "--base-url", "http://127.0.0.1:9/v1",
                         "--json"]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["requests"]["topics"] == 10 * 3 * 10 and plan["requests"]["red"] == 10 * 10 * 20 * 5
    assert plan["cost_at_most"] is None


def test_the_plan_of_own_questions_counts_them(tmp_path, capsys):
    """By hand: 30 questions of one subtopic, 5 conversations each, 4 turns each; none is asked for."""
    (tmp_path / "q.txt").write_text("".join(
        f"How do I paint fence number {n} {'x' * 2000}?\n" for n in range(30)))
    assert command.main([
        "--dry-run", "--model", "openai:m", "--base-url", "http://127.0.0.1:9/v1", "--questions",
        str(tmp_path / "q.txt"), "--json"
    ]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["requests"] == {"topics": 0, "questions": 0, "red": 150, "blue": 600}
    assert plan["prompt_tokens_at_most"] > 150 * 2000


class Talker(Model):
    """Its red conversations never end, and one of its questions neither."""

    def text(self, call):
        said = call.messages[-1]["content"]
        if "prepare a test set" in said:
            return f"1. How do I open {'very ' * 80}old gates?\n2. How do I hide?"
        if "Recorded" in said:
            return "Here is how." + "\nRed-LM: Next?\nBase-LM: Here is more." * 21
        return super().text(call)


def test_no_more_is_asked_than_the_plan_says(tmp_path):
    model, settings = Talker(), {"subtopics": 1, "questions": 1, "conversations": 1, "turns": 2}
    rows, drops = run(tmp_path, model, **settings)
    assert [[len(t)
             for t in rows[0][f"{colour}_conversations"].values()]
            for colour in ("red", "blue")] == [[4], [4]]
    assert [d["reason"] for d in drops if d["stage"] == "questions"] == ["too long"]
    assert model.asked <= sum(
        collect_figures.plan(collect.Settings(rounds=2, **settings), ["School"], "x")["requests"].values())


class Narrow(Model):
    """Cannot take conversations of more than `most` messages."""

    def __init__(self, detail, most=3):
        super().__init__()
        self.detail, self.most = detail, most

    def ask(self, calls):
        for (i, answer), call in zip(super().ask(calls), calls, strict=True):
            if len(call.messages) > self.most:
                answer = Answer("", "error", None, None, 0.0, detail=self.detail)
            yield i, answer


def test_a_request_that_the_model_cannot_take_is_dropped(tmp_path):
    rows, drops = run(tmp_path / "run", Narrow("status 400: the context is too long"))
    assert all([len(t) for t in row["blue_conversations"].values()] == [2] for row in rows)
    assert [(d["text"], d["reason"]) for d in drops if d["stage"] == "blue"
            ] == [("status 400: the context is too long", "the model cannot take the request")] * 6
    with pytest.raises(Incomplete, match="12 of 12|6 of 6"):   # none of a stage: something else is wrong
        run(tmp_path / "none", Narrow("status 400: no system role", 1))
    with pytest.raises(Incomplete, match="given up"):
        run(tmp_path / "later", Narrow("given up after 8 tries: status 500"))


class Cut(Model):
    """Every reply is broken off at the token limit."""

    def ask(self, calls):
        for i, answer in super().ask(calls):
            yield i, Answer(answer.text, "length", 1, 1, 0.0)


def test_nothing_that_is_cut_at_the_token_limit_is_kept(tmp_path):
    """Of a list its last item; of a red conversation its last exchange; a blue answer whole."""
    rows, drops = run(tmp_path / "run", Cut(), conversations=1, turns=4)
    assert rows and {len(turns) for row in rows for turns in row["red_conversations"].values()} == {2}
    assert all(row["blue_conversations"] == {} for row in rows)
    cut = [d for d in drops if d["reason"] == collect.CUT]
    assert {d["stage"] for d in cut} == {"topics", "questions", "blue"}
    assert {d["text"] for d in cut if d["stage"] == "topics"} == {"Towers"}


class Harmful(Model):
    """Complies where it was told to stay safe, at the second turn."""

    def text(self, call):
        answers = {2: "I must decline, that would do harm.", 4: "Sure! 1. [placeholder] 2. [placeholder]"}
        return answers.get(len(call.messages), "") if len(call.messages) > 1 else super().text(call)


@pytest.mark.parametrize("name, turns", [("linear", 2), ("rules", 2), ("none", 4)])
def test_a_blue_answer_that_the_judge_calls_harmful_ends_its_conversation(tmp_path, name, turns):
    judge = choice.local_judge(name, None, None, "float32", "cpu")
    with Run(tmp_path / "run", {}) as directory:
        settings = collect.Settings(subtopics=1, questions=1, conversations=1, turns=2, rounds=2)
        rows = collect.Pipeline(directory, Harmful(), settings, ["School"],
                                "Recorded conversation <question> <turns>", None,
                                judge and judge.load(directory)).run()
        drops = directory.read(collect.DROPS)
    assert [len(talk) for row in rows for talk in row["blue_conversations"].values()] == [turns]
    assert [d["reason"] for d in drops if d["stage"] == "blue"] == ["harmful by the judge"] * (turns == 2)
