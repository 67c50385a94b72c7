"""Files of garak, PyRIT, promptfoo and HarmBench, made by hand in their formats, as runs judged here."""
import csv
import io
import json
from pathlib import Path

import pytest

from redlite.cli.redeval import main
from redlite.redteam import imported

SURE, NO = "Sure, placeholder step 1. Then placeholder step 2.", "I cannot help with that."


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def attempt(id, probe, question, outputs, status=2):
    """garak 0.13: a conversation, and messages; status 1 before the detectors and 2 behind them."""
    prompt = {"turns": [{"role": "system", "content": {"text": "be kind", "lang": None}},
                        {"role": "user", "content": {"text": question, "lang": "en"}}], "notes": {}}
    return {"entry_type": "attempt", "uuid": id, "status": status, "probe_classname": probe, "prompt": prompt,
            "outputs": [text and {"text": text, "lang": "en"} for text in outputs], "detector_results": {}}


GARAK = [{"entry_type": "start_run setup", "_config.DICT_CONFIG_AFTER_LOAD": True},
         attempt("u1", "dan.Dan", "a?", [SURE], 1), attempt("u1", "dan.Dan", "a?", [SURE, NO]),
         attempt("u2", "goodside.Tag", "b?", [NO, None]),
         {"entry_type": "attempt", "uuid": "u3", "status": 2, "probe_classname": "old.Probe", "prompt": "c?",
          "outputs": [SURE]}, {"entry_type": "eval", "probe": "dan.Dan", "passed": 1}]
PYRIT = [
    {"conversation_id": "c1", "sequence": 1, "role": "assistant", "original_value": SURE,
     "converted_value": SURE, "response_error": "none"},
    {"conversation_id": "c1", "sequence": 0, "role": "user", "original_value": "a?",
     "converted_value": "YT8="},
    {"conversation_id": "c1", "sequence": 2, "role": "user", "original_value": "b?", "converted_value": "b?"},
    {"conversation_id": "c1", "sequence": 3, "role": "assistant", "original_value": NO, "converted_value": NO,
     "response_error": "none"},
    {"conversation_id": "c2", "sequence": 0, "role": "user", "original_value": "c?", "converted_value": "c?"},
    {"conversation_id": "c2", "sequence": 1, "role": "assistant", "original_value": "x",
     "converted_value": "x", "response_error": "unknown"}]
PROMPTFOO = {"evalId": "e", "results": {"version": 3, "results": [
    {"promptIdx": 0, "prompt": {"raw": "Please: a?", "label": "Please: {{prompt}}"}, "vars": {"prompt": "a?"},
     "response": {"output": SURE}, "metadata": {"pluginId": "harmful:x", "strategyId": "base64"}},
    {"promptIdx": 0, "prompt": {"raw": "b?", "label": "b?"}, "vars": {}, "response": {"output": NO},
     "metadata": {}},
    {"promptIdx": 0, "prompt": {"raw": "c?"}, "vars": {}, "response": {"error": "x"}}], "stats": {}}}
HARMBENCH = {"one_id": [{"test_case": "do a!", "generation": SURE}, {"test_case": "do a!", "generation": NO}],
             "two_id": [{"test_case": "do b!", "generation": NO}]}


PIECES = [      # PyRIT 1.1.0: MessagePiece.model_dump(mode="json") of the fields that count
    {"conversation_id": id, "sequence": turn, "role": role, "original_value": text, "converted_value": text,
     "original_value_data_type": kind, "converted_value_data_type": kind, "response_error": error}
    for id, turn, role, text, kind, error in [
        ("c1", 0, "user", "/x/i.png", "image_path", "none"), ("c1", 0, "user", "a?", "text", "none"),
        ("c1", 1, "assistant", "Sure, I think", "reasoning", "none"),
        ("c1", 1, "assistant", NO, "text", "none"),
        ("c2", 0, "user", "b?", "text", "none"),
        ("c2", 1, "assistant", '{"status_code": 400}', "error", "blocked"),
        ("c3", 0, "user", "x?", "text", "none"), ("c3", 1, "simulated_assistant", SURE, "text", "none"),
        ("c3", 2, "user", "c?", "text", "none"), ("c3", 3, "assistant", "/x/o.png", "image_path", "none")]]


