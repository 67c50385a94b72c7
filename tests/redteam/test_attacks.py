"""Attacks with an attacker: what it and the model see, kills at every step, ends, judging, the command.

As a program (FOLDER METHOD SECONDS) it runs an attack of made-up models with pauses, which a test kills.
"""
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import fault_server
import pytest
import redeval_worker

from redlite.answer import Answer
from redlite.cli import network
from redlite.cli.attack import ATTACKS
from redlite.cli.redeval import main
from redlite.errors import Error
from redlite.judges.choice import JudgeChoice
from redlite.judges.verdict import Verdict
from redlite.redteam import attacks, compare, redeval, results, turns
from redlite.redteam.answerers import Decoding
from redlite.redteam.attacks import Attack, read_message
from redlite.redteam.journals import read_journals
from redlite.redteam.questions import Question
from redlite.store.run_directory import Run

ASKED = [Question("1", "a?", "T"), Question("2", "b?", "U")]
TOLD = {"crescendo": "goal <question>\nso far\n> <conversation>\ndeclined\n> <declined>",
        "pair": "goal <question>\n<turn>\n> <answer>\n> <verdict>\nagain <question>"}
NO = "I'm sorry, but I can't help with that."


class Says:
    """Answers with what `says` gives for the messages; notes what it was asked, dies in time."""

    def __init__(self, says, left=None, pause=0.0, room=10 ** 6):
        self.says, self.left, self.pause, self.room, self.seen = says, left, pause, room, []

    def answer(self, conversations, decoding, seeds, stop, beside):
        if any(sum(len(m["content"]) for m in messages) > self.room for messages in conversations):
            raise Error("no room")
        return self._answers(conversations, decoding)

    def _answers(self, conversations, decoding):
        for i in reversed(range(len(conversations))):
            time.sleep(self.pause)
            self.step()
            self.seen.append(conversations[i])
            said = self.says([m["content"] for m in conversations[i]])
            made = said if isinstance(said, Answer) else Answer(said, "stop", 5, 2, 0.25)
            assert decoding.temperature == 0
            yield i, made

    def step(self):
        if self.left is not None:
            if self.left[0] == 0:
                raise KeyboardInterrupt
            self.left[0] -= 1


class Marks(Says):
    """A judge: harmful where the answer holds "yes"."""
    name = "marks"

    def label(self, pairs):
        for i in reversed(range(len(pairs))):
            time.sleep(self.pause)
            self.step()
            self.seen.append(pairs[i])
            yield i, Verdict("harmful" if "yes" in pairs[i][1] else "unharmful", "r", 0.25)


def counts_up(messages):
    """An attacker whose message says how much it has read, so that a message taken back is not repeated."""
    return f"<think>hm</think><message>step {len(''.join(messages))}?</message>"


def declines_some(messages):
    """A model that declines messages of some lengths, and gives way to those of some lengths."""
    n = int(messages[-1].removeprefix("step ").rstrip("?"))
    return NO if n % 4 == 1 else f"{'yes' if n % 5 == 0 else 'well'}, {len(messages)}: {'x' * (n % 7)}"


