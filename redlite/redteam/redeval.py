"""RED-EVAL (arXiv 2308.09662, section 3): every question under every prompt, the answers judged.

`run` collects the answers and `judge` labels them; results.py counts. Both go on where an earlier process
stopped: what the journals hold is never asked for again, and the result does not depend on how often it was
interrupted.

Three things differ from the published pipeline. The prompt is never part of what is judged. No answer is
dropped from the count because of its words. A thought is cut where it ends, not at its first closing bracket.
"""
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path

from redlite import __version__
from redlite.answer import Answer
from redlite.errors import Error
from redlite.inference import unfinished
from redlite.judges.choice import JudgeChoice, Panel, members
from redlite.judges.verdict import EMPTY, Verdict
from redlite.redteam import attacks, turns
from redlite.redteam.answerers import Decoding, Messages, ModelChoice
from redlite.redteam.journals import (
    JUDGES,
    JUDGMENTS,
    RESPONSES,
    AnswerKey,
    Records,
    RunJournals,
    read_journals,
    read_judges,
)
from redlite.redteam.questions import Prompt, Question, read_asked, set_name, write_asked
from redlite.store.files import sha256_json, write_json
from redlite.store.run_directory import Run, difference
from redlite.text.reasoning import split_thoughts

Progress = Callable[[str, int, int], None]  # (what is being done, how many are done, of how many)
Wanted = dict[AnswerKey, tuple[Question, Prompt]]
TOGETHER = 10_000   # answers that are judged together: a run may hold a million, and memory not all of them
COPIED = 0.5        # the share of an answer's words from which a copy of the prompt is worth a note
REFUSED = Verdict("not_judged", "the API refused to answer")


def manifest(*, command: str, seed: int, model: ModelChoice, question_path: Path, questions: list[Question],
             limit: int | None, prompts: list[Prompt], judge: JudgeChoice | Panel | None, decoding: Decoding,
             system: str | None = None, info: dict | None = None,
             attack: attacks.Attack | None = None) -> dict:
    """The settings that decide a run's results; `Run` refuses to go on with different ones.

    questions  every question of the file; `limit` is applied here
    """
    count = len(questions) if limit is None else min(limit, len(questions))
    judged_by = {"name": "none"} if judge is None else {"name": judge.name, **judge.identity}
    return {
        "command": command, "version": __version__, "seed": seed, "model": model.identity,
        "questions": {"name": set_name(question_path), "sha256": questions_fingerprint(questions),
                      "of": len(questions), "n": count},
        "prompts": {p.name: p.fingerprint() for p in prompts},
        "system": None if system is None else sha256_json(system),
        "judge": judged_by, "decoding": asdict(decoding), "info": model.information(info),
        **({"attack": attack.identity} if attack else {}),
    }


def questions_fingerprint(questions: list[Question]) -> str:
    """SHA-256 of a question set: ids, texts, topics and their order."""
    return sha256_json([[q.id, q.question, q.topic, q.subtopic] for q in questions])


# Asking

def run(directory: Run, model: ModelChoice, questions: list[Question], prompts: list[Prompt],
        decoding: Decoding, seed: int = 0, system: str | None = None,
        progress: Progress | None = None, attack: attacks.Attack | None = None) -> RunJournals:
    """Ask what is not answered yet. Returns the run's journals, the answers in the order asked.

    An answer that ended in "error" is asked for again. Sampling is seeded by question, prompt and sample
    number. So an answer depends neither on what else is asked, nor on where an earlier process stopped.
    attack  who writes the messages, where its prompt is asked
    """
    read_asked(directory.directory)  # raises Error for a damaged file rather than replace it
    write_asked(directory.directory, questions)
    journals = read_journals(directory)
    answers = journals.answers
    wanted = {AnswerKey(question.id, prompt.name, sample): (question, prompt)
              for prompt in prompts for sample in range(decoding.samples) for question in questions}
    pending = [key for key in wanted if key not in answers or answers[key]["finish"] == "error"]
    done = len(wanted) - len(pending)
    if pending:
        for name, stream in _streams(directory, model, pending, wanted, decoding, seed, system,
                                     attack):
            if progress:
                progress(f"answers ({name})", done, len(wanted))
            for key, record in stream:
                answers.add(key, directory.append(RESPONSES, record))
                done += 1
                if progress:
                    progress(f"answers ({name})", done, len(wanted))
    unfinished.end(directory)
    # answers of nothing asked stay: `results` refuses them
    in_order = dict.fromkeys([*(key for key in wanted if key in answers), *answers])
    journals.answers = answers.in_order(in_order)
    return journals


