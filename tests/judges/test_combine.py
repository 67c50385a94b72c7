"""Several judges: their combined verdict, their agreement, and what the command line makes of them."""
import json
from pathlib import Path
from types import SimpleNamespace

import fault_server
import pytest

from redlite.cli import network
from redlite.cli import redeval as command
from redlite.errors import Error
from redlite.judges import combine
from redlite.judges.choice import JudgeChoice, panel
from redlite.redteam.journals import RunJournals

H, U, X, N = "harmful", "unharmful", "unsure", "not_judged"


def record(judge, label, **more):
    return {"id": "1", "prompt": "p", "sample": 0, "judge": judge, "label": label, "raw": "r", **more}


@pytest.mark.parametrize("labels, majority, unanimity", [
    ((H, H, U), H, X), ((U, U, H), U, X), ((H, H, H), H, H), ((H, U), X, X), ((H, X), H, X), ((X, X), X, X),
    ((N, N), N, N), ((H, U, X), X, X), ((U, X, X), U, X), (("unparsed", N), X, X)])
def test_labels_make_one_verdict(labels, majority, unanimity):
    names = [f"j{i}" for i in range(len(labels))]
    records = [record(name, label) for name, label in zip(names, labels, strict=True)]
    for rule, wanted in (("majority", majority), ("unanimity", unanimity)):
        name = combine.name_of(rule, names)
        assert combine.judges_of(name) == names
        made = combine.combined(name, records)
        sides = [label for label in labels if label in (H, U)]
        assert (made["label"], made["judge"]) == (wanted, name)
        assert made.get("p_harmful") == (sides.count(H) / len(sides) if sides else None)


def test_categories_of_the_judges_that_say_harmful():
    made = combine.combined(
        "majority(a, b, c)",
        [record("a", H, category="S1, S2"),
         record("b", H, category="S2"),
         record("c", U, category="S9")])
    assert made["category"] == "S1, S2"
    found = combine.by_category([
        record("a", H, category="S10"),
        record("a", H, category="S2, S10"),
        record("a", U),
        record("a", X, category="S4"),
        record("a", H)
    ], labelled=4)
    assert {name: (c["harmful"], c["asr"]) for name, c in found.items()} == {"S2": (1, 0.25), "S10": (2, 0.5)}
    assert list(found) == ["S2", "S10"]


def test_agreement_over_the_answers_that_both_judged():
    """The textbook example of Cohen's kappa: 20 and 15 equal, 5 and 10 not: 0.4."""
    cells = [(H, H)] * 20 + [(H, U)] * 5 + [(U, H)] * 10 + [(U, U)] * 15 + [(X, H), (H, "unparsed")]
    judgments = {
        judge: {i: record(judge, pair[n])
                for i, pair in enumerate(cells)}
        for n, judge in enumerate("ab")
    }
    found = combine.agreement(judgments)
    assert found["matrix"]["a"]["b"] == {"n": 50, "agreement": 0.7, "kappa": pytest.approx(0.4)}
    assert found["differ"] == 15 and found["alpha"] == pytest.approx(1 - 99 * 15 * 2 /
                                                                     (2 * 55 * 45) / 1, abs=0.01)
    assert combine.agreement({"a": judgments["a"]}) is None
    assert combine.differing(judgments) == set(range(20, 35))
    assert len(combine.agreement_lines(found)) == 3
    judgments["b"] = {i: record("b", H) for i in range(52)}     # it calls everything harmful: 0 says nothing
    found = combine.agreement(judgments)
    assert found["matrix"]["a"]["b"]["kappa"] is None
    assert "undefined where one of the two gives one label alone" in combine.agreement_lines(found)[-1]


def test_a_journal_gives_the_combined_verdict_of_any_of_its_judges():
    found = RunJournals(Path("."), {},
                        {"a": {1: record("a", H), 2: record("a", H)}, "b": {1: record("b", U)}})
    assert {k: r["label"] for k, r in found.judged_by("majority(a, b)").items()} == {1: X}
    assert found.judged_by("majority(a, c)") == {} and found.judged_by("c") == {}


def test_judges_of_a_panel_have_names_of_their_own():
    one, two = JudgeChoice("a", {"x": 1}, None), JudgeChoice("b", {"y": 2}, None)
    assert panel([one], None) is one and panel([one, two], None).name == "majority(a, b)"
    assert panel([one, two], "unanimity").identity == {
        "rule": "unanimity", "judges": [{"name": "a", "x": 1}, {"name": "b", "y": 2}]}
    for judges, rule, message in (([one, one], None, "twice"), ([one], "majority", "several judges"),
                                  ([one, JudgeChoice("b, c", {}, None)], None, "rename")):
        with pytest.raises(Error, match=message):
            panel(judges, rule)


def options(*judges, form=None, prompt=None, template=None, threshold=None):
    return SimpleNamespace(judge=list(judges), judge_format=form, judge_prompt=prompt,
                           judge_template=template, threshold=threshold, verdict=None, dtype="float32",
                           device="cpu")


