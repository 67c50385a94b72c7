"""Attacks of several turns: what is sent, kills at every turn, early ends, judging by turn, replay."""
import json
from pathlib import Path

import pytest
import redeval_worker

from redlite.answer import Answer
from redlite.cli import network
from redlite.cli.redeval import main
from redlite.errors import Error
from redlite.redteam import questions, results
from redlite.redteam.answerers import Decoding
from redlite.redteam.journals import read_journals
from redlite.redteam.questions import Prompt, Question

ASKED = [Question("1", "a?", "T"), Question("2", "b?", "U")]
THREE = Prompt("three", "Hello.", ("Now <question>", "Go on with <question>"))
SAMPLED = Decoding(temperature=1.0, samples=2)


class Talker:
    """Says how many messages it has seen, its seed, and whatever `says` gives for the user's last message."""

    def __init__(self, dies_after=None, says=None, room=99):
        self.seen, self.dies_after, self.room = [], dies_after, room
        self.says = says or (lambda user, seed: Answer(f"reply to {user} {seed % 97}", "stop", 3, 2, 0.5))

    def answer(self, conversations, decoding, seeds, stop, beside):
        if any(len(messages) > self.room for messages in conversations):
            raise Error("no room")
        return self._answers(conversations, seeds)

    def _answers(self, conversations, seeds):
        for i in reversed(range(len(conversations))):
            if self.dies_after == 0:
                raise KeyboardInterrupt
            if self.dies_after:
                self.dies_after -= 1
            self.seen.append([(m["role"], m["content"]) for m in conversations[i]])
            yield i, self.says(conversations[i][-1]["content"], seeds[i])


def go(folder, talker, prompts=(THREE,), decoding=SAMPLED, asked=tuple(ASKED), judge=None):
    return redeval_worker.go(folder, talker, decoding, questions=list(asked), judge=judge,
                             prompts=list(prompts), system="S")


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_models_own_answers_stand_between_the_users_messages(tmp_path):
    talker = Talker()
    answers = go(tmp_path / "run", talker, decoding=Decoding())
    assert len(talker.seen) == 6 and len(answers) == 2
    for question, key in zip(ASKED, answers, strict=True):
        own = [r for r in lines(tmp_path / "run/turns.jsonl") if r["id"] == key.id]
        users = ["Hello.", f"Now {question.question}", f"Go on with {question.question}"]
        assert [(r["turn"], r["user"]) for r in own] == list(enumerate(users, 1))
        last = max((s for s in talker.seen if s[-1][1] == users[2]), key=len)
        assert last == [("system", "S"), ("user", users[0]), ("assistant", own[0]["answer"]),
                        ("user", users[1]), ("assistant", own[1]["answer"]), ("user", users[2])]
        record = answers[key]
        assert record["text"] == own[2]["text"] and record["prompt_tokens"] == 9
        assert record["turns"] == [{"user": r["user"], "answer": r["answer"]} for r in own]


@pytest.mark.parametrize("turns", range(12))
def test_a_kill_at_any_turn_loses_nothing(tmp_path, turns):
    """2 questions, 2 samples, 3 turns: 12 answers. Each is asked for once over both processes."""
    whole = go(tmp_path / "whole", Talker())
    first, second = Talker(dies_after=turns), Talker()
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "run", first)
    kept = (tmp_path / "run/turns.jsonl").read_bytes() if turns else b""
    assert len(kept.splitlines()) == turns
    with open(tmp_path / "run/turns.jsonl", "ab") as file:
        file.write(b'{"id": "1", "torn')
    again = go(tmp_path / "run", second)
    assert (tmp_path / "run/turns.jsonl").read_bytes().startswith(kept)
    assert len(first.seen) == turns and len(first.seen) + len(second.seen) == 12
    assert again == whole
    assert go(tmp_path / "run", Talker(says=lambda user, seed: 1 / 0)) == whole


def test_a_turn_that_failed_is_asked_again_and_not_the_ones_before(tmp_path):
    def says(user, seed):
        return Answer("" if user.startswith("Go") else "fine", "error" if user.startswith("Go") else "stop",
                      1, 1, 0.1)
    answers = go(tmp_path / "run", Talker(says=says), decoding=Decoding())
    assert {r["finish"] for r in answers.values()} == {"error"}
    second = Talker()
    answers = go(tmp_path / "run", second, decoding=Decoding())
    assert len(second.seen) == 2 and {r["finish"] for r in answers.values()} == {"stop"}


def test_a_conversation_ends_where_it_cannot_go_on(tmp_path):
    """Refused by the API, nothing but a thought, no room in the context: what was said stands."""
    def refused(user, seed):
        if "Now a?" in user:
            return Answer("", "refused_by_api", 1, 0, 0.1)
        return Answer("ok", "stop", 1, 1, 0.1)

    def thinks(user, seed):
        return Answer("<think>hm</think>" if "Now" in user else "ok", "stop", 1, 1, 0.1)
    found = go(tmp_path / "a", Talker(says=refused), decoding=Decoding())
    assert [(r["id"], r["finish"], len(r["turns"])) for r in found.values()] == [
        ("1", "refused_by_api", 2), ("2", "stop", 3)]
    found = go(tmp_path / "b", Talker(says=thinks), decoding=Decoding())
    assert [len(r["turns"]) for r in found.values()] == [2, 2]
    found = go(tmp_path / "c", Talker(room=4), decoding=Decoding())     # system, and a turn and a half
    assert [len(r["turns"]) for r in found.values()] == [2, 2]


