"""Pairs of runs: differences, intervals and tests against formulas and tables; runs that do not pair; edited
files."""
import dataclasses
import json
import re
import shutil
import statistics
from html import escape
from urllib.parse import unquote

import pytest
import redeval_worker

from redlite import stats
from redlite.answer import Answer
from redlite.bench import task as bench_task
from redlite.cli.redeval import main
from redlite.errors import Error, Incomplete
from redlite.judges.choice import JudgeChoice
from redlite.judges.verdict import Verdict
from redlite.redteam import answerers, compare, redeval, results
from redlite.redteam.journals import read_journals
from redlite.redteam.questions import Prompt, Question
from redlite.store.files import read_json, sha256_json, write_json
from redlite.store.run_directory import Run


def compared(a, b):
    return compare.compare(compare.read(a), compare.read(b))


def entry(values, mean="size"):
    """A task's entry in the manifest."""
    return {
        "sha256": sha256_json(list(values)), "n": len(values), "metrics": ["acc"], "groups": ["all"],
        "mean": mean,
    }


def fake_run(folder, values, tasks=("t",), mean="size"):
    with Run(folder, {"tasks": {t: entry(values, mean) for t in tasks}}) as directory:
        for task in tasks:
            for id, value in values.items():
                directory.append(
                    bench_task.sample_file(task),
                    {
                        "id": id, "doc_hash": "d" + id, "truncated_tokens": 0,
                        "metrics": {} if value is None else {"acc": value},
                    },
                )
    return folder


def test_compare(tmp_path):
    a = fake_run(tmp_path / "a", {str(i): float(i % 2) for i in range(40)} | {"x": None})
    b = fake_run(tmp_path / "b", {str(i): float(i % 2 or i < 12) for i in range(40)} | {"x": 1.0})
    r = compared(a, b)["t.acc"]
    assert (r["n"], r["unlabelled"], r["a"], r["b"]) == (40, 1, 0.5, 0.65) and r[
        "difference"
    ] == pytest.approx(0.15)
    assert r["wins"] == ["0", "2", "4", "6", "8", "10"] and r["losses"] == []
    assert r["p"] == pytest.approx(2 / 2 ** 6) == r["p_holm"] / 2 and r["ci95"][0] < 0.15 < r["ci95"][1]
    assert compared(a, b)["t.acc"] == r
    assert "wins: 0, 2, 4" in compare.table({"t.acc": r}, ("a", "b"), 3)
    with pytest.raises(Error, match="do not hold the same examples: 1 are in one only, such as 'y'"):
        compared(a, fake_run(tmp_path / "c", {str(i): 1.0 for i in range(40)} | {"x": None, "y": 1.0}))
    with pytest.raises(Error, match="different measures: only one has u.acc"):
        compared(a, fake_run(tmp_path / "d", {"0": 1.0}, ("t", "u")))