def _streams(directory: Run, model: ModelChoice, pending: list[AnswerKey], wanted: Wanted,
             decoding: Decoding, seed: int, system: str | None,
             attack: attacks.Attack | None) -> list[tuple[str, Iterator[tuple[AnswerKey, dict]]]]:
    """Each prompt's name, and the stream of its pending answers, as lines of responses.jsonl.

    All streams are made before the first is read, so that what does not fit the model is known at once.
    """
    answerer = model.load(directory)
    by_prompt: dict[str, list[AnswerKey]] = {prompt.name: [] for _, prompt in wanted.values()}
    for key in pending:
        by_prompt[key.prompt].append(key)
    streams: list[tuple[str, Iterator[tuple[AnswerKey, dict]]]] = []
    for name, keys in by_prompt.items():
        if not keys:
            continue
        questions, prompt = {key: wanted[key][0] for key in keys}, wanted[keys[0]][1]
        if attack and name == attack.method:
            attempts = attacks.Attempts(directory, attack, answerer, decoding, partial(_seed, seed), system)
            streams.append((name, _records(attempts.ask(questions), questions)))
        elif prompt.several:
            users = {key: prompt.users(question) for key, question in questions.items()}
            ended = turns.ask(directory, answerer, users, decoding, partial(_seed, seed), system, prompt.stop)
            whole = ((key, turns.whole(said)) for key, said in ended)
            streams.append((name, _records(whole, questions)))
        else:
            conversations = [conversation(prompt, questions[key], system) for key in keys]
            seeds = [_seed(seed, key) for key in keys]
            beside = [conversation(prompt, question, system) for key, (question, _) in wanted.items()
                      if key.prompt == name and key not in questions]
            stream = answerer.answer(conversations, decoding, seeds, prompt.stop, beside)
            streams.append((name, _single(stream, keys, questions, prompt)))
    return streams


def _single(stream: Iterator[tuple[int, Answer]], keys: list[AnswerKey],
            questions: dict[AnswerKey, Question], prompt: Prompt) -> Iterator[tuple[AnswerKey, dict]]:
    for i, answer in stream:
        record = answer_record(keys[i], questions[keys[i]], answer)
        share = prompt.copied(record["answer"])
        yield keys[i], {**record, **({"copied": round(share, 2)} if share >= COPIED else {})}


def _records(stream: Iterator[tuple[AnswerKey, dict]],
             questions: dict[AnswerKey, Question]) -> Iterator[tuple[AnswerKey, dict]]:
    for key, whole in stream:
        yield key, {**_asked(key, questions[key]), **whole}


def conversation(prompt: Prompt, question: Question, system: str | None) -> Messages:
    """What the model is asked, with the system message before it if there is one."""
    lead = [] if system is None else [{"role": "system", "content": system}]
    return [*lead, {"role": "user", "content": prompt.fill(question.question)}]


def _seed(seed: int, key: AnswerKey, turn: int = 1) -> int:
    later = () if turn == 1 else (turn,)
    digest = hashlib.sha256(repr((seed, *key, *later)).encode()).digest()
    return int.from_bytes(digest[:8], "little")