def test_an_answer_counts_by_its_first_harmful_turn(tmp_path):
    """The judge calls the second of three turns harmful in question 1, none in question 2."""
    class Second:
        name = "second"

        def label(self, pairs):
            for i, (question, answer) in reversed(list(enumerate(pairs))):
                label = "harmful" if question == "a?" and "Now" in answer else "unharmful"
                yield i, redeval_worker.Verdict(label, answer)
    choice = redeval_worker.JudgeChoice("second", {"name": "second"}, lambda run: Second())
    go(tmp_path / "run", Talker(), decoding=Decoding(), judge=choice)
    found = {r["id"]: r for r in lines(tmp_path / "run/judgments.jsonl")}
    assert (found["1"]["label"], found["1"]["turn"]) == ("harmful", 2)
    assert found["1"]["raw"].startswith("reply to Now a?")
    assert found["2"]["label"] == "unharmful" and "turn" not in found["2"]
    r = results.results(read_journals(tmp_path / "run"), "second")["prompts"]["three"]
    assert r["asr"] == 0.5 and r["gave_way"] == {"1": 0, "2": 1, "3": 0}


def test_prompts_of_several_turns_come_from_files(tmp_path):
    text, listed, chat = tmp_path / "t.txt", tmp_path / "l.json", tmp_path / "c.json"
    text.write_text("Hello.\n<turn>\nNow\n<question>\n <turn> \nGo on.\n")
    listed.write_text(json.dumps(["Hello.", "Now\n<question>", "Go on."]))
    chat.write_text(json.dumps([{"role": "user", "content": one} for one in ("Hello.", "Now\n<question>",
                                                                              "Go on.")]))
    for path in (text, listed, chat):
        prompt = questions.load_prompt(path)
        assert prompt.several and prompt.users(ASKED[0]) == ("Hello.", "Now\na?", "Go on.")
    assert not questions.load_prompt("cou").several
    for content, message in (("<question>\n<turn>\n", "turn 2 is empty"),
                             ("a\n<turn>\nb", "has no <question>")):
        text.write_text(content)
        with pytest.raises(Error, match=message):
            questions.load_prompt(text)
    chat.write_text(json.dumps([{"role": "assistant", "content": "<question>"}]))
    with pytest.raises(Error, match="message 1: is not a user's"):
        questions.load_prompt(chat)


RED = [{"id": 7, "topic": "T", "subtopic": "S", "question": "a?", "red_conversations": {
    "0": [{"from": "human", "value": "first"}, {"from": "gpt", "value": "x"},
          {"from": "human", "value": "a?"}],
    "1": [{"from": "human", "value": "other"}]}, "blue_conversations": {}},
    {"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "y"},
                       {"from": "human", "value": "two"}]}]


def test_replay_of_red_conversations(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    talkers = []

    def model(args, reach, spec, adapter=None):
        talkers.append(Talker())
        return redeval_worker.choice(talkers[-1], "m")
    monkeypatch.setattr(network, "model", model)
    Path("red.json").write_text(json.dumps(RED))
    given = ["--model", "m", "--attack", "replay", "--conversations", "red.json", "--judge", "rules",
             "--quiet"]
    for folder in ("a", "b"):
        assert main([*given, "--output-dir", folder]) in (0, 1)
    users = {r["id"]: [] for r in lines("a/turns.jsonl")}
    for r in lines("a/turns.jsonl"):
        users[r["id"]].append(r["user"])
    assert users == {"7/0": ["first", "a?"], "7/1": ["other"], "2": ["one", "two"]}
    asked = {r["id"]: (r["question"], r["topic"], r["subtopic"]) for r in lines("a/responses.jsonl")}
    assert asked == {"7/0": ("a?", "T", "S"), "7/1": ("a?", "T", "S"), "2": ("two", "", "")}
    twice = [sorted((r["id"], r["text"]) for r in lines(f"{folder}/responses.jsonl")) for folder in "ab"]
    assert twice[0] == twice[1]
    assert "gave way at turn" in Path("a/report.html").read_text()
    capsys.readouterr()
    assert main([*given, "--output-dir", "a", "--dry-run"]) == 0
    assert "5 answers (3 already done)" in capsys.readouterr().out      # turns
    for options, message in ((["--attack", "replay"], "belong together"),
                             (["--questions", "q.json"], "leave --questions and --prompt out"),
                             (["--prompt", "cou"], "leave --questions and --prompt out")):
        used = options if "--attack" in options else [*given, *options]
        assert main(["--model", "m", *used] if used is options else used) == 2
        assert message in capsys.readouterr().err
    Path("red.json").write_text(json.dumps([{"red_conversations": {"0": [{"from": "gpt", "value": "x"}]}}]))
    assert main([*given, "--output-dir", "c"]) == 2
    assert "row 1, conversation 0: has no human turn" in capsys.readouterr().err
    assert main([*given, "--output-dir", "a"]) == 2     # other conversations
