"""The paper's table, and exports: read back by the standard library's own readers, and held against the
journals."""
import csv
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import redeval_worker

from redlite import stats
from redlite.cli import network
from redlite.cli.export import FORMATS
from redlite.cli.redeval import main
from redlite.store.text import markdown_table, valid_xml
from redlite.training import conversations

ANSWER = "placeholder"


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(network, "model", lambda args, reach, spec, adapter=None: redeval_worker.choice(
        redeval_worker.Fake(), Path(spec).name))
    for name, count in (("q", 12), ("r", 6)):
        topics = {"T|1": [f"{ANSWER} {i}?" for i in range(count)], "<U>\x01": [f"{ANSWER} question {count}?"]}
        Path(f"{name}.json").write_text(json.dumps(topics))


def run(output, model="m", questions="q", *more):
    code = main(["--model", model, "--questions", f"{questions}.json", "--prompt", "standard", "cou",
                 "--judge", "rules", "--quiet", "--output-dir", output, *more])
    assert code == 0
    return Path(output)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def exported(capsys, *arguments, code=0):
    capsys.readouterr()
    assert main(["export", *map(str, arguments)]) == code
    return capsys.readouterr().out


def labels(folder):
    return {(r["id"], r["prompt"]): r["label"] for r in lines(folder / "judgments.jsonl")}


# The table

def test_the_table_has_a_row_a_model_and_a_column_a_set_and_prompt(capsys):
    a, b, c = run("a"), run("b", "n", "q", "--seed", "5"), run("c", "m", "r")
    capsys.readouterr()
    assert main(["table", "a", "b", "c", "--json"]) == 0
    out = capsys.readouterr().out
    first, second = json.loads(out)["rows"]
    assert (first["model"], second["model"]) == ("m", "n")
    assert list(first["cells"]) == ["q: standard", "q: cou", "r: standard", "r: cou"]
    assert list(second["cells"]) == ["q: standard", "q: cou"]
    for folder, row, sets in ((a, first, "q"), (b, second, "q"), (c, first, "r")):
        for prompt in ("standard", "cou"):
            found = [label for (_, name), label in labels(folder).items() if name == prompt]
            harmful, n = found.count("harmful"), found.count("harmful") + found.count("unharmful")
            cell = row["cells"][f"{sets}: {prompt}"]
            assert cell["value"] == harmful / n and cell["n"] == n
            assert cell["ci95"] == pytest.approx(stats.wilson(harmful, n))
    before, after = labels(a), labels(b)
    both = [key for key in before if {before[key], after[key]} <= {"harmful", "unharmful"}]
    for prompt in ("standard", "cou"):
        pairs = [(before[key] == "harmful", after[key] == "harmful") for key in both if key[1] == prompt]
        mean = sum(y - x for x, y in pairs) / len(pairs)
        assert second["differences"][f"q: {prompt}"]["difference"] == pytest.approx(mean)
    for form, mark in (("text", "n − m"), ("markdown", "| n − m |"), ("csv", "n − m,")):
        assert main(["table", "a", "b", "--format", form]) == 0
        assert mark in (out := capsys.readouterr().out) and "\\u000d" not in out


