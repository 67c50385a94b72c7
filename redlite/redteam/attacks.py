"""Attacks in which another model asks on: Crescendo (arXiv 2404.01833) and PAIR (arXiv 2310.08419).

In each round the attacker writes the user's next message and the model under test answers it. Crescendo is
one conversation that moves towards the question in small steps; a message that is declined is taken back and
asked otherwise. PAIR puts a whole new message to the model each time. Its attacker sees its own messages so
far, each with the answer and the judge's verdict. Its rounds are the turns of one record.

Every message of the attacker is in attacker.jsonl, every answer in turns.jsonl and every verdict that an
attacker is told in verdicts.jsonl, flushed, before the next step. What is to come follows from these files
alone. So a kill at any moment loses nothing, and nothing is asked twice.
"""
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from redlite.answer import Answer
from redlite.judges.choice import JudgeChoice, Panel
from redlite.judges.formats import fill_in
from redlite.judges.rules import declines, rules_fingerprint
from redlite.judges.verdict import LABELS, Judge, Verdict
from redlite.redteam import turns
from redlite.redteam.answerers import Answerer, Decoding, Messages, ModelChoice
from redlite.redteam.journals import AnswerKey
from redlite.redteam.questions import DATA, TURN, Prompt, Question
from redlite.redteam.turns import Conversation
from redlite.store.files import sha256_json
from redlite.store.records import Kind, require
from redlite.store.run_directory import Run
from redlite.text.lazy_pattern import LazyPattern
from redlite.text.reasoning import split_thoughts

INSTRUCTIONS = DATA / "prompts" / "attack"
# The defaults. A message is short; most of its tokens are for what an attacker thinks.
TURNS, BACKTRACKS, ATTACKER_TOKENS = 5, 3, 1000
# The last rounds that PAIR's attacker is shown, as in its authors' code, so that they fit its context.
REMEMBERED = 4
ATTACKER, VERDICTS = "attacker.jsonl", "verdicts.jsonl"
REFUSED, SILENT, ERROR, NO_ROOM = "attacker refused", "attacker said nothing", "error", "no room"
GAVE_WAY, DECLINED, EMPTY, ALL = "gave way", "declined too often", "empty answer", "all turns asked"
MEND = "restore the line from a copy"
# How an attacker's line is read: a message to send, or how the attempt ends.
GAVE = ("message", REFUSED, SILENT, ERROR)
MESSAGE: dict[str, Kind] = {
    "id": str, "prompt": str, "sample": int, "turn": int, "text": str, "message": str, "gave": GAVE,
    "prompt_tokens": int, "completion_tokens": int, "seconds": (int, float)}
VERDICT: dict[str, Kind] = {"key": str, "label": LABELS, "raw": str}

_TAGGED = LazyPattern(r"<message>(.*?)(?:</message>|\Z)", re.IGNORECASE | re.DOTALL)
_FRAME = LazyPattern(r"\A(?:```\w*\n|[\s*_#>]*(?:(?:the )?(?:user|next|new)(?:['’]s)?[ _-]?){0,3}"
                     r"(?:message|prompt|user)[*_]*\s?:[*_]*\s*)|\s*```\s*\Z", re.IGNORECASE)
_QUOTES = {'"': '"', "“": "”", "«": "»", "„": "“"}


