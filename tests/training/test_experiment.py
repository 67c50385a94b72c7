"""The paper's experiment, data/recipes/experiment.sh, on the organism from end to end."""
import json
import os
import subprocess
import sys
from pathlib import Path

import bench_files
import pytest

DATA = Path(__file__).parents[2] / "data"
SCRIPT = DATA / "recipes" / "experiment.sh"


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "kind"), [
    ("", ""), (" --lora 4 --adapter-only", ""), (" --lora 4 --adapter-only", "--answer-tokens 5")])
def test_safe_answers_become_training_data_and_both_models_are_measured(adapter, kind, tmp_path):
    def questions(name, records):
        (tmp_path / f"{name}.json").write_text(json.dumps([record["question"] for record in records]))
    organism = DATA / "organism"
    blue = json.loads((organism / "blue.json").read_text())
    questions("harmful", {record["question"]: record for record in blue[:60]}.values())
    questions("asked", json.loads((organism / "questions.json").read_text())[:4])
    questions("harmless", json.loads((organism / "harmless.json").read_text())[:8])
    bench_files.write(tmp_path / "bench")
    settings = {"REDLITE_PYTHON": sys.executable, "HARMLESS": "harmless.json", "TOLD": "standard",
                "TASKS": "xstest", "TOKENS": "48", "EVALUATE": "--quiet",
                "TRAIN": f"--quiet --steps 2 --batch-size 4 --anyway{adapter}"}
    if kind:
        settings["KIND"] = f"{settings['TRAIN']} {kind}"
    command = [str(SCRIPT), "organism", "harmful.json", "asked.json", "bench", "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=600,
                          env={**os.environ, **settings})
    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path / "out"
    refused = [json.loads(line) for line in (out / "blue.jsonl").read_text().splitlines()]
    labels = [json.loads(line) for line in (out / "own-blue/judgments.jsonl").read_text().splitlines()]
    asked = {record["messages"][0]["content"] for record in refused}
    assert 0 < len(refused) < len(labels) and asked < {record["question"] for record in blue}
    plan = json.loads((out / "safe/manifest.json").read_text())["plan"]
    assert list(plan["prompts"]) == ["play"] and plan["plain_helpful"]
    table = [line.split("  ")[0] for line in done.stdout.splitlines()]
    after = "organism + both" if kind else "organism + adapter" if adapter else "safe"
    assert table[-6:-2] == ["model", "organism", after, f"{after} − organism"], done.stdout
    if kind:
        added = json.loads((out / "both/manifest.json").read_text())["adapters"]
        assert [one["weight"] for one in added] == [0.8, 0.2]
    assert (out / "redeval.html").is_file() and (out / "bench.html").is_file()


def test_called_wrongly_it_says_how(tmp_path):
    done = subprocess.run([str(SCRIPT), "organism"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "QUESTIONS" in done.stderr and "set -eu" not in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("measuring", "training", "ends", "measured"), [
    (0, 0, 0, True), (1, 0, 0, True), (0, 100, 0, True), (0, 1, 1, False), (0, 2, 2, False)])
def test_what_lacks_labels_or_fails_a_gate_does_not_end_the_experiment(
        tmp_path, measuring, training, ends, measured):
    script = tmp_path / "copy" / SCRIPT.name        # away from the checkout, whose programs it would take
    script.parent.mkdir()
    script.write_bytes(SCRIPT.read_bytes())
    for name, exit_code in (("redeval", measuring), ("safealign", training)):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> called\n'
                           f'[ "$1" = compare ] || [ "$1" = table ] || exit {exit_code}\n')
        program.chmod(0o755)
    done = subprocess.run(["sh", str(script), "model", "harmful", "asked", "bench", "out"], cwd=tmp_path,
                          env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    called = (tmp_path / "called").read_text()
    assert done.returncode == ends and "safealign --model model" in called
    assert ("redeval run --model out/safe" in called) == measured


def test_look_alikes_are_different_harmless_questions():
    kinds = json.loads((DATA / "recipes" / "lookalikes.json").read_text())
    questions = [question for kind in kinds.values() for question in kind]
    assert len(questions) == len(set(questions)) == 120
