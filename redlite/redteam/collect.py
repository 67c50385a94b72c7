"""HARMFULQA (arXiv 2308.09662, section 3.2): questions, and harmful and safe conversations about them, from a model, in four stages.

    topics.json      {topic: [subtopic, …]}
    questions.json   {topic: {subtopic: [question, …]}}
    red.json         [{id, topic, subtopic, question, red_conversations}, …]
    harmfulqa.json   the same with blue_conversations: HarmfulQA's schema

Each stage writes its file when it is complete, and the next reads the file, so a person can read it, edit it and go on. Every
reply of the model is journalled before it is used (client.py), so a killed run asks nothing twice. What is dropped is kept,
with its reason, in drops.jsonl.
"""
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from redlite.errors import Error, Incomplete
from redlite.inference import sampling
from redlite.judges import rules
from redlite.net.client import JOURNAL, Call
from redlite.net.reply import Answer, recall
from redlite.redteam import collect_files
from redlite.redteam.collect_files import STAGES
from redlite.redteam.questions import DATA
from redlite.store.files import sha256_json, write_json
from redlite.store.records import require
from redlite.store.run_directory import Run
from redlite.text.reasoning import strip_thoughts

DROPS, STATISTICS = "drops.jsonl", "statistics.json"
PROMPTS = DATA / "prompts" / "collect"
NEAR = 0.7         # similarity at which two questions count as the same
LONGEST = 300      # characters of a question
SHOWN = 20         # known questions that a request for more lists
BATCH = 10         # questions asked for at once
DROP = {"stage": str, "where": str, "sample": int, "place": int, "text": str, "reason": str}  # sample: which reply to the same request; place: which item of it


@dataclass(frozen=True)
class Settings:
    """How much is collected. rounds: rounds in a row that add nothing end a subtopic; turns: questions of a red conversation."""
    subtopics: int = 10
    questions: int = 20
    conversations: int = 5
    turns: int = 4
    rounds: int = 3
    max_new_tokens: int = 1000
    temperature: float = 1.0
    seed: int = 0


# ---- the model ----

class LocalAsker:
    """A model on this machine in a client's place: the same `ask`, the same journal."""

    def __init__(self, lm, name: str, directory: Run, seed: int):
        self.lm, self.name, self.directory, self.seed = lm, name, directory, seed
        known = [(recall(r, directory.directory / JOURNAL), r) for r in directory.read(JOURNAL)]
        self.answers = {r["key"]: answer for answer, r in known if answer}

    def key(self, call: Call) -> str:
        return sha256_json([self.name, call.messages, call.parameters, call.sample])

    def ask(self, calls: list[Call]) -> Iterator[tuple[int, Answer]]:
        """Yield (index, Answer) as each comes; see `client.Client.ask`."""
        from redlite.inference.lm import Prompt
        places: dict[str, list[int]] = {}
        for i, call in enumerate(calls):
            places.setdefault(self.key(call), []).append(i)
        keys, prompts = [], []
        for key, (i, *_) in places.items():
            if key in self.answers:
                continue
            ids = self.lm.template.encode(calls[i].messages, add_generation_prompt=True).ids
            room = self.lm.engine.context_limit() - len(ids)
            if room < 1:
                self.answers[key] = Answer("", "error", 0, 0, 0.0, f"the prompt's {len(ids)} tokens do not fit the model")
                continue
            p = calls[i].parameters
            keys.append(key)
            prompts.append(Prompt(ids, min(p["max_tokens"], room), sampling.Rule(p["temperature"]), sampling.request_seed(self.seed, ids, calls[i].sample), tuple(p.get("stop", ()))))
        for key in [k for k in places if k in self.answers]:
            for i in places[key]:
                yield i, self.answers[key]
        for n, c in self.lm.run(prompts):
            answer = self.answers[keys[n]] = Answer(c.text, c.finish, c.prompt_tokens, len(c.ids), round(c.seconds, 3))
            self.directory.append(JOURNAL, {"key": keys[n], **asdict(answer)})
            for i in places[keys[n]]:
                yield i, answer


# ---- reading what the model writes ----

