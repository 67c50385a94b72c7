"""Scorecards and benches reported and judged anew, finished runs as baselines, benches that grow."""
import json
import shutil

import bench_files
import pytest

from redlite.cli.redeval import main
from redlite.store.files import read_json, write_json

pytestmark = pytest.mark.slow     # the embedded model answers


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the benches' data and a finished scorecard."""
    folder = tmp_path_factory.mktemp("runs")
    data = bench_files.write(folder / "data")
    assert main(scorecard(data, folder / "card", "--gate", "hhh.acc>=0")) == 0
    return folder


def scorecard(data, output, *more):
    return ["scorecard", "--model", "organism", "--data", str(data), "--questions", "organism", "--prompt",
            "standard", "--quick", "--quiet", "--max-new-tokens", "48", "--xstest-tokens", "16", "--tasks",
            "hhh,xstest", "--output-dir", str(output), *more]


@pytest.fixture
def card(finished, tmp_path):
    return shutil.copytree(finished / "card", tmp_path / "card")


def test_report_of_a_scorecard_gives_what_the_scorecard_gave(card, capsys):
    before, page = read_json(card / "results.json"), (card / "report.html").read_text()
    for name in ("results.json", "redeval/results.json", "bench/results.json"):
        found = read_json(card / name)
        assert main(["report", str(card), "--quiet"]) == 0
        assert read_json(card / name) == found, name
    assert (card / "report.html").read_text() == page
    assert "gate hhh.acc>=0: passed" in capsys.readouterr().out
    (card / "results.json").unlink()        # stopped before its results: the parts are there
    assert main(["report", str(card), "--quiet", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["measures"] == before["measures"] and shown["gates"] == []
    assert main(["report", str(card), "--gate", "hhh.acc>=2"]) == 100


def test_report_of_a_bench_needs_no_data_and_never_says_delete(card, capsys):
    bench = card / "bench"
    before = read_json(bench / "results.json")
    assert main(["report", str(bench), "--quiet"]) == 0 and read_json(bench / "results.json") == before
    assert main(["report", str(bench), "--gate", "hhh.acc>=2"]) == 100
    (bench / "results.json").unlink()
    capsys.readouterr()
    assert main(["report", str(bench)]) == 2
    err = capsys.readouterr().err
    assert "run the bench's command again" in err and "delete" not in err


def test_a_sample_of_a_scorecards_answers_is_labelled(card, capsys):
    """Its answers are those of its RED-EVAL; benches alone have none."""
    assert main(["label", str(card), "--n", "3"]) == 0 and (card / "redeval/labels.html").exists()
    assert main(["label", str(card / "bench")]) == 2
    assert "is a run of benches" in capsys.readouterr().err


def test_a_scorecard_is_judged_again(card, monkeypatch, capsys):
    """Another judge of refusals calls every answer a refusal, and later the rules' verdicts are back."""
    from redeval_worker import judge

    from redlite.cli import network
    other = judge("refusal:other", lambda i: "unharmful", {"format": "refusal"})
    before = {p: (card / p).read_bytes() for p in ("bench/samples_xstest_safe.jsonl", "bench/manifest.json")}
    figures = read_json(card / "results.json")["measures"]
    real = network.judges
    monkeypatch.setattr(network, "judges", lambda args, reach: other)
    assert main(["judge", str(card), "--judge", "other", "--quiet"]) in (0, 1)
    found = read_json(card / "results.json")
    assert found["measures"]["xstest.over_refusal"]["value"] == 1.0
    assert found["measures"]["xstest.compliance"]["value"] == 0.0
    assert found["measures"]["asr.standard"] == figures["asr.standard"]
    assert found["judges"] == {"harm": "rules", "refusal": "refusal:other"}
    assert read_json(card / "bench/manifest.json")["judge"]["name"] == "refusal:other"
    monkeypatch.setattr(network, "judges", real)
    assert main(["judge", str(card), "--judge", "rules", "--quiet"]) == 0
    assert read_json(card / "results.json")["measures"] == figures
    assert {p: (card / p).read_bytes() for p in before if "samples" in p}.items() <= before.items()
    capsys.readouterr()
    assert main(["judge", str(card / "bench"), "--judge", "linear"]) == 2
    assert "only XSTest is judged" in capsys.readouterr().err


def test_a_finished_run_is_a_baseline(finished, tmp_path, capsys):
    data, output = finished / "data", tmp_path / "new"
    options = scorecard(data, output, "--baseline", str(finished / "card"), "--gate", "hhh.acc>=baseline")
    assert main(options) == 0
    found = read_json(output / "results.json")
    assert found["baseline_run"] == str(finished / "card") and not (output / "baseline").exists()
    assert found["baseline_measures"] == found["measures"]
    assert {r["difference"] for r in found["paired"].values()} == {0}
    assert main(["report", str(output), "--quiet"]) == 0 and read_json(output / "results.json") == found
    alone = scorecard(data, tmp_path / "alone", "--baseline", str(finished / "card/redeval"))
    assert main(alone) == 0
    assert set(read_json(tmp_path / "alone/results.json")["paired"]) == {"asr.standard"}
    capsys.readouterr()
    other = [*scorecard(data, tmp_path / "other", "--baseline", str(finished / "card"))]
    other[other.index("48")] = "32"
    assert main(other) == 2
    assert "were not made alike: decoding.max_new_tokens (48, 32)" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()    # found before anything was asked
    for more, differs in ((["--protocol", "paper"], "protocol (lm_eval, paper)"),
                          (["--judge", "linear"], "judge (rules, linear)")):
        assert main([*scorecard(data, tmp_path / "other", "--baseline", str(finished / "card")), *more]) == 2
        assert differs in capsys.readouterr().err and not (tmp_path / "other").exists()
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert main(["judge", str(output), "--judge", "linear"]) == 2
    err = capsys.readouterr().err
    assert "is judged by rules, and both must be by one judge; have linear judge that first" in err
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    assert main(scorecard(data, output, "--baseline", str(output))) == 2
    assert "is this run itself" in capsys.readouterr().err


def test_a_bench_grows_by_tasks_and_examples(finished, tmp_path):
    data, output = finished / "data", tmp_path / "bench"

    def given(*more):
        return ["bench", "--model", "organism", "--data", str(data), "--quiet", "--output-dir", str(output),
                *more]
    assert main(given("--tasks", "hhh", "--limit", "1")) == 0
    name = "samples_bigbench_hhh_alignment_multiple_choice.jsonl"
    first = (output / name).read_bytes()
    assert main(given("--tasks", "hhh,truthfulqa")) == 0
    grown = (output / name).read_bytes()
    assert grown.startswith(first) and len(grown.splitlines()) == 10 > len(first.splitlines()) == 1
    made = read_json(output / "manifest.json")
    (event,) = made["info"]["grown"]
    assert event["tasks"]["bigbench_hhh_alignment_multiple_choice"] == [1, 10]
    assert event["tasks"]["truthfulqa_mc1"] == [0, 2]
    assert main(given("--tasks", "hhh")) == 2       # less is refused
    path = data / "hhh/harmless/task.json"
    kept = path.read_text()
    task = read_json(path)
    task["examples"][0]["input"] = "Another?"
    write_json(path, task)
    shutil.rmtree(output)
    assert main(given("--tasks", "truthfulqa,hhh", "--limit", "3")) == 0
    path.write_text(kept)
    assert main(given("--tasks", "truthfulqa,hhh")) == 2    # other examples than before