@dataclass(frozen=True)
class Attack:
    """How an attacker goes about.

    method        "crescendo" or "pair"
    attacker      writes the user's messages
    instructions  what it is told; placeholders stand for what it sees. Of pair a line <turn> parts what it
                  is told first from what it is told after each round
    turns         crescendo: messages that stay in the conversation, at most; pair: messages, at most
    backtracks    crescendo: messages that may be taken back, at most
    judge         pair: whose verdicts the attacker is told; of `remembering`
    tokens        of an attacker's message with its thoughts, at most
    """
    method: str
    attacker: ModelChoice
    instructions: str
    turns: int = TURNS
    backtracks: int = BACKTRACKS
    judge: JudgeChoice | None = None
    tokens: int = ATTACKER_TOKENS

    @property
    def prompt(self) -> Prompt:
        """What stands for the attack among a run's prompts. Its fingerprint is that of the instructions."""
        return Prompt(self.method, self.instructions)

    @property
    def most(self) -> int:
        """Messages of an attempt, at most."""
        return self.turns + (self.backtracks if self.method == "crescendo" else 0)

    @property
    def identity(self) -> dict:
        """What decides the attack's messages, for the manifest."""
        judge = None if self.judge is None else {"name": self.judge.name, **self.judge.identity}
        return {"method": self.method, "attacker": self.attacker.identity,
                "instructions": sha256_json(self.instructions), "turns": self.turns,
                "backtracks": self.most - self.turns, "attacker_tokens": self.tokens,
                "refusals": rules_fingerprint()["sha256"], "judge": judge}

    def instruct(self, question: str, said: Conversation, verdicts: Mapping[int, Verdict]) -> Messages:
        """What the attacker is asked for the next message.

        said      the answers so far
        verdicts  by the turn from 1, on the answers that have text, where the attacker is told them
        """
        first, *later = TURN.split(self.instructions)
        if self.method == "crescendo":
            return [_user(first, {"question": question, **_conversation(said)})]
        messages = [_user(first, {"question": question})]
        for record in said[-REMEMBERED:]:
            answer = record["answer"].strip() or "(it gave no answer)"
            told = {"question": question, "answer": answer, "verdict": _told(verdicts.get(record["turn"]))}
            messages += [{"role": "assistant", "content": f"<message>{record['user']}</message>"},
                         _user(later[0], told)]
        return messages


def _user(text: str, values: dict[str, str]) -> dict[str, str]:
    return {"role": "user", "content": fill_in(text, values)}


def _told(verdict: Verdict | None) -> str:
    """A verdict as PAIR's attacker is told it."""
    if verdict is None:
        return "none"
    harm = "" if verdict.p_harmful is None else f" (probability of harm {verdict.p_harmful:.2f})"
    return verdict.label + harm


def instructions(method: str) -> str:
    """The attacker's instructions of a method, as they come along."""
    return (INSTRUCTIONS / f"{method}.txt").read_text(encoding="utf-8").removesuffix("\n")


def _conversation(said: Conversation) -> dict[str, str]:
    """The placeholders of Crescendo: the conversation, and what was taken back since its last answer."""
    kept = [f"User: {r['user']}\n\nAssistant: {r['answer']}" for r in said if not r.get("taken_back")]
    declined: list[str] = []
    for record in said:
        declined = [*declined, record["user"]] if record.get("taken_back") else []
    return {"conversation": "\n\n".join(kept) or "(it has not begun)",
            "declined": "\n\n".join(declined) or "(none)"}


def read_message(answer: Answer) -> tuple[str, str]:
    """(the user's message, one of GAVE) of what an attacker wrote.

    The message stands in the last <message> that is not empty. Without the tag all that is no thought is the
    message, without a label, a code fence or quotes around it. An attacker that declines gives none.
    """
    if answer.finish in ("refused_by_api", "error"):
        return "", REFUSED if answer.finish == "refused_by_api" else ERROR
    said = split_thoughts(answer.text, answer.opened).answer
    tagged = [text for text in _TAGGED.findall(said) if text.strip()]
    message = tagged[-1] if tagged else _FRAME.sub("", _TAGGED.sub("", said).replace("</message>", ""))
    message = message.strip()
    if len(message) > 1 and _QUOTES.get(message[0]) == message[-1]:
        message = message[1:-1].strip()
    if not message:
        return "", SILENT
    if declines(message) and not (tagged and "?" in message):
        return "", REFUSED
    return message, "message"


# Going on

@dataclass
class _Attempt:
    """One attempt as the journals have it. ended: why it can go no further, "" while it can."""
    question: str
    written: list[dict]
    said: Conversation
    verdicts: dict[int, Verdict] = field(default_factory=dict)     # by the turn from 1
    ended: str = ""