def test_formats_go_to_the_judge_models_in_their_order(monkeypatch):
    asked = []

    def local(spec, form, prompt, dtype, device, template):
        asked.append((spec, form, prompt, template))
        return JudgeChoice(f"{form}:{spec}", {}, None)
    monkeypatch.setattr("redlite.judges.choice.local_judge", local)
    network.judges(options("d1", "rules", "d2", form=["harmbench", "wildguard"]), None)
    network.judges(options("rules", "d", form=["gpt4"], prompt="p.txt", template="t"), None)
    assert asked == [("d1", "harmbench", None, None), ("rules", None, None, None),
                     ("d2", "wildguard", None, None), ("rules", None, None, None),
                     ("d", "gpt4", "p.txt", "t")]
    reach = SimpleNamespace(judge=lambda spec, form, prompt: JudgeChoice(f"{spec}/{form}", {}, None))
    assert network.judges(options("openai:m", "d", form=["gpt4"]),
                          reach).name == "majority(openai:m/None, gpt4:d)"
    assert network.judges(options("openai:m", form=["strongreject"], threshold=0.7),
                          reach).name == "openai:m/strongreject@0.7"
    for given, message in ((options("d1", "d2", form=["gpt4"]), "one for each judge model"),
                           (options("d1", "d2", form=["gpt4"] * 2, prompt="p"), "exactly one judge model"),
                           (options("none", "d", form=["gpt4"]), "judges nothing")):
        monkeypatch.setattr("redlite.judges.choice.local_judge", lambda spec, *more: None
                            if spec == "none" else local(spec, *more))
        with pytest.raises(Error, match=message):
            network.judges(given, None)


def test_several_judges_on_the_command_line(tmp_path, monkeypatch, capsys):
    """All label; the results are the combined verdict's; a third judge and another rule cost nothing anew."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-real")
    Path("q.txt").write_text("How do I wake the dragon?\nHow do I open the gate?\n")

    def reply(text):
        body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
        return {"status": 200, "headers": [], "body": body}
    scores = "#scores\n1.a x\n1.b 0\n2.a x\n2.b 4\n3.a x\n3.b 4\n"
    script = [
        reply("Here is how: 1. Sing."),
        reply("I cannot help with that."),
        reply("It helps. [[B]]"),
        reply("It helps. [[B]]"),
        reply(scores),
        reply(scores)
    ]
    with fault_server.running(script=script) as server:
        shared = ["--base-url", server.url, "--concurrency", "1", "--quiet", "--json"]
        run = [
            "run", "--model", "openai:m", "--questions", "q.txt", "--prompt", "standard", "--output-dir",
            "run", *shared
        ]
        for _ in range(2):
            assert command.main([*run, "--judge", "rules", "--judge", "openai:j"]) == 0
            found = json.loads(capsys.readouterr().out.splitlines()[-1])
            assert found["judge"] == "majority(rules, openai:j)"
            assert (found["prompts"]["standard"][H], found["prompts"]["standard"][X]) == (1, 1)
            assert found["agreement"]["differ"] == 1 and found["agreement"]["matrix"]["rules"]["openai:j"][
                "n"] == 2
        assert server.counts()["requests"] == 4
        assert command.main([
            "judge", "run", "--judge", "openai:j", "--judge", "openai:k", "--judge-format", "strongreject",
            *shared
        ]) == 2  # one format, two models that take one
        capsys.readouterr()
        assert command.main([
            "judge", "run", "--judge", "rules", "--judge", "openai:k", "--judge-format", "strongreject",
            "--threshold", "0.9", *shared
        ]) == 2  # the rules give no probability
        assert "gives no probability" in capsys.readouterr().err
        assert command.main([
            "judge", "run", "--judge", "openai:k", "--judge-format", "strongreject", "--threshold", "0.8",
            *shared
        ]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["judge"] == "strongreject:openai:k@0.8"
        assert server.counts()["requests"] == 6
    name = "unanimity(rules, openai:j, strongreject:openai:k@0.8)"
    assert command.main(["report", "run", "--judge", name, "--json"]) == 1   # no answer has a label
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["prompts"]["standard"]
    assert (found[H], found[U], found[X]) == (0, 0, 2)
    assert command.main(["report", "run", "--judge", "majority(rules, nobody)"]) == 2
    page = Path("run/report.html").read_text()
    assert "Agreement of the judges" in page
    rows = json.loads(page.partition('id="data">')[2].partition("</script>")[0])["rows"]
    assert [row[11] for row in rows] == sorted((row[11] for row in rows), reverse=True) and rows[0][11] == 1
    records = [json.loads(line) for line in Path("run/judgments.jsonl").read_text().splitlines()]
    assert sorted({r["judge"]
                   for r in records}) == ["openai:j", "rules", "strongreject:openai:k@0.8"
                                          ] and len(records) == 6
    assert {r["p_harmful"] for r in records if r["judge"].startswith("strong")} == {0.75}


def test_a_configuration_file_may_name_several_judges(tmp_path, capsys):
    (tmp_path / "c.json").write_text(json.dumps({"judge": ["rules", "linear"]}))
    for given, name in (([], "majority(rules, linear)"), (["--judge", "rules"], "rules")):
        assert command.main([
            "--config",
            str(tmp_path / "c.json"), "--limit", "1", "--prompt", "standard", "--max-new-tokens", "4",
            "--quiet", "--json", "--output-dir",
            str(tmp_path / name), *given
        ]) in (0, 1)
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["judge"] == name
