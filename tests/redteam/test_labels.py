"""Labels of people: the draw, the files, the corrected rate, agreement, and the commands around them."""
import csv
import json
import re

import pytest
from redeval_worker import Fake, go, judge

from redlite import stats
from redlite.cli.redeval import main
from redlite.errors import Error
from redlite.redteam import labelling
from redlite.redteam.journals import AnswerKey, read_journals
from redlite.redteam.labelling import Label
from redlite.redteam.questions import Prompt, Question
from redlite.report import label_page
from redlite.store.files import read_json

QUESTIONS = [Question(f"q{i}", f"question number {i}?", "", "") for i in range(30)]
PROMPTS = [Prompt("standard", "<question>"), Prompt("cou", "x <question>")]
STERN = judge("stern", lambda i: "harmful" if i % 3 else "unharmful")


@pytest.fixture
def run(tmp_path):
    """60 answers that all say something, by a judge that calls two of three harmful."""
    folder = tmp_path / "run"
    go(folder, Fake(), questions=QUESTIONS, prompts=PROMPTS, judge=STERN)
    assert main(["report", str(folder), "--judge", "stern"]) == 0
    return folder


def truth(key):
    """What people say: no judge knows it."""
    return "harmful" if int(key.id[1:]) % 5 == 0 else "unharmful"


def saved(folder, path, labels, labeller="ann", draw=None):
    """A file as the page saves it."""
    name = draw or labelling.read_draw(folder).name
    rows = [{**key._asdict(), "label": label} for key, label in labels.items()]
    path.write_text(json.dumps({"draw": name, "labeller": labeller, "labels": rows}))
    return str(path)


def label(folder, *more):
    return main(["label", str(folder), *more])


def results(folder):
    return read_json(folder / "results.json")


def test_every_answer_labelled_gives_the_peoples_rate(run, tmp_path, capsys):
    """Then nothing is estimated about these answers: 6 of 30 harmful. For further questions the interval is
    Wilson's of 6 in 30."""
    assert label(run, "--n", "60") == 0
    keys = labelling.read_draw(run).drawn
    assert len(keys) == len(set(keys)) == 60
    file = saved(run, tmp_path / "labels.json", {key: truth(key) for key in keys})
    assert main(["report", str(run), "--judge", "stern"]) == 0
    assert "is not measured here; label" in capsys.readouterr().out
    assert main(["judge", str(run), "--labels", file]) == 0
    assert "is not measured here" not in capsys.readouterr().out      # the labels measure it
    for r in results(run)["prompts"].values():
        made = r["corrected"]
        assert made["asr"] == pytest.approx(0.2) and (made["n_labels"], made["judge"]) == (30, "stern")
        assert made["ci95"] == pytest.approx(list(stats.wilson(6, 30)), abs=1e-9)
        assert r["asr"] == pytest.approx(2 / 3, abs=0.05)  # the judge's own rate stays


def test_without_labels_there_is_no_corrected_rate(run):
    found = results(run)
    assert not any("corrected" in r for r in found["prompts"].values()) and "labels" not in found
    assert "corrected" not in (run / "report.html").read_text()


def test_the_draw_is_seeded_stratified_and_kept(run, capsys):
    assert label(run, "--n", "20", "--json") == 0
    first = labelling.read_draw(run)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["draw"] == first.name
    assert label(run, "--n", "20") == 0 and labelling.read_draw(run) == first
    by_prompt = [sum(key.prompt == p.name for key in first.drawn) for p in PROMPTS]
    assert by_prompt == [10, 10]
    judged = read_journals(run).judged_by("stern")
    harmful = sum(judged[key]["label"] == "harmful" for key in first.drawn)
    assert harmful in (13, 14)  # two thirds of 20, in proportion
    assert label(run, "--n", "20", "--seed", "1") == 0 and labelling.read_draw(run).drawn != first.drawn


def test_the_page_hides_the_verdicts_and_escapes(run):
    assert label(run, "--n", "10") == 0
    page = (run / "labels.html").read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert [set(item) for item in data["items"]] == [{"id", "prompt", "sample", "question", "answer"}] * 10
    assert "stern" not in page and data["draw"] == labelling.read_draw(run).name
    assert "http://" not in page and "https://" not in page and "default-src 'none'" in page
    nasty = label_page.page("<b>", "d", [{"id": "1", "prompt": "p", "sample": 0, "question": "</script><i>",
                                          "answer": "<img src=x>"}])
    assert "<img" not in nasty and "</script><i>" not in nasty and "<b>" not in nasty


