"""RED-EVAL (arXiv 2308.09662, section 3): every question under every prompt, the answers judged, the attack success rate.

`run` collects the answers, `judge` labels them, `summarize` counts. All three go on where an earlier process stopped:
what the journal holds is never asked for again, and the result does not depend on how often it was interrupted.

Unlike the published pipeline, the prompt is never part of what is judged, no answer leaves the count for the words in
it, and thoughts are cut off where they end rather than at the first bracket.
"""
import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from redlite import __version__
from redlite.errors import Error
from redlite.judges import model as judges_model
from redlite.judges import rules
from redlite.judges.verdict import EMPTY
from redlite.redteam.answerers import Choice, Decoding
from redlite.redteam.journals import JUDGES, JUDGMENTS, RESPONSES, judgments, read_judges, responses
from redlite.redteam.questions import (
    Prompt,
    Question,
    set_name,
    write_asked,
)
from redlite.store.files import sha256_json, write_json
from redlite.store.run_directory import Run, difference
from redlite.text.reasoning import strip_thoughts

Progress = Callable[[str, int, int], None]  # (what is being done, how many are done, of how many)


# Running

def manifest(command: str, seed: int, model: Choice, question_path: Path, questions: list[Question], limit: int | None, prompts: list[Prompt],
             judge: Choice | None, decoding: Decoding, system: str | None = None, info: dict | None = None) -> dict:
    """What decides a run's results, in the form that `journal.Run` guards. `questions` are all of the file, before the limit."""
    count = len(questions) if limit is None else min(limit, len(questions))
    return {
        "command": command, "version": __version__, "seed": seed, "model": model.identity,
        "questions": {"name": set_name(question_path), "sha256": questions_fingerprint(questions), "of": len(questions), "n": count},
        "prompts": {p.name: sha256_json(p.text) for p in prompts}, "system": None if system is None else sha256_json(system),
        "judge": {"name": "none"} if judge is None else {"name": judge.name, **judge.identity}, "decoding": asdict(decoding), "info": info or {},
    }


def questions_fingerprint(questions: list[Question]) -> str:
    """SHA-256 of a question set: ids, texts, topics and their order."""
    return sha256_json([[q.id, q.question, q.topic, q.subtopic] for q in questions])


def run(directory: Run, model: Choice, questions: list[Question], prompts: list[Prompt], decoding: Decoding, seed: int = 0,
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


# Judging

def local_judge(spec: str, judge_format: str | None, prompt_path, dtype: str, device: str) -> Choice | None:
    """The judge that `--judge` names: "rules", "none" (no judge: None), or a model on this machine with its format."""
    if spec in ("none", "rules") and (judge_format or prompt_path):
        raise Error(f"--judge {spec} takes no --judge-format and no --judge-prompt; name a judge model, or leave them out")
    if spec == "none":
        return None
    if spec == "rules":
        return Choice("rules", rules.rules_fingerprint(), rules.Rules)
    if judge_format is None:
        raise Error(f"--judge {spec!r} needs --judge-format ({', '.join(judges_model.FORMATS)}), unless it is rules or none")
    prompt = judges_model.format_prompt(judge_format, prompt_path)
    from redlite.inference import lm
    lm.check_device(device)
    parts = lm.parts(spec)
    name = f"{judge_format}:{parts.path.name}"
    identity = {**judges_model.identity(judge_format, prompt), **lm.fingerprints(parts), "dtype": dtype}
    return Choice(name, identity, lambda: judges_model.ModelJudge(lm.LM.load(parts, dtype, device), judge_format, prompt, name))


def judge(directory: Run, choice: Choice, answers: dict[tuple, dict], progress: Progress | None = None) -> dict[tuple, dict]:
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
            keep(key, *EMPTY)
        else:
            speaking.append(key)
    if speaking:
        if progress:
            progress(f"judgments ({choice.name})", fresh, len(answers))
        pairs = [(answers[key]["question"], answers[key]["answer"]) for key in speaking]
        for i, label, raw in choice.load().label(pairs):
            keep(speaking[i], label, raw)
    return done


def _register(directory: Run, choice: Choice) -> None:
    path, known = directory.directory / JUDGES, read_judges(directory.directory)
    if choice.name not in known:
        write_json(path, {**known, choice.name: choice.identity})
    elif found := difference(known[choice.name], choice.identity):
        raise Error(f"{path}: the judge {choice.name!r} of this run was another: {found}; delete {JUDGES} and {JUDGMENTS} there to judge anew")


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
