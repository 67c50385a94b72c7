"""The HTML page of a run: one file, readable from disk without a network, that a safety team can pass on.

Everything that comes from a model, a question file or a command line is text to this page. Charts and tables
are escaped. The answers travel as one JSON block whose markup characters are escaped; the page's script
builds text nodes from it, never markup. The content security policy allows exactly this script and this
style, by hash.
"""
from collections.abc import Collection, Iterable, Iterator, Mapping
from html import escape
from typing import Any

from redlite.judges.verdict import LABELS
from redlite.report import html
from redlite.report.html import COLOURS, document, facts, grid, interval_chart, section, span
from redlite.store.text import natural, percent

FIGURES = ["ASR", "95% interval", "bounds", "answers", *(label.replace("_", " ") for label in LABELS)]
PER_FILE = 10_000           # answers in one file, so that it opens
DRAWN, LISTED = 20, 1000    # topics that a chart and a table of a prompt show at most, the worst first
PLAIN = {"standard": "the question alone", "cot": "the question, and an invitation to reason",
         "cou": "Chain of Utterances, the question inside a demonstrated conversation"}
_ORGANISM = ("This model is the embedded model organism, a toy trained to show the shape of the effect. "
             "Its figures say nothing about real models.")
_RULES = (
    "The rules judge counts every answer that does not refuse as harmful, senseless and harmless ones too, "
    "so weak models score too high. Confirm the figures with a judge model: "
    "redeval judge RUN --judge MODEL --judge-format FORMAT.")
_KEY = (
    "Bar: ASR = harmful / (harmful + unharmful). Line: 95% Wilson interval, with a question's answers as one "
    "cluster: it is for further questions like these, under this judge. Pale band: from every unlabelled "
    "answer counted unharmful to every one counted harmful. Only thought: the answer has no words but "
    "thoughts, which are not judged.")


def redeval_page(made: dict, summary: dict, answers: Mapping[Any, dict], judgments: Mapping[Any, dict], *,
                  others: dict[str, dict], published: dict, agreement: str, incomplete: str,
                  differ: Collection = ()) -> str:
    """The page of a RED-EVAL run.

    made, summary       manifest.json and results.json
    answers, judgments  (id, prompt, sample) → the record; the judgments are those of the summary's judge
    others              every other judge's name → its counts, as the summary has them under "prompts"
    published           source, caution, head and rows of the published figures
    agreement           how far the judge agrees with people on harm, in a sentence
    incomplete          what the run lacks, in sentences; "" if nothing
    differ              the answers on which judges take different sides, which are listed first
    """
    by_topic = any(r["by_topic"] for r in summary["prompts"].values())
    sections = [
        section("Gates", html.gates_table(summary["gates"])) if summary.get("gates") else "",
        _cautions(summary, incomplete),
        section("Attack success rate",
                _tiles(summary) + _judged_by(summary, agreement) + _by_prompt(summary)),
        section("Any of several samples", _any_of(summary)) if summary["decoding"]["samples"] > 1 else "",
        section("Labels of people", _corrected(summary)) if _is_corrected(summary) else "",
        section("By topic", _by_topic(summary)) if by_topic else "",
        section("Other judges of the same answers", _other_judges(summary, others)) if others else "",
        section("Agreement of the judges", _agreement(summary["agreement"]))
        if summary.get("agreement") else "",
        section("By hazard category", _by_category(summary)) if _named(summary) else "",
        section("Published figures", _published(summary, published)),
        section("What was sent", _prompts(made, answers)) if made["info"].get("prompt_texts") else "",
        section("How it was run", _how(made, summary, agreement)),
        section("Answers", _links(len(answers), 1) + _ANSWERS),
    ]
    questions = summary["questions"]
    lead = (f"{questions['n']} questions of {questions['name']} × {len(made['prompts'])} prompts, "
            f"{summary['answers']} answers, judged by {summary['judge']}")
    data = _rows(summary, answers, judgments, differ, 1)
    return document(f"RED-EVAL of {summary['model']}", lead, "".join(sections), data)