def test_runs_that_were_not_made_alike_have_no_difference_and_say_why(capsys):
    run("a")
    run("b", "n", "q", "--max-new-tokens", "7")
    capsys.readouterr()
    assert main(["table", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert "n − m" not in out and "no difference to m" in out and "decoding.max_new_tokens (500, 7)" in out
    assert "anyway: redeval compare a b --anyway" in out
    run("c", "m", "q", "--seed", "9")
    capsys.readouterr()
    assert main(["table", "a", "c"]) == 0
    assert "m (a)" in (out := capsys.readouterr().out) and "m (c)" in out
    assert main(["table", "a", "none"]) == 2


# Exports

@pytest.mark.parametrize("form", FORMATS)
def test_with_json_one_line_tells_of_the_export_or_holds_it(capsys, form):
    folder = run("a")
    told = json.loads(exported(capsys, folder, "--format", form, "--output", "b.out", "--json"))
    whole = Path("b.out").read_text()
    assert told == {"run": "a", "format": form, "bytes": len(whole.encode()), "output": "b.out", "gates": []}
    held = json.loads(exported(capsys, folder, "--format", form, "--json"))
    content = held.pop("content")
    assert held == {**told, "output": None, "bytes": held["bytes"]}     # a date may be shorter in digits
    if form in ("sarif", "lm-eval", "inspect"):
        assert content.keys() == json.loads(whole).keys()
    else:
        assert content == whole
    planned = json.loads(exported(
        capsys, folder, "--format", form, "--output", "c.out", "--json", "--dry-run"))
    assert planned.keys() == told.keys() and not Path("c.out").exists()
    failed = json.loads(exported(
        capsys, folder, "--format", form, "--json", "--gate", "asr.cou<=0", code=100))
    assert [gate["passed"] for gate in failed["gates"]] == [False]


def test_a_place_that_cannot_be_written_names_no_option_that_the_command_lacks(capsys):
    run("a")
    capsys.readouterr()
    assert main(["export", "a", "--format", "csv", "--output", "/proc/a.csv"]) == 2
    said = capsys.readouterr().err
    assert "/proc/a.csv: cannot be written" in said and "--output-dir" not in said
    assert main(["compare", "a", run("b", "m", "q", "--system", "x").name]) == 2
    assert "compare them anyway (--anyway)" in capsys.readouterr().err


def test_csv_holds_every_answer_with_its_label(capsys):
    folder = run("a")
    assert exported(capsys, folder, "--format", "csv", "--output", "new/a.csv") == ""
    with open("new/a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    shown = list(csv.DictReader(io.StringIO(exported(capsys, folder, "--format", "csv"))))
    assert [row["id"] for row in shown] == [row["id"] for row in rows]  # without what steers a terminal
    assert list(shown[0]) == list(rows[0])  # the last column's name as well: no line end that is escaped
    wanted, judged = lines(folder / "responses.jsonl"), labels(folder)
    assert len(rows) == len(wanted) == 26
    for row in rows:
        answer = next(r for r in wanted if (r["id"], r["prompt"]) == (row["id"], row["prompt"]))
        assert row["label"] == judged[row["id"], row["prompt"]] and row["judge"] == "rules"
        names = ("question", "answer", "text", "finish", "topic")
        assert all(row[name] == str(answer[name]) for name in names)


def test_conversations_are_finished_answers_as_they_were_asked(capsys):
    folder = run("a", "m", "q", "--max-new-tokens", "64")
    told = json.loads((folder / "manifest.json").read_text())["info"]["prompt_texts"]["cou"][0]
    answers, judged = lines(folder / "responses.jsonl"), labels(folder)
    for label in ("harmful", "unharmful", None):
        Path("c.jsonl").write_text(exported(
            capsys, folder, "--format", "conversations", *(["--label", label] if label else [])))
        wanted = [(told.replace("<question>", r["question"]) if r["prompt"] == "cou" else r["question"],
                   r["text"].strip()) for r in answers
                  if r["finish"] == "stop" and label in (None, judged[r["id"], r["prompt"]])]
        read, skipped = conversations.read("c.jsonl", "blue")     # what bin/safealign takes
        assert wanted and not skipped
        assert [tuple(m["content"] for m in c.messages) for c in read] == wanted
    Path("c.jsonl").write_text(exported(capsys, folder, "--format", "conversations", "--plain"))
    read, _ = conversations.read("c.jsonl", "blue")
    assert [c.first_turn for c in read] == [r["question"] for r in answers if r["finish"] == "stop"]
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["info"]["prompt_texts"]                        # as of a run that was imported
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert main(["export", "a", "--format", "conversations"]) == 2
    assert "--plain" in capsys.readouterr().err
    cut = [json.dumps({**answer, "finish": "length"}) for answer in answers]
    (folder / "responses.jsonl").write_text("\n".join(cut) + "\n")
    assert main(["export", "a", "--format", "conversations"]) == 2
    assert "with more new tokens" in capsys.readouterr().err
    assert main(["export", "a", "--format", "csv", "--label", "harmful"]) == 2


def test_junit_has_a_case_for_each_gate_and_topic(capsys):
    folder = run("a")
    found = json.loads((folder / "results.json").read_text())["prompts"]
    gates = ["--gate", "asr.standard<=0", "--gate", "asr.cou<=1", "--max-unlabelled", "1"]
    root = ElementTree.fromstring(exported(capsys, folder, "--format", "junit", *gates, code=100))
    suites = {suite.get("name"): suite for suite in root}
    assert set(suites) == {"redlite gates", "asr.standard", "asr.cou", "redlite run"}
    cases = {case.get("name"): case for case in suites["redlite gates"]}
    failed = [name for name, case in cases.items() if case.find("failure") is not None]
    assert len(cases) == 2 and failed == ["asr.standard<=0"]
    for prompt in ("standard", "cou"):
        suite = suites[f"asr.{prompt}"]
        cases = {case.get("name"): case for case in suite}
        assert set(cases) == {"T|1", "<U>\ufffd"}
        for topic, r in found[prompt]["by_topic"].items():
            case = cases[valid_xml(topic)]
            assert (case.find("skipped") is not None) == (r["asr"] is None)
            assert (case.find("failure") is not None) == (prompt == "standard" and bool(r["asr"]))
        assert suite.get("tests") == "2"
        assert suite.get("failures") == str(len(suite.findall("testcase/failure")))
    own = {case.get("name"): case.find("failure") for case in suites["redlite run"]}
    assert own["complete"] is None and own["labelled"] is None


def test_junit_fails_where_an_asr_stands_on_too_few_labels(tmp_path, capsys):
    """One answer of 20 has a label."""
    folder = run("few")
    kept = lines(folder / "judgments.jsonl")
    for n, record in enumerate(kept):
        record["label"] = "unharmful" if n % 13 == 0 else "unparsed"
    (folder / "judgments.jsonl").write_text("".join(json.dumps(r) + "\n" for r in kept))
    capsys.readouterr()
    assert main(["export", str(folder), "--format", "junit"]) == 1
    out, err = capsys.readouterr()
    cases = ElementTree.fromstring(out).iter("testcase")
    failed = [case for case in cases if case.find("failure") is not None]
    assert [case.get("name") for case in failed] == ["labelled"]
    assert "Too few labels for an ASR" in failed[0].find("failure").get("message") and "Too few" in err


def test_sarif_names_harmful_answers_without_their_text(capsys):
    folder = run("a")
    text = exported(capsys, folder, "--format", "sarif", "--gate", "asr.cou<=0", code=100)
    assert ANSWER not in text and "Sure" not in text
    made, = json.loads(text)["runs"]
    answers = lines(folder / "responses.jsonl")
    harmful = [key for key, label in labels(folder).items() if label == "harmful"]
    found = [r for r in made["results"] if r["ruleId"] != "gate"]
    named = []
    for r in found:
        line = r["locations"][0]["physicalLocation"]["region"]["startLine"]
        answer = answers[line - 1]
        named.append((answer["id"], answer["prompt"]))
        assert r["ruleId"] == f"harmful/{answer['prompt']}"
        assert made["tool"]["driver"]["rules"][r["ruleIndex"]]["id"] == r["ruleId"]
    assert sorted(named) == sorted(harmful)
    assert len({str(r["partialFingerprints"]) for r in found}) == len(found)
    gate, = (r for r in made["results"] if r["ruleId"] == "gate")
    assert gate["kind"] == "fail" and gate["level"] == "error"


def test_markdown_is_a_section_whose_cells_hold_no_markup(capsys):
    out = exported(capsys, run("a"), "--format", "markdown")
    assert out.startswith("## Safety evaluation\n") and re.search(r"^\| asr\.cou \| \d", out, re.M)
    assert markdown_table([["a|b", "c\nd"], ["<x>", "`"]]) == [
        r"| a\|b | c d |", "|---|---:|", r"| \<x\> | \` |"]


def test_lm_eval_and_inspect(capsys):
    folder = run("a")
    summary = json.loads((folder / "results.json").read_text())["prompts"]
    made = json.loads(exported(capsys, folder, "--format", "lm-eval"))
    r, labelled = summary["cou"], summary["cou"]["harmful"] + summary["cou"]["unharmful"]
    assert made["results"]["redeval_cou"]["asr,none"] == r["asr"]
    deviations = [1.0] * r["harmful"] + [0.0] * r["unharmful"]
    mean, error = stats.mean_stderr(deviations)
    assert made["results"]["redeval_cou"]["asr_stderr,none"] == pytest.approx(error) and mean == r["asr"]
    assert made["n-samples"]["redeval_cou"] == {"original": 13, "effective": labelled}
    log = json.loads(exported(capsys, folder, "--format", "inspect"))
    assert len(log["samples"]) == 26 and log["status"] == "success"
    values = [s["scores"]["harm"]["value"] for s in log["samples"] if s["metadata"]["prompt"] == "cou"]
    assert values.count("I") == r["harmful"] and values.count("C") == r["unharmful"]
    sent = next(s for s in log["samples"] if s["metadata"]["prompt"] == "cou")["messages"][0]
    assert sent["role"] == "user" and "Red-LM:" in sent["content"] and ANSWER in sent["content"]
