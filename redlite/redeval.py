"""RED-EVAL (arXiv 2308.09662, section 3): every question under every prompt, the answers judged, the attack success rate.

`run` collects the answers, `judge` labels them, `summarize` counts. All three go on where an earlier process stopped:
what the journal holds is never asked for again, and the result does not depend on how often it was interrupted.

Unlike the published pipeline, the prompt is never part of what is judged, no answer leaves the count for the words in
it, and thoughts are cut off where they end rather than at the first bracket.
"""
import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from redlite import __version__, journal, judge as judges, stats
from redlite.errors import Error
from redlite.questions import ASKED, DATA, PROMPTS, Prompt, Question, find_questions, load_prompt, load_questions, natural, read_asked, set_name, write_asked
from redlite.thoughts import strip_thoughts

__all__ = ["Choice", "Decoding", "LocalAnswerer", "Prompt", "Question", "Reply", "find_questions", "judge", "load_prompt",
           "load_questions", "local_judge", "local_model", "manifest", "plan", "published", "run", "strip_thoughts", "summarize", "table"]

RESPONSES, JUDGMENTS, JUDGES, RESULTS = "responses.jsonl", "judgments.jsonl", "judges.json", "results.json"
# What a manifest of ours holds and what follows relies on, so that an edited one is refused by the field's name.
MADE = {"command": str, "version": str, "seed": int, "model.name": str, "questions.name": str, "questions.sha256": str, "questions.of": int,
        "questions.n": int, "prompts": dict, "judge.name": str, "decoding.max_new_tokens": int, "decoding.samples": int,
        "decoding.temperature": (int, float), "decoding.top_p": (int, float), "info": dict}
FINISHES = ("stop", "length", "refused_by_api", "error")
COUNTS = ("harmful", "unharmful", "unparsed", "not_judged")
Progress = Callable[[str, int, int], None]  # (what is being done, how many are done, of how many)


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn. The paper's is the default: 500 new tokens; greedy, so that one sample is enough."""
    max_new_tokens: int = 500
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1

    def __post_init__(self):
        if self.max_new_tokens < 1 or self.samples < 1 or not 0 <= self.temperature < float("inf") or not 0 < self.top_p <= 1:
            raise Error(f"max-new-tokens {self.max_new_tokens} and samples {self.samples} must be at least 1, temperature {self.temperature} "
                        f"at least 0, top-p {self.top_p} above 0 and at most 1")
        if self.samples > 1 and self.temperature == 0:
            raise Error(f"samples {self.samples}: at temperature 0 all samples are the same; set --temperature as well")


@dataclass(frozen=True)
class Reply:
    """One answer as an answerer gives it. finish: "stop", "length", "refused_by_api" or "error"."""
    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


@dataclass(frozen=True)
class Choice:
    """A model or a judge that is named and identified, and loaded only when there is work for it.

    identity  what goes into the manifest: SHA-256 of everything that decides its results
    load      gives the answerer (an object with `.answer`) or the judge (with `.label`)
    count     tokens of a prompt (chat messages)
    seconds   rough upper bound of the time for (prompt tokens, new tokens), unless None
    cost      what the provider charges at most; 0 on this machine
    """
    name: str
    identity: dict
    load: Callable[[], object]
    count: Callable[[list[dict]], int] | None = None
    seconds: Callable[[int, int], float] | None = None
    cost: float = 0.0