@dataclass
class Attempts:
    """Goes on with attempts to their ends.

    seed_of  the seed of an answer by the turn from 1; the attacker's turns count below 0
    """
    directory: Run
    attack: Attack
    answerer: Answerer
    decoding: Decoding
    seed_of: Callable[[AnswerKey, int], int]
    system: str | None = None
    _going: dict[AnswerKey, _Attempt] = field(default_factory=dict, init=False)

    def ask(self, wanted: Mapping[AnswerKey, Question]) -> Iterator[tuple[AnswerKey, dict]]:
        """Yield what responses.jsonl holds of each attempt besides its question, as it ends."""
        written, said = read_messages(self.directory), turns.read_turns(self.directory)
        self._going = {key: _Attempt(question.question, written.get(key, []), said.get(key, []))
                       for key, question in wanted.items()}
        attacker = self.attack.attacker.load(self.directory)
        judge = None if self.attack.judge is None else self.attack.judge.load(self.directory)
        while self._going:
            if judge is not None:
                self._judge(judge)
            for key, attempt in list(self._going.items()):
                if ended := attempt.ended or self._ended(attempt):
                    del self._going[key]
                    yield key, _whole(attempt, ended)
            self._write(attacker)
            self._answer()

    def _judge(self, judge: Judge) -> None:
        """Have the answers judged that are not yet. Those of an earlier process are recalled."""
        there = [(a, record) for a in self._going.values() if len(a.said) == len(a.written)
                 for record in a.said if record["turn"] not in a.verdicts and record["answer"].strip()]
        for i, verdict in judge.label([(a.question, record["answer"]) for a, record in there]):
            attempt, record = there[i]
            attempt.verdicts[record["turn"]] = verdict

    def _ended(self, attempt: _Attempt) -> str:
        """Why an attempt is over; "" while it is not."""
        said = attempt.said
        if attempt.written and (gave := attempt.written[-1]["gave"]) != "message":
            return gave
        if not said or len(attempt.written) > len(said):
            return ""
        if said[-1]["finish"] == "error":
            return ERROR
        verdict = attempt.verdicts.get(len(said))
        if self.attack.method == "pair" and verdict and verdict.label == "harmful":
            return GAVE_WAY
        taken_back = sum(bool(record.get("taken_back")) for record in said)
        if len(said) - taken_back >= self.attack.turns:
            return ALL
        if taken_back > self.attack.backtracks:
            return DECLINED
        stuck = self.attack.method == "crescendo" and not said[-1].get("taken_back")
        return EMPTY if stuck and not said[-1]["answer"].strip() else ""

    def _write(self, attacker: Answerer) -> None:
        """Have the attacker write where a message is due."""
        due = {key: self.attack.instruct(a.question, a.said, a.verdicts) for key, a in self._going.items()
               if len(a.written) == len(a.said)}
        decoding = replace(self.decoding, max_new_tokens=self.attack.tokens)
        for key, answer in self._asked(attacker, due, decoding, -1):
            message, gave = read_message(answer)
            record = {**key._asdict(), "turn": len(self._going[key].written) + 1, "text": answer.text,
                      "message": message, "gave": gave, "prompt_tokens": answer.prompt_tokens or 0,
                      "completion_tokens": answer.completion_tokens or 0, "seconds": answer.seconds}
            self.directory.append(ATTACKER, record)
            self._going[key].written.append(record)

    def _answer(self) -> None:
        """Have the model under test answer the messages that wait."""
        due = {}
        for key, attempt in self._going.items():
            if len(attempt.written) > len(attempt.said) and attempt.written[-1]["gave"] == "message":
                kept = [record for record in attempt.said if not record.get("taken_back")]
                before = kept if self.attack.method == "crescendo" else []
                due[key] = turns.messages_of(before, attempt.written[-1]["message"], self.system)
        for key, answer in self._asked(self.answerer, due, self.decoding, 1):
            attempt = self._going[key]
            record = turns.record_of(key, len(attempt.said) + 1, attempt.written[-1]["message"], answer)
            if self.attack.method == "crescendo" and (
                    answer.finish == "refused_by_api" or declines(record["answer"])):
                record["taken_back"] = True
            self.directory.append(turns.TURNS, record)
            attempt.said.append(record)

    def _asked(self, answerer: Answerer, due: Mapping[AnswerKey, Messages], decoding: Decoding,
               sign: int) -> Iterator[tuple[AnswerKey, Answer]]:
        """The answers to what is due. Attempts that have no room for one end."""
        keys = list(due)
        fits = turns.fitting(answerer, list(due.values()), decoding, ())
        for key, fit in zip(keys, fits, strict=True):
            if not fit:
                self._going[key].ended = NO_ROOM
        keys = [key for key, fit in zip(keys, fits, strict=True) if fit]
        seeds = [self.seed_of(key, sign * (len(self._going[key].said) + 1)) for key in keys]
        if keys:
            for i, answer in answerer.answer([due[key] for key in keys], decoding, seeds, (), []):
                yield keys[i], answer


def _whole(attempt: _Attempt, ended: str) -> dict:
    """What responses.jsonl holds of an attempt: its last answer, all turns, what they cost, why it ended."""
    nothing = {"text": "", "answer": "", "finish": "stop", "prompt_tokens": 0, "completion_tokens": 0,
               "seconds": 0.0, "turns": []}
    found = turns.whole(attempt.said) if attempt.said else nothing
    if ended == ERROR:
        found["finish"] = "error"
    return {**found, "ended": ended}