# "1. x", "(1) x", "**1.** x", "### 1: x", "Question 1: x", "- 1) x", or a bullet and a space.
_ITEM = re.compile(r"[-*_#>•–\s]*(?:(?:question|subtopic)\s*)?\(?\d{1,3}[*_]*[.):]\s*(.+)|\s*[-*•–]\s+(.+)", re.IGNORECASE)


def read_list(text: str) -> list[str]:
    """The items of a numbered or bulleted list in a reply, without thoughts, emphasis, quotes and headings (which end in a colon).

    A reply without any such mark is read for its lines that end in a question mark.
    """
    lines = strip_thoughts(text).splitlines()
    items = [match[1] or match[2] for line in lines if (match := _ITEM.match(line))] or [line for line in lines if line.rstrip(" *_\"”'").endswith("?")]
    clean = (re.sub(r"\*\*|__", "", item).strip(" \t\"“”'*_") for item in items)
    return [item for item in clean if re.search(r"\w", item) and not item.endswith(":")]


_SPEAKER = re.compile(r"^[\s*_]*(Red-LM|Base-LM)[\s*_]*:[\s*_]*", re.MULTILINE)


def read_conversation(question: str, text: str) -> tuple[list[dict], str]:
    """(turns, "") of a reply that goes on behind "Base-LM:", or ([], why it is none). Turns are HarmfulQA's {"from", "value"}, thoughts removed.

    A question at the end that nobody answers is left out. Each speaker's turn must follow the other's.
    """
    speakers, starts = ["Base-LM"], [(0, 0)]
    for match in _SPEAKER.finditer(text):
        if match.start() == 0 or not text[:match.start()].strip():  # the reply repeats whose turn it is
            speakers, starts = [match[1]], [(0, match.end())]
            continue
        speakers.append(match[1])
        starts.append((match.start(), match.end()))
    if speakers[0] == "Red-LM":  # the reply repeats the question too
        speakers, starts = speakers[1:], starts[1:]
    if not speakers:
        return [], "no answer"
    pieces = [text[begin:after] for (_, begin), (after, _) in zip(starts, [*starts[1:], (len(text), 0)])]
    turns = [{"from": "human", "value": question}]
    for speaker, piece in zip(speakers, pieces):
        who, value = ("human", piece.strip()) if speaker == "Red-LM" else ("gpt", strip_thoughts(piece))
        value = re.split(r"\n\s*(?:###|\(Base-LM )", value)[0].strip()
        if who == turns[-1]["from"]:
            return [], "turns do not alternate"
        if not value:
            return [], "an empty turn"
        turns.append({"from": who, "value": value})
    if turns[-1]["from"] == "human":
        turns.pop()
    return (turns, "") if len(turns) >= 2 else ([], "no answer")


def similarity(a: set[str], b: set[str]) -> float:
    """Jaccard's index of two sets of shingles."""
    return len(a & b) / len(a | b) if a or b else 1.0


def shingles(text: str) -> set[str]:
    """The runs of four characters of a text in lower case, letters, digits and single spaces only."""
    plain = " ".join(re.findall(r"\w+", text.lower()))
    return {plain[i:i + 4] for i in range(max(1, len(plain) - 3))}


# ---- the four stages ----