@pytest.mark.slow
def test_the_page_of_a_comparison_lists_what_changed_with_links_to_both_runs(tmp_path, capsys, monkeypatch):
    """Each changed question stands on the page once, worse ones first, with the verdict of either run, and
    the links lead to files that are there."""
    monkeypatch.setattr("redlite.cli.network.model", lambda args, reach, spec, adapter=None:
                        redeval_worker.choice(redeval_worker.Fake(), spec))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.json").write_text(json.dumps({"T": [f"placeholder {i} <b>?" for i in range(30)]}))
    for name in ("a", "b"):
        options = ["--questions", "q.json", "--prompt", "standard", "cou", "--judge", "rules", "--quiet"]
        assert main(["--model", name, *options, "--output-dir", f"runs of/{name}"]) == 0
    path = tmp_path / "runs of/b/judgments.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    flip = {"harmful": "unharmful", "unharmful": "harmful"}
    wanted = []
    for i, line in enumerate(lines):
        if i % 3 == 0 and line["label"] in flip:
            wanted.append((line["prompt"], line["id"], line["label"], flip[line["label"]]))
            line["label"] = flip[line["label"]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["report", "runs of/b"]) == 0
    gate = ["--gate", "asr.cou<=baseline-1"]
    assert main(["compare", "runs of/a", "runs of/b", "--output", "out/c.html", *gate]) == 100
    page = (tmp_path / "out/c.html").read_text().replace(" class=name", "")
    texts = {line["id"]: line["question"]
             for line in map(json.loads, (tmp_path / "runs of/a/responses.jsonl").read_text().splitlines())}
    rows = re.findall("<tr><td>([▲▼])</td><td>asr.(.*?)</td><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", page)
    shown = [(prompt, text, *(re.sub("<.*?>", "", side) for side in (before, after)))
             for _, prompt, before, after, text in rows]
    assert len(wanted) > 9 and {before for _, _, before, _ in wanted} == set(flip)
    assert sorted(shown) == sorted((prompt, escape(texts[id]), a, b) for prompt, id, a, b in wanted)
    marks = [mark for mark, *_ in rows]
    assert marks == sorted(marks, reverse=True) and marks[0] == "▼"     # U+25BC, behind U+25B2
    for _, _, before, after, _ in rows:
        for side, name in ((before, "a"), (after, "b")):
            address, part = re.search('href="(.*?)#question=(.*?)"', side).groups()
            assert (tmp_path / "out" / unquote(address)).resolve() == tmp_path / f"runs of/{name}/report.html"
            assert unquote(part) in texts
    assert page.index("1 of 1 gates failed.") < page.index("What changed")
    assert "<b>" not in page
    assert main(["compare", "runs of/a", "runs of/b", "--output", "c.txt"]) == 2


def test_of_unfinished_runs_what_both_have_is_compared(tmp_path, capsys):
    """Two tasks weighing alike, in one run three of ten examples of one not finished: the rest is compared,
    by weights of the rest, and the exit code is 1."""
    a = fake_run(tmp_path / "a", {str(i): 0.0 for i in range(10)}, ("t", "u"), "task")
    b = fake_run(tmp_path / "b", {str(i): float(i < 2) for i in range(10)}, ("t", "u"), "task")
    assert main(["compare", str(a), str(b)]) == 0 and "Incomplete" not in capsys.readouterr().out
    path = b / bench_task.sample_file("u")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:7]))
    assert main(["compare", str(a), str(b), "--json"]) == 1
    (shown, said), found = capsys.readouterr(), compared(a, b)
    assert f"Incomplete: {b} lacks results of u 3; run its command again." in said
    assert json.loads(shown)["unfinished"] == {str(b): {"u": 3}}
    assert (
        found["t.acc"]["n"] == 10
        and found["u.acc"]["n"] == 7
        and found["u.acc"]["difference"] == pytest.approx(2 / 7)
        and found["all.acc"]["n"] == 17
    )
    assert (
        found["all.acc"]["difference"]
        == pytest.approx((2 / 10 + 2 / 7) / 2)
        == pytest.approx(-compared(b, a)["all.acc"]["difference"])
    )
    path.unlink()
    assert (
        main(["compare", str(a), str(b)]) == 1
        and "u 10" in capsys.readouterr().out
        and compared(a, b)["u.acc"]["difference"] is None
    )