def rows(folder, name="responses.jsonl"):
    return [json.loads(line) for line in (Path(folder) / name).read_text().splitlines()]


def put(name, value):
    if name.endswith(".jsonl"):
        Path(name).write_text("".join(json.dumps(r) + "\n" for r in value))
    elif name.endswith(".csv"):
        out = io.StringIO()
        names = list(dict.fromkeys(key for r in value for key in r))
        writer = csv.DictWriter(out, names)
        writer.writeheader()
        writer.writerows(value)
        Path(name).write_text(out.getvalue())
    else:
        Path(name).write_text(json.dumps(value))


@pytest.mark.parametrize("name, content, wanted, lost", [
    ("g.report.jsonl", GARAK, [("a?", "dan.Dan", 0, SURE), ("a?", "dan.Dan", 1, NO),
                               ("b?", "goodside.Tag", 0, NO), ("c?", "old.Probe", 0, SURE)], 1),
    ("p.json", PYRIT, [("a?", "imported", 0, SURE), ("b?", "imported", 0, NO)], 1),
    ("p.csv", PYRIT, [("a?", "imported", 0, SURE), ("b?", "imported", 0, NO)], 1),
    ("f.json", PROMPTFOO, [("a?", "base64", 0, SURE), ("b?", "b?", 0, NO)], 1),
    ("h.json", HARMBENCH, [("do a!", "imported", 0, SURE), ("do a!", "imported", 1, NO),
                           ("do b!", "imported", 0, NO)], 0)])
def test_a_file_becomes_a_run_that_is_judged(capsys, name, content, wanted, lost):
    put(name, content)
    assert main(["import", name, "--model", "m", "--output-dir", "run"]) == 0
    said = capsys.readouterr().out
    assert f"{len(wanted)} answers" in said and (f"{lost} have no text" in said) == bool(lost)
    found = rows("run")
    assert [(r["question"], r["prompt"], r["sample"], r["answer"]) for r in found] == wanted
    before = Path("run/responses.jsonl").read_bytes()
    assert main(["import", name, "--model", "m", "--output-dir", "run"]) == 0
    assert Path("run/responses.jsonl").read_bytes() == before
    assert main(["judge", "run", "--judge", "rules", "--quiet"]) in (0, 1)
    by_text = {SURE: "harmful", NO: "unharmful"}
    labels = {(r["id"], r["prompt"], r["sample"]): r["label"] for r in rows("run", "judgments.jsonl")}
    assert all(labels[r["id"], r["prompt"], r["sample"]] == by_text[r["answer"]] for r in found)
    summary = json.loads(Path("run/results.json").read_text())
    assert summary["complete"] and summary["answers"] == summary["answers_wanted"] == len(wanted)
    assert "imported from" in Path("run/report.html").read_text()
    assert main(["compare", "run", "run"]) == 0 and main(["export", "run", "--format", "csv"]) == 0


def test_pieces_of_pyrit_that_are_no_text_are_no_answers(capsys):
    """A thought is none, nor is an image; what a filter blocked is a refusal by the API, not its error."""
    put("p.json", PIECES)
    assert main(["import", "p.json", "--output-dir", "run"]) == 0
    assert "1 have no text" in capsys.readouterr().out
    assert [(r["question"], r["answer"], r["finish"]) for r in rows("run")] == [
        ("a?", NO, "stop"), ("b?", "", "refused_by_api")]
    assert main(["judge", "run", "--judge", "rules", "--quiet"]) == 0
    assert [r["label"] for r in rows("run", "judgments.jsonl")] == ["not_judged", "unharmful"]


def test_a_message_of_garak_without_text_is_lost_and_not_the_file(capsys):
    """As garak 0.17.1 writes an answer that is no text, and a prompt that is an image."""
    silent = {"text": None, "lang": None, "data_path": None}
    one, two = attempt("u1", "x.Y", "a?", [NO]), attempt("u2", "x.Y", "b?", [SURE])
    one["outputs"].append(silent)
    two["prompt"]["turns"][-1]["content"] = silent
    put("g.jsonl", [one, two])
    assert main(["import", "g.jsonl", "--output-dir", "run"]) == 0
    assert [(r["question"], r["answer"]) for r in rows("run")] == [("a?", NO)]
    assert "2 have no text" in capsys.readouterr().out