def answer_pages(summary: dict, answers: Mapping[Any, dict], judgments: Mapping[Any, dict],
                 differ: Collection = ()) -> Iterator[tuple[str, str]]:
    """The files beside the page of a run of more than PER_FILE answers: each file's name and its HTML.

    The first PER_FILE answers are on the page itself. For the arguments see `redeval_page`.
    """
    for number in range(2, -(-len(answers) // PER_FILE) + 1):
        body = section("Answers", _links(len(answers), number) + _ANSWERS)
        lead = f"Answers {(number - 1) * PER_FILE + 1} to {min(number * PER_FILE, len(answers))}"
        title = f"RED-EVAL of {summary['model']}: answers"
        data = _rows(summary, answers, judgments, differ, number)
        yield _file_of(number), document(title, f"{lead} of {len(answers)}", body, data)


def _file_of(number: int) -> str:
    return html.PAGE if number == 1 else f"answers-{number}.html"


def _links(count: int, here: int) -> str:
    """Links to the files that hold the answers, "" where the page holds all."""
    if count <= PER_FILE:
        return ""
    parts = []
    for number in range(1, -(-count // PER_FILE) + 1):
        shown = f"{(number - 1) * PER_FILE + 1}–{min(number * PER_FILE, count)}"
        parts.append(shown if number == here else f'<a href="{_file_of(number)}">{shown}</a>')
    return f"<p>Each file lists up to {PER_FILE} answers: {', '.join(parts)}.</p>\n"


def _bars(rows: dict[str, dict], colours: Iterable[int], marks: dict[str, float]) -> list[dict]:
    """One bar a row of counts; marks: the row's name → the published figure."""
    bars = []
    for (name, r), colour in zip(rows.items(), colours, strict=True):
        remark = f"{percent(r['asr'])} · {r['harmful']} of {r['harmful'] + r['unharmful']}"
        bars.append({
            "label": name, "colour": colour, "value": r["asr"], "ci": r["ci95"], "bounds": r["bounds"],
            "mark": marks.get(name), "remark": remark
        })
    return bars


def _figures(counts: dict) -> list[object]:
    """What a table says of a row of counts, under `FIGURES`."""
    return [percent(counts["asr"]), span(counts["ci95"]), span(counts["bounds"]), counts["n"],
            *(counts[label] for label in LABELS)]


# Sections

def _cautions(summary: dict, incomplete: str) -> str:
    notes = []
    if summary["model"] == "organism":
        notes.append(_ORGANISM)
    if incomplete:
        notes.append(incomplete)
    if summary["judge"] == "rules":
        notes.append(_RULES)
    if summary["judge"] == "none":
        notes.append("No judge has labelled these answers.")
    return "".join(f'<p class="note">{escape(note)}</p>\n' for note in notes)


def _tiles(summary: dict) -> str:
    """For each prompt the rate with what it stands on, and the rate that people's labels correct."""
    tiles = []
    for i, (name, r) in enumerate(summary["prompts"].items()):
        lines = [f"by {summary['judge']}, 95% {span(r['ci95'])}", _left_out(r)]
        if made := r.get("corrected"):
            corrected = f"corrected {percent(made['asr'])}, 95% {span(made['ci95'])}"
            lines.insert(1, f"{corrected}, {made['n_labels']} labels")
        below = "".join(f"<span>{escape(line)}</span>" for line in lines)
        tiles.append(f'<div class="tile c{i % COLOURS}"><span class="name">{escape(name)}</span>'
                     f'<span class="big">{percent(r["asr"])}</span>{below}</div>')
    return f'<div class="tiles">{"".join(tiles)}</div>\n'


def _left_out(r: dict) -> str:
    """How many answers of a prompt have no label, and why."""
    unlabelled = r["n"] - r["harmful"] - r["unharmful"]
    return (f"{unlabelled} of {r['n']} unlabelled: {r['unsure']} unsure, "
            f"{r['thought_only']} only thought, {unlabelled - r['unsure'] - r['thought_only']} others")


def _judged_by(summary: dict, agreement: str) -> str:
    return f"<p>{escape(agreement)}</p>\n" if summary["judge"] != "none" else ""


def _any_of(summary: dict) -> str:
    rows = []
    for name, r in summary["prompts"].items():
        for k, rate in r.get("asr_at_k", {}).items():
            rows.append([name, k, percent(rate["asr"]), span(rate["ci95"]), rate["questions"]])
    key = ("asr@k is the chance that at least one of k answers to a question is harmful, the mean over "
           "questions. It uses the questions that have k labelled answers or more.")
    return f'{grid(["prompt", "k", "asr@k", "95% interval", "questions"], rows)}<p class="key">{key}</p>\n'


def _is_corrected(summary: dict) -> bool:
    return any("corrected" in r for r in summary["prompts"].values())


def _corrected(summary: dict) -> str:
    rows = []
    for name, r in summary["prompts"].items():
        if made := r.get("corrected"):
            alone = f"{100 * made['width_of_labels_alone']:.1f} points"
            width = f"{100 * (made['ci95'][1] - made['ci95'][0]):.1f} points"
            rates = [percent(r["asr"]), span(r["ci95"]), percent(made["asr"]), span(made["ci95"])]
            rows.append([name, *rates, width, alone, made["n_labels"], made["disputed"]])
    key = (
        "The corrected rate is what people would have given all answers that say something, by their "
        "labels of a random sample and the judge's verdicts on all (prediction-powered inference). Both "
        "intervals are for further questions like these. A label counts if most labellers gave it; "
        "disputed answers are ties. Labels alone: the width of Wilson's interval by as many labels without "
        "a judge."
    )
    head = ["prompt", f"ASR by {summary['judge']}", "95% interval", "corrected", "95% interval", "its width",
            "labels alone", "labels", "disputed"]
    return f'{grid(head, rows)}<p class="key">{escape(key)}</p>\n{_labellers(summary["labels"])}'


def _labellers(found: dict | None) -> str:
    """How far the labellers agree."""
    if found is None:
        return "<p>One person labelled.</p>\n"
    rows = [[pair, "–" if kappa is None else f"{kappa:.2f}"] for pair, kappa in found["kappa"].items()]
    alpha = "undefined" if found["alpha"] is None else f"{found['alpha']:.2f}"
    shared = f"{found['shared']} answers have labels of two people or more"
    return (f"<p>{shared}; Krippendorff's alpha {alpha}.</p>\n"
            + grid(["labellers", "Cohen's kappa"], rows))


def _by_prompt(summary: dict) -> str:
    rows, matched = summary["prompts"], summary["published"]
    key, marks = _KEY, {}
    if matched:
        key += f" Diamond: the published figure of {matched['model']}."
        marks = matched["asr"]
    cells = [[name, *_figures(r), r["thought_only"]] for name, r in rows.items()]
    table = grid(["prompt", *FIGURES, "only thought"], cells)
    bars = _bars(rows, [i % COLOURS for i in range(len(rows))], marks)
    chart = interval_chart("ASR by prompt", bars, 640)
    return f'<div class="wide">{chart}</div><p class="key">{escape(key)}</p>\n{table}'


def _by_topic(summary: dict) -> str:
    panels, cells = [], []
    for i, (name, r) in enumerate(summary["prompts"].items()):
        topics, colour, title = r["by_topic"], i % COLOURS, name
        if len(topics) > DRAWN:
            title = f"{name}: the {DRAWN} worst of {len(topics)} topics"
            topics = dict(sorted(topics.items(), key=_worst_first)[:LISTED])
            cells += [[topic, name, *_figures(t)] for topic, t in topics.items()]
            topics = dict(list(topics.items())[:DRAWN])
        else:
            cells += [[topic, name, *_figures(t)] for topic, t in topics.items()]
        chart = interval_chart(f"ASR by topic under {name}", _bars(topics, [colour] * len(topics), {}))
        panels.append(f'<figure><figcaption class="c{colour}">{escape(title)}</figcaption>{chart}</figure>\n')
    table = grid(["topic", "prompt", *FIGURES], cells, 2)
    if any(len(r["by_topic"]) > LISTED for r in summary["prompts"].values()):
        table += f"<p>The {LISTED} worst topics of each prompt; results.json has all.</p>\n"
    return (f'<div class="panels">\n{"".join(panels)}</div>\n'
            f"<details><summary>The same as a table</summary>\n{table}</details>\n")


def _worst_first(item: tuple[str, dict]) -> tuple[bool, float, int]:
    """Sorts topics by their ASR, and by how many harmful answers it stands on."""
    rate = item[1]["asr"]
    return rate is None, -(rate or 0.0), -item[1]["harmful"]


def _prompts(made: dict, answers: Mapping[Any, dict]) -> str:
    """Every prompt's messages, filled with the first question."""
    first = min(answers, key=lambda key: natural(key[0]), default=None)
    question = "<question>" if first is None else answers[first]["question"]
    parts = []
    for name, texts in made["info"]["prompt_texts"].items():
        sent = "\n\n[the model answers]\n\n".join(text.replace("<question>", question) for text in texts)
        title = f"{name}: {PLAIN[name]}" if name in PLAIN else name
        parts.append(f"<details><summary>{escape(title)}</summary>\n<pre>{escape(sent)}</pre></details>\n")
    return "".join(parts)


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
        cells = ["" if a == b else _two_digits(found["matrix"][a][b]["kappa"]) for b in found["judges"]]
        rows.append([a, *cells])
    text = (
        f"Cohen's kappa over harmful and unharmful. The judges differ on {found['differ']} answers, which "
        "stand "
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


def _how(made: dict, summary: dict, agreement: str) -> str:
    model, questions, info = made["model"], made["questions"], made["info"]
    judge = made["judge"] if made["judge"]["name"] == summary["judge"] else {"name": summary["judge"]}
    rows = [("command", made["command"]), ("redlite", f"{made['version']}, seed {made['seed']}"),
            ("started", info.get("started", "unknown"))]
    rows += html.model_facts(model)
    if chat := info.get("chat"):
        date = f", told that today is {chat['date']}" if chat["date"] else ""
        rows += [("chat format", chat["name"] + date),
                 ("a sample in this format, control tokens in ⟦ ⟧", chat["sample"])]
    rows += [("questions", f"{questions['name']}, {questions['n']} of {questions['of']}"),
             ("questions, SHA-256", questions["sha256"])]
    rows += [(f"prompt {name}, SHA-256", digest) for name, digest in made["prompts"].items()]
    rows += _attack(made, summary)
    if source := made.get("imported"):
        rows += [("imported from", f"{source['program']}, {source['file']}"), ("SHA-256", source["sha256"])]
    else:
        rows.append(("decoding", _decoding(made["decoding"])))
    rows.append(("judge", ", ".join([judge["name"], *(f"{k} {v}" for k, v in judge.items() if k != "name")])))
    if summary["judge"] != "none":
        rows.append(("agreement of the judge with people", agreement))
    kernels = ", ".join(f"{op}: {name}" for op, name in info.get("kernels", {}).items())
    rows.append(("kernels", kernels or "unknown"))
    return facts([*rows, ("where the model ran", info["runs"])] if "runs" in info else rows)


def _attack(made: dict, summary: dict) -> list[tuple[str, object]]:
    """What an attacker was and did; nothing for a run without one."""
    if not (attack := made.get("attack")):
        return []
    attacker, back = attack["attacker"], attack["backtracks"]
    limits = f"at most {attack['turns']} messages" + (f", {back} more taken back" if back else "")
    counts = summary["prompts"].get(attack["method"], {}).get("ended", {})
    ended = ", ".join(f"{why} {n}" for why, n in counts.items())
    rows: list[tuple[str, object]] = [("attack", f"{attack['method']}, {limits}"),
                                      ("attacker", attacker["name"]), ("attempts ended", ended or "none yet")]
    rows += [(f"attacker's {k}, SHA-256", attacker[k]) for k in ("weights", "tokenizer", "template")
             if attacker.get(k)]
    if attack["judge"]:
        rows.append(("judge whom the attacker is told of", attack["judge"]["name"]))
    return rows


def _decoding(decoding: dict) -> str:
    lead = f"at most {decoding['max_new_tokens']} new tokens, "
    if decoding["temperature"] == 0:
        return lead + "greedy"
    return lead + (f"temperature {decoding['temperature']:g}, top-p {decoding['top_p']:g}, "
                   f"{decoding['samples']} samples a prompt")


_ANSWERS = """<p>What the model wrote, word for word; it may be harmful or untrue.
Thoughts, which are not judged, are set in italics.</p>
<noscript><p class="note">The list of answers needs JavaScript; everything else here does not.</p></noscript>
<form id="filters" hidden>
<label>prompt <select id="prompt"></select></label>
<label>label <select id="label"></select></label>
<label>topic <select id="topic"></select></label>
<label>ended <select id="finish"></select></label>
<label class="search">search
<input id="search" type="search" placeholder="words in question or answer"></label>
</form>
<p id="count" aria-live="polite"></p>
<div id="rows"></div>
<nav id="pages" hidden><button type="button" id="back">← Back</button><span id="page"></span>
<button type="button" id="next">Next →</button></nav>
"""


def _rows(summary: dict, answers: Mapping[Any, dict], judgments: Mapping[Any, dict],
          differ: Collection, number: int) -> dict:
    """The answers for the page's script: columns of repeated values as indices into lists.

    number  of the file, from 1
    """
    lists = {
        "prompt": list(summary["prompts"]), "label": list(LABELS), "topic": [], "finish": [], "question": []
    }
    index = {name: {value: i for i, value in enumerate(values)} for name, values in lists.items()}

    def place(name: str, value: str) -> int:
        if value not in index[name]:
            index[name][value] = len(lists[name])
            lists[name].append(value)
        return index[name][value]
    rows = []
    keys = sorted(answers, key=lambda k: (k not in differ, natural(k[0]), k[2], index["prompt"][k[1]]))
    for key in keys[(number - 1) * PER_FILE:number * PER_FILE]:
        r, verdict = answers[key], judgments.get(key, {"label": "not_judged", "raw": ""})
        topic = " / ".join(filter(None, (r.get("topic"), r.get("subtopic"))))
        text = r["text"].strip()
        thought = text.removesuffix(r["answer"]) if text.endswith(r["answer"]) else text
        rows.append([
            place("prompt", r["prompt"]), place("label", verdict["label"]),
            place("topic", r.get("topic") or ""), place("finish", r["finish"]),
            place("question", r["question"]), key[0], key[2], topic, thought, r["answer"], verdict["raw"],
            int(key in differ), verdict.get("category") or ""])
        if turns := r.get("turns"):     # of a conversation only
            said = [[turn["user"], turn["answer"], int(turn.get("taken_back") or 0)] for turn in turns]
            rows[-1] += [said, verdict.get("turn") or 0]
        if ended := r.get("ended"):     # of an attempt of an attack only
            rows[-1] += [[], 0] if not turns else []
            rows[-1].append(ended)
    return {"lists": lists, "rows": rows, "samples": max((r[6] for r in rows), default=0) + 1}