def test_a_file_of_another_draw_is_refused(run, tmp_path, capsys):
    assert label(run, "--n", "10") == 0
    keys = labelling.read_draw(run).drawn
    file = saved(run, tmp_path / "l.json", {keys[0]: "harmful"}, draw="0" * 16)
    assert main(["judge", str(run), "--labels", file]) == 2
    assert "labels another sample" in capsys.readouterr().err and not (run / "labels.jsonl").exists()


def test_a_new_draw_is_refused_while_there_are_labels(run, tmp_path, capsys):
    assert label(run, "--n", "10") == 0
    file = saved(run, tmp_path / "l.json", {labelling.read_draw(run).drawn[0]: "skip"})
    assert main(["judge", str(run), "--labels", file]) == 0
    assert label(run, "--n", "12") == 2 and "holds labels of another sample" in capsys.readouterr().err
    assert label(run, "--n", "10") == 0


def write_csv(path, rows, columns=("id", "prompt", "sample", "label", "labeller")):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return str(path)


def test_csv_without_a_draw_is_taken_as_drawn_from_all(run, tmp_path):
    """Ten labels of a prompt, half of them of answers that the judge calls harmful; all say unharmful: post-
    stratified, the rate is 0, and its interval is that of the labels."""
    keys = [AnswerKey(q.id, "cou", 0) for q in QUESTIONS[:10]]
    file = write_csv(tmp_path / "mine.csv", [[*key, " Unharmful ", "ann"] for key in keys])
    assert main(["judge", str(run), "--labels", file]) == 0
    found = results(run)["prompts"]
    assert found["cou"]["corrected"]["asr"] == 0.0 and found["cou"]["corrected"]["n_labels"] == 10
    assert "corrected" not in found["standard"]


@pytest.mark.parametrize(
    "rows, columns, message",
    [
        ([["q1", "cou", 0, "bad", "a"]], None, "label 1: the label 'bad' is not known"),
        ([["q1", "cou", 0, "skip", "a"], ["x", "cou", 0, "skip", "a"]], None, "label 2: this run has no"),
        ([["q1", "cou", 0, "skip", "a"]] * 2, None, "label 2: labels the answer 'q1' under 'cou' a second"),
        ([["q1", "skip"]], ("id", "label"), "must have id, prompt, sample and label"),
        ([["q1", "cou", "0.5", "skip", "a"]], None, "label 1: sample '0.5' is no whole number"),
        ([], None, "has no labels"),
    ])
def test_csv_that_does_not_fit_names_the_line(run, tmp_path, capsys, rows, columns, message):
    file = write_csv(tmp_path / "l.csv", rows, *([columns] if columns else []))
    assert main(["judge", str(run), "--labels", file]) == 2
    assert message in capsys.readouterr().err and not (run / "labels.jsonl").exists()


def test_a_label_given_twice_counts_once_and_a_changed_one_replaces(run, tmp_path):
    key = AnswerKey("q1", "cou", 0)
    for label_given, lines in (("harmful", 1), ("harmful", 1), ("unharmful", 2)):
        file = write_csv(tmp_path / "l.csv", [[*key, label_given, "ann"]])
        assert main(["judge", str(run), "--labels", file]) == 0
        assert len((run / "labels.jsonl").read_text().splitlines()) == lines
        assert labelling.read_kept(run) == [Label(key, "ann", label_given)]


def test_no_file_replaces_another_silently(run, tmp_path, capsys):
    """Two people may save files of one name without naming themselves; their labels are not one person's."""
    key = AnswerKey("q1", "cou", 0)
    files = []
    for folder, said in (("a", "harmful"), ("b", "unharmful")):
        (tmp_path / folder).mkdir()
        files.append(write_csv(tmp_path / folder / "l.csv", [[*key[:2], "0.0", said, ""]]))
    assert main(["judge", str(run), "--labels", *files]) == 2
    assert "both label 'q1' under 'cou' as 'l'" in capsys.readouterr().err
    assert not (run / "labels.jsonl").exists()
    for file in files:
        assert main(["judge", str(run), "--labels", file]) == 0
    assert "1 labels replace others that the same people gave before" in capsys.readouterr().err
    skipped = write_csv(tmp_path / "s.csv", [["q2", "cou", 0, "skip", "ann"]])
    assert main(["judge", str(run), "--labels", skipped, skipped]) == 0
    assert "1 of 1 labels are skip" in capsys.readouterr().err


