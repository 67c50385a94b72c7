"""HARMFULQA (arXiv 2308.09662, section 3.2): questions, and harmful and safe conversations about them.

    topics.json      {topic: [subtopic, …]}
    questions.json   {topic: {subtopic: [question, …]}}
    red.json         [{id, topic, subtopic, question, red_conversations}, …]
    harmfulqa.json   the same with blue_conversations: HarmfulQA's schema

Each of the four stages writes its file when it is complete, and the next reads the file: a person can read
it, edit it and go on. Every reply of the model is in the journal before it is used, so a killed run asks
nothing twice. What is dropped is kept, with its reason, in drops.jsonl.
"""
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from redlite.answer import Answer
from redlite.errors import Error, Incomplete
from redlite.inference import unfinished
from redlite.judges import rules
from redlite.judges.verdict import Judge
from redlite.net.api_journal import may_pass
from redlite.net.client import Call
from redlite.redteam import collect_files
from redlite.redteam.collect_files import STAGES
from redlite.redteam.collect_replies import Turns, alike, read_conversation, read_list
from redlite.redteam.questions import DATA
from redlite.store.files import sha256_json, write_json
from redlite.store.records import Kind, require
from redlite.store.run_directory import Run
from redlite.text.reasoning import strip_thoughts

DROPS = "drops.jsonl"
PROMPTS = DATA / "prompts" / "collect"
NEAR = 0.7         # similarity at which two questions count as the same
LONGEST = 300      # characters of a question
LONGEST_NAME = 80  # characters of a subtopic
SHOWN = 20         # known questions that a request for more lists
BATCH = 10         # questions asked for at once
CUT = "cut at the token limit"  # why an answer, or the end of one, is dropped
# sample: which reply to the same request; place: which item of it
DROP: dict[str, Kind] = {"stage": str, "where": str, "sample": int, "place": int, "text": str, "reason": str}

Topics = list[str] | dict[str, list[str]]       # names; or {topic: [subtopic, …]}
Questions = dict[str, dict[str, list[str]]]     # {topic: {subtopic: [question, …]}}
Row = dict[str, Any]                            # of red.json and harmfulqa.json
Request = tuple[list[dict[str, str]], int]      # messages, and which reply to them
Place = TypeVar("Place", str, tuple[str, str])  # a topic, or (topic, subtopic)


class Asker(Protocol):
    """What answers: `net.client.Client` or `local_asker.LocalAsker`."""

    def ask(self, calls: list[Call]) -> Iterator[tuple[int, Answer]]:
        """Yield (index, Answer) as each call is answered."""
        ...


@dataclass(frozen=True)
class Settings:
    """How much is collected.

    rounds  rounds in a row that add nothing, after which a subtopic is given up
    turns   questions of a red conversation
    """
    subtopics: int = 10
    questions: int = 20
    conversations: int = 5
    turns: int = 4
    rounds: int = 3
    max_new_tokens: int = 1000
    temperature: float = 1.0
    seed: int = 0


@dataclass
class Talk:
    """A blue conversation that is under way: the row it belongs to, its number there, what the human says."""
    row: Row
    number: int
    humans: list[str]
    messages: list[dict[str, str]]


