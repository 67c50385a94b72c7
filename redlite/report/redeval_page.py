"""The HTML page of a run: one file, readable from disk without a network, that a safety team can pass on.

Everything that comes from a model, a question file or a command line is text to this page: the charts and tables are
escaped, and the answers travel as one JSON block whose markup characters are escaped, from which the page's script
builds text nodes, never markup. The content security policy allows exactly this script and this style, by hash.
"""
from collections.abc import Collection, Mapping
from html import escape
from typing import Any

from redlite.judges.verdict import LABELS
from redlite.report.html import COLOURS, document, grid, interval_chart, section, span
from redlite.store.text import natural, percent


def redeval_page(made: dict, summary: dict, answers: Mapping[Any, dict], judgments: Mapping[Any, dict], *,
                 others: dict[str, dict], published: dict, agreement: dict, incomplete: str,
                 differ: Collection = ()) -> str:
    """The page of a RED-EVAL run.

    made, summary       manifest.json and results.json
    answers, judgments  (id, prompt, sample) → the record; the judgments are those of the summary's judge
    others              every other judge's name → its counts, as the summary has them under "prompts"
    published           source, caution, head and rows of the published figures
    agreement           how far the rules agree with people, as data/judges/agreement.json has it
    incomplete          what the run lacks, in a sentence; "" if nothing
    differ              the answers on which judges take different sides, which are listed first
    """
    by_topic = any(r["by_topic"] for r in summary["prompts"].values())
    sections = [
        _cautions(summary, incomplete),
        section("Attack success rate", _tiles(summary) + _by_prompt(summary)),
        section("By topic", _by_topic(summary)) if by_topic else "",
        section("Other judges of the same answers", _other_judges(summary, others)) if others else "",
        section("Agreement of the judges", _agreement(summary["agreement"])) if summary.get("agreement") else "",
        section("By hazard category", _by_category(summary)) if _named(summary) else "",
        section("Published figures", _published(summary, published)),
        section("How it was run", _how(made, summary, agreement)),
        section("Answers", _ANSWERS),
    ]
    questions = summary["questions"]
    lead = (f"{questions['n']} questions of {questions['name']} × {len(made['prompts'])} prompts, "
            f"{summary['answers']} answers, judged by {summary['judge']}")
    data = _rows(summary, answers, judgments, differ)
    return document(f"RED-EVAL of {summary['model']}", lead, "".join(sections), data)


def _bars(rows: dict[str, dict], colours: list[int], marks: dict | None = None) -> list[dict]:
    return [{"label": name, "colour": colour, "value": r["asr"], "ci": r["ci95"], "bounds": r["bounds"], "mark": (marks or {}).get(name),
             "remark": f"{percent(r['asr'])} · {r['harmful']} of {r['harmful'] + r['unharmful']}"} for (name, r), colour in zip(rows.items(), colours)]


# Sections

def _cautions(summary: dict, incomplete: str) -> str:
    notes = []
    if summary["model"] == "organism":
        notes.append("This model is the embedded model organism, a toy trained to show the shape of the effect. Its figures say nothing about real models.")
    if incomplete:
        notes.append(incomplete)
    if summary["judge"] == "rules":
        notes.append("The rules judge counts every answer that does not refuse as harmful, senseless and harmless ones too, so weak models score too high. "
                     "Confirm the figures with a judge model: redeval judge RUN --judge MODEL --judge-format FORMAT.")
    if summary["judge"] == "none":
        notes.append("No judge has labelled these answers.")
    if summary["decoding"]["samples"] > 1:
        notes.append("Several answers to one question are counted as independent, so the intervals are narrower than they should be.")
    return "".join(f'<p class="note">{escape(n)}</p>\n' for n in notes)


def _tiles(summary: dict) -> str:
    return '<div class="tiles">' + "".join(
        f'<div class="tile c{i % COLOURS}"><span class="name">{escape(name)}</span><span class="big">{percent(r["asr"])}</span><span>95% {span(r["ci95"])}</span></div>'
        for i, (name, r) in enumerate(summary["prompts"].items())) + "</div>\n"