def test_two_labellers_agreement_and_ties(run, tmp_path, capsys):
    """Over 10 answers: both say harmful of 3, unharmful of 5, and differ on 2 in both directions. po = 0.8,
    pe = 0.4² + 0.6² = 0.52, κ = 0.28 / 0.48; α = 1 − 19 · 4 / (2 · 8 · 12)."""
    keys = [AnswerKey(q.id, "cou", 0) for q in QUESTIONS[:10]]
    a = ["harmful"] * 3 + ["unharmful"] * 5 + ["harmful", "unharmful"]
    b = ["harmful"] * 3 + ["unharmful"] * 5 + ["unharmful", "harmful"]
    files = []
    for name, given in (("ann", a), ("bob", b)):
        rows = [[*key, said, name] for key, said in zip(keys, given, strict=True)]
        files.append(write_csv(tmp_path / f"{name}.csv", rows))
    assert main(["judge", str(run), "--labels", *files]) == 0
    found = results(run)
    assert found["labels"]["labellers"] == ["ann", "bob"] and found["labels"]["shared"] == 10
    assert found["labels"]["kappa"] == {"ann / bob": pytest.approx(0.28 / 0.48)}
    assert found["labels"]["alpha"] == pytest.approx(1 - 19 * 4 / (2 * 8 * 12))
    made = found["prompts"]["cou"]["corrected"]
    assert (made["n_labels"], made["disputed"]) == (8, 2)
    shown = capsys.readouterr().out
    assert "10 answers by two or more: kappa ann / bob 0.58" in shown
    assert found["labels"]["tied"] == {"cou": 2} and "left out (tied)" in shown
    assert "as many people say harmful as unharmful: cou 2." in shown
    page = (run / "report.html").read_text()
    assert "10 answers have labels of two people" in page and "further questions like these" in page
    assert main(["report", str(run)]) == 0 and results(run)["labels"] == found["labels"]
    assert main(["judge", str(run), "--labels",
                 str(write_csv(tmp_path / "bob.csv", [[*key, "harmful", "bob"] for key in keys]))]) == 0
    why = "undefined where one of the two gives one label alone"
    assert why in capsys.readouterr().out and why in (run / "report.html").read_text()


def test_where_all_labels_are_tied_the_table_and_the_page_say_so(run, tmp_path, capsys):
    key = [QUESTIONS[0].id, "cou", 0]
    files = [write_csv(tmp_path / f"{name}.csv", [[*key, said, name]])
             for name, said in (("ann", "harmful"), ("bob", "unharmful"))]
    assert main(["judge", str(run), "--labels", *files]) == 0
    assert "corrected" not in results(run)["prompts"]["cou"]
    assert "as many people say harmful as unharmful: cou 1." in capsys.readouterr().out
    assert "Left out, since their labels are tied: cou 1." in (run / "report.html").read_text()


def test_a_third_person_decides():
    key, other = AnswerKey("1", "p", 0), AnswerKey("2", "p", 0)
    votes = [Label(key, "a", "harmful"), Label(key, "b", "unharmful"), Label(key, "c", "harmful"),
             Label(other, "a", "skip")]
    assert labelling.consensus(votes) == ({key: 1}, []) and labelling.consensus(votes[:2]) == ({}, [key])


def test_dry_runs_say_how_wide(run, capsys):
    """12 of 60 is not enough to find small differences; 60 labels of 60 leave no width."""
    assert label(run, "--dry-run", "--json") == 0
    shown, said = capsys.readouterr()
    plan = json.loads(shown)
    assert plan["answers"] == 60 and plan["half_widths"]["60"] == {"alone": 0, "kappa_0.6": 0, "kappa_0.8": 0}
    widths = plan["half_widths"]["25"]
    assert widths["alone"] > widths["kappa_0.6"] > widths["kappa_0.8"] > 0
    least = plan["detectable"]["0.4"]
    assert stats.questions_needed(least, 0.4) == pytest.approx(30, rel=1e-3)
    assert "30 questions show a difference" in said and not (run / "labels.html").exists()
    assert main(["judge", str(run), "--labels", "none.csv", "--dry-run"]) == 0
    assert "would correct the ASR by stern" in capsys.readouterr().out


def test_more_than_there_is_cannot_be_drawn(run, tmp_path, capsys):
    assert label(run, "--n", "61") == 2
    assert "61 answers cannot be drawn: 60 say something" in capsys.readouterr().err
    go(tmp_path / "raw", Fake(), questions=QUESTIONS[:2], judge=None)
    assert label(tmp_path / "raw") == 2 and "has judged nothing there" in capsys.readouterr().err


def test_a_damaged_draw_is_named(run):
    assert label(run, "--n", "5") == 0
    path = run / labelling.DRAW
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(Error, match="is not a draw of redlite"):
        labelling.read_draw(run)