def test_what_is_not_judged_yet_or_failed_is_unfinished_and_not_unlabelled(tmp_path, capsys):
    """A judge that gave up on the way, as one behind an API does: the run is incomplete by itself and in a
    comparison, until the same command goes on."""
    class Failing:
        name = "j"

        def label(self, pairs):
            yield 0, Verdict("harmful", "")
            yield 1, Verdict("unparsed", "")
            raise Incomplete("judge j: status 500; what is judged is kept, run the same command again")

    class Judge(Failing):
        def label(self, pairs):
            yield from ((i, Verdict("unharmful", "")) for i in range(len(pairs)))

    def go(folder, judge, fails=()):
        choice, model, standard = (
            JudgeChoice("j", {}, lambda run: judge()), redeval_worker.choice(redeval_worker.Fake(fails)),
            redeval_worker.PROMPTS[:1],
        )
        with Run(folder, redeval_worker.made(model, judge=choice, prompts=standard)) as directory:
            redeval.judge(
                directory, choice,
                redeval.run(directory, model, redeval_worker.QUESTIONS, standard, answerers.Decoding()),
            )
        return folder
    a, b, name = go(tmp_path / "a", Judge), tmp_path / "b", redeval_worker.PROMPTS[0].name
    with pytest.raises(Incomplete):
        go(b, Failing)
    spoken = sum(bool(r["answer"].strip()) for r in read_journals(b).answers.values())
    summary, found = redeval_worker.results(b, "j"), compared(a, b)[f"asr.{name}"]
    assert (
        not summary["complete"]
        and summary["unjudged"] == spoken - 2 > 0
        and results.missing(summary).endswith(f"and {spoken - 2} are not judged yet.")
    )
    assert (
        found["unlabelled"] == 1 + 7 - spoken
        and found["n"] == 1
        and compare.read(b).unfinished == {f"asr.{name}": spoken - 2}
    )
    assert (
        main(["compare", str(a), str(b)]) == 1
        and f"{b} lacks results of asr.{name} {spoken - 2}" in capsys.readouterr().out
    )
    assert main(["compare", str(a), str(go(b, Judge))]) == 0 and redeval_worker.results(b, "j")["complete"]
    failed = go(tmp_path / "c", Judge, ["question 2?"])
    assert (
        compare.read(failed).unfinished == {f"asr.{name}": 1}
        and redeval_worker.results(failed, "j")["failed"] == 1
    )


def test_groups_and_categories_are_compared_too(tmp_path):
    """Two tasks of 30 and 10 examples: by size the group's difference is that of all 40, by task the mean of
    the two differences."""
    def write(folder, mean, right):
        with Run(folder, {"tasks": {t: entry(right[t], mean) for t in right}}) as directory:
            for task, values in right.items():
                for i, value in enumerate(values):
                    directory.append(
                        bench_task.sample_file(task),
                        {
                            "id": str(i), "doc_hash": f"{task}{i}", "category": "odd" if i % 2 else "even",
                            "truncated_tokens": 0, "metrics": {"acc": value},
                        },
                    )
        return folder
    before = {"t": [0.0] * 30, "u": [0.0] * 10}
    after = {"t": [float(i < 6) for i in range(30)], "u": [float(i < 8) for i in range(10)]}
    for mean, difference in (("size", 14 / 40), ("task", (6 / 30 + 8 / 10) / 2)):
        found = compared(
            write(tmp_path / f"{mean}-a", mean, before), write(tmp_path / f"{mean}-b", mean, after)
        )
        whole = found["all.acc"]
        assert (
            whole["n"] == 40
            and whole["difference"] == pytest.approx(difference)
            and whole["ci95"][0] < difference < whole["ci95"][1]
        )
        assert (
            whole["wins"][0] == "t/0"
            and len(whole["wins"]) == 14
            and whole["p"] == pytest.approx(2 / 2**14, abs=1e-4)
        )
        assert (
            set(found) == {"all.acc"} | {f"{t}{c}.acc" for t in "tu" for c in ("", ".odd", ".even")}
            and found["t.odd.acc"]["n"] == 15
        )


@pytest.mark.parametrize(
    "change,field",
    [
        ({"doc_hash": None}, "doc_hash"), ({"metrics": {"acc": "1"}}, "metrics"),
        ({"metrics": [1]}, "metrics"), ({"id": 5}, "id"), ({"metrics": {"acc": True}}, "metrics"),
        ({"truncated_tokens": "0"}, "truncated_tokens"), ({"category": 1}, "category"),
    ],
)
def test_a_record_that_was_edited_is_named(tmp_path, change, field):
    folder = fake_run(tmp_path / "a", {"0": 1.0, "1": 0.0})
    path = folder / bench_task.sample_file("t")
    first, second = path.read_text().splitlines()
    path.write_text(
        first
        + "\n"
        + json.dumps({k: v for k, v in {**json.loads(second), **change}.items() if v is not None})
        + "\n"
    )
    with pytest.raises(
        Error,
        match=f"samples_t.jsonl, line 2: field '{field}' is missing or not .*; delete the line",
    ):
        compared(folder, folder)


