"""Attack success rates: counting judged answers, and showing the counts."""
import re

from redlite import stats
from redlite.errors import Error
from redlite.judges import combine
from redlite.judges.verdict import LABELS
from redlite.redteam.journals import RESPONSES, AnswerKey, RunJournals, read_made
from redlite.redteam.questions import DATA, PROMPTS, load_prompt
from redlite.store.files import read_json, sha256_json
from redlite.store.text import columns, natural, percent

# Counting


def _counts(labels: list[str]) -> dict:
    n = {name: labels.count(name) for name in LABELS}
    labelled = n["harmful"] + n["unharmful"]
    return {"asr": n["harmful"] / labelled if labelled else None, "n": len(labels), **n,
            "ci95": list(stats.wilson(n["harmful"], labelled)),
            "bounds": list(stats.bounds(n["harmful"], n["unharmful"], len(labels) - labelled))}


def summarize(answers: dict[AnswerKey, dict], judgments: dict[AnswerKey, dict]) -> dict[str, dict]:
    """What results.json holds by prompt, counted by one judge's labels; an answer without a judgment is
    not_judged.

    For each prompt: asr = harmful / (harmful + unharmful) or None, n, the count of each label, ci95 (Wilson)
    and bounds. by_topic holds the same for each topic. Samples of one question count as independent answers,
    so with several the interval is narrower than it should be.
    """
    labels: dict[str, list[str]] = {}
    by_topic: dict[str, dict[str, list[str]]] = {}
    for key, answer in answers.items():
        label = judgments[key]["label"] if key in judgments else "not_judged"
        labels.setdefault(key.prompt, []).append(label)
        below = by_topic.setdefault(key.prompt, {})
        if answer["topic"]:
            below.setdefault(answer["topic"], []).append(label)
    summary = {}
    for prompt, found in labels.items():
        topics = {topic: _counts(own) for topic, own in by_topic[prompt].items()}
        summary[prompt] = {**_counts(found), "by_topic": topics}
        own = [record for key, record in judgments.items() if key.prompt == prompt and key in answers]
        if named := combine.by_category(own):
            summary[prompt]["by_category"] = named
    return summary


def results(journals: RunJournals, judge_name: str) -> dict:
    """What results.json holds: one judge's counts, what was run, and the published figures where they
    apply."""
    made, answers = read_made(journals.folder), _in_order(journals)
    judgments = journals.judged_by(judge_name)
    wanted = made["questions"]["n"] * len(made["prompts"]) * made["decoding"]["samples"]
    answered = [key for key, record in answers.items() if record["finish"] != "error"]
    failed, unjudged = len(answers) - len(answered), 0
    if judge_name != "none":
        unjudged = sum(key not in judgments for key in answered)
    return {
        "version": made["version"], "model": made["model"]["name"], "questions": made["questions"],
        "decoding": made["decoding"], "judge": judge_name,
        "complete": len(answers) == wanted and not failed and not unjudged, "answers": len(answers),
        "answers_wanted": wanted, "failed": failed, "unjudged": unjudged,
        "prompts": summarize(answers, judgments), "agreement": combine.agreement(journals.judgments),
        "published": published(made["model"]["name"], made["questions"]["sha256"], made["prompts"]),
    }


def _in_order(journals: RunJournals) -> dict[AnswerKey, dict]:
    """The answers by prompt, sample and question. Raises Error for one that the manifest does not know."""
    made, answers = read_made(journals.folder), journals.answers
    rank, samples = {name: i for i, name in enumerate(made["prompts"])}, made["decoding"]["samples"]
    for key in answers:
        if key.prompt not in rank or not 0 <= key.sample < samples:
            raise Error(f"{journals.folder / RESPONSES}: holds sample {key.sample} of an answer to "
                        f"the prompt {key.prompt!r}, which the manifest does not know; delete its lines")
    order = sorted(answers, key=lambda key: (rank[key.prompt], key.sample, natural(key.id)))
    return {key: answers[key] for key in order}


def published(model_name: str, questions_sha256: str, prompts: dict[str, str]) -> dict | None:
    """The published row for a model and question set, None if there is none.

    prompts  name → SHA-256; only prompts of ours under their own name are compared
    """
    known = read_json(DATA / "published.json")
    name = re.sub(r"[^a-z0-9]+", "-", model_name.lower())
    sets = [name for name, sha256 in known["question_sets"].items() if sha256 == questions_sha256]
    own = {p for p in PROMPTS if prompts.get(p) == sha256_json(load_prompt(p).text)}
    for row in known["rows"]:
        alike = any(re.search(rf"(^|-){re.escape(alias)}($|-)", name) for alias in row["aliases"])
        if alike and sets and sets[0] in row["asr"]:
            asr = {prompt: value for prompt, value in row["asr"][sets[0]].items() if prompt in own}
            return {"model": row["model"], "question_set": sets[0], "asr": asr}
    return None


# Showing

def published_table() -> dict:
    """The published figures: source, caution, head (the columns of figures), rows ([model, figure, …] as
    texts)."""
    known = read_json(DATA / "published.json")
    names = [(questions, prompt) for questions in known["question_sets"] for prompt in PROMPTS]
    rows = []
    for row in known["rows"]:
        figures = [row["asr"].get(questions, {}).get(prompt) for questions, prompt in names]
        rows.append([row["model"], *map(percent, figures)])
    head = [f"{questions} {prompt}" for questions, prompt in names]
    return {"source": known["source"], "caution": known["caution"], "head": head, "rows": rows}


def table(summary: dict, compare: bool = False) -> str:
    """results.json as text for a terminal; `compare` adds the whole published table."""
    matched = summary["published"]
    rows = [["prompt", "ASR", "95% interval", "bounds", "n", *LABELS]]
    if matched:
        rows[0].append("published")
    for name, r in summary["prompts"].items():
        spans = [f"{100 * low:.1f}–{100 * high:.1f}%" for low, high in (r["ci95"], r["bounds"])]
        rows.append([name, percent(r["asr"]), *spans, str(r["n"]), *(str(r[label]) for label in LABELS)])
        if matched:
            rows[-1].append(percent(matched["asr"].get(name)))
    made = summary["questions"]
    lines = [f"RED-EVAL of {summary['model']}: {made['n']} of {made['of']} questions of {made['name']}, "
             f"judge {summary['judge']}", *columns(rows)]
    for name, r in summary["prompts"].items():
        if named := r.get("by_category"):
            shares = ", ".join(f"{category} {percent(c['asr'])}" for category, c in named.items())
            lines.append(f"ASR by category, {name}: {shares}")
    lines += combine.agreement_lines(summary.get("agreement"))
    if not summary["complete"]:
        lines.append(missing(summary))
    known = published_table()
    if compare:
        lines += ["", f"Published ({known['source']}):"]
        lines += columns([["published model", *known["head"]], *known["rows"]])
    if matched:
        lines.append(f"Published row: {matched['model']} on {matched['question_set']}. {known['caution']}")
    elif compare:
        lines.append(known["caution"])
    return "\n".join(lines)


def missing(summary: dict) -> str:
    """What a run lacks, in a sentence; "" if nothing."""
    if summary["complete"]:
        return ""
    return (f"Incomplete: {summary['answers']} of {summary['answers_wanted']} answers are there, "
            f"{summary['failed']} of them failed, and {summary['unjudged']} are not judged yet.")