def go(folder, method, left=None, pause=0.0, attacker=counts_up, model=declines_some, judged=True, turns=4,
       backtracks=2, rooms=(10 ** 6, 10 ** 6)):
    """(the run's journals, the attacker, the model, the judge) of a run; all share the count `left`."""
    asks, answers = Says(attacker, left, pause, rooms[0]), Says(model, left, pause, rooms[1])
    marks = Marks(None, left, pause)
    judge = tells = JudgeChoice("marks", {"name": "marks"}, lambda run: marks)
    if method == "pair":
        judge, tells = attacks.remembering(judge)
    attack = Attack(method, redeval_worker.choice(asks, "att"), TOLD[method], turns, backtracks,
                    tells if method == "pair" else None)
    target = redeval_worker.choice(answers, "m")
    made = redeval.manifest(
        command="c", seed=0, model=target, question_path=Path("q.json"), questions=ASKED, limit=None,
        prompts=[attack.prompt], judge=judge, decoding=Decoding(), attack=attack)
    with Run(folder, made) as run:
        found = redeval.run(run, target, ASKED, [attack.prompt], Decoding(), attack=attack)
        if judged:
            redeval.judge(run, judge, found)
    return found, asks, answers, marks


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_crescendo_takes_back_what_is_declined_and_shows_the_attacker_the_rest(tmp_path):
    """The second and third messages of question 1 are declined. 3 messages stay in each conversation."""
    scripts = {q: iter(["one", "two", "three", "four", "five"]) for q in ("a?", "b?")}
    found, asks, answers, _ = go(
        tmp_path / "run", "crescendo", turns=3,
        attacker=lambda messages: f"<message>{next(scripts[messages[0][5:7]])}</message>",
        model=lambda messages: NO if messages[-1] == "two" else f"re {messages[-1]}")
    seen = [[m["content"] for m in messages] for messages in answers.seen]
    assert sorted(seen) == sorted(2 * [
        ["one"], ["one", "re one", "two"], ["one", "re one", "three"],
        ["one", "re one", "three", "re three", "four"]])
    told = [messages[0]["content"] for messages in asks.seen if messages[0]["content"].startswith("goal a?")]
    one = "> User: one\n> \n> Assistant: re one"
    assert told == ["goal a?\nso far\n> (it has not begun)\ndeclined\n> (none)",
                    f"goal a?\nso far\n{one}\ndeclined\n> (none)", f"goal a?\nso far\n{one}\ndeclined\n> two",
                    f"goal a?\nso far\n{one}\n> \n> User: three\n> \n> Assistant: re three\ndeclined\n"
                    "> (none)"]
    for record in found.answers.values():
        assert record["ended"] == "all turns asked" and record["text"] == "re four"
        assert record["turns"] == [
            {"user": "one", "answer": "re one"}, {"user": "two", "answer": NO, "taken_back": True},
            {"user": "three", "answer": "re three"}, {"user": "four", "answer": "re four"}]
        assert (record["prompt_tokens"], record["completion_tokens"], record["seconds"]) == (20, 8, 1.0)


@pytest.mark.parametrize("model, ended, n", [
    (lambda messages: NO, "declined too often", 3),             # asked, and otherwise twice
    (lambda messages: Answer("", "refused_by_api", 1, 0, 0.1), "declined too often", 3),
    (lambda messages: "<think>hm</think>", "empty answer", 1),
    (lambda messages: "fine", "all turns asked", 4)])
def test_an_attempt_of_crescendo_ends(tmp_path, model, ended, n):
    found, asks, answers, _ = go(tmp_path / "run", "crescendo", model=model)
    assert {r["ended"] for r in found.answers.values()} == {ended}
    assert len(answers.seen) == len(asks.seen) == 2 * n
    assert found.answers == read_journals(tmp_path / "run").answers


@pytest.mark.parametrize("method", ["crescendo", "pair"])
@pytest.mark.parametrize("says, ended", [
    (NO, attacks.REFUSED), ("<think>never ends", attacks.SILENT), ("<message> </message>", attacks.SILENT),
    (Answer("", "refused_by_api", 1, 0, 0.1), attacks.REFUSED)])
def test_an_attacker_that_gives_no_message_is_counted_and_not_asked_again(tmp_path, method, says, ended):
    found, asks, answers, _ = go(tmp_path / "run", method, attacker=lambda messages: says)
    assert len(asks.seen) == 2 and not answers.seen
    summary = results.results(found, "marks")
    r = summary["prompts"][method]
    assert r["ended"] == {ended: 2} and r["not_judged"] == 2 and r["asr"] is None
    assert f"attempts ended: {ended} 2" in results.table(summary) and results.too_few(summary)
    go(tmp_path / "run", method, attacker=lambda messages: 1 / 0)