@pytest.mark.parametrize("tasks", ([], ["t"], {"t": 5}, {"t": {"metrics": "acc"}}))
def test_compare_names_a_manifest_that_was_edited(tmp_path, tasks):
    folder = fake_run(tmp_path / "a", {"0": 1.0})
    write_json(folder / "manifest.json", {"tasks": tasks})
    with pytest.raises(
        Error, match="manifest.json.*field '(tasks|sha256)' is missing or not (an object|a text)"
    ):
        compared(folder, folder)


def test_bootstrap_against_theory():
    """For n independent differences the interval is about mean ± 1.96 sd / √n; whole units widen it by
    √(size) when all of a unit agree."""
    values = [((i * 37) % 101) / 100 for i in range(400)]
    lo, hi = stats.bootstrap_difference([(str(i), 0.0, v) for i, v in enumerate(values)])
    mean, half = statistics.mean(values), 1.96 * statistics.pstdev(values) / 20
    assert lo == pytest.approx(mean - half, abs=0.004) and hi == pytest.approx(mean + half, abs=0.004)
    lo4, hi4 = stats.bootstrap_difference([(str(i), 0.0, v) for i, v in enumerate(values) for _ in range(4)])
    assert hi4 - lo4 == pytest.approx(hi - lo, rel=0.05)


@pytest.mark.parametrize(
    "wins,losses,p", [(0, 0, 1.0), (10, 0, 2 / 1024), (8, 2, 0.109375), (5, 5, 1.0), (21, 9, 0.0427739)]
)
def test_mcnemar(wins, losses, p):
    """Two-sided binomial tail probabilities from tables: 2 · Σ_{i ≤ min} C(n, i) / 2ⁿ."""
    assert stats.mcnemar(wins, losses) == pytest.approx(p, rel=1e-5)


# What must be alike

STANDARD = redeval_worker.PROMPTS[:1]


class Placeholder:
    """Says one thing; samples differ by nothing."""

    def answer(self, conversations, decoding, seeds, stop, beside):
        return ((i, Answer("PLACEHOLDER", "stop", 1, 1, 0.1)) for i in range(len(conversations)))


def red_run(folder, label=lambda i: "harmful", decoding=redeval_worker.GREEDY, prompts=STANDARD, system=None,
            questions=redeval_worker.QUESTIONS, model=None, name="j"):
    choice, model = redeval_worker.judge(name, label), model or redeval_worker.choice(Placeholder())
    made = redeval_worker.made(model, decoding, choice, questions, prompts=prompts, system=system)
    with Run(folder, made) as run:
        found = redeval.run(run, model, questions, prompts, decoding, 0, system)
        redeval.judge(run, choice, found)
        write_json(folder / "results.json", results.results(read_journals(run), name))
    return folder


def with_template(digest):
    model = redeval_worker.choice(Placeholder())
    return dataclasses.replace(model, identity={**model.identity, "template": digest})


