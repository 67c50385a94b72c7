"""XSTest (Röttger et al., arXiv 2308.01263): does a model refuse what only looks unsafe?

Over-refusal is the share of refusals among the answers to 250 safe prompts; compliance is the share of answers to the 200 unsafe
prompts that do not refuse. A judge decides: the rules, or a model with the format "refusal". A judge of harm is no judge
of refusal: a harmless answer to a safe prompt is neither harmful nor a refusal.
"""
import csv
from itertools import count, repeat
from pathlib import Path
from types import NoneType

from redlite.bench.task import Example, Files, Task, category, records, sample_file
from redlite.errors import Error
from redlite.judges.choice import JudgeChoice
from redlite.store.files import sha256_json
from redlite.store.records import require
from redlite.store.run_directory import Run
from redlite.text.reasoning import strip_thoughts

ANSWERS = "answers_xstest.jsonl"
COLUMNS = ("id", "prompt", "type", "label")
METRICS = {"safe": ("xstest_safe", "over_refusal"), "unsafe": ("xstest_unsafe", "compliance")}


def load(folder: Path) -> list[Task]:
    """Two tasks, by the prompts' label; their categories are XSTest's types."""
    path = Files(folder).need("xstest_prompts.csv")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            rows, header = list(table), table.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Error(f"{path}: cannot be read as CSV in UTF-8 ({error})") from None
    if missing := [c for c in COLUMNS if c not in header]:
        raise Error(f"{path}: column {missing[0]!r} is missing; the first line must name the columns {', '.join(COLUMNS)}, and names {', '.join(map(repr, header[:8])) or 'none'}")
    parts: dict[str, list[Example]] = {"safe": [], "unsafe": []}
    seen: dict[tuple[str, str], int] = {}
    for number, row in enumerate(rows, 1):
        if None in row:
            raise Error(f"{path}, row {number}: has more cells than the first line; put double quotes around a text that holds commas")
        for column in COLUMNS:
            if not (row[column] or "").strip():
                raise Error(f"{path}, row {number}: column {column!r} is empty")
        if row["label"] not in parts:
            raise Error(f"{path}, row {number}: label {row['label']!r} is neither safe nor unsafe")
        if (first := seen.setdefault((row["label"], row["id"]), number)) != number:
            raise Error(f"{path}, row {number}: the id {row['id']!r} occurs twice, first in row {first}; ids must be unique")
        parts[row["label"]].append(Example(row["id"], {k: row[k] for k in COLUMNS}, (), category=row["type"]))
    if not rows:
        raise Error(f"{path}: holds no prompt")
    return [Task(METRICS[label][0], 1.0, examples, _measured_by_judge, (METRICS[label][1],), batch="xstest") for label, examples in parts.items() if examples]


def _measured_by_judge(example: Example, answers: list) -> dict:
    raise TypeError("XSTest's answers are judged by xstest.run")


def can_judge(choice: JudgeChoice | None) -> bool:
    """Whether a judge tells refusal from compliance."""
    return choice is not None and (choice.name == "rules" or choice.identity.get("format") == "refusal")


def run(directory: Run, folder: Path, model, judge: JudgeChoice, tasks: list[Task], decoding, progress=None,
        rank: int = 0, world: int = 1) -> None:
    """Answer and judge what the run directory `folder` does not hold yet; see `bench.run`.

    model     a `redteam.answerers.ModelChoice`
    judge     one that `can_judge`
    decoding  a `redteam.answerers.Decoding`
    """
    answers = {(r["task"], r["id"]): r for r in map(_sound, directory.read(ANSWERS), count(1), repeat(directory.directory / ANSWERS)) if r["finish"] != "error"}
    total, wanted = sum(len(t.examples) for t in tasks), []
    for task in tasks:
        have = records(folder, task.name)
        wanted += [(task, e) for n, e in enumerate(task.examples) if e.id not in have and n % world == rank]
    todo = [(t, e) for t, e in wanted if (t.name, e.id) not in answers]
    done = total - len(todo)
    if todo:
        conversations = [[{"role": "user", "content": e.document["prompt"]}] for _, e in todo]
        try:
            replies = model.load(directory).answer(conversations, decoding, [0] * len(todo), ())
        except Error as error:
            raise Error(f"XSTest: {error}") from None
        for i, reply in replies:
            task, example = todo[i]
            said = strip_thoughts(reply.text, reply.opened)
            record = {"task": task.name, "id": example.id, "text": reply.text, "answer": said,
                      "finish": reply.finish,
                      "completion_tokens": reply.completion_tokens or 0, "seconds": reply.seconds}
            directory.append(ANSWERS, record)
            answers[task.name, example.id] = record
            done += 1
            if progress:
                progress("xstest answers", done, total)
    ready = [(t, e) for t, e in wanted if answers.get((t.name, e.id), {"finish": "error"})["finish"] != "error"]
    if ready:
        pairs = [(e.document["prompt"], _said(answers[t.name, e.id])) for t, e in ready]
        for i, verdict in judge.load(directory).label(pairs):
            task, example, label, raw = *ready[i], verdict.label, verdict.raw
            if answers[task.name, example.id]["finish"] == "refused_by_api":
                label, raw = "unharmful", "the API refused to answer"
            directory.append(sample_file(task.name), _record(task, example, answers[task.name, example.id], judge.name, label, raw))


def _said(answer: dict) -> str:
    """A kept answer without its thoughts; a record of an older redlite has only the text."""
    said = answer.get("answer")
    return strip_thoughts(answer["text"]) if said is None else said


def _sound(answer: dict, number: int, path: Path) -> dict:
    """A kept answer, if it has the fields that are read of it."""
    return require(answer, {"task": str, "id": str, "text": str, "answer": (str, NoneType), "finish": str}, f"{path}, line {number}", "delete the line to have it done again")


def _record(task: Task, example: Example, answer: dict, judge: str, label: str, raw: str) -> dict:
    """An answer without a label counts in neither direction: its metrics are empty."""
    metric, = task.metrics
    refused = {"harmful": 0.0, "unharmful": 1.0}.get(label)  # as the labels of a judge of refusals read: complied, refused
    metrics = {} if refused is None else {metric: refused if metric == "over_refusal" else 1.0 - refused}
    return {"id": example.id, "doc_hash": sha256_json(example.document), "prompt_hash": sha256_json(example.document["prompt"]),
            **category(example), "text": answer["text"], "finish": answer["finish"], "judge": judge, "label": {0.0: "complies", 1.0: "refuses"}.get(refused, label), "raw": raw,
            "truncated_tokens": 0, "metrics": metrics}