def _by_prompt(summary: dict) -> str:
    rows, matched = summary["prompts"], summary["published"]
    key = ("Bar: ASR = harmful / (harmful + unharmful). Line: 95% Wilson interval. Pale band: from every unlabelled answer counted unharmful to every one "
           "counted harmful." + (f" Diamond: the published figure of {matched['model']}." if matched else ""))
    head = ["prompt", "ASR", "95% interval", "bounds", "answers", *_names()]
    cells = [[name, percent(r["asr"]), span(r["ci95"]), span(r["bounds"]), r["n"], *(r[c] for c in LABELS)] for name, r in rows.items()]
    chart = interval_chart("ASR by prompt", _bars(rows, [i % COLOURS for i in range(len(rows))], matched and matched["asr"]), 640)
    return f'<div class="wide">{chart}</div><p class="key">{escape(key)}</p>\n{grid(head, cells)}'


def _by_topic(summary: dict) -> str:
    panels, cells = [], []
    for i, (name, r) in enumerate(summary["prompts"].items()):
        panels.append(f'<figure><figcaption class="c{i % COLOURS}">{escape(name)}</figcaption>'
                      + interval_chart(f"ASR by topic under {name}", _bars(r["by_topic"], [i % COLOURS] * len(r["by_topic"]))) + "</figure>\n")
        cells += [[topic, name, percent(t["asr"]), span(t["ci95"]), t["n"], *(t[c] for c in LABELS)] for topic, t in r["by_topic"].items()]
    head = ["topic", "prompt", "ASR", "95% interval", "answers", *_names()]
    return f'<div class="panels">\n{"".join(panels)}</div>\n<details><summary>The same as a table</summary>\n{grid(head, cells, 2)}</details>\n'


def _names() -> list[str]:
    return [label.replace("_", " ") for label in LABELS]


def _other_judges(summary: dict, others: dict[str, dict]) -> str:
    names = list(summary["prompts"])
    rows = []
    for judge, counts in ((f"{summary['judge']} (this page)", summary["prompts"]), *others.items()):
        rows.append([judge, *(percent(counts[prompt]["asr"]) for prompt in names)])
    return grid(["judge", *(f"ASR {prompt}" for prompt in names)], rows)


def _agreement(found: dict) -> str:
    """Cohen's kappa of each two judges, and what they differ on."""
    rows = []
    for a in found["judges"]:
        cells = ["" if a == b else found["matrix"][a][b]["kappa"] for b in found["judges"]]
        rows.append([a, *(cell if cell == "" else _two_digits(cell) for cell in cells)])
    text = (f"Cohen's kappa over harmful and unharmful. The judges differ on {found['differ']} answers, which stand "
            f"first in the list below. Krippendorff's alpha of all: {_two_digits(found['alpha'])}.")
    return f"<p>{escape(text)}</p>\n{grid(['judge', *found['judges']], rows)}"


def _two_digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _named(summary: dict) -> bool:
    return any(r.get("by_category") for r in summary["prompts"].values())


def _by_category(summary: dict) -> str:
    """The share of the labelled answers that the judge puts into each category."""
    cells = []
    for name, r in summary["prompts"].items():
        for category, c in r.get("by_category", {}).items():
            cells.append([category, name, percent(c["asr"]), span(c["ci95"]), c["harmful"]])
    return grid(["category", "prompt", "ASR", "95% interval", "answers"], cells, 2)


def _published(summary: dict, known: dict) -> str:
    matched = summary["published"]
    rows = [list(row) for row in known["rows"]]
    lead, opened = "No row is for this model and question set. ", ""
    if matched:
        lead, opened = f"◆ is the row for this model and question set ({matched['question_set']}). ", " open"
        for row in rows:
            if row[0] == matched["model"]:
                row[0] += " ◆"
    return (f'<p>{escape(lead + known["caution"])}</p>\n'
            f'<details{opened}><summary>ASR published in {escape(known["source"])}</summary>\n'
            f'{grid(["model", *known["head"]], rows)}</details>\n')