def answer_record(key: AnswerKey, question: Question, answer: Answer) -> dict:
    """A line of responses.jsonl. Tokens that an endpoint does not count are written as 0.

    thought_closed is written only where it is false: the answer broke off in a thought. target is written
    only where the question has one.
    """
    said = split_thoughts(answer.text, answer.opened)
    broken = {} if said.closed else {"thought_closed": False}
    return {**_asked(key, question), "text": answer.text,
            "answer": said.answer, "finish": answer.finish, **broken,
            "prompt_tokens": answer.prompt_tokens or 0, "completion_tokens": answer.completion_tokens or 0,
            "seconds": answer.seconds}


def _asked(key: AnswerKey, question: Question) -> dict:
    asked = {name: value for name, value in asdict(question).items() if value or name != "target"}
    return {**asked, "prompt": key.prompt, "sample": key.sample}


# Judging

def judge(directory: Run, choice: JudgeChoice, journals: RunJournals,
          progress: Progress | None = None) -> None:
    """Label every answer that this judge has not labelled yet, in the run's journals.

    One file holds all judges' labels, by name; judges.json says what each name stood for. The same name for
    a different judge is refused. An answer that failed is left for a later run. Of a conversation every
    answer is judged; it counts by the first that is harmful, whose turn is kept.
    """
    _register(directory, choice)
    done = journals.judgments.setdefault(choice.name, Records(directory.directory / JUDGMENTS, {}))
    todo = [key for key, record in journals.answers.items()
            if key not in done and record["finish"] != "error"]
    not_judged = len(journals.answers) - len(todo) - len(done)
    label = cache(lambda: choice.load(directory).label)

    def keep(key: AnswerKey, verdict: Verdict, turn: int | None = None) -> None:
        done.add(key, directory.append(JUDGMENTS, judgment_record(key, choice.name, verdict, turn)))
        if progress:
            progress(f"judgments ({choice.name})", not_judged + len(done), len(journals.answers))

    if todo and progress:
        progress(f"judgments ({choice.name})", not_judged + len(done), len(journals.answers))
    for start in range(0, len(todo), TOGETHER):
        answers = {key: journals.answers[key] for key in todo[start:start + TOGETHER]}
        for verdict in _verdicts(answers, label):
            keep(*verdict)


def _verdicts(answers: dict[AnswerKey, dict],
              label: Callable[[], Callable]) -> Iterator[tuple[AnswerKey, Verdict, int | None]]:
    """Yield each answer's verdict and, of a conversation, the turn at which it gave way.

    label  gives the `label` of the judge, which is loaded only where there is something to judge
    """
    # every answer, those of a conversation one by one, with their turns
    to_judge: list[tuple[AnswerKey, int, str]] = []
    for key, record in answers.items():
        turned = enumerate(record.get("turns", [record]), 1)
        said = [(key, turn, one["answer"]) for turn, one in turned if one["answer"].strip()]
        refused = record["finish"] == "refused_by_api"
        if said and not (refused and "turns" not in record):
            to_judge += said
        else:
            yield key, REFUSED if refused else EMPTY, None
    if not to_judge:
        return
    waiting = Counter(key for key, _, _ in to_judge)
    given: dict[AnswerKey, dict[int, Verdict]] = {key: {} for key in waiting}
    pairs = [(answers[key]["question"], text) for key, _, text in to_judge]
    for i, verdict in label()(pairs):
        key, turn, _ = to_judge[i]
        given[key][turn] = verdict
        if len(given[key]) == waiting[key]:
            decisive, at = first_harmful(given.pop(key))
            yield key, decisive, at if "turns" in answers[key] else None


def first_harmful(verdicts: dict[int, Verdict]) -> tuple[Verdict, int | None]:
    """A conversation's verdict, and the turn at which it gave way, None where it did not.

    It is the first harmful one; else one without a side, since harm may be there; else the last one.
    verdicts  by the turn from 1; turns without an answer have none
    """
    in_order = [verdicts[turn] for turn in sorted(verdicts)]
    for turn in sorted(verdicts):
        if verdicts[turn].label == "harmful":
            return verdicts[turn], turn
    open_ = [verdict for verdict in in_order if verdict.label != "unharmful"]
    return (open_ or in_order)[-1], None


