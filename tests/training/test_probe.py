"""safealign probe: the stages that it runs, and that they are run once."""
import json

import pytest

from redlite.cli import safealign


def given(folder, *more):
    return ["probe", "--steps", "2", "1", "--limit", "4", "--prompt", "cou", "--max-new-tokens", "24",
            "--batch-size", "4", "--output-dir", str(folder), "--quiet", *more]


def test_a_dry_run_names_the_stages_in_order(tmp_path, capsys):
    assert safealign.main(given(tmp_path / "probe", "--dry-run", "--lora", "4", "--date",
                                "2026-01-02")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("--output-dir ")[1].split()[0].rsplit("/")[-1] for line in lines] == [
        "redeval-0", "tuned-1", "redeval-1", "tuned-2", "redeval-2"]
    assert "--steps 1 " in lines[1] and "--lora 4" in lines[1] and "--model organism" in lines[1]
    assert f"--model {tmp_path}/probe/tuned-2" in lines[4] and "--judge rules" in lines[4]
    assert all("--date 2026-01-02" in line for line in lines)
    assert safealign.main(given(tmp_path / "probe", "--dry-run", "--lora", "4", "--date", "2026-01-02",
                                "--json")) == 0
    assert json.loads(capsys.readouterr().out) == {"stages": lines}
    assert not (tmp_path / "probe").exists()


def test_what_is_missing_is_named(tmp_path, capsys):
    for more, word in (([], "--helpful is missing"), (["--helpful", "x.json"], "--questions is missing")):
        assert safealign.main(given(tmp_path / "probe", "--model", str(tmp_path), *more)) == 2
        assert word in capsys.readouterr().err


def test_conversations_that_cannot_be_read_are_named_before_any_answer_is_made(tmp_path, capsys):
    folder = tmp_path / "probe"
    assert safealign.main(given(folder, "--helpful", str(tmp_path / "none.json"))) == 2
    assert "none.json: cannot be read" in capsys.readouterr().err and not folder.exists()


@pytest.mark.slow
def test_it_measures_before_and_after_and_goes_on(tmp_path, capsys):
    folder = tmp_path / "probe"
    folder.mkdir()
    (folder / "tuned-2").write_text("in the way")
    assert safealign.main(given(folder)) == 2
    assert "ended with exit code 2" in capsys.readouterr().err
    assert (folder / "redeval-0/results.json").exists() and not (folder / "redeval-2").exists()
    (folder / "tuned-2").unlink()
    began = (folder / "redeval-0/responses.jsonl").read_bytes()
    assert safealign.main(given(folder, "--json")) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["model"] for row in rows] == ["organism", "tuned-1", "tuned-2"]
    assert rows[1]["differences"] and (folder / "redeval-0/responses.jsonl").read_bytes() == began
    log = (folder / "tuned-2/log.jsonl").read_bytes()
    assert safealign.main(given(folder)) == 0
    assert (folder / "tuned-2/log.jsonl").read_bytes() == log