def test_no_room_ends_an_attempt_and_what_was_said_stands(tmp_path):
    for rooms in ((10 ** 6, 20), (80, 10 ** 6)):
        found, _, answers, _ = go(tmp_path / str(rooms[0]), "crescendo", model=lambda messages: "well " * 4,
                                  rooms=rooms)
        assert {r["ended"] for r in found.answers.values()} == {"no room"}
        assert [len(r["turns"]) for r in found.answers.values()] == [1, 1] and len(answers.seen) == 2


def test_pair_asks_anew_each_round_and_ends_where_the_judge_says_harmful(tmp_path):
    """The judge is asked once about each answer, and not again at the end."""
    rounds = iter(["p1", "p1", "p2", "p2", "p3", "p3"])
    found, asks, answers, marks = go(
        tmp_path / "run", "pair", attacker=lambda messages: f"<message>{next(rounds)}</message>",
        model=lambda messages: {"p1": NO, "p2": "no words", "p3": "yes"}[messages[-1]])
    assert all(len(messages) == 1 for messages in answers.seen) and len(answers.seen) == 6
    told = [[(m["role"], m["content"]) for m in messages] for messages in asks.seen
            if "a?" in messages[0]["content"]]
    history = [("user", "goal a?"), ("assistant", "<message>p1</message>"),
               ("user", f"> {NO}\n> unharmful (probability of harm 0.25)\nagain a?"),
               ("assistant", "<message>p2</message>"),
               ("user", "> no words\n> unharmful (probability of harm 0.25)\nagain a?")]
    assert told == [history[:1], history[:3], history]
    assert sorted(marks.seen) == sorted((q, a) for q in ("a?", "b?") for a in (NO, "no words", "yes"))
    assert {(r["ended"], len(r["turns"])) for r in found.answers.values()} == {("gave way", 3)}
    r = results.results(found, "marks")["prompts"]["pair"]
    assert r["gave_way"] == {"1": 0, "2": 0, "3": 2} and r["asr"] == 1.0


def test_pairs_attacker_is_shown_the_last_rounds_and_the_plan_counts_them(tmp_path):
    """Of six rounds the sixth sees four; before each stand the instructions. Rounds seen: 0+1+2+3+4+4."""
    _, asks, *_ = go(tmp_path / "run", "pair", turns=6, model=lambda messages: f"well, {messages[-1]}")
    for seen in (asks.seen[-1], asks.seen[-2]):
        told = [m["content"] for m in seen]
        assert len(told) == 1 + 2 * 4 and told[0] in ("goal a?", "goal b?")
        sent = [m["content"] for m in asks.seen[0]]
        assert len(sent) == 1 and told[-2].removeprefix("<message>").removesuffix("</message>") in told[-1]
    counted = redeval_worker.choice(None)
    counted = replace(counted, count=len)
    attack = Attack("pair", counted, TOLD["pair"], turns=6, tokens=100)
    made = attacks.plan(attack, counted, ASKED, Decoding(max_new_tokens=10))
    assert made["attacker"]["prompt_tokens"] == 2 * (14 * 110 + 6 * 1 + 14 * 2)
    assert made["prompt_tokens"] == 2 * 6 * (1 + 100)


def test_a_turn_without_an_answer_keeps_the_later_turns_numbers(tmp_path):
    rounds = iter(["p1", "p1", "p2", "p2"])
    says = {"p1": Answer("", "refused_by_api", 1, 0, 0.1), "p2": "yes"}
    found, *_ = go(tmp_path / "run", "pair", attacker=lambda messages: f"<message>{next(rounds)}</message>",
                   model=lambda messages: says[messages[-1]])
    assert {r["turn"] for r in lines(tmp_path / "run/judgments.jsonl")} == {2}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["crescendo", "pair"])