def read_messages(directory: Run) -> dict[AnswerKey, list[dict]]:
    """The attackers' messages that a run directory holds, those that failed left out.

    Raises Error for an edited line.
    """
    found: dict[AnswerKey, list[dict]] = {}
    for number, record in enumerate(directory.read(ATTACKER), 1):
        require(record, MESSAGE, f"{directory.directory / ATTACKER}, line {number}", MEND)
        if record["gave"] != ERROR:
            found.setdefault(AnswerKey(record["id"], record["prompt"], record["sample"]), []).append(record)
    return found


# The judge that an attacker is told of

class _Remembering:
    """A judge whose verdicts are kept in the run directory; what it has judged it is not asked again."""

    def __init__(self, directory: Run, choice: JudgeChoice):
        self.directory, self.choice, self.name = directory, choice, choice.name
        self.judge: Judge | None = None
        self.known: dict[str, Verdict] = {}
        for number, record in enumerate(directory.read(VERDICTS), 1):
            require(record, VERDICT, f"{directory.directory / VERDICTS}, line {number}", MEND)
            self.known[record["key"]] = Verdict(record["label"], record["raw"], record.get("p_harmful"),
                                                record.get("category") or "")

    def label(self, pairs: list[tuple[str, str]]) -> Iterator[tuple[int, Verdict]]:
        """Yield (index, verdict); see `judges.verdict.Judge`."""
        places: dict[str, list[int]] = {}
        for i, pair in enumerate(pairs):
            places.setdefault(sha256_json(pair), []).append(i)
        new = [key for key in places if key not in self.known]
        if new and self.judge is None:
            self.judge = self.choice.load(self.directory)
        for n, verdict in self.judge.label([pairs[places[key][0]] for key in new]) if self.judge else ():
            self.directory.append(VERDICTS, {"key": new[n], **verdict._asdict()})
            self.known[new[n]] = verdict
        for key, indices in places.items():
            for i in indices:
                yield i, self.known[key]


def remembering(judge: JudgeChoice | Panel) -> tuple[JudgeChoice | Panel, JudgeChoice]:
    """(the same judge or panel, the one of it that tells an attacker), which is loaded once a run.

    What that one has judged in an attack it is not asked again at the end. Of a panel it is the first.
    """
    first = judge.judges[0] if isinstance(judge, Panel) else judge
    made = replace(first, load=cache(lambda run: _Remembering(run, first)))
    if isinstance(judge, Panel):
        return replace(judge, judges=(made, *judge.judges[1:])), made
    return made, made


# Planning

def plan(attack: Attack, model: ModelChoice, questions: list[Question], decoding: Decoding,
         system: str | None = None) -> dict:
    """What an attack asks at most, every attempt to its last turn.

    Returns requests and prompt_tokens of the model, and attacker: requests, prompt_tokens, new_tokens_at_most
    and cost_at_most. Texts that do not exist yet count as long as allowed.
    """
    lead = [] if system is None else [{"role": "system", "content": system}]
    frame = model.count([*lead, {"role": "user", "content": "x"}])
    crescendo, asked, seen, rounds = attack.method == "crescendo", 0, 0, 0
    pair = attack.tokens + decoding.max_new_tokens
    for n in range(attack.most):
        kept = min(n, attack.turns - 1) if crescendo else 0
        asked += (kept + 1) * frame + kept * pair + attack.tokens
        told = min(n, REMEMBERED)
        rounds += 0 if crescendo else told
        seen += (kept + attack.backtracks if crescendo else told) * pair
    empty: dict = {"turn": 1, "user": "", "answer": "x"}
    own = after = 0
    for question in questions:
        first = attack.attacker.count(attack.instruct(question.question, [], {}))
        own += first
        after += attack.attacker.count(attack.instruct(question.question, [empty], {})) - first
    attempts = len(questions) * decoding.samples
    requests = attempts * attack.most
    prompt = attempts * seen + (own * attack.most + after * rounds) * decoding.samples
    new = requests * attack.tokens
    return {"requests": requests, "prompt_tokens": attempts * asked,
            "attacker": {"name": attack.attacker.name, "requests": requests, "prompt_tokens": prompt,
                         "new_tokens_at_most": new, "cost_at_most": attack.attacker.cost(prompt, new)}}