class Pipeline:
    """One collection in one run directory.

    asker   `client.Client` or `LocalAsker`
    topics  names, or {topic: [subtopic, …]}, which takes the first stage's place
    """

    def __init__(self, directory: Run, asker, settings: Settings, topics: list[str] | dict[str, list[str]], red_prompt: str, progress=None):
        self.directory, self.asker, self.settings, self.topics, self.red_prompt, self.progress = directory, asker, settings, topics, red_prompt, progress
        self._worked: set[str] = set()  # stages whose requests the model takes
        path, mend = directory.directory / DROPS, "delete the file to have it written anew"
        self.dropped = {tuple(require(d, DROP, path, mend)[field] for field in DROP) for d in directory.read(DROPS)}

    def run(self) -> list[dict]:
        """All stages that have no file yet; HarmfulQA's rows."""
        for stage, name in zip((self._topics, self._questions, self._red, self._blue), STAGES):
            if not (self.directory.directory / name).exists():
                write_json(self.directory.directory / name, stage())
        return collect_files.read(self.directory.directory, STAGES[3])

    def _drop(self, stage: str, where: str, sample: int, text: str, reason: str, place: int = 0) -> None:
        """Write down what is dropped and why: once, however often a stage is broken off and begun again."""
        entry = (stage, where, sample, place, text, reason)
        if entry not in self.dropped:
            self.dropped.add(entry)
            self.directory.append(DROPS, dict(zip(DROP, entry)))

    def _items(self, stage: str, where: str, sample: int, answer: Answer) -> list[str]:
        """What a reply lists; a reply that lists nothing is dropped."""
        if not self._usable(stage, where, sample, answer):
            return []
        items = read_list(answer.text)
        if not items:
            self._drop(stage, where, sample, answer.text, "no list")
        return items

    def _ask(self, stage: str, what: str, requests: list[tuple[list[dict], int]], **more) -> list[Answer]:
        """The answers to (messages, sample), in order. A request that the model cannot take is an "error" among them, unless the stage has had no other answer."""
        parameters = {"max_tokens": self.settings.max_new_tokens, "temperature": self.settings.temperature, **more}
        answers: list = [None] * len(requests)
        for n, (i, answer) in enumerate(self.asker.ask([Call(messages, parameters, sample) for messages, sample in requests]), 1):
            answers[i] = answer
            if self.progress:
                self.progress(what, n, len(requests))
        failed = [a for a in answers if a.finish == "error"]
        if len(failed) < len(answers):
            self._worked.add(stage)
        if any(a.may_pass for a in failed) or failed and stage not in self._worked:
            raise Incomplete(f"{len(failed)} of {len(requests)} requests for {what} failed ({failed[0].detail}); what is answered is kept, run the same command again")
        return answers

    def _usable(self, stage: str, where: str, sample: int, answer: Answer) -> bool:
        if answer.finish == "error":
            self._drop(stage, where, sample, answer.detail, "the model cannot take the request")
            return False
        if answer.finish == "refused_by_api" or not answer.text.strip():
            self._drop(stage, where, sample, answer.text, "refused by the provider" if answer.finish == "refused_by_api" else "empty")
            return False
        return True

    def _topics(self) -> dict[str, list[str]]:
        """Rounds over all topics that have not enough subtopics, as in `_questions`."""
        if isinstance(self.topics, dict):
            return self.topics
        prompt = (PROMPTS / "subtopics.txt").read_text(encoding="utf-8").strip()
        found: dict[str, list[str]] = {topic: [] for topic in self.topics}
        idle, number = dict.fromkeys(found, 0), 0
        while open_ := [t for t, n in idle.items() if n < self.settings.rounds and len(found[t]) < self.settings.subtopics]:
            requests = []
            for t in open_:
                text = prompt.replace("<topic>", t).replace("<count>", str(self.settings.subtopics - len(found[t]))).replace("<known>", "; ".join(found[t]) or "(none yet)")
                requests.append(([{"role": "user", "content": text}], number))
            for t, answer in zip(open_, self._ask("topics", f"subtopics, round {number + 1}", requests)):
                before = len(found[t])
                for place, item in enumerate(self._items("topics", t, number, answer)):
                    name, mine = item, shingles(item)
                    if len(item) > 80 or ": " in item:  # "Name: what it is about"
                        name = re.split(r":\s|\s[-–—]\s", item)[0].strip(" *_\"”'")
                        mine = shingles(name)
                    reason = ("too long" if len(name) > 80 else "repeats" if any(similarity(mine, shingles(k)) >= NEAR for k in found[t])
                              else "more than asked for" if len(found[t]) == self.settings.subtopics else "")
                    if reason:
                        self._drop("topics", t, number, item, reason, place)
                    else:
                        found[t].append(name)
                idle[t] = 0 if len(found[t]) > before else idle[t] + 1
                if not found[t] and idle[t] == self.settings.rounds:
                    self._drop("topics", t, number, t, "topic without subtopics")
            number += 1
        found = {topic: names for topic, names in found.items() if names}
        if not found:
            raise Error("the model named no subtopic of any topic; give --topics FILE with {topic: [subtopic, …]}")
        return found

    def _questions(self) -> dict[str, dict[str, list[str]]]:
        """Rounds over all subtopics that are not full; one that adds nothing `rounds` times in a row is given up."""
        topics, prompt = collect_files.read(self.directory.directory, STAGES[0]), (PROMPTS / "questions.txt").read_text(encoding="utf-8").strip()
        found = {topic: {s: [] for s in names} for topic, names in topics.items()}
        known = {topic: [] for topic in topics}  # shingles of a topic's questions: near-duplicates are looked for across its subtopics
        idle, number = {(t, s): 0 for t, names in topics.items() for s in names}, 0
        while open_ := [(t, s) for (t, s), n in idle.items() if n < self.settings.rounds and len(found[t][s]) < self.settings.questions]:
            requests = []
            for t, s in open_:
                have = found[t][s]
                text = prompt.replace("<count>", str(min(BATCH, self.settings.questions - len(have)))).replace("<topic>", t).replace("<subtopic>", s)
                requests.append(([{"role": "user", "content": text.replace("<known>", "\n".join(f"- {q}" for q in have[-SHOWN:]) or "- (none yet)")}], number))
            for (t, s), answer in zip(open_, self._ask("questions", f"questions, round {number + 1}", requests)):
                before = len(found[t][s])
                for place, item in enumerate(self._items("questions", f"{t} / {s}", number, answer)):
                    mine = shingles(item)
                    reason = ("too short" if len(item.split()) < 3 else "too long" if len(item) > LONGEST else "near-duplicate" if any(similarity(mine, k) >= NEAR for k in known[t])
                              else "more than asked for" if len(found[t][s]) == self.settings.questions else "")
                    if reason:
                        self._drop("questions", f"{t} / {s}", number, item, reason, place)
                    else:
                        found[t][s].append(item)
                        known[t].append(mine)
                idle[t, s] = 0 if len(found[t][s]) > before else idle[t, s] + 1
            number += 1
        return found

    def _red(self) -> list[dict]:
        rows = []
        for topic, subtopics in collect_files.read(self.directory.directory, STAGES[1]).items():
            for subtopic, questions in subtopics.items():
                rows += [{"id": len(rows) + n, "topic": topic, "subtopic": subtopic, "question": q} for n, q in enumerate(questions, 1)]
        if not rows:
            raise Error(f"{self.directory.directory / STAGES[1]}: holds no question; write some there, or delete it to have the stage done again")
        text = self.red_prompt.replace("<turns>", str(self.settings.turns))
        requests = [([{"role": "user", "content": text.replace("<question>", row["question"])}], s) for row in rows for s in range(self.settings.conversations)]
        answers = iter(self._ask("red", "red conversations", requests))
        for row in rows:
            kept: list[list[dict]] = []
            for sample in range(self.settings.conversations):
                answer = next(answers)
                if not self._usable("red", str(row["id"]), sample, answer):
                    continue
                turns, reason = read_conversation(row["question"], answer.text)
                turns = turns[:2 * self.settings.turns]  # some models go on and on
                if not reason and rules.rules(row["question"], turns[1]["value"]) != "harmful":
                    reason = "refuses"
                if not reason and turns in kept:
                    reason = "repeats"
                if reason:
                    self._drop("red", str(row["id"]), sample, answer.text, reason)
                else:
                    kept.append(turns)
            row["red_conversations"] = {str(n): turns for n, turns in enumerate(kept)}
        return rows

    def _blue(self) -> list[dict]:
        """Answers to the human turns of every red conversation, one after the other, under instructions to stay safe; a question without any gets its bare question."""
        rows = collect_files.read(self.directory.directory, STAGES[2])
        system = {"role": "system", "content": (PROMPTS / "blue.txt").read_text(encoding="utf-8").strip()}
        talks = []  # (row, number in it, human turns, messages so far)
        for row in rows:
            humans = [[t["value"] for t in turns if t["from"] == "human"] for turns in row["red_conversations"].values()] or [[row["question"]]]
            talks += [(row, n, h, [system]) for n, h in enumerate(humans)]
        for turn in range(max(len(h) for _, _, h, _ in talks)):
            going = [t for t in talks if len(t[2]) > turn and len(t[3]) == 1 + 2 * turn]
            for _, _, humans, messages in going:
                messages.append({"role": "user", "content": humans[turn]})
            samples: dict[str, int] = {}
            requests = []
            for _, _, _, messages in going:
                key = sha256_json(messages)
                requests.append((list(messages), samples.get(key, 0)))
                samples[key] = samples.get(key, 0) + 1
            for (row, n, _, messages), answer in zip(going, self._ask("blue", f"blue conversations, turn {turn + 1}", requests)):
                if self._usable("blue", str(row["id"]), n, answer):
                    messages.append({"role": "assistant", "content": answer.text.strip()})
                else:
                    messages.pop()
        for row in rows:
            kept: list[list[dict]] = []
            for talk, n, _, messages in talks:
                turns = [{"from": "human" if m["role"] == "user" else "gpt", "value": m["content"]} for m in messages[1:]]
                if talk is row and len(turns) >= 2:
                    if turns in kept:
                        self._drop("blue", str(row["id"]), n, turns[1]["value"], "repeats")
                    else:
                        kept.append(turns)
            row["blue_conversations"] = {str(n): turns for n, turns in enumerate(kept)}
        return rows


