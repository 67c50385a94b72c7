"""Attack success rates: counting judged answers, and showing the counts."""
import re
from pathlib import Path

from redlite import stats
from redlite.errors import Error
from redlite.redteam.journals import RESPONSES, judgments, read_made, responses
from redlite.redteam.questions import DATA, PROMPTS, load_prompt, natural
from redlite.store.files import read_json, sha256_json
from redlite.store.run_directory import Run
from redlite.store.text import columns

COUNTS = ("harmful", "unharmful", "unparsed", "not_judged")


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


def results(directory: Run | Path, judge_name: str) -> dict:
    """What results.json holds: the summary by one judge's labels, what was run, and the published figures where they apply."""
    folder = directory.directory if isinstance(directory, Run) else Path(directory)
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
    table = read_json(DATA / "published.json")
    name = re.sub(r"[^a-z0-9]+", "-", model_name.lower())
    question_set = next((s for s, sha256 in table["question_sets"].items() if sha256 == questions_sha256), None)
    own = {p for p in PROMPTS if prompts.get(p) == sha256_json(load_prompt(p).text)}
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
    known = read_json(DATA / "published.json")
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