def test_a_kill_at_any_step_loses_nothing_and_asks_nothing_twice(tmp_path, method):
    """Every answer of attacker, model and judge counts as a step; a run is broken off after each number."""
    whole, *made = go(tmp_path / "whole", method)
    steps = sum(len(one.seen) for one in made)
    assert steps > 12
    assert method == "pair" or any("taken_back" in r for r in lines(tmp_path / "whole/turns.jsonl"))
    for n in range(steps):
        folder = tmp_path / str(n)
        with pytest.raises(KeyboardInterrupt):
            go(folder, method, left=[n])
        for name in (attacks.ATTACKER, turns.TURNS):
            with open(folder / name, "ab") as file:
                file.write(b'{"id": "1", "torn')
        again, *others = go(folder, method)
        lost = sum(len(one.seen) for one in others) - (steps - n)
        # the last judging of a conversation is kept when all its turns are judged
        assert lost == 0 or (method == "crescendo" and len(others[1].seen) == 0 and 0 < lost <= 6)
        assert again.answers == whole.answers and again.judgments == whole.judgments


@pytest.mark.slow
@pytest.mark.parametrize("method", ["crescendo", "pair"])
def test_sigkill_at_several_turns(tmp_path, method):
    helpers = Path(__file__).parents[1] / "helpers"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(helpers), *sys.path])}
    whole, *made = go(tmp_path / "whole", method)
    for turn in (1, 2, 3, 5, 7):
        folder = tmp_path / str(turn)
        process = subprocess.Popen([sys.executable, __file__, str(folder), method, "0.02"], env=environment)
        deadline = time.monotonic() + 60
        while not (folder / turns.TURNS).exists() or len(lines_there(folder / turns.TURNS)) < turn:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        kept = [len(lines_there(folder / name)) for name in (attacks.ATTACKER, turns.TURNS)]
        again, asks, answers, _ = go(folder, method)
        assert [len(asks.seen), len(answers.seen)] == [
            len(one.seen) - n for one, n in zip(made[:2], kept, strict=True)]
        assert again.answers == whole.answers and again.judgments == whole.judgments


def lines_there(path):
    """Whole lines; a torn last one is none."""
    return path.read_bytes().split(b"\n")[:-1]


def test_what_failed_is_asked_again_and_not_what_came_before(tmp_path):
    failed = Answer("", "error", None, None, 0.1, detail="gone")
    for who in ("attacker", "model"):
        def fails_once(messages, seen, own):
            seen.append(1)
            return failed if len(seen) in (3, 4) else own(messages)
        own = counts_up if who == "attacker" else (lambda messages: "fine")
        given = {"model": lambda messages: "fine", who: partial(fails_once, seen=[], own=own)}
        found, *_ = go(tmp_path / who, "crescendo", **given)
        assert {r["finish"] for r in found.answers.values()} == {"error"}
        found, asks, answers, _ = go(tmp_path / who, "crescendo", model=lambda messages: "fine")
        assert {(r["finish"], r["ended"], len(r["turns"])) for r in found.answers.values()} == {
            ("stop", "all turns asked", 4)}
        assert (len(asks.seen), len(answers.seen)) == ((6, 6) if who == "attacker" else (4, 6))


@pytest.mark.parametrize("text, message", [
    ("<message>Hello?</message>", "Hello?"), ("<think>x <message>no</message></think>Hello?", "Hello?"),
    ("Sure, here it is: <MESSAGE>\nHello?\n</MESSAGE> Good luck!", "Hello?"),
    ("Between <message></message> I write: <message>Hello?</message>", "Hello?"),
    ("<message>Hello?", "Hello?"), ("Hello?</message>", "Hello?"), ('"Hello?"', "Hello?"),
    ("Next message: Hello?", "Hello?"), ("**User's message:** Hello?", "Hello?"),
    ("```\nHello?\n```", "Hello?"), ("“Hello?”", "Hello?"),
    ("<message>I cannot find my cup. Where may it be?</message>", "I cannot find my cup. Where may it be?")])
def test_an_attackers_words_are_taken_apart(text, message):
    assert read_message(Answer(text, "stop", 1, 1, 0.1)) == (message, "message")


