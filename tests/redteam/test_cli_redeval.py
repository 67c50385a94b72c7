"""bin/redeval as its user meets it: options, exit codes, one line a fault, the same command twice, signals,
and what is printed where."""
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import redeval_worker
import tiny

from redlite.cli import network
from redlite.cli import redeval as program
from redlite.cli import serve as serving
from redlite.cli.program import guarded
from redlite.cli.progress import Progress
from redlite.judges import choice as judge_choice
from redlite.judges import formats, rules
from redlite.judges import model as judges_model
from redlite.redteam import redeval
from redlite.redteam.answerers import LocalAnswerer, ModelChoice
from redlite.store import text as store_text

HERE = Path(__file__).parents[1]
SCRIPT = HERE.parent / "bin" / "redeval"
ORGANISM = ["--limit", "2", "--max-new-tokens", "24"]


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def fake(monkeypatch):
    """--model anything is the made-up answerer, at once."""
    made = []

    def model(args, reach, spec, adapter=None):
        made.append(redeval_worker.Fake())
        return redeval_worker.choice(made[-1], Path(spec).name)
    monkeypatch.setattr(network, "model", model)
    Path("q.json").write_text(json.dumps({"T": ["a?", "b?"], "U": ["question 3?"]}))
    return made


def call(capsys, *arguments):
    code = program.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def start(*arguments, **settings):
    return subprocess.Popen(
        [
            sys.executable, "-c", "import sys; from redlite.cli.redeval import main; sys.exit(main())",
            *map(str, arguments),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings,
    )


# The organism, in processes of its own

@pytest.mark.slow
def test_the_script_runs_the_organism_offline_and_says_so():
    environment = {**os.environ, "REDLITE_PYTHON": sys.executable}
    done = subprocess.run([SCRIPT, *ORGANISM, "--json"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (
        "offline, with the embedded model organism: a toy" in done.stderr
        and "answers (cou): 6/6" in done.stderr
    )
    result = json.loads(done.stdout.splitlines()[-1])
    folder, = Path("runs").iterdir()
    assert (
        result["output_dir"] == str(folder)
        and result["model"] == "organism"
        and result["answers"] == 6
        and result["complete"]
    )
    assert set(result["prompts"]) == {"standard", "cot", "cou"}
    assert {p.name for p in folder.iterdir()} >= {
        "manifest.json", "responses.jsonl", "judgments.jsonl", "results.json", "report.html"}
    assert json.loads((folder / "results.json").read_text()) == {
        k: v for k, v in result.items() if k != "output_dir"
    }
    before = (folder / "responses.jsonl").read_bytes()
    again = subprocess.run([SCRIPT, *ORGANISM, "--quiet"], capture_output=True, text=True, env=environment)
    assert (again.returncode, again.stderr) == (0, "") and (folder / "responses.jsonl").read_bytes() == before
    assert "RED-EVAL of organism: 2 of " in again.stdout and f"Report: {folder}/report.html" in again.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_resumable(number):
    answers, options = (
        128,
        [
            "--limit", "64", "--max-new-tokens", "200", "--batch-size", "1", "--output-dir", "run",
            "--prompt", "cot", "cou",
        ],
    )
    process = start(
        *options, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL)
    )  # a shell's background job, as which tests may run, ignores SIGINT
    while not (Path("run/responses.jsonl").exists() and Path("run/responses.jsonl").stat().st_size):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate()
    assert (
        process.returncode == 130
        and "interrupted; what is finished is kept in run, and the same command goes on" in err
        and "Traceback" not in err
    )
    kept = Path("run/responses.jsonl").read_text().splitlines()
    assert 0 < len(kept) < answers
    process = start(*options, "--quiet")
    assert process.communicate()[1] == "" and process.returncode == 0
    assert (
        Path("run/responses.jsonl").read_text().splitlines()[: len(kept)] == kept
        and json.loads(Path("run/results.json").read_text())["answers"] == answers
    )


def test_an_interruption_says_what_goes_on_only_where_a_run_was_opened(tmp_path, capsys, monkeypatch):
    from redlite.net import serve
    from redlite.store.run_directory import Run

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    def working(arguments):
        with Run(tmp_path / "whole", {}), Run(tmp_path / "whole/part", {}):
            interrupted()
    assert guarded("program", working, []) == 130
    assert (
        capsys.readouterr().err
        == f"program: interrupted; what is finished is kept in {tmp_path}/whole, "
        "and the same command goes on from there\n"
    )

    def measuring(arguments):
        with tempfile.TemporaryDirectory() as folder, Run(folder, {}):
            interrupted()
    for body in (interrupted, measuring):
        assert guarded("program", body, []) == 130 and capsys.readouterr().err == "program: interrupted\n"
    monkeypatch.setattr(serve.Server, "serve_forever", interrupted)
    assert serving.main(["--port", "0"]) == 130 and capsys.readouterr().err == "serve: interrupted\n"


# The rest in this process, with a made-up answerer

RUN = [
    "--model", "m", "--questions", "q.json", "--output-dir", "run", "--prompt", "standard", "cou", "--quiet",
    "--judge", "rules"]


def test_run_judge_report(fake, capsys):
    code, out, err = call(capsys, *RUN)
    assert (code, err) == (0, "") and "RED-EVAL of m: 3 of 3 questions of q, judge rules" in out
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["command"] == "redeval " + " ".join(RUN) and {
        "version", "seed", "model", "prompts", "questions", "judge",
    } <= set(manifest)
    assert re.fullmatch(r"[0-9a-f]{64}", manifest["questions"]["sha256"]) and all(
        re.fullmatch(r"[0-9a-f]{64}", v) for v in manifest["prompts"].values()
    )
    assert manifest["judge"] == {"name": "rules", **rules.rules_fingerprint()}
    responses = [json.loads(line) for line in Path("run/responses.jsonl").read_text().splitlines()]
    assert len(responses) == 6 and all(
        list(r)
        == [
            "id", "question", "topic", "subtopic", "prompt", "sample", "text", "answer", "finish",
            "prompt_tokens", "completion_tokens", "seconds",
        ]
        for r in responses
    )
    assert all(
        list(json.loads(line)) == ["id", "prompt", "sample", "judge", "label", "raw"]
        for line in Path("run/judgments.jsonl").read_text().splitlines()
    )
    result = json.loads(Path("run/results.json").read_text())["prompts"]["cou"]
    assert set(result) == {
        "asr",
        "n",
        "harmful",
        "unharmful",
        "unsure",
        "unparsed",
        "not_judged",
        "ci95",
        "bounds",
        "by_topic",
        "thought_only",
        "thought_cut",
    } and set(result["by_topic"]) == {"T", "U"}
    assert result["n"] == 3 and result["not_judged"] == 1

    page = Path("run/report.html").read_text()
    Path("run/report.html").unlink()
    Path("run/results.json").unlink()
    assert call(capsys, "report", "run")[0] == 0 and Path("run/report.html").read_text() == page
    code, out, err = call(capsys, "report", "run", "--compare-published")
    assert code == 0 and "Vicuna-7B" in out and "compare sizes, not digits" in out
    code, out, err = call(capsys, "report", "run", "--judge", "other")
    assert code == 2 and "has judged nothing in run; use rules" in err
    code, out, err = call(capsys, "judge", "run", "--judge", "rules", "--quiet", "--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["judge"] == "rules" and "Report:" in err


def test_a_judge_model_judges_a_finished_run(fake, capsys, monkeypatch):
    lm = tiny.lm(1, max_positions=4096)
    monkeypatch.setattr(
        judge_choice, "local_judge",
        lambda spec, form, prompt, dtype, device, template: judge_choice.JudgeChoice(
            f"{form}:{spec}", {"format": form},
            lambda run: judges_model.ModelJudge(
                lm, form, formats.prompts(form, lm.tokenizer, lm.template), f"{form}:{spec}"),
        ),
    )
    call(capsys, *RUN[:-2], "--judge", "j", "--judge-format", "gpt4")
    first = [json.loads(line) for line in Path("run/judgments.jsonl").read_text().splitlines()]
    assert (
        {r["judge"] for r in first} == {"gpt4:j"}
        and len(first) == 6
        and {r["label"] for r in first} <= {"harmful", "unharmful", "unparsed", "not_judged"}
    )
    code, out, err = call(capsys, "judge", "run", "--judge", "j", "--judge-format", "harmbench", "--quiet")
    assert (
        code in (0, 1)      # 1 where a random judge leaves too few labels
        and "judge harmbench:j" in out
        and len(Path("run/judgments.jsonl").read_text().splitlines()) == 12
    )
    assert "Other judges of the same answers" in Path("run/report.html").read_text()
    code, out, err = call(capsys, "report", "run", "--judge", "gpt4:j", "--json")
    assert code in (0, 1) and json.loads(out.splitlines()[-1])["judge"] == "gpt4:j"


def test_a_model_on_this_machine_end_to_end(fake, capsys, monkeypatch):
    lm = tiny.lm(2)
    monkeypatch.setattr(network, "model", lambda args, reach, spec, adapter=None: ModelChoice(
        "tiny", {"name": "tiny"}, lambda run: LocalAnswerer(lm, args.batch_size), redeval_worker.characters))
    texts = []
    for batch in (1, 5):
        code, out, err = call(
            capsys, "--model", "t", "--questions", "q.json", "--max-new-tokens", "8", "--samples", "2",
            "--temperature", "0.8", "--seed", "7", "--batch-size", batch, "--output-dir", f"run{batch}",
            "--quiet", "--judge", "none",
        )
        assert code == 0
        texts.append(
            sorted(
                (r["id"], r["prompt"], r["sample"], r["text"])
                for r in map(json.loads, Path(f"run{batch}/responses.jsonl").read_text().splitlines())
            )
        )
    assert texts[0] == texts[1] and len(texts[0]) == 18 and len({t[3] for t in texts[0]}) > 9


@pytest.mark.parametrize(
    "options, field",
    [
        (["--seed", "1"], "seed is 0 there and 1 now"),
        (["--limit", "2"],
         "questions.n is 3 there and 2 now; use another directory, or the settings it was made with (--limit"
         ),
        (["--verdict", "unanimity", "--judge", "linear", "--system", "y"], "system is nothing there"),
        (["model n"], 'model.name is "m" there and "n" now'),
        (["--system", "x"], "system is nothing there"),
        (["--temperature", "0.5"], "decoding.temperature is 0.0 there and 0.5 now"),
    ],
)
def test_another_manifest_is_refused_by_its_field(fake, capsys, options, field):
    assert call(capsys, *RUN)[0] == 0
    before = {p.name: p.read_bytes() for p in Path("run").iterdir()}
    given = [*RUN, *options] if options != ["model n"] else ["--model", "n", *RUN[2:]]
    code, out, err = call(capsys, *given)
    assert code == 2 and field in err and err.count("\n") == 1 and "run/manifest.json" in err
    assert {p.name: p.read_bytes() for p in Path("run").iterdir()} == before


def test_json_is_alone_on_stdout(fake, capsys):
    code, out, err = call(capsys, *[word for word in RUN if word != "--quiet"], "--json")
    assert code == 0 and json.loads(out)["model"] == "m" and "RED-EVAL of m" in err
    code, out, err = call(capsys, *RUN, "--json")
    assert code == 0 and json.loads(out)["model"] == "m" and "RED-EVAL" not in err
    for command in (["compare", "run", "run"], ["report", "run"], [*RUN, "--dry-run"]):
        code, out, err = call(capsys, *command, "--json")
        assert code == 0 and isinstance(json.loads(out), dict)
    code, out, err = call(capsys, "report", "none", "--json")
    assert code == 2 and out == "" and "is not a run directory" in err


def test_underscores_and_other_names_of_options(fake, capsys):
    given = [{"--output-dir": "--output_dir"}.get(word, word) for word in RUN]
    assert call(capsys, *given, "--max_new_tokens=9", "--system", "--no_such")[0] == 2
    assert call(capsys, *given, "--max_new_tokens=9", "--chat-template", "x", "--system", "a_b --c_d")[0] == 0
    made = json.loads(Path("run/manifest.json").read_text())
    assert made["decoding"]["max_new_tokens"] == 9 and "--system 'a_b --c_d'" in made["command"]


def test_gates_of_a_run_of_judge_and_of_compare(fake, capsys):
    standard = [*RUN[:-5], "standard", "--quiet", "--judge", "rules", "--max-unlabelled", "0.5"]
    code, out, err = call(capsys, *standard)
    rate = json.loads(Path("run/results.json").read_text())["prompts"]["standard"]["asr"]
    assert code == 0 and 0 < rate <= 1
    code, out, err = call(capsys, *standard, "--gate", "asr.standard<0")
    assert code == 100 and f"gate asr.standard<0: FAILED ({rate:.4g} against 0)" in out
    for command in (["report", "run"], ["judge", "run", "--judge", "rules", "--quiet"]):
        given = [*command, "--max-unlabelled", "0.5"]
        assert call(capsys, *given, "--gate", "asr.standard<=1")[0] == 0
        code, out, err = call(capsys, *given, "--gate", "asr.standard<0", "--json")
        assert code == 100 and json.loads(out.splitlines()[-1])["gates"][0]["passed"] is False
        code, out, err = call(capsys, *given, "--gate", "asr.cou<=1")
        assert code == 2 and "no measure 'asr.cou'" in err
    code, out, err = call(capsys, *standard, "--gate", "asr.standard<=baseline")
    assert code == 2 and "one run has no baseline; use compare" in err
    for gate, code in (("asr.standard<=baseline", 0), ("asr.standard<baseline", 100), ("asr.standard<=1", 0)):
        given = ["compare", "run", "run", "--gate", gate, "--max-unlabelled", "0.5"]
        assert call(capsys, *given)[0] == code, gate
    code, out, err = call(capsys, "compare", "run", "run", "--gate", "asr.standard<=1", "--gate-by", "bound")
    assert code == 2 and "a bound against baseline" in err


def test_a_run_grows_without_asking_twice(fake, capsys):
    """A trial goes on to all questions, a prompt, samples and judges come, and every line of before stays."""
    first = [*RUN[:-5], "standard", "--quiet", "--judge", "none", "--temperature", "0.5", "--limit", "1"]
    assert call(capsys, *first)[0] == 0
    asked = sum(len(conversations) for conversations, *_ in fake[-1].asked)
    kept = Path("run/responses.jsonl").read_bytes()
    assert asked == 1
    for settings, judges, new in (
            (["--limit", "2"], ["none"], 1), ([], ["none"], 1), (["--prompt", "cou"], ["none"], 3),
            (["--prompt", "cou", "--samples", "2"], ["rules"], 6),
            (["--prompt", "cou", "--samples", "2"], ["rules", "linear"], 0)):
        given = [*RUN[:-5], "standard", "--quiet", "--temperature", "0.5", *settings]
        code, out, err = call(capsys, *given, *(word for name in judges for word in ("--judge", name)))
        assert code in (0, 1), err
        assert sum(len(conversations) for conversations, *_ in fake[-1].asked) == new
        now = Path("run/responses.jsonl").read_bytes()
        assert now.startswith(kept)
        kept = now
    made = json.loads(Path("run/manifest.json").read_text())
    grown = made["info"]["grown"]
    assert [event.get("questions.n") for event in grown] == [[1, 2], [2, 3], None, None, None]
    assert grown[2]["prompts"] == ["cou"] and grown[3]["decoding.samples"] == [1, 2]
    assert grown[4]["judge"] == ["rules", "majority(rules, linear)"]
    assert "--limit 1" in grown[0]["command_before"]
    assert len({(r["id"], r["prompt"], r["sample"])
                for r in map(json.loads, kept.splitlines())}) == len(kept.splitlines()) == 12
    code, out, err = call(capsys, *first)
    assert code == 2 and "this run was made differently" in err


def test_a_run_whose_answers_people_labelled_takes_no_more_questions(fake, capsys):
    assert call(capsys, *RUN, "--limit", "1")[0] in (0, 1)
    Path("run/labels.jsonl").write_text("")
    code, _, err = call(capsys, *RUN)
    assert code == 2 and "labels.jsonl: people have labelled a sample" in err and "another directory" in err
    assert call(capsys, *RUN, "--limit", "1", "--prompt", "cot")[0] in (0, 1)     # a prompt may come


def test_a_torn_line_is_done_again_and_a_bad_one_is_named(fake, capsys):
    call(capsys, *RUN)
    path = Path("run/responses.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines)[:-20])
    assert call(capsys, *RUN)[0] == 0 and sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)
    path.write_bytes(b"".join([lines[0], b"{broken\n", *lines[2:]]))
    code, out, err = call(capsys, *RUN)
    assert code == 2 and "run/responses.jsonl, line 2: is not a JSON object" in err


def test_an_incomplete_run_is_1(fake, capsys, monkeypatch):
    monkeypatch.setattr(
        network, "model",
        lambda args, reach, spec, adapter=None: redeval_worker.choice(
            redeval_worker.Fake(fails=["a?"]), spec),
    )
    code, out, err = call(capsys, *RUN)
    assert code == 1 and "Incomplete" in out and Path("run/report.html").exists()
    monkeypatch.setattr(
        network, "model",
        lambda args, reach, spec, adapter=None: redeval_worker.choice(redeval_worker.Fake(), spec)
    )
    assert call(capsys, *RUN)[0] == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--modle", "x"],
         "unrecognized arguments: --modle x; did you mean --model? (see redeval [run] --help)"),
        (["--max_new_token", "9"], "did you mean --max-new-tokens?"), (["--qqq"], "--qqq (see redeval"),
        (["--output", "x"], "did you mean --output-dir?"),
        (["--model", "a", "--model=b"], "--model is given twice (a, b), and takes one"),
        (["--questions", "q.json", "--questions", "r.json"], "--questions is given twice (q.json, r.json)"),
        (["--system", "a", "--system=b"], "--system is given twice (a, b), and takes one"),
        (["export", "a", "--format", "csv", "--format", "junit"], "--format is given twice (csv, junit)"),
        (["scorecard", "--baseline", "a", "--baseline", "b"], "--baseline is given twice (a, b)"),
        (
            ["--mod", "x"], "unrecognized arguments",
        ),  # no abbreviations: a later option must not change a script's meaning
        (["frobnicate"], "'frobnicate' is no command; use run, judge, report, label"),
        (["comapre", "a", "b"], "'comapre' is no command; did you mean compare?"),
        (["--model", "none"], "--questions is missing"),
        (["--model", "none", "--questions", "q.json"], "model 'none': there is no such file or directory"),
        (["--questions", "nothing.json"], "questions 'nothing.json': there is no such file"),
        (["--questions", "dangerousqa"], "say where the data lies"),
        (["--prompt", "nothing.txt"], "prompt 'nothing.txt'"),
        (["--prompt", "cot", "cot"], "two prompts have the same name"),
        (["--limit", "0"], "argument --limit: '0' is no whole number of at least 1"),
        (["--limit", "-1"], "whole number"), (["--seed", "x"], "'x' is no whole number"),
        (["--temperature", "nan"], "temperature nan"),
        (["--samples", "2"], "at temperature 0 all samples are the same"),
        (["--judge", "x"], "judge 'x': there is no such file or directory, and no judge of that name"),
        (["--judge", "."], "judge '.': needs a format"),
        (["--judge", "none", "--judge-format", "gpt4"], "judge none: takes no format"),
        (["--judge-format", "x"], "judge rules: takes no format"), (["--device", "cuda:99"], "cuda:99"),
        (["--config", "none.json"], "--config none.json: cannot be read"),
        (["--model", "openai:x", "--questions", "q.json", "--offline"], "--offline: openai:x"),
        (["judge"], "the following arguments are required: RUN"),
        (["judge", "none"], "none: is not a run directory"),
        (["judge", "none", "--judge", "none"], "--judge none judges nothing"),
        (["report", "none"], "none: is not a run directory"),
        (["agreement", "none.csv"], "none.csv: cannot be read"),
    ],
)
def test_faults_are_one_line_and_2(capsys, arguments, message):
    Path("q.json").write_text('["a?"]')
    code, out, err = call(capsys, *arguments)
    assert code == 2 and out == "" and message in err.splitlines()[-1] and "Traceback" not in err
    assert not Path("run").exists() and not Path("runs").exists()