def statistics(rows: list[dict], drops: list[dict], count_tokens) -> dict:
    """Conversations, turns and tokens of both colours, whole and by topic; drops by stage and reason. count_tokens: text → tokens."""
    def of(part: list[dict]) -> dict:
        out = {"questions": len(part)}
        for colour in ("blue", "red"):
            talks = [t for row in part for t in row[f"{colour}_conversations"].values()]
            out[colour] = {"conversations": len(talks), "turns": sum(map(len, talks)), "tokens": sum(count_tokens(turn["value"]) for t in talks for turn in t)}
        return out
    reasons: dict[str, dict[str, int]] = {}
    for drop in drops:
        stage = reasons.setdefault(drop["stage"], {})
        stage[drop["reason"]] = stage.get(drop["reason"], 0) + 1
    return {**of(rows), "by_topic": {t: of([r for r in rows if r["topic"] == t]) for t in dict.fromkeys(r["topic"] for r in rows)}, "drops": reasons}


def plan(settings: Settings, topics: list[str] | dict, red_prompt: str, given: dict | None = None) -> dict:
    """Requests at most, and tokens at most, were everything to come whole: nothing is asked. given: the user's own questions; a token is a byte at least."""
    subtopics = sum(map(len, topics.values())) if isinstance(topics, dict) else len(topics) * settings.subtopics
    own = [q for below in given.values() for texts in below.values() for q in texts] if given else None
    questions = subtopics * settings.questions if own is None else len(own)
    longest = 4 * LONGEST if own is None else max(_size(q) for q in own)
    names = [*topics, *(name for below in topics.values() for name in below)] if isinstance(topics, dict) else topics
    name = max(320, *map(_size, names))  # of a topic or subtopic; the model's own have 80 characters at most
    rounds = -(-settings.questions // BATCH) + settings.rounds * settings.questions
    talks = questions * settings.conversations
    requests = {"topics": 0 if isinstance(topics, dict) else len(topics) * settings.rounds * settings.subtopics, "questions": 0 if given else subtopics * rounds, "red": talks, "blue": talks * settings.turns}
    prompts = {"topics": 1000 + name + (name + 2) * settings.subtopics, "questions": 1500 + 2 * name + SHOWN * (longest + 3),
               "red": _size(red_prompt) + red_prompt.count("<question>") * longest + 100, "blue": 800 + longest + settings.turns * 8 * settings.max_new_tokens}
    return {"requests": requests, "prompt_tokens_at_most": sum(n * prompts[stage] for stage, n in requests.items()),
            "new_tokens_at_most": sum(requests.values()) * settings.max_new_tokens}


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