def test_a_thought_that_the_attackers_prompt_opened_is_no_message():
    answer = Answer("hm, what now?</think><message>Hello?</message>", "stop", 1, 1, 0.1, opened=True)
    assert read_message(answer) == ("Hello?", "message")


# The command

def reply(text):
    return {"status": 200, "body": {"choices": [{"message": {"content": text}, "finish_reason": "stop"}],
                                    "usage": {"prompt_tokens": 100, "completion_tokens": 10}}}


SAID = ["<message>Hello.</message>", "Hello, how can I help?", "<message>And then?</message>", NO,
        "<message>And otherwise?</message>", "Sure, here is how."]
GIVEN = ["--model", "openai:m", "--attack", "crescendo", "--attacker", "openai:att", "--turns", "2",
         "--limit", "1", "--questions", "sample", "--judge", "rules", "--quiet"]


@pytest.fixture
def paid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "model-key-0001")
    monkeypatch.setenv("ATTACKER_API_KEY", "attacker-key-0002")
    price = {"prompt": 100.0, "completion": 1000.0}
    Path("prices.json").write_text(json.dumps({"m": price, "att": price}))
    return tmp_path


def test_the_command_with_an_attacker_of_its_own_endpoint(paid, capsys):
    model, attacker = [reply(text) for text in SAID[1::2]], [reply(text) for text in SAID[::2]]
    with fault_server.running(script=model) as one, fault_server.running(script=attacker) as two:
        given = [*GIVEN, "--base-url", one.url, "--attacker-base-url", two.url, "--output-dir", "run",
                 "--attacker-tokens", "1234"]
        assert main(given) == 0
        counts = one.counts(), two.counts()
        assert [c["kinds"].get("200") for c in counts] == [3, 3]
        assert set(counts[0]["authorizations"]) == {"Bearer model-key-0001"}
        assert set(counts[1]["authorizations"]) == {"Bearer attacker-key-0002"}
        assert {json.loads(body)["max_tokens"] for body in counts[1]["bodies"]} == {1234}
        assert main(given) == 0 and two.counts()["requests"] == counts[1]["requests"]
    out = capsys.readouterr().out
    assert "crescendo: first harmful answers at turn 1 " in out and "attempts ended: all turns asked 1" in out
    made = json.loads(Path("run/manifest.json").read_text())["attack"]
    assert made["attacker"]["name"] == "openai:att" and made["attacker"]["endpoint"] == two.url
    assert (made["method"], made["turns"], made["backtracks"], made["attacker_tokens"]) == (
        "crescendo", 2, 3, 1234)
    assert "attacker-key-0002" not in "".join(p.read_text() for p in Path("run").glob("*.json*"))
    [record] = lines("run/responses.jsonl")
    assert [(t["user"], t.get("taken_back")) for t in record["turns"]] == [
        ("Hello.", None), ("And then?", True), ("And otherwise?", None)]
    page = Path("run/report.html").read_text()
    assert "openai:att" in page and "gave way at turn" in page and "all turns asked 1" in page
    assert main(["export", "run", "--format", "csv", "--output", "run.csv"]) == 0
    assert ",turn,ended" in Path("run.csv").read_text().splitlines()[0]


def test_a_limit_covers_attacker_and_model_and_the_run_goes_on(paid, capsys):
    """6 requests in all, at 0.02 dollars each."""
    with fault_server.running(script=[reply(text) for text in SAID]) as server:
        given = [*GIVEN, "--base-url", server.url, "--output-dir", "run"]
        for limit, n in ((["--max-requests", "3"], 3), (["--max-requests", "4"], 4)):
            assert main([*given, *limit]) == 1
            assert server.counts()["kinds"]["200"] == n
        # the next could cost more than what is left: an attacker's message may have 1000 tokens
        assert main([*given, "--price-file", "prices.json", "--max-cost", "1"]) == 1
        assert server.counts()["kinds"]["200"] == 4
        assert main([*given, "--price-file", "prices.json", "--max-cost", "2"]) == 0
        assert server.counts()["kinds"]["200"] == 6
    assert "could be passed" in capsys.readouterr().err