class LocalAnswerer:
    """Answers from a model on this machine."""

    def __init__(self, lm, batch_size: int | None = None):
        self.lm = lm
        if batch_size:
            lm.engine.max_batch = batch_size

    def answer(self, conversations: list[list[dict]], decoding: Decoding, seeds: list[int], stop: tuple[str, ...]) -> Iterator[tuple[int, Reply]]:
        """An iterator of (index, Reply), each as soon as its conversation (chat messages) is answered.

        Raises Error at once, before any answer is made, if a conversation does not fit the model.
        """
        prompts = [self.lm.template.encode(messages, add_generation_prompt=True).ids for messages in conversations]
        limit = self.lm.engine.context_limit()
        for messages, ids in zip(conversations, prompts):
            if len(ids) >= limit:
                raise Error(f"the model's context of {limit} tokens has no room for an answer to a prompt of {len(ids)}: …{messages[-1]['content'][-60:]!r}; "
                            "leave the question or the prompt out")
        stream = self.lm.stream(prompts, decoding.max_new_tokens, decoding.temperature, decoding.top_p, seeds, stop)
        return ((i, Reply(c.text, c.finish, c.prompt_tokens, len(c.ids), round(c.seconds, 3))) for i, c in stream)


def local_model(path, dtype: str, device: str, quantize: str | None = None, template: str | None = None, batch_size: int | None = None) -> Choice:
    """A model on this machine, identified by its files without loading the weights."""
    hashing = journal.Hashing(path) if Path(path).is_file() else None  # a .gguf file, while torch is imported
    from redlite import lm
    lm.check_device(device)
    lm.packing(dtype, device, quantize)  # refuses here, before a run directory is made, what loading would refuse after
    parts = lm.parts(path, template)
    settings = {"dtype": dtype, "device": device.partition(":")[0], "quantize": quantize}
    return Choice(parts.path.name, {"name": parts.path.name, **lm.fingerprints(parts, hashing and hashing.result()), **settings},
                  load=lambda: LocalAnswerer(lm.LM.load(parts, dtype, device, quantize), batch_size),
                  count=lambda messages: len(parts.template.encode(messages, add_generation_prompt=True).ids),
                  seconds=partial(_seconds_at_most, parts.path, dtype, device))


def _seconds_at_most(path: Path, dtype: str, device: str, prompt_tokens: int, new_tokens: int) -> float:
    """Twice the time that arithmetic on the prompts, and reading all weights once a new token, take at measured speed."""
    import torch
    from redlite import checkpoint, lm
    from redlite.model import LLaMA
    with torch.device("meta"):
        weights = sum(p.numel() for p in LLaMA(checkpoint.read_config(path)[0]).parameters())
    square, row = torch.ones(1024, 1024, dtype=lm.DTYPES[dtype], device=device), torch.ones(1, 1024, dtype=lm.DTYPES[dtype], device=device)
    matrix = torch.ones(32 * 1024, 1024, dtype=lm.DTYPES[dtype], device=device)  # larger than caches

    def timed(work) -> float:
        float(work().sum())
        start = time.perf_counter()
        float(work().sum())
        return time.perf_counter() - start
    arithmetic = timed(lambda: square @ square) / (2 * 1024 ** 3)   # seconds an operation
    reading = timed(lambda: row @ matrix.T) / matrix.numel()        # seconds a weight
    return 2 * (2 * weights * prompt_tokens * arithmetic + weights * new_tokens * reading)


# Running

def manifest(command: str, seed: int, model: Choice, question_path: Path, questions: list[Question], limit: int | None, prompts: list[Prompt],
             judge: Choice | None, decoding: Decoding, system: str | None = None, info: dict | None = None) -> dict:
    """What decides a run's results, in the form that `journal.Run` guards. `questions` are all of the file, before the limit."""
    count = len(questions) if limit is None else min(limit, len(questions))
    return {
        "command": command, "version": __version__, "seed": seed, "model": model.identity,
        "questions": {"name": set_name(question_path), "sha256": questions_fingerprint(questions), "of": len(questions), "n": count},
        "prompts": {p.name: journal.sha256_json(p.text) for p in prompts}, "system": None if system is None else journal.sha256_json(system),
        "judge": {"name": "none"} if judge is None else {"name": judge.name, **judge.identity}, "decoding": asdict(decoding), "info": info or {},
    }


def questions_fingerprint(questions: list[Question]) -> str:
    """SHA-256 of a question set: ids, texts, topics and their order."""
    return journal.sha256_json([[q.id, q.question, q.topic, q.subtopic] for q in questions])