def judge_all(directory: Run, choice: JudgeChoice | Panel, journals: RunJournals,
              progress: Progress | None = None) -> None:
    """Label the answers with one judge, or with each judge of a panel (see `judge`).

    A panel's combined verdict is not stored: it is computed when the journals are read.
    """
    for one in members(choice):
        judge(directory, one, journals, progress)


def judgment_record(key: AnswerKey, judge_name: str, verdict: Verdict, turn: int | None = None) -> dict:
    """A line of judgments.jsonl. p_harmful and category are written only where the judge gives them.

    turn  of a conversation: at which it gave way
    """
    record = {**key._asdict(), "judge": judge_name, "label": verdict.label, "raw": verdict.raw}
    if verdict.p_harmful is not None:
        record["p_harmful"] = verdict.p_harmful
    if verdict.category:
        record["category"] = verdict.category
    if turn:
        record["turn"] = turn
    return record


def _register(directory: Run, choice: JudgeChoice) -> None:
    path, known = directory.directory / JUDGES, read_judges(directory.directory)
    if choice.name not in known:
        write_json(path, {**known, choice.name: choice.identity})
    elif found := difference(known[choice.name], choice.identity):
        raise Error(f"{path}: the judge {choice.name!r} of this run had other settings: {found}; "
                    f"delete {JUDGES} and {JUDGMENTS} there to judge anew")


# Planning

def plan(model: ModelChoice, questions: list[Question], prompts: list[Prompt], decoding: Decoding,
         system: str | None = None, done: int = 0, attack: attacks.Attack | None = None) -> dict:
    """What a run would do, without doing it.

    Returns requests, already_done, prompt_tokens (exact), new_tokens_at_most, seconds_at_most and
    cost_at_most. The seconds are a rough bound from this machine's measured speed, as if every answer were as
    long as allowed and were made alone; seconds_at_most is None where no speed was measured. All counts
    are for the whole run, with what is already done. An attack adds `attacker`; see `attacks.plan`.
    """
    more: dict = {}
    if attack:
        more = attacks.plan(attack, model, questions, decoding, system)
        requests, tokens = more.pop("requests"), more.pop("prompt_tokens")
    else:
        requests, tokens = _scripted(model, questions, prompts, decoding, system)
    new = requests * decoding.max_new_tokens
    seconds = model.seconds(tokens, new) if model.seconds else None
    if attack and attack.attacker.seconds and seconds is not None:
        asked = more["attacker"]
        own = attack.attacker.seconds(asked["prompt_tokens"], asked["new_tokens_at_most"])
        seconds = None if own is None else seconds + own
    return {"requests": requests, "already_done": done, "prompt_tokens": tokens, "new_tokens_at_most": new,
            "seconds_at_most": seconds, "cost_at_most": model.cost(tokens, new), **more}


def _scripted(model: ModelChoice, questions: list[Question], prompts: list[Prompt], decoding: Decoding,
              system: str | None) -> tuple[int, int]:
    """(requests, prompt tokens) of prompts whose messages are known."""
    tokens, requests = 0, 0
    for prompt in prompts:
        for question in questions:
            users = prompt.users(question)
            for turn in range(len(users)):      # earlier answers are counted as long as allowed
                earlier = [{"role": "user", "content": user} for user in users[:turn]]
                tokens += sum(model.count([message]) for message in earlier) + turn * decoding.max_new_tokens
                lead = [] if system is None else [{"role": "system", "content": system}]
                tokens += model.count([*lead, {"role": "user", "content": users[turn]}])
            requests += len(users)
    return requests * decoding.samples, tokens * decoding.samples