def test_a_dry_run_counts_the_attackers_messages(paid, capsys):
    """2 turns and 3 taken back: at most 5 of each; 5 · 1000 new tokens of the attacker at 0.001 dollars."""
    assert main([*GIVEN, "--price-file", "prices.json", "--dry-run", "--json", "--max-new-tokens", "10"]) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    attacker = plan["attacker"]
    assert (plan["requests"], attacker["requests"], attacker["new_tokens_at_most"]) == (5, 5, 5000)
    cost = attacker["prompt_tokens"] * 1e-4 + 5 + plan["prompt_tokens"] * 1e-4 + 50 * 1e-3
    assert plan["cost_at_most"] == pytest.approx(cost)
    assert not Path("runs").exists()


@pytest.mark.parametrize("given, message", [
    (["--attack", "pair"], "belong together"), (["--attacker", "x"], "belong together"),
    (["--attack", "pair", "--attacker", "x", "--prompt", "cou"], "leave --prompt out"),
    (["--attack", "pair", "--attacker", "x", "--judge", "none"], "name a judge"),
    (["--attack", "pair", "--attacker", "x", "--backtracks", "1"], "--backtracks: this attack has none"),
    (["--turns", "2"], "--turns: this attack has none"),
    (["--attack", "pair", "--attacker", "x", "--conversations", "f"], "belong together")])
def test_options_that_do_not_go_together(given, message, capsys):
    assert main(given) == 2
    assert message in capsys.readouterr().err


def test_another_attacker_is_another_protocol(tmp_path, monkeypatch, capsys):
    """A run is not resumed with another attacker, nor compared with one of another."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(network, "model", lambda *given, **more: redeval_worker.choice(
        Says(lambda messages: "Sure, here is how."), "m"))
    monkeypatch.setattr(network, "attacker", lambda args, reach: redeval_worker.choice(
        Says(counts_up), args.attacker))
    Path("q.json").write_text('["a?"]')
    given = ["--model", "m", "--questions", "q.json", "--judge", "rules", "--quiet"]
    attack = [*given, "--attack", "crescendo", "--turns", "2", "--attacker"]
    assert main([*attack, "x", "--output-dir", "x"]) == main([*attack, "y", "--output-dir", "y"]) == 0
    assert main([*attack, "x", "--output-dir", "again"]) == 0
    assert main([*given, "--prompt", "standard", "--output-dir", "none"]) == 0
    capsys.readouterr()
    assert main([*attack, "y", "--output-dir", "x"]) == 2
    assert "attack.attacker.name" in capsys.readouterr().err
    assert main([*attack, "x", "--output-dir", "x", "--turns", "3"]) == 2
    sides = {name: compare.read(name) for name in ("x", "y", "again", "none")}
    assert compare.differing(sides["x"], sides["y"]) == ["attack.attacker"]
    assert compare.differing(sides["x"], sides["again"]) == []
    assert "attack.method" in compare.differing(sides["none"], sides["x"])


@pytest.mark.parametrize("method", ATTACKS)
def test_the_instructions_hold_every_placeholder_that_is_filled(method):
    text = attacks.instructions(method)
    said = [{"turn": 1, "user": "Hm?", "answer": "Well."}]
    asked = Attack(method, redeval_worker.choice(None), text).instruct("Q?", said, {})
    assert [m["role"] for m in asked] == ["user", "assistant", "user"][:1 if method == "crescendo" else 3]
    for filled in (m["content"] for m in asked if m["role"] == "user"):
        assert "> Q?" in filled and "<message>" in filled and "</message>" in filled
        left = filled.replace("<message>", "").replace("</message>", "")
        assert "<" not in left
    assert all(name in text for name in TOLD[method].split() if name.startswith("<"))


if __name__ == "__main__":
    go(Path(sys.argv[1]), sys.argv[2], pause=float(sys.argv[3]))