def _how(made: dict, summary: dict, agreement: dict) -> str:
    model, decoding, info = made["model"], made["decoding"], made["info"]
    judge = made["judge"] if made["judge"]["name"] == summary["judge"] else {"name": summary["judge"]}
    facts = [
        ("command", made["command"]), ("redlite", f"{made['version']}, seed {made['seed']}"), ("started", info.get("started", "unknown")),
        ("model", ", ".join(str(model[k]) for k in ("name", "dtype", "device", "quantize") if model.get(k))),
        *((f"{k}, SHA-256", model[k]) for k in ("weights", "tokenizer", "template") if k in model),
        ("questions", f"{made['questions']['name']}, {made['questions']['n']} of {made['questions']['of']}"), ("questions, SHA-256", made["questions"]["sha256"]),
        *((f"prompt {name}, SHA-256", digest) for name, digest in made["prompts"].items()),
        ("decoding", f"at most {decoding['max_new_tokens']} new tokens, " + ("greedy" if decoding["temperature"] == 0 else
                     f"temperature {decoding['temperature']:g}, top-p {decoding['top_p']:g}, {decoding['samples']} samples a prompt")),
        ("judge", ", ".join([judge["name"], *(f"{k} {v}" for k, v in judge.items() if k != "name")])),
        ("kernels", ", ".join(f"{op}: {name}" for op, name in info.get("kernels", {}).items()) or "unknown"),
    ]
    if summary["judge"] == "rules":
        measured = [f"{100 * d['agreement']:.1f}% of {d['n']} answers of {d['name']} (kappa {d['kappa']:.2f}; {d['note']})"
                    for d in agreement["data"]]
        facts.insert(-1, ("agreement of the rules with people", f"{'; '.join(measured)}. {agreement['source']}"))
    return '<dl class="facts">\n' + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>\n" for k, v in facts) + "</dl>\n"


_ANSWERS = """<p>What the model wrote, word for word; it may be harmful or untrue. Thoughts, which are not judged, are set in italics.</p>
<noscript><p class="note">The list of answers needs JavaScript; everything else on this page does not.</p></noscript>
<form id="filters" hidden>
<label>prompt <select id="prompt"></select></label>
<label>label <select id="label"></select></label>
<label>topic <select id="topic"></select></label>
<label>ended <select id="finish"></select></label>
<label class="search">search <input id="search" type="search" placeholder="words in question or answer"></label>
</form>
<p id="count" aria-live="polite"></p>
<div id="rows"></div>
<nav id="pages" hidden><button type="button" id="back">← Back</button><span id="page"></span><button type="button" id="next">Next →</button></nav>
"""


def _rows(summary: dict, answers: Mapping[Any, dict], judgments: Mapping[Any, dict],
          differ: Collection = ()) -> dict:
    """The answers for the page's script: columns of repeated values as indices into lists."""
    lists = {"prompt": list(summary["prompts"]), "label": list(LABELS), "topic": [], "finish": [], "question": []}
    index = {name: {value: i for i, value in enumerate(values)} for name, values in lists.items()}

    def place(name: str, value: str) -> int:
        if value not in index[name]:
            index[name][value] = len(lists[name])
            lists[name].append(value)
        return index[name][value]
    rows = []
    for key in sorted(answers, key=lambda k: (k not in differ, natural(k[0]), k[2], index["prompt"][k[1]])):
        r, verdict = answers[key], judgments.get(key, {"label": "not_judged", "raw": ""})
        topic = " / ".join(filter(None, (r.get("topic"), r.get("subtopic"))))
        text = r["text"].strip()
        thought = text.removesuffix(r["answer"]) if text.endswith(r["answer"]) else text
        rows.append([place("prompt", r["prompt"]), place("label", verdict["label"]), place("topic", r.get("topic") or ""), place("finish", r["finish"]),
                     place("question", r["question"]), key[0], key[2], topic, thought, r["answer"], verdict["raw"],
                     int(key in differ), verdict.get("category") or ""])
    return {"lists": lists, "rows": rows, "samples": max((r[6] for r in rows), default=0) + 1}
