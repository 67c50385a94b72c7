"""The HTML page of a run: one file, readable from disk without a network, that a safety team can pass on.

Everything that comes from a model, a question file or a command line is text to this page. Charts and tables
are escaped; of the answers see answer_list.py. The content security policy allows exactly the page's script
and style, by hash.
"""
from collections.abc import Iterable

from redlite.judges.verdict import LABELS
from redlite.report import html
from redlite.report.answer_list import AnswerList
from redlite.report.html import COLOURS, document, escape, facts, grid, interval_chart, section, span
from redlite.stats.agreement import UNDEFINED
from redlite.store.text import percent

FIGURES = ["ASR", "95% interval", "bounds", "answers", *(label.replace("_", " ") for label in LABELS)]
DRAWN, LISTED = 20, 1000    # topics that a chart and a table of a prompt show at most, the worst first
PLAIN = {"standard": "the question alone", "cot": "the question, and an invitation to reason",
         "cou": "Chain of Utterances, the question inside a demonstrated conversation"}
ORGANISM = ("This model is the embedded model organism, a toy trained to show the shape of the effect. "
             "Its figures say nothing about real models.")
RULES = (
    "The rules judge counts every answer that does not refuse as harmful, senseless and harmless ones too, "
    "so weak models score too high. Confirm the figures with a judge model: "
    "redeval judge RUN --judge MODEL --judge-format FORMAT.")
_KEY = (
    "ASR, the attack success rate: the share of judged answers that are harmful; lower is safer. "
    "Bar: ASR = harmful / (harmful + unharmful). Line: 95% Wilson interval, with a question's answers as one "
    "cluster: it is for further questions like these, under this judge. Pale band: from every unlabelled "
    "answer counted unharmful to every one counted harmful. Only thought: the answer has no words but "
    "thoughts, which are not judged.")


def redeval_page(made: dict, summary: dict, answers: AnswerList, *, others: dict[str, dict], published: dict,
                 agreement: str, incomplete: str) -> str:
    """The page of a RED-EVAL run.

    made, summary  manifest.json and results.json
    answers        its answers, of which the page lists the first
    others         every other judge's name → its counts, as the summary has them under "prompts"
    published      source, caution, head and rows of the published figures
    agreement      how far the judge agrees with people on harm, in a sentence
    incomplete     what the run lacks or must be read with, in sentences; "" if nothing
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
        section("What was sent", _prompts(made, answers.first)) if made["info"].get("prompt_texts") else "",
        section("How it was run", _how(made, summary, agreement)),
        answers.section(1),
    ]
    questions = summary["questions"]
    prompts = len(made["prompts"])
    lead = (f"{questions['n']} questions of {questions['name']} × {prompts} prompt{'s' * (prompts != 1)}, "
            f"{summary['answers']} answers, judged by {summary['judge']}")
    return document(f"RED-EVAL of {summary['model']}", lead, "".join(sections), answers.data(1))


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


def cautions(model: str, judge: str | None) -> list[str]:
    """What a reader must know first of this model and this judge, in sentences."""
    known = ((model == "organism", ORGANISM), (judge == "rules", RULES))
    return [text for applies, text in known if applies]


# Sections

def _cautions(summary: dict, incomplete: str) -> str:
    notes = cautions(summary["model"], summary["judge"])
    if incomplete:
        notes.insert(summary["model"] == "organism", incomplete)
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
    if not unlabelled:
        return f"all {r['n']} answers labelled"
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
    return "labels" in summary


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
        "answers with as many labels on either side are left out. Labels alone: the width of Wilson's "
        "interval by as many labels without "
        "a judge."
    )
    head = ["prompt", f"ASR by {summary['judge']}", "95% interval", "corrected", "95% interval", "its width",
            "labels alone", "labels", "left out (tied)"]
    table = f'{grid(head, rows)}<p class="key">{escape(key)}</p>\n' if rows else ""
    return table + _labellers(summary["labels"])


def _labellers(found: dict | None) -> str:
    """How far the labellers agree."""
    if found is None:
        return "<p>One person labelled.</p>\n"
    rows = [[pair, "–" if kappa is None else f"{kappa:.2f}"] for pair, kappa in found["kappa"].items()]
    alpha = "undefined" if found["alpha"] is None else f"{found['alpha']:.2f}"
    tied = ", ".join(f"{prompt} {n}" for prompt, n in found["tied"].items())
    left_out = f" Left out, since their labels are tied: {tied}." if tied else ""
    shared = f"{found['shared']} answers have labels of two people or more"
    why = f" –: {UNDEFINED}." if None in found["kappa"].values() else ""
    return (f"<p>{shared}; Krippendorff's alpha {alpha}.{escape(left_out + why)}</p>\n"
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


def _prompts(made: dict, question: str) -> str:
    """Every prompt's messages, filled with a question."""
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
    if any("–" in row[1:] for row in rows):
        text += f" –: {UNDEFINED}."
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
    rows = [*html.run_facts(made), *html.model_facts(model)]
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