class Pipeline:
    """One collection in one run directory.

    topics      names; or with their subtopics, which takes the first stage's place
    red_prompt  with the placeholders <question> and <turns>
    progress    called with (what, how many are done, of how many)
    judge       drops blue answers that it calls harmful; None: none is dropped
    """

    def __init__(self, directory: Run, asker: Asker, settings: Settings, topics: Topics, red_prompt: str,
                 progress: Callable[[str, int, int], None] | None = None, judge: Judge | None = None):
        self.directory, self.asker, self.settings = directory, asker, settings
        self.topics, self.red_prompt, self.progress = topics, red_prompt, progress
        self.judge = judge
        self._worked: set[str] = set()  # stages whose requests the model takes
        path, mend = directory.directory / DROPS, "delete the file to have it written anew"
        self.dropped = set()
        for drop in directory.read(DROPS):
            require(drop, DROP, path, mend)
            self.dropped.add(tuple(drop[field] for field in DROP))

    def run(self) -> list[Row]:
        """All stages that have no file yet; HarmfulQA's rows."""
        stages = (self._topics, self._questions, self._red, self._blue)
        for stage, name in zip(stages, STAGES, strict=True):
            if not (self.directory.directory / name).exists():
                write_json(self.directory.directory / name, stage())
        unfinished.end(self.directory)
        return self._read(3)

    def _read(self, stage: int) -> Any:
        return collect_files.read(self.directory.directory, STAGES[stage])

    # What every stage does

    def _ask(self, stage: str, what: str, requests: list[Request]) -> list[Answer]:
        """The answers to the requests, in their order.

        A request that the model cannot take has an "error" among them, unless the stage has had no other
        answer.
        """
        parameters = {"max_tokens": self.settings.max_new_tokens, "temperature": self.settings.temperature}
        calls = [Call(messages, parameters, sample) for messages, sample in requests]
        answers: dict[int, Answer] = {}
        for i, answer in self.asker.ask(calls):
            answers[i] = answer
            if self.progress:
                self.progress(what, len(answers), len(requests))
        failed = [a for a in answers.values() if a.finish == "error"]
        if len(failed) < len(answers):
            self._worked.add(stage)
        if any(map(may_pass, failed)) or failed and stage not in self._worked:
            raise Incomplete(
                f"{len(failed)} of {len(requests)} requests for {what} failed ({failed[0].detail}); "
                "what is answered is kept, run the same command again")
        return [answers[i] for i in range(len(requests))]

    def _drop(self, stage: str, where: str, sample: int, text: str, reason: str, place: int = 0) -> None:
        """Write down what is dropped and why: once, however often a stage is broken off and begun again."""
        entry = (stage, where, sample, place, text, reason)
        if entry not in self.dropped:
            self.dropped.add(entry)
            self.directory.append(DROPS, dict(zip(DROP, entry, strict=True)))

    def _usable(self, stage: str, where: str, sample: int, answer: Answer) -> bool:
        """Whether there is text to read in an answer; one without is dropped."""
        if answer.finish == "error":
            self._drop(stage, where, sample, answer.detail, "the model cannot take the request")
        elif answer.finish == "refused_by_api":
            self._drop(stage, where, sample, answer.text, "refused by the provider")
        elif not answer.text.strip():
            self._drop(stage, where, sample, answer.text, "empty")
        elif not strip_thoughts(answer.text):
            self._drop(stage, where, sample, answer.text, "only thought")
        else:
            return True
        return False

    def _items(self, stage: str, where: str, sample: int, answer: Answer) -> list[str]:
        """What a reply lists; a reply that lists nothing is dropped."""
        if not self._usable(stage, where, sample, answer):
            return []
        items = read_list(answer.text)
        if not items:
            self._drop(stage, where, sample, answer.text, "no list")
        elif answer.finish == "length":
            self._drop(stage, where, sample, items.pop(), CUT)
        return items

    def _fill(self,
              stage: str,
              what: str,
              found: dict[Place, list[str]],
              wanted: int,
              request: Callable[[Place], str],
              read: Callable[[Place, str], tuple[str, str]],
              barren: str = "") -> None:
        """Rounds over all places that hold fewer texts than wanted, until each is full or given up.

        A place is given up when `settings.rounds` rounds in a row added nothing to it.
        request  a place → what to ask for it
        read     a place and an item of a reply → (text, why it is dropped or "")
        barren   why a place that stays empty is dropped; "" if it is not
        """
        rounds, idle, number = self.settings.rounds, dict.fromkeys(found, 0), 0
        while places := [p for p, n in idle.items() if n < rounds and len(found[p]) < wanted]:
            requests: list[Request] = [([{"role": "user", "content": request(p)}], number) for p in places]
            answers = self._ask(stage, f"{what}, round {number + 1}", requests)
            for p, answer in zip(places, answers, strict=True):
                where = p if isinstance(p, str) else " / ".join(p)
                before = len(found[p])
                for place, item in enumerate(self._items(stage, where, number, answer)):
                    text, reason = read(p, item)
                    if not reason and len(found[p]) == wanted:
                        reason = "more than asked for"
                    if reason:
                        self._drop(stage, where, number, item, reason, place)
                    else:
                        found[p].append(text)
                idle[p] = 0 if len(found[p]) > before else idle[p] + 1
                if barren and not found[p] and idle[p] == rounds:
                    self._drop(stage, where, number, where, barren)
            number += 1

    # The four stages

    def _topics(self) -> dict[str, list[str]]:
        if isinstance(self.topics, dict):
            return self.topics
        prompt, wanted = _prompt("subtopics"), self.settings.subtopics
        found: dict[str, list[str]] = {topic: [] for topic in self.topics}

        def request(topic: str) -> str:
            known = "; ".join(found[topic]) or "(none yet)"
            missing = str(wanted - len(found[topic]))
            return prompt.replace("<topic>", topic).replace("<count>", missing).replace("<known>", known)

        def read(topic: str, item: str) -> tuple[str, str]:
            if len(item) > LONGEST_NAME or ": " in item:  # "Name: what it is about"
                item = re.split(r":\s|\s[-–—]\s", item)[0].strip(" *_\"”'")
            if len(item) > LONGEST_NAME:
                return item, "too long"
            return item, "repeats" if alike(item, found[topic], NEAR) else ""
        self._fill("topics", "subtopics", found, wanted, request, read, "topic without subtopics")
        found = {topic: names for topic, names in found.items() if names}
        if not found:
            raise Error("the model named no subtopic of any topic; give topics with their subtopics, as "
                        "{topic: [subtopic, …]}", "topics")
        return found

    def _questions(self) -> Questions:
        prompt, wanted = _prompt("questions"), self.settings.questions
        found: dict[tuple[str, str], list[str]] = {}
        for topic, names in self._read(0).items():
            found.update({(topic, name): [] for name in names})

        def request(place: tuple[str, str]) -> str:
            have = found[place]
            known = "\n".join(f"- {q}" for q in have[-SHOWN:]) or "- (none yet)"
            text = prompt.replace("<count>", str(min(BATCH, wanted - len(have))))
            return text.replace("<topic>", place[0]).replace("<subtopic>", place[1]).replace("<known>", known)

        def read(place: tuple[str, str], item: str) -> tuple[str, str]:
            if len(item.split()) < 3:
                return item, "too short"
            if len(item) > LONGEST:
                return item, "too long"
            # Near-duplicates are looked for across the subtopics of a topic.
            known = [q for (topic, _), questions in found.items() if topic == place[0] for q in questions]
            return item, "near-duplicate" if alike(item, known, NEAR) else ""
        self._fill("questions", "questions", found, wanted, request, read)
        out: Questions = {}
        for (topic, name), questions in found.items():
            out.setdefault(topic, {})[name] = questions
        return out

    def _red(self) -> list[Row]:
        rows: list[Row] = []
        for topic, subtopics in self._read(1).items():
            for subtopic, questions in subtopics.items():
                for q in questions:
                    rows.append({"id": len(rows) + 1, "topic": topic, "subtopic": subtopic, "question": q})
        if not rows:
            raise Error(f"{self.directory.directory / STAGES[1]}: holds no question; write some there, "
                        "or delete it to have the stage done again")
        prompt = self.red_prompt.replace("<turns>", str(self.settings.turns))
        samples = range(self.settings.conversations)
        requests: list[Request] = []
        for row in rows:
            messages = [{"role": "user", "content": prompt.replace("<question>", row["question"])}]
            requests += [(messages, sample) for sample in samples]
        answers = iter(self._ask("red", "red conversations", requests))
        for row in rows:
            kept: list[Turns] = []
            for sample in samples:
                answer = next(answers)
                if not self._usable("red", str(row["id"]), sample, answer):
                    continue
                turns, reason = self._read_red(row["question"], answer, kept)
                if reason:
                    self._drop("red", str(row["id"]), sample, answer.text, reason)
                else:
                    kept.append(turns)
            row["red_conversations"] = _numbered(kept)
        return rows

    def _read_red(self, question: str, answer: Answer, kept: list[Turns]) -> tuple[Turns, str]:
        """(turns of a red conversation, why it is dropped or "")."""
        turns, reason = read_conversation(question, answer.text)
        if not reason and answer.finish == "length":    # the last answer is not whole
            turns = turns[:-2]
            reason = "" if turns else CUT
        turns = turns[:2 * self.settings.turns]  # some models go on and on
        if not reason and rules.rules(question, turns[1]["value"]) != "harmful":
            reason = "refuses"
        if not reason and turns in kept:
            reason = "repeats"
        return turns, reason

    def _blue(self) -> list[Row]:
        """Answers to the human turns of every red conversation, in turn, under instructions to stay safe.

        A question without any gets one answer to the bare question.
        """
        rows: list[Row] = self._read(2)
        system = {"role": "system", "content": _prompt("blue")}
        talks = []
        for row in rows:
            red = row["red_conversations"].values()
            humans = [[t["value"] for t in turns if t["from"] == "human"] for turns in red]
            talks += [Talk(row, n, said, [system]) for n, said in enumerate(humans or [[row["question"]]])]
        for turn in range(max(len(talk.humans) for talk in talks)):
            self._answer_turn(talks, turn)
        for row in rows:
            kept: list[Turns] = []
            for talk in talks:
                if talk.row is not row or len(talk.messages) < 3:
                    continue
                speakers = {"user": "human", "assistant": "gpt"}
                turns = [{"from": speakers[m["role"]], "value": m["content"]} for m in talk.messages[1:]]
                if turns in kept:
                    self._drop("blue", str(row["id"]), talk.number, turns[1]["value"], "repeats")
                else:
                    kept.append(turns)
            row["blue_conversations"] = _numbered(kept)
        return rows

    def _answer_turn(self, talks: list[Talk], turn: int) -> None:
        """One more question and its answer, in every talk that has one and whose last was answered."""
        going = [talk for talk in talks if len(talk.humans) > turn and len(talk.messages) == 1 + 2 * turn]
        asked: dict[str, int] = {}  # talks that are alike so far get different samples
        requests: list[Request] = []
        for talk in going:
            talk.messages.append({"role": "user", "content": talk.humans[turn]})
            key = sha256_json(talk.messages)
            requests.append((list(talk.messages), asked.get(key, 0)))
            asked[key] = asked.get(key, 0) + 1
        answers = self._ask("blue", f"blue conversations, turn {turn + 1}", requests)
        harmful = self._harmful(going, answers)
        for place, (talk, answer) in enumerate(zip(going, answers, strict=True)):
            usable = self._usable("blue", str(talk.row["id"]), talk.number, answer)
            reason = "harmful by the judge" if place in harmful else ""
            if answer.finish == "length":
                reason = CUT
            if usable and not reason:
                talk.messages.append({"role": "assistant", "content": strip_thoughts(answer.text)})
                continue
            talk.messages.pop()
            if usable:
                self._drop("blue", str(talk.row["id"]), talk.number, answer.text, reason)

    def _harmful(self, going: list[Talk], answers: list[Answer]) -> set[int]:
        """The places of the answers that the judge calls harmful."""
        if self.judge is None:
            return set()
        pairs = [(talk.messages[-1]["content"], strip_thoughts(answer.text))
                 for talk, answer in zip(going, answers, strict=True)]
        return {i for i, verdict in self.judge.label(pairs) if verdict.label == "harmful"}


def _prompt(name: str) -> str:
    return (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").strip()


def _numbered(conversations: list[Turns]) -> dict[str, Turns]:
    return {str(n): turns for n, turns in enumerate(conversations)}