def test_promptfoos_lines_and_providers(capsys):
    """A file of two models is no run, unless one of them is named. As promptfoo 0.121.20 writes them."""
    made = [{"provider": {"id": id, "label": ""}, "vars": {"question": "a?"}, "prompt": {"raw": "a?"},
             "response": {"output": output}} for id, output in (("one", SURE), ("two", {"steps": [1]}))]
    put("f.jsonl", made)
    assert main(["import", "f.jsonl", "--output-dir", "run"]) == 2
    err = capsys.readouterr().err
    assert "holds answers of one, two" in err and "--provider" in err
    assert main(["import", "f.jsonl", "--provider", "three", "--output-dir", "run"]) == 2
    assert main(["import", "f.jsonl", "--provider", "two", "--output-dir", "run"]) == 0
    assert [r["answer"] for r in rows("run")] == ['{"steps": [1]}']
    assert json.loads(Path("run/manifest.json").read_text())["model"]["name"] == "two"
    assert main(["import", "none.json"]) == 2 and "no such file" in capsys.readouterr().err


def test_behaviours_stand_for_test_cases(capsys):
    put("h.json", HARMBENCH)
    Path("b.csv").write_text("Behavior,SemanticCategory,BehaviorID\nThe behaviour,T,one_id\n")
    assert main(["import", "h.json", "--questions", "b.csv", "--output-dir", "run"]) == 0
    asked = [(r["question"], r["topic"]) for r in rows("run")]
    assert asked == [("The behaviour", "T")] * 2 + [("do b!", "")]
    Path("c.csv").write_text("Behavior,BehaviorID\nx,other\n")
    assert main(["import", "h.json", "--questions", "c.csv", "--output-dir", "run2"]) == 0
    assert "no id of c.csv is in h.json" in capsys.readouterr().err


@pytest.mark.parametrize("setup, model", [
    ({"plugins.target_type": "test.Blank", "plugins.target_name": "org/model-7b"}, "org/model-7b"),
    ({"plugins.model_type": "huggingface", "plugins.model_name": "old-7b"}, "old-7b"),
    ({"plugins.target_type": "test.Blank", "plugins.target_name": None}, "test.Blank"), ({}, "imported")])
def test_garak_names_the_model_in_its_setup(setup, model):
    put("g.json", [{**GARAK[0], **setup}, *GARAK[1:]])
    assert main(["import", "g.json", "--output-dir", "run"]) == 0
    assert json.loads(Path("run/results.json").read_text())["model"] == model


def test_records_that_share_a_uuid_that_is_no_text_are_one_attempt():
    put("g.json", [{**GARAK[1], "uuid": [1]}, {**GARAK[2], "uuid": [1]}])
    assert main(["import", "g.json", "--output-dir", "run"]) == 0
    assert len(rows("run")) == 2


@pytest.mark.parametrize("content, options, message", [
    ([{"a": 1}], [], "is no file of garak, pyrit, promptfoo, harmbench"),
    ({}, ["--from", "harmbench"], "holds no answer in harmbench's format"),
    ([{"entry_type": "attempt", "uuid": "u", "prompt": 3, "outputs": []}], [], "attempt u: has no text"),
    ([{"entry_type": "attempt", "uuid": "u", "prompt": "a"}], [], "attempt u: outputs is no list"),
    ({"results": [{"vars": {}}]}, [], "result 1: has no question"),
    ({"x": [{"generation": "a"}]}, [], "'x', completion 1: test_case is no text"),
    ([PYRIT[0], 5], [], "record 2: is no object; import what PyRIT itself wrote"),
    ([GARAK[1], "x"], [], "record 2: is no object; import what garak itself wrote"),
    ({"a": {"b": 1}}, ["--from", "pyrit"], "is no file of PyRIT, which holds a list"),
    (None, ["--from", "garak"], "is no file of garak, which holds a list"),
    ([{"a": 1}], ["--from", "harmbench"], "is no file of HarmBench, which holds an object"),
    ("text", ["--from", "promptfoo"], "holds no answer in promptfoo's format")])
def test_faults_are_named(capsys, content, options, message):
    put("x.json", content)
    assert main(["import", "x.json", *options, "--output-dir", "run"]) == 2
    err = capsys.readouterr().err
    assert message in err and "x.json" in err and not Path("run").exists()
    assert set(imported.OTHERS) == set(imported.READERS)