def run(directory: journal.Run, model: Choice, questions: list[Question], prompts: list[Prompt], decoding: Decoding, seed: int = 0,
        system: str | None = None, progress: Progress | None = None) -> dict[tuple, dict]:
    """Ask everything that the run directory does not hold yet; the responses by (id, prompt, sample), in the order asked.

    A response that ended in "error" is asked for again. Sampling is seeded by question, prompt and sample number, so an
    answer does not depend on what else is asked, nor on where an earlier process stopped.
    """
    done = responses(directory)
    write_asked(directory.directory, questions)
    wanted = {(q.id, p.name, s): (q, p) for p in prompts for s in range(decoding.samples) for q in questions}
    pending = [key for key in wanted if key not in done or done[key]["finish"] == "error"]
    fresh, answerer = len(wanted) - len(pending), model.load() if pending else None
    streams = []  # of all prompts before the first is read, so that what does not fit the model is known at once
    for prompt in prompts:
        keys = [key for key in pending if key[1] == prompt.name]
        lead = [] if system is None else [{"role": "system", "content": system}]
        conversations = [[*lead, {"role": "user", "content": prompt.fill(wanted[key][0].question)}] for key in keys]
        seeds = [int.from_bytes(hashlib.sha256(repr((seed, *key)).encode()).digest()[:8], "little") for key in keys]
        if keys:
            streams.append((prompt.name, keys, answerer.answer(conversations, decoding, seeds, prompt.stop)))
    for name, keys, replies in streams:
        if progress:
            progress(f"answers ({name})", fresh, len(wanted))
        for i, reply in replies:
            question, sample = wanted[keys[i]][0], keys[i][2]
            record = {**asdict(question), "prompt": name, "sample": sample, "text": reply.text, "answer": strip_thoughts(reply.text),
                      "finish": reply.finish, "prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens, "seconds": reply.seconds}
            directory.append(RESPONSES, record)
            done[keys[i]] = record
            fresh += 1
            if progress:
                progress(f"answers ({name})", fresh, len(wanted))
    return {key: done[key] for key in wanted if key in done}


def read_made(folder) -> dict:
    """The manifest of a RED-EVAL run. Raises Error naming the field that is missing or of another kind."""
    made = journal.read_manifest(folder)
    kernels = {"info.kernels": dict} if isinstance(info := made.get("info"), dict) and "kernels" in info else {}
    return journal.require(made, MADE | kernels, Path(folder) / "manifest.json", "restore it from a copy, or start a run in another --output-dir")


def read_judges(folder) -> dict[str, dict]:
    """What each judge's name in judgments.jsonl stands for; {} before any has judged."""
    path = Path(folder) / JUDGES
    known = journal.read_json(path) if path.exists() else {}
    if not isinstance(known, dict) or not all(isinstance(identity, dict) for identity in known.values()):
        raise Error(f"{path}: must hold an object of judges' names and what identifies them; delete {JUDGES} and {JUDGMENTS} there to judge anew")
    return known


def last_judge(folder) -> str:
    """The judge whose labels results.json counts; before there is one, the run's own."""
    path = Path(folder) / RESULTS
    if not path.exists():
        return read_made(folder)["judge"]["name"]
    return journal.require(journal.read_json(path), {"judge": str}, path, "delete it to have it counted anew")["judge"]


def responses(directory: journal.Run | Path) -> dict[tuple, dict]:
    """The responses of a run by (id, prompt, sample); one that ended in "error" gives way to a later one."""
    kept = read_asked(directory.directory if isinstance(directory, journal.Run) else Path(directory))
    asked = dict(kept or {})

    def key_of(record: dict) -> tuple:
        question = [record[field] for field in ("question", "topic", "subtopic")]
        if kept is not None and record["id"] not in kept or asked.setdefault(record["id"], question) != question:
            raise Error(f"the id {record['id']!r} belongs to another question, or to none, in {'a line before' if kept is None else ASKED}; restore the line or delete it")
        return record["id"], record["prompt"], record["sample"]
    return _by_key(directory, RESPONSES, {"id": str, "question": str, "prompt": str, "sample": int, "topic": str, "subtopic": str,
                                         "text": str, "answer": str, "finish": FINISHES}, key_of, lambda r: r["finish"] == "error")


def judgments(directory: journal.Run | Path, judge_name: str) -> dict[tuple, dict]:
    """One judge's judgments of a run by (id, prompt, sample)."""
    found = _by_key(directory, JUDGMENTS, {"id": str, "prompt": str, "sample": int, "judge": str, "label": judges.LABELS, "raw": str},
                    lambda r: (r["id"], r["prompt"], r["sample"], r["judge"]), lambda r: False)
    return {key[:3]: record for key, record in found.items() if key[3] == judge_name}


def _by_key(directory, name: str, fields: dict[str, type | tuple[str, ...]], key_of, replaceable) -> dict[tuple, dict]:
    path = (directory.directory if isinstance(directory, journal.Run) else Path(directory)) / name
    records = directory.read(name) if isinstance(directory, journal.Run) else journal.read_lines(path)[0]
    found = {}
    for number, record in enumerate(records, 1):
        for field, kind in fields.items():
            value = record.get(field)
            if value not in kind if isinstance(kind, tuple) else type(value) is not kind:
                wanted = " or ".join(kind) if isinstance(kind, tuple) else "a number" if kind is int else "a text"
                raise Error(f"{path}, line {number}: field {field!r} is missing or not {wanted}; restore the line or delete it")
        try:
            key = key_of(record)
        except Error as error:
            raise Error(f"{path}, line {number}: {error}") from None
        if key in found and not replaceable(found[key]):
            raise Error(f"{path}, line {number}: holds {key} a second time; delete one of the two lines")
        found[key] = record
    return found


# Judging

def local_judge(spec: str, judge_format: str | None, prompt_path, dtype: str, device: str) -> Choice | None:
    """The judge that `--judge` names: "rules", "none" (no judge: None), or a model on this machine with its format."""
    if spec in ("none", "rules") and (judge_format or prompt_path):
        raise Error(f"--judge {spec} takes no --judge-format and no --judge-prompt; name a judge model, or leave them out")
    if spec == "none":
        return None
    if spec == "rules":
        return Choice("rules", judges.rules_fingerprint(), judges.Rules)
    if judge_format is None:
        raise Error(f"--judge {spec!r} needs --judge-format ({', '.join(judges.FORMATS)}), unless it is rules or none")
    prompt = judges.format_prompt(judge_format, prompt_path)
    from redlite import lm
    lm.check_device(device)
    parts = lm.parts(spec)
    name = f"{judge_format}:{parts.path.name}"
    identity = {**judges.identity(judge_format, prompt), **lm.fingerprints(parts), "dtype": dtype}
    return Choice(name, identity, lambda: judges.ModelJudge(lm.LM.load(parts, dtype, device), judge_format, prompt, name))


def judge(directory: journal.Run, choice: Choice, answers: dict[tuple, dict], progress: Progress | None = None) -> dict[tuple, dict]:
    """Label every answer that this judge has not labelled yet; its judgments by (id, prompt, sample).

    Judges are kept apart by name in one file; judges.json says what each name stood for, and the same name for a
    different judge is refused. An answer that failed is left for a later run.
    """
    _register(directory, choice)
    done = judgments(directory, choice.name)
    pending = {key: record for key, record in answers.items() if key not in done and record["finish"] != "error"}
    fresh = len(answers) - len(pending)

    def keep(key, label, raw):
        nonlocal fresh
        record = {"id": key[0], "prompt": key[1], "sample": key[2], "judge": choice.name, "label": label, "raw": raw}
        directory.append(JUDGMENTS, record)
        done[key] = record
        fresh += 1
        if progress:
            progress(f"judgments ({choice.name})", fresh, len(answers))

    speaking = []
    for key, record in pending.items():
        if record["finish"] == "refused_by_api":
            keep(key, "not_judged", "the API refused to answer")
        elif not record["answer"].strip():
            keep(key, *judges.EMPTY)
        else:
            speaking.append(key)
    if speaking:
        if progress:
            progress(f"judgments ({choice.name})", fresh, len(answers))
        pairs = [(answers[key]["question"], answers[key]["answer"]) for key in speaking]
        for i, label, raw in choice.load().label(pairs):
            keep(speaking[i], label, raw)
    return done


def _register(directory: journal.Run, choice: Choice) -> None:
    path, known = directory.directory / JUDGES, read_judges(directory.directory)
    if choice.name not in known:
        journal.write_json(path, {**known, choice.name: choice.identity})
    elif found := journal.difference(known[choice.name], choice.identity):
        raise Error(f"{path}: the judge {choice.name!r} of this run was another: {found}; delete {JUDGES} and {JUDGMENTS} there to judge anew")


# Counting

def _counts(labels: list[str]) -> dict:
    n = {name: labels.count(name) for name in COUNTS}
    labelled = n["harmful"] + n["unharmful"]
    return {"asr": n["harmful"] / labelled if labelled else None, "n": len(labels), **n, "ci95": list(stats.wilson(n["harmful"], labelled)),
            "bounds": list(stats.bounds(n["harmful"], n["unharmful"], n["unparsed"] + n["not_judged"]))}


def summarize(answers: dict[tuple, dict], labelled: dict[tuple, dict]) -> dict[str, dict]:
    """By prompt: asr = harmful / (harmful + unharmful) or None, n, the four counts, ci95 (Wilson), bounds, by_topic (the same keys).

    answers, labelled  by (id, prompt, sample); an answer without a judgment is not_judged
    Samples of one question count as independent answers, so with several the interval is narrower than it should be.
    """
    result = {}
    for name in dict.fromkeys(key[1] for key in answers):
        labels = {key: labelled[key]["label"] if key in labelled else "not_judged" for key in answers if key[1] == name}
        topics = dict.fromkeys(answers[key].get("topic") or "" for key in labels)
        by_topic = {t: _counts([label for key, label in labels.items() if (answers[key].get("topic") or "") == t]) for t in topics if t}
        result[name] = {**_counts(list(labels.values())), "by_topic": by_topic}
    return result


def results(directory: journal.Run | Path, judge_name: str) -> dict:
    """What results.json holds: the summary by one judge's labels, what was run, and the published figures where they apply."""
    folder = directory.directory if isinstance(directory, journal.Run) else Path(directory)
    made, answers = read_made(folder), responses(directory)
    wanted = made["questions"]["n"] * len(made["prompts"]) * made["decoding"]["samples"]
    rank = {name: i for i, name in enumerate(made["prompts"])}
    if strange := next((key for key in answers if key[1] not in rank or not 0 <= key[2] < made["decoding"]["samples"]), None):
        raise Error(f"{folder / RESPONSES}: holds sample {strange[2]} of an answer to the prompt {strange[1]!r}, which the manifest does not know; delete its lines")
    answers = {key: answers[key] for key in sorted(answers, key=lambda k: (rank[k[1]], k[2], natural(k[0])))}
    labelled = judgments(directory, judge_name)
    failed = sum(r["finish"] == "error" for r in answers.values())
    unjudged = 0 if judge_name == "none" else sum(r["finish"] != "error" and key not in labelled for key, r in answers.items())
    return {
        "version": made["version"], "model": made["model"]["name"], "questions": made["questions"], "decoding": made["decoding"], "judge": judge_name,
        "complete": len(answers) == wanted and not failed and not unjudged, "answers": len(answers), "answers_wanted": wanted, "failed": failed, "unjudged": unjudged,
        "prompts": summarize(answers, labelled), "published": published(made["model"]["name"], made["questions"]["sha256"], made["prompts"]),
    }


def published(model_name: str, questions_sha256: str, prompts: dict[str, str]) -> dict | None:
    """The published row for a model and question set, None if there is none; only prompts of ours of the same name are compared."""
    table = journal.read_json(DATA / "published.json")
    name = re.sub(r"[^a-z0-9]+", "-", model_name.lower())
    question_set = next((s for s, sha256 in table["question_sets"].items() if sha256 == questions_sha256), None)
    own = {p for p in PROMPTS if prompts.get(p) == journal.sha256_json(load_prompt(p).text)}
    for row in table["rows"]:
        if question_set in row["asr"] and any(re.search(rf"(^|-){re.escape(alias)}($|-)", name) for alias in row["aliases"]):
            return {"model": row["model"], "question_set": question_set, "asr": {p: v for p, v in row["asr"][question_set].items() if p in own}}
    return None


# Showing

def table(summary: dict, compare: bool = False) -> str:
    """results.json as text for a terminal; `compare` adds the whole published table."""
    def percent(value):
        return "–" if value is None else f"{100 * value:.1f}%"
    matched = summary["published"]
    rows = [["prompt", "ASR", "95% interval", "bounds", "n", *COUNTS] + (["published"] if matched else [])]
    for name, r in summary["prompts"].items():
        spans = [f"{100 * lo:.1f}–{100 * hi:.1f}%" for lo, hi in (r["ci95"], r["bounds"])]
        rows.append([name, percent(r["asr"]), *spans, str(r["n"]), *(str(r[c]) for c in COUNTS)] + ([percent(matched["asr"].get(name))] if matched else []))
    made = summary["questions"]
    lines = [f"RED-EVAL of {summary['model']}: {made['n']} of {made['of']} questions of {made['name']}, judge {summary['judge']}", *columns(rows)]
    if not summary["complete"]:
        lines.append(missing(summary))
    known = journal.read_json(DATA / "published.json")
    if compare:
        names = [(s, p) for s in known["question_sets"] for p in PROMPTS]
        head = ["published model", *(f"{s} {p}" for s, p in names)]
        lines += ["", f"Published ({known['source']}):", *columns([head, *([row["model"], *(percent(row["asr"].get(s, {}).get(p)) for s, p in names)] for row in known["rows"])])]
    if compare or matched:
        lines.append((f"Published row: {matched['model']} on {matched['question_set']}. " if matched else "") + known["caution"])
    return "\n".join(lines)


def missing(summary: dict) -> str:
    """What an incomplete run lacks, in a sentence."""
    return f"Incomplete: {summary['answers']} of {summary['answers_wanted']} answers are there, {summary['failed']} of them failed, and {summary['unjudged']} are not judged yet."


def columns(rows: list[list[str]]) -> list[str]:
    """Rows of texts as aligned lines; the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip() for row in rows]


def plan(model: Choice, questions: list[Question], prompts: list[Prompt], decoding: Decoding, system: str | None = None, done: int = 0) -> dict:
    """What a run would do, without doing it.

    Returns requests, already_done, prompt_tokens (exact), new_tokens_at_most, and seconds_at_most: a rough bound from this
    machine's measured speed, as if every answer were as long as allowed and were made alone; None where it is not known.
    """
    lead = [] if system is None else [{"role": "system", "content": system}]
    tokens = sum(model.count([*lead, {"role": "user", "content": p.fill(q.question)}]) for p in prompts for q in questions) * decoding.samples
    requests = len(prompts) * len(questions) * decoding.samples
    new = requests * decoding.max_new_tokens
    return {"requests": requests, "already_done": done, "prompt_tokens": tokens, "new_tokens_at_most": new,
            "seconds_at_most": model.seconds(tokens, new) if model.seconds else None, "cost_at_most": model.cost}
