"""The page of a run: figures where they belong, geometry of the bars, nothing from elsewhere, nothing that is
not escaped.
"""
import base64
import hashlib
import html.parser
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from redeval_worker import PROMPTS, QUESTIONS, Fake, choice, go, judge
from redeval_worker import made as manifest

from redlite.answer import Answer
from redlite.cli.results_files import write_results
from redlite.redteam import questions as redteam_questions
from redlite.redteam import redeval
from redlite.redteam.answerers import Decoding, ModelChoice
from redlite.redteam.journals import RESULTS, read_journals
from redlite.redteam.questions import Prompt, Question
from redlite.report import html as report_html
from redlite.store.files import read_json
from redlite.store.run_directory import Run

NASTY = [
    '</script><script>alert(1)</script>', '<img src=x onerror=alert(1)>', '"><svg onload=alert(1)>',
    "'; alert(1) //", "<!--", "]]>", "&lt;b&gt;", "\u2028\u2029\u202e\x00\x1b[31m",
    "https://evil.example/x.png", "javascript:alert(1)", "</style>", "</title>", "${alert(1)}", "\\u003c",
    "🙂 日本"
]


class Page(html.parser.HTMLParser):
    """Elements with their attributes, and the text outside script and style."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.raw, self.inside = [], [], [], None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        (self.raw if self.inside in ("script", "style") else self.texts).append((self.inside, data))

    def handle_endtag(self, tag):
        self.inside = None

    def tags(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]

    @property
    def data(self):
        text = next(text for i, (tag, text) in enumerate(self.raw) if tag == "script")
        return json.loads(text)


def finish(folder, judge="rules"):
    write_results(read_journals(folder), judge)
    text = (folder / report_html.PAGE).read_text(encoding="utf-8")
    return Page(text), text


def test_the_page_says_what_results_json_says(tmp_path):
    go(tmp_path, Fake())
    page, text = finish(tmp_path)
    summary = read_json(tmp_path / RESULTS)
    shown = " ".join(" ".join(data.split()) for _, data in page.texts)
    assert "RED-EVAL of fake" in shown
    assert "7 questions of q × 2 prompts, 14 answers, judged by rules" in shown
    for r in summary["prompts"].values():
        assert f"{100 * r['asr']:.1f}% · {r['harmful']} of {r['harmful'] + r['unharmful']}" in shown
        assert f"{100 * r['ci95'][0]:.1f}–{100 * r['ci95'][1]:.1f}%" in shown
        for topic, t in r["by_topic"].items():
            assert topic in shown and f"{t['harmful']} of {t['harmful'] + t['unharmful']}" in shown
    for said in ("0" * 64, "at most 500 new tokens, greedy", "agreement of the judge with people",
                 "compare sizes, not digits"):
        assert said in shown
    assert "Incomplete" not in shown and "toy" not in shown
    assert "counts every answer that does not refuse as harmful" in shown


def test_every_answer_is_there_with_its_thought_apart(tmp_path):
    answers = go(tmp_path, Fake())
    page, _ = finish(tmp_path)
    lists, rows = page.data["lists"], page.data["rows"]
    labels = read_journals(tmp_path).judged_by("rules")
    assert len(rows) == len(answers) == 14
    assert [r[5] for r in rows] == [str(i) for i in range(1, 8) for _ in range(2)]
    for row in rows:
        prompt, label, topic, ended, question, id, sample, place, thought, answer, raw, differ, category = row
        assert differ == 0 and category == ""
        record = answers[id, lists["prompt"][prompt], sample]
        assert (lists["question"][question], lists["topic"][topic], lists["finish"][ended],
                answer) == (record["question"], record["topic"], record["finish"], record["answer"])
        assert thought + answer == record["text"].strip()
        assert ("(Internal thought" in thought) == record["text"].startswith("(Internal")
        assert place == f"{record['topic']} / S"
        assert (lists["label"][label], raw) == (labels[id, lists["prompt"][prompt],
                                                       sample]["label"], labels[id, lists["prompt"][prompt],
                                                                                sample]["raw"])


def nasty(folder):
    """A run whose every text is an attack: questions, topics, answers, prompt names, model name, system
    message.
    """
    questions = [Question(f"{i}{n}", n + "q", n + "t" if i % 2 else "t", n) for i, n in enumerate(NASTY)]
    prompts = [Prompt("standard", "<question>"), Prompt("<b>mine</b>", "x <question>")]

    class Attacker:
        def answer(self, conversations, decoding, seeds, stop, beside):
            return ((i, Answer(f"(Internal thought: {NASTY[i]}) {NASTY[i]} answer", "stop", 1, 1, 0.1))
                    for i in range(len(conversations)))

    model = ModelChoice("<i>model</i>\"'", {"name": "<i>model</i>\"'", "weights": "<s>"},
                        lambda run: Attacker(), len)
    made = redeval.manifest(command="redeval '</dd><script>alert(1)</script>'",
                            seed=0,
                            model=model,
                            question_path=folder / "<u>q</u>.json",
                            questions=questions,
                            limit=None,
                            prompts=prompts,
                            judge=None,
                            decoding=Decoding(),
                            info={"started": "<script>", "kernels": {"<a>": "<b>"}})
    other = judge("<judge>", lambda i: "harmful", {"x": "<y>"}, lambda i: NASTY[i % len(NASTY)])
    with Run(folder, made) as run:
        redeval.judge(run, other, redeval.run(run, model, questions, prompts, Decoding()))


def test_nothing_becomes_markup(tmp_path):
    nasty(tmp_path)
    page, text = finish(tmp_path, "<judge>")
    kinds = {tag for tag, _ in page.elements}
    assert not kinds & {"img", "i", "b", "u", "s", "a", "iframe", "object", "link", "judge", "y"}
    assert len(page.tags("script")) == 2 and len(page.tags("style")) == 1
    for tag, attributes in page.elements:
        assert not any(
            name.startswith("on") or name in ("src", "href", "style", "action", "xlink:href")
            for name in attributes), (tag, attributes)
    assert page.data["rows"][0][9] == NASTY[0] + " answer"
    assert [r[9] for r in page.data["rows"] if r[0] == 0] == [f"{n} answer".strip() for n in NASTY]
    # The data block can end neither its element nor its line, whatever is in it.
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    assert not set("<>&\u2028\u2029") & set(block)
    # What would turn the writing of its neighbours is shown by its number.
    assert not re.search("[\x00-\x08\x1b\u202a-\u202e\u2066-\u2069]", text.replace(block, ""))
    assert "\\u202e" in text.replace(block, "")


def test_the_policy_allows_this_script_and_this_style_only(tmp_path):
    nasty(tmp_path)
    page, text = finish(tmp_path, "<judge>")
    policy = next(m["content"] for m in page.tags("meta") if m.get("http-equiv") == "Content-Security-Policy")
    for kind, element in (("script-src", re.findall(r"<script>(.*?)</script>", text, re.DOTALL)[0]),
                          ("style-src", re.findall(r"<style>(.*?)</style>", text, re.DOTALL)[0])):
        digest = base64.b64encode(hashlib.sha256(element.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    code = (report_html.ASSETS / "report.js").read_text()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|fetch|XMLHttp|import\(|https?:", code)
    assert not re.search(r"url\(|@import|https?:", (report_html.ASSETS / "report.css").read_text())


def test_bars_are_as_long_as_their_shares():
    bars = [{
        "label": "a<b>" + "x" * 60, "colour": 0, "value": 0.25, "remark": "r&d", "ci": [0.1, 0.5],
        "bounds": [0.2, 0.4], "mark": 0.9
    }, {"label": "none", "colour": 1, "value": None, "remark": "–", "ci": [0.0, 1.0], "bounds": [0.0, 1.0]}]
    svg = ElementTree.fromstring(report_html.interval_chart("t<", bars, 412))  # 400 units of room
    rects = {r.get("class"): r for r in svg.iter("rect")}
    assert float(rects["bar c0"].get("width")) == pytest.approx(100) and "bar c1" not in rects
    assert float(rects["band c0"].get("x")) == pytest.approx(6 + 80)
    assert float(rects["band c0"].get("width")) == pytest.approx(80)
    assert float(rects["band c1"].get("width")) == pytest.approx(400)
    whisker, mark = [p.get("d") for p in svg.iter("path")]
    assert whisker.startswith("M46.0 29H206.0") and mark.startswith("M366.0 ")
    assert svg.get("aria-label").startswith("t<: a<b>")
    assert "25.0%, interval 10.0–50.0%" in svg.get("aria-label")
    assert [t.text for t in svg.iter("text") if t.get("class") == "label"] == [("a<b>" + "x" * 60)[:37] + "…",
                                                                               "none"]


def test_cautions(tmp_path):
    def notes(folder, judge="rules"):
        return " ".join(text for tag, text in finish(folder, judge)[0].texts if tag == "p")
    go(tmp_path / "a", Fake(fails=["question 2?"]), Decoding(5, 1.0, 1.0, 2))
    assert "Incomplete: 28 of 28 answers" in notes(tmp_path / "a")
    assert "independent" not in notes(tmp_path / "a")
    go(tmp_path / "b", Fake(), judge=None)
    assert "No judge has labelled" in notes(tmp_path / "b", "none")
    with Run(tmp_path / "c", manifest(choice(Fake(), "organism"), judge=None)):
        pass
    assert "say nothing about real models" in notes(tmp_path / "c", "none")
    assert "Incomplete: 0 of 14" in notes(tmp_path / "c", "none")


def test_another_judge_and_the_published_row_stand_beside(tmp_path):
    known = read_json(redteam_questions.DATA / "published.json")
    model, prompts = choice(Fake(), "vicuna-7b-v1.3"), [redteam_questions.load_prompt("cou")]
    made = manifest(model, judge=None, prompts=prompts)
    made["questions"]["sha256"] = known["question_sets"]["dangerousqa"]
    with Run(tmp_path, made) as run:
        journals = redeval.run(run, model, QUESTIONS, prompts, Decoding())
        redeval.judge(run, judge("strict", lambda i: "harmful"), journals)
        redeval.judge(run, judge("mild", lambda i: "unharmful"), journals)
    page, text = finish(tmp_path, "strict")
    shown = " ".join(" ".join(data.split()) for _, data in page.texts)
    assert "Other judges of the same answers" in shown
    assert re.search(r"strict \(this page\)\s+100\.0%\s+mild\s+0\.0%", shown)
    assert "Vicuna-7B ◆" in shown and "Diamond: the published figure of Vicuna-7B" in shown
    marks = [p for p in page.tags("path") if p.get("class") == "mark"]
    assert len(marks) == 1 and marks[0]["d"].startswith(f"M{6 + 0.875 * 628:.1f} ")


def test_a_judge_that_abstains_has_a_column_of_its_own(tmp_path):
    """Of seven answers one is not judged, since the API refused it; of the other six every second is unsure.
    """
    go(tmp_path, Fake(), judge=judge("j", lambda i: "unsure" if i % 2 else "harmful"), prompts=PROMPTS[:1])
    page, text = finish(tmp_path, "j")
    cells = re.findall(r"<th(?: [^>]*)?>(.*?)</th>", text)
    assert cells[:10] == [
        "prompt", "ASR", "95% interval", "bounds", "answers", "harmful", "unharmful", "unsure", "unparsed",
        "not judged"
    ]
    row = re.search(r"<tbody>\n<tr>(.*?)</tr>", text)[1]
    assert re.findall(r"<td(?: [^>]*)?>(.*?)</td>", row)[3:] == [
        "42.9–100.0%", "7", "3", "0", "3", "0", "1", "0"]
    assert page.data["lists"]["label"] == ["harmful", "unharmful", "unsure", "unparsed", "not_judged"]


def test_the_scorecard_page_says_what_is_better_and_worse():
    """By the paired interval and the measure's direction: a lower ASR is better, a lower accuracy worse."""
    from redlite.report.scorecard_page import scorecard_page
    measure = {"value": 0.5, "ci95": [0.4, 0.6], "n": 10}
    names = ["asr.cou", "mmlu.acc", "over_refusal", "hhh.acc", "bbh.exact_match"]
    intervals = [[-0.3, -0.1], [-0.3, -0.1], [0.1, 0.3], [-0.1, 0.1]]
    paired = {name: {"difference": sum(ci) / 2, "ci95": ci}
              for name, ci in zip(names[:-1], intervals, strict=True)}
    rows = [["measure", "value"], *([name, "50%"] for name in names)]
    page = scorecard_page("m", dict.fromkeys(names, measure), "b", dict.fromkeys(names, measure), rows, [[]],
                          [{"gate": "asr.cou<=0.1", "value": 0.5, "bound": 0.1, "passed": False,
                            "why": "0.5"}], [], paired)
    found = dict(re.findall(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", page, re.S))
    assert found["▲ better"] == "asr.cou (-20.0 points)"
    assert found["▼ worse"] == "mmlu.acc (-20.0 points), over_refusal (+20.0 points)"
    assert found["= no clear difference"] == "hhh.acc (+0.0 points)"
    assert found["– not compared"] == "bbh.exact_match"
    assert page.index("1 of 1 gates failed.") < page.index("▲ better") < page.index("Summary")


def test_a_page_speaks_of_what_was_measured_alone(tmp_path):
    """A scorecard without benches promises no utility; the organism's figures are said to mean nothing."""
    from redlite.report import redeval_page
    from redlite.report.scorecard_page import scorecard_page
    measure = {"value": 0.5, "ci95": [0.4, 0.6], "n": 10}
    leads = {"asr.cou": "Attack success rate", "mmlu.acc": "Utility",
             "over_refusal": "Over-refusal"}
    for name, lead in leads.items():
        shown = [["measure", "m"], [name, "50%"]]
        page = scorecard_page("m", {name: measure}, None, None, shown, [[]], [], [],
                              notes=redeval_page.cautions("organism", "rules"))
        assert f"<header>\n<h1>Scorecard of m</h1>\n<p>{lead}</p>" in page
        assert redeval_page.ORGANISM in page and page.count('class="note"') == 2
    assert redeval_page.cautions("m", "linear") == []
    go(tmp_path, Fake(), prompts=PROMPTS[:1])
    assert "× 1 prompt, " in finish(tmp_path)[1]


def test_the_name_of_a_model_wraps_above_its_figures():
    from redlite.report import html
    table = html.grid(["measure", "qwen2.5-coder-1.5b-instruct", "n"], [["asr", "5.0%", 3]])
    assert '<th class="number name">qwen2.5' in table and "<th class=number>n<" in table
    assert "<td class=number>5.0%" in table


def test_many_answers_lie_in_files_beside_the_page(tmp_path, monkeypatch):
    """14 answers to 7 questions, at most 5 a file: each is in one of four files, which link to each other.

    A question's two answers are in one file; the page knows which file has which question.
    """
    from redlite.report import answer_list
    monkeypatch.setattr(answer_list, "PER_FILE", 5)
    go(tmp_path, Fake())
    write_results(read_journals(tmp_path), "rules")
    files = ["report.html", "answers-2.html", "answers-3.html", "answers-4.html"]
    assert sorted(path.name for path in tmp_path.glob("*.html")) == sorted(files)
    found, questions = [], []
    for name in files:
        page = Page((tmp_path / name).read_text())
        lists, rows = page.data["lists"], page.data["rows"]
        found += [(row[5], lists["prompt"][row[0]], row[6]) for row in rows]
        questions.append(sorted({row[5] for row in rows}))
        assert [tag["href"] for tag in page.tags("a")] == [other for other in files if other != name]
    assert len(found) == 14 and set(found) == set(read_journals(tmp_path).answers)
    assert len(sum(questions, [])) == len({key[0] for key in found}) == 7
    first = Page((tmp_path / files[0]).read_text()).data
    assert [sorted(ids) for ids in first["files"]] == questions[1:]
    monkeypatch.setattr(answer_list, "CHARACTERS", 1)       # too few even for one question's answers
    write_results(read_journals(tmp_path), "rules")
    assert len(list(tmp_path.glob("*.html"))) == 7