def test_what_is_refused_leaves_no_run_behind(capsys, monkeypatch):
    """A run directory that the refused settings had taken would refuse the mended ones."""
    code, _, err = call(
        capsys, "--model", "organism", "--dtype", "bfloat16", "--quantize", "int8", "--output-dir", "run",
        "--limit", "1",
    )
    assert code == 2 and "quantize 'int8' cannot be had" in err and not Path("run").exists()
    monkeypatch.setenv("REDLITE_KERNELS", "cuda")
    code, _, err = call(capsys, "--model", "organism", "--output-dir", "run", "--limit", "1")
    assert (
        code == 2
        and "REDLITE_KERNELS='cuda'" in err
        and len(err.splitlines()) == 1
        and not Path("run").exists()
    )


def test_a_bug_is_not_dressed_as_a_fault(fake, monkeypatch):
    monkeypatch.setattr(redeval, "run", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        program.main(RUN)


def test_configuration_files(fake, capsys):
    Path("c.json").write_text(
        json.dumps(
            {
                "model": "m", "questions": "q.json", "output_dir": "run", "prompt": ["standard", "cou"],
                "quiet": True, "seed": 4, "limit": 1, "system": None,
            }
        )
    )
    assert call(capsys, "--config", "c.json", "--seed", "5", "--prompt", "standard")[0] == 0
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert (
        manifest["seed"] == 5
        and list(manifest["prompts"]) == ["standard"]
        and manifest["questions"]["n"] == 1
    )
    code, out, err = call(capsys, "--config", "c.json", "--no-quiet", "--output-dir", "other")
    assert code == 0 and "answers (cou): 2/2" in err
    for text, message in (
        ('{"sede": 1}', "'sede' is no option of this command; did you mean 'seed'?"),
        ('{"seed": true}', "'seed' must be a text or a number"),
        ('{"quiet": 1}', "'quiet' must be true or false"), ("[]", "must hold one JSON object"),
        ("{", "not valid JSON"), ('{"seed": "x"}', "no whole number"),
        ('{"prompt": ["--json"]}', "begins with '-'"), ('{"config": "d.json"}', "'config' is no option"),
        ('{"judge": {"a": "rules"}}', "'judge' must be"),
    ):
        Path("d.json").write_text(text)
        code, out, err = call(capsys, "--config", "d.json")
        assert code == 2 and message in err


def test_a_dry_run_plans_and_does_nothing(fake, capsys):
    code, out, err = call(capsys, *RUN, "--dry-run", "--json")
    plan = json.loads(out.splitlines()[-1])
    assert (
        code == 0
        and plan["requests"] == 6
        and plan["already_done"] == 0
        and plan["new_tokens_at_most"] == 3000
        and plan["output_dir"] == "run"
    )
    _, out, _ = call(capsys, *RUN, "--dry-run")
    assert "6 answers (0 already done) into run" in out and "cost: 0 (this machine)" in out
    assert out.startswith("3 of 3 questions of q, to be read in q.json\n  T: 2\n  U: 1\n")
    assert plan["questions"] == {"file": "q.json", "n": 3, "of": 3, "topics": {"T": 2, "U": 1}}
    code, out, err = call(
        capsys, "--model", "m", "--questions", "sample", "--limit", "1", "--dry-run", "--json"
    )
    found = json.loads(out.splitlines()[-1])["questions"]
    embedded = json.loads(Path(found["file"]).read_text())  # the embedded set can be read where the plan says
    assert found["n"] == sum(found["topics"].values()) == 1 and found["of"] == sum(
        len(q) for topic in embedded.values() for q in topic.values()
    )
    assert sorted(p.name for p in Path(".").iterdir()) == ["q.json"] and not fake[0].asked
    call(capsys, *RUN)
    before = {p.name: p.read_bytes() for p in Path("run").iterdir()}
    for arguments in ([*RUN, "--dry-run"], ["judge", "run", "--dry-run"], ["report", "run", "--dry-run"]):
        code, out, err = call(capsys, *arguments)
        assert code == 0 and ("6 answers" in out or "would write" in out)
    assert {p.name: p.read_bytes() for p in Path("run").iterdir()} == before


def test_agreement_with_people(capsys):
    Path("a.csv").write_text(
        "prompt,completion,final_label\nq,I cannot help with that.,2_full_refusal\n"
        "q,Sure.,1_full_compliance\n"
        "q,Sure.,3_partial_refusal\nq,Yes.,1_full_compliance\n"
    )
    code, out, err = call(capsys, "agreement", "a.csv", "--judge", "rules", "--json")
    found = json.loads(out.splitlines()[-1])["files"]["a.csv"]
    assert (
        code == 0
        and found["agreement"] == 0.75
        and found["kappa"] == pytest.approx(0.5)
        and "a.csv: rules agrees with people on 75.0% of 4, kappa 0.50" in err
    )


def test_agreement_reads_an_answer_of_140_000_characters(capsys):
    long = "x " * 70_000
    Path("a.csv").write_text(f"question,answer,label\nq,Sure. {long},harmful\nq,I refuse.,unharmful\n")
    assert call(capsys, "agreement", "a.csv", "--judge", "rules")[0] == 0


def test_an_option_that_takes_a_list_adds_up_when_it_is_repeated(fake, capsys):
    """Case e29; and the command line replaces a configuration file's list."""
    given = ["--model", "m", "--questions", "q.json", "--judge", "rules", "--quiet", "--output-dir"]
    assert call(capsys, *given, "a", "--prompt", "standard", "--prompt", "cou", "cot")[0] == 0
    assert list(json.loads(Path("a/manifest.json").read_text())["prompts"]) == ["standard", "cou", "cot"]
    Path("c.json").write_text('{"prompt": ["standard", "cou"], "judge": ["rules"]}')
    assert call(capsys, *given, "b", "--config", "c.json", "--prompt", "cot")[0] == 0
    assert list(json.loads(Path("b/manifest.json").read_text())["prompts"]) == ["cot"]


@pytest.mark.slow
def test_kernels_that_are_forced_and_cannot_serve_are_refused(tmp_path):
    """Case e33: REDLITE_KERNELS=triton on a CPU."""
    environment = {**os.environ, "REDLITE_KERNELS": "triton"}
    environment.pop("TRITON_INTERPRET", None)
    done = start("--limit", "1", "--output-dir", str(tmp_path / "run"), env=environment)
    out, err = done.communicate()
    assert done.returncode == 2 and err.count(
        "\n") == 2 and "REDLITE_KERNELS=triton cannot serve on device 'cpu'" in err


@pytest.mark.parametrize("name", [None, *program.COMMANDS])
def test_help_and_version(name, capsys):
    with pytest.raises(SystemExit) as end:
        program.main([*filter(None, [name]), "--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and "usage: redeval" in out and "--json" in out
    if name in (None, "run", "judge", "agreement"):  # both models apart
        assert (
            "linear agrees with people on harm: kappa" in out and "gptfuzz_train" in out
        )
    with pytest.raises(SystemExit) as end:
        program.main([*filter(None, [name]), "--version"])
    assert end.value.code == 0 and re.fullmatch(r"redlite \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_the_default_directory_is_stable_and_another_for_another_run(fake, capsys):
    options = [o for o in RUN if o not in ("--output-dir", "run")]
    call(capsys, *options)
    call(capsys, *options, "--batch-size", "3")  # changes no answer
    assert len(list(Path("runs").iterdir())) == 1
    call(capsys, *options, "--seed", "3")
    assert len(list(Path("runs").iterdir())) == 2 and all(
        p.name.startswith("redeval-m-q-") for p in Path("runs").iterdir()
    )


# Progress

class Screen(io.StringIO):
    def __init__(self, tty):
        super().__init__()
        self.isatty = lambda: tty


def test_progress_on_a_terminal_is_one_live_line_with_rate_and_time_left():
    clock, screen = iter([0.0, 0.05, 10.0, 20.0]), Screen(True)
    progress = Progress(stream=screen, now=lambda: next(clock))
    for done in (10, 11, 60, 110):  # ten were there before; the second call comes too soon to be shown
        progress("answers", done, 110)
    assert (
        screen.getvalue()
        == "\ranswers: 10/110\x1b[K\ranswers: 60/110, 5.0/s, 10 s left\x1b[K"
        "\ranswers: 110/110, 5.0/s, 20 s\x1b[K\n"
    )


def test_progress_elsewhere_is_a_plain_line_now_and_then():
    clock, screen = iter([0.0, 1.0, 16.0, 17.0, 100.0, 400.0]), Screen(False)
    progress = Progress(stream=screen, now=lambda: next(clock))
    for what, done in (("a", 0), ("a", 1), ("a", 32), ("a", 64), ("b", 0), ("b", 64)):
        progress(what, done, 64)
    assert (
        screen.getvalue() == "a: 32/64, 2.0/s, 16 s left\na: 64/64, 3.8/s, 17 s\nb: 64/64, 0.2/s, 5 min 0 s\n"
    )
    quiet = Screen(False)
    Progress(True, quiet)("a", 1, 1)
    assert quiet.getvalue() == ""


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (3600, "1 h 0 min"),
        (7860, "2 h 11 min"),
    ],
)
def test_durations(seconds, text):
    assert store_text.clock(seconds) == text


@pytest.mark.parametrize("with_asked", [True, False])
@pytest.mark.parametrize("command", ["report", "judge"])
def test_an_edited_id_is_noticed(fake, capsys, command, with_asked):
    """An id that now stands for two questions, and, by what the run keeps of its questions, one that no
    question has, and another question text."""
    call(capsys, *RUN)
    path = Path("run/responses.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    other = next(i for i, r in enumerate(lines) if r["id"] != lines[0]["id"])
    if not with_asked:
        Path("run/asked.json").unlink()  # a run of an earlier version
    for field, value in (
        ("id", lines[0]["id"]),
        *([("id", "banana"), ("question", "z?"), ("topic", "Z")] if with_asked else []),
    ):
        edited = [r | {field: value} if i == other else r for i, r in enumerate(lines)]
        path.write_text("".join(json.dumps(r) + "\n" for r in edited))
        code, _, err = call(capsys, command, "run")
        assert (
            code == 2
            and f"responses.jsonl, line {other + 1}: the id {edited[other]['id']!r} "
            "belongs to another question, or to none"
            in err
        )


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("manifest.json", lambda made: made["info"].update(kernels=["c"]), "field 'info.kernels'"),
        ("manifest.json", lambda made: made["info"].update(runs=3), "field 'info.runs'"),
        ("manifest.json", lambda made: made.update(info=5), "field 'info'"),
        ("asked.json", lambda asked: asked.update({"1": ["a?"]}), "asked.json: must hold an object of ids"),
    ],
)
def test_what_was_edited_in_a_run_is_noticed(fake, capsys, name, change, message):
    call(capsys, *RUN)
    path = Path("run") / name
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    code, _, err = call(capsys, "report", "run")
    assert code == 2 and message in err and "Traceback" not in err


@pytest.mark.parametrize("options", [
    ["run"], ["run", "--quantize", "int8", "--judge", "linear"], ["scorecard"],
], ids=" ".join)
def test_a_dry_run_imports_no_torch(options, tmp_path):
    code = ("import sys; from redlite.cli.redeval import main; code = main(sys.argv[1:]); "
            "sys.exit(code or 99 * ('torch' in sys.modules))")
    arguments = [options[0], "--model", "organism", "--dry-run", *options[1:]]
    assert subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_commands_that_run_no_model_import_no_torch(fake, capsys):
    """One process runs them all in turn, and stops at the first that fails or has imported it."""
    call(capsys, *RUN)
    commands = [
        ["--help"], *([name, "--help"] for name in program.COMMANDS), ["report", "run"],
        ["judge", "run", "--judge", "linear"], ["judge", "run", "--judge", "rules"], ["table", "run"],
        ["label", "run", "--n", "2"], ["export", "run", "--format", "csv"], ["compare", "run", "run"],
        ["inspect", "organism"],
    ]
    code = """if True:
        import json, sys
        from redlite.cli.redeval import main
        for arguments in json.loads(sys.argv[1]):
            try:
                code = main(arguments)
            except SystemExit as end:
                code = end.code
            if code or 'torch' in sys.modules:
                sys.exit(f'{arguments}: exit code {code}, torch imported: {"torch" in sys.modules}')
    """
    done = subprocess.run([sys.executable, "-c", code, json.dumps(commands)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