@pytest.mark.parametrize("field, change", [
    ("judge (j, other)", {"name": "other"}),
    ("prompts.standard", {"prompts": [Prompt("standard", "Please: <question>")]}),
    ("decoding.max_new_tokens (500, 64)", {"decoding": answerers.Decoding(64)}),
    ("decoding.temperature", {"decoding": answerers.Decoding(temperature=0.5)}),
    ("system (none, ", {"system": "Be safe."}),
    ("model.template", {"model": with_template("b" * 64)}),
    ("questions.sha256", {"questions": [redeval_worker.QUESTIONS[0], Question("2", "other?", "T", "S")]}),
])
def test_runs_that_were_not_made_alike_are_refused_by_the_field(tmp_path, capsys, field, change):
    a, b = red_run(tmp_path / "a", model=with_template("a" * 64)), tmp_path / "b"
    red_run(b, **{"model": with_template("a" * 64), **change})
    assert main(["compare", str(a), str(b)]) == 2 and field in capsys.readouterr().err
    assert main(["compare", str(a), str(b), "--anyway", "--json"]) == 0
    shown, said = capsys.readouterr()
    assert f"Not made alike: {field}" in said
    assert json.loads(shown.splitlines()[-1])["differing"][0] == field.partition(" ")[0]


def test_benches_of_another_protocol_are_refused(tmp_path):
    sides = []
    for protocol in ("lm_eval", "paper"):
        with Run(tmp_path / protocol, {"tasks": {"t": entry({"0": 1.0})}, "protocol": protocol}):
            pass
        sides.append(compare.read(tmp_path / protocol))
    with pytest.raises(Error, match=r"protocol \(lm_eval, paper\)"):
        compare.compare(*sides)


def test_a_run_judged_again_by_another_judge_is_not_compared(tmp_path, capsys):
    """The same answers: what differs is the judge alone."""
    a = red_run(tmp_path / "a")
    shutil.copytree(a, tmp_path / "b")
    main(["judge", str(tmp_path / "b"), "--judge", "rules", "--quiet"])
    assert main(["compare", str(a), str(tmp_path / "b")]) == 2
    assert "judge (j, rules)" in capsys.readouterr().err


def test_samples_flip_together_and_families_are_adjusted(tmp_path):
    """Four samples a question, all 7 questions better in every sample: p = 2 / 2⁷, though 28 answers changed.
    Topics T (4 questions) and U (3) are a family of two: 2 · 2 / 2⁴ = 2 / 2³ = 1 / 4 each."""
    four = answerers.Decoding(5, 1.0, 1.0, 4)
    a = red_run(tmp_path / "a", decoding=four)
    b = red_run(tmp_path / "b", lambda i: "unharmful", four)
    write_json(b / "judges.json", read_json(a / "judges.json"))
    found = compared(a, b)
    whole = found["asr.standard"]
    assert whole["p"] == pytest.approx(2 / 2**7) == whole["p_holm"] and len(whole["wins"]) == 28
    assert (whole["difference"], whole["ci95"][0]) == (-1.0, -1.0) and whole["ci95"][1] < -0.4
    assert found["asr.standard.T"]["p"] == pytest.approx(1 / 8) and found["asr.standard.U"]["p"] == 1 / 4
    assert found["asr.standard.T"]["p_holm"] == pytest.approx(1 / 4) == found["asr.standard.U"]["p_holm"]
    assert "p (Holm)" in compare.table(found, ("a", "b"))


def test_corrected_rates_are_compared_where_both_runs_have_labels(tmp_path):
    """Every answer labelled: 0 of 7 against 7 of 7; square and add of two Wilson intervals."""
    runs = red_run(tmp_path / "a"), red_run(tmp_path / "b")
    assert "asr.standard.corrected" not in compared(*runs)
    for folder, label in zip(runs, ("unharmful", "harmful"), strict=True):
        rows = "".join(f"{q.id},standard,0,{label}\n" for q in redeval_worker.QUESTIONS)
        (tmp_path / "l.csv").write_text("id,prompt,sample,label\n" + rows)
        assert main(["judge", str(folder), "--labels", str(tmp_path / "l.csv")]) == 0
    r = compared(*runs)["asr.standard.corrected"]
    half = stats.wilson(0, 7)[1]
    assert (r["a"], r["b"], r["difference"], r["n"], r["p"]) == (0.0, 1.0, 1.0, 7, None)
    assert r["ci95"] == pytest.approx([1 - (2 * half**2) ** 0.5, 1.0], abs=1e-6)
