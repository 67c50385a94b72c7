"""RED-EVAL's loop: what is asked, resuming, judging, counting; with a made-up answerer and with a tiny
LLaMA."""
import json
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
import tiny
from redeval_worker import PROMPTS, QUESTIONS, Fake, characters, choice, go, made, records
from redeval_worker import labels as run_labels
from redeval_worker import results as run_results

from redlite import stats
from redlite.answer import Answer
from redlite.errors import Error
from redlite.judges import rules
from redlite.judges.choice import JudgeChoice
from redlite.judges.verdict import Verdict
from redlite.redteam import answerers, journals, redeval, results
from redlite.redteam import questions as redteam_questions
from redlite.redteam.answerers import Decoding, LocalAnswerer, ModelChoice
from redlite.redteam.journals import AnswerKey, Combined, read_journals
from redlite.redteam.questions import Prompt, Question
from redlite.store.files import read_json, sha256_json, write_json
from redlite.store.run_directory import Run, difference
from redlite.store.text import natural

HERE = Path(__file__).parents[1]


# A made-up answerer, see redeval_worker.py

def test_what_is_asked_and_what_is_kept(tmp_path):
    fake = Fake()
    answers = go(tmp_path, fake, system="Be nice.")
    assert list(answers) == [(q.id, p.name, 0) for p in PROMPTS for q in QUESTIONS]
    (conversations, decoding, seeds, stop), (others, *_, cou_stop) = fake.asked
    assert conversations[0] == [
        {"role": "system", "content": "Be nice."}, {"role": "user", "content": "question 1?"}]
    assert others[6][1]["content"] == "Red-LM: x\n\nRed-LM: question 7?\n\nBase-LM:"
    assert (
        decoding == Decoding(500, 0.0, 1.0, 1)
        and len(set(seeds)) == 7
        and stop == ()
        and cou_stop == ("\nRed-LM:",)
    )
    record = answers["2", "cou", 0]
    assert set(record) == {
        "id", "question", "topic", "subtopic", "prompt", "sample", "text", "answer", "finish",
        "prompt_tokens", "completion_tokens", "seconds",
    }
    assert record["text"].startswith(("(Internal thought", "I cannot")) and record["answer"].startswith(
        ("Sure", "I cannot")
    )
    assert (record["question"], record["topic"], record["subtopic"], record["finish"]) == (
        "question 2?", "U", "S", "stop")
    assert [json.loads(line) for line in records(tmp_path)] == [
        json.loads(line)
        for line in sorted(map(lambda r: json.dumps(r, ensure_ascii=False), answers.values()))
    ]


def test_nothing_is_asked_twice_and_errors_are_asked_again(tmp_path):
    go(tmp_path, Fake(fails=["question 2?"]))
    first = records(tmp_path)
    assert run_results(tmp_path, "rules")["complete"] is False
    again = Fake()
    answers = go(tmp_path, again)
    assert [len(c) for c, *_ in again.asked] == [1] and again.asked[0][0][0][-1]["content"] == "question 2?"
    assert answers["2", "standard", 0]["finish"] == "stop" and len(records(tmp_path)) == len(first) + 1
    assert run_results(tmp_path, "rules")["complete"] is True
    assert len(records(tmp_path, "judgments.jsonl")) == 14

    def never(run):
        raise AssertionError("a finished run loads no model")
    model = ModelChoice("fake", choice(None).identity, never, characters)
    with Run(tmp_path, made(model)) as run:
        assert redeval.run(run, model, QUESTIONS, PROMPTS, Decoding()).answers == answers


def test_wherever_it_stops_it_ends_the_same(tmp_path):
    go(tmp_path / "whole", Fake())
    wanted = (
        records(tmp_path / "whole"), records(tmp_path / "whole", "judgments.jsonl"),
        run_results(tmp_path / "whole", "rules"),
    )
    for stop in range(0, 14, 3):
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            go(folder, Fake(dies_after=stop))
        assert len(records(folder) if (folder / "responses.jsonl").exists() else []) == stop
        go(folder, Fake())
        assert (records(folder), records(folder, "judgments.jsonl"), run_results(folder, "rules")) == wanted


def test_samples_have_seeds_of_their_own_that_nothing_else_changes(tmp_path):
    def seeds(questions, seed=0, samples=3):
        fake = Fake()
        go(
            tmp_path / f"{len(questions)} {seed}", fake, Decoding(8, 1.0, 1.0, samples), seed, questions,
            prompts=PROMPTS[:1],
        )
        keys = [(q.id, s) for s in range(samples) for q in questions]
        return dict(zip(keys, fake.asked[0][2], strict=True))
    whole = seeds(QUESTIONS)
    assert len(set(whole.values())) == 21
    assert seeds(QUESTIONS[2:4]).items() <= whole.items() and not set(seeds(QUESTIONS, 1).values()) & set(
        whole.values()
    )


@pytest.mark.parametrize(
    "values",
    [
        dict(max_new_tokens=0), dict(samples=0), dict(temperature=-1.0), dict(temperature=float("nan")),
        dict(top_p=0.0), dict(top_p=1.5), dict(samples=2),
    ],
)
def test_decoding_that_makes_no_sense(values):
    with pytest.raises(Error):
        Decoding(**values)


# A tiny LLaMA

def test_a_model_answers_the_same_in_any_batch_and_after_any_stop(tmp_path):
    lm = tiny.lm(5, max_batch=4)
    decoding = Decoding(12, 0.9, 0.95, 2)
    answers = go(tmp_path / "whole", LocalAnswerer(lm), decoding)
    assert len({r["text"] for r in answers.values()}) > 20 and all(
        r["completion_tokens"] <= 12 for r in answers.values()
    )

    class Stopping(LocalAnswerer):
        def answer(self, *arguments):
            stream = super().answer(*arguments)
            return (next(stream) for _ in range(5))  # gives up after five
    go(tmp_path / "parts", Stopping(tiny.lm(5), 3), decoding, judge=None)
    assert len(records(tmp_path / "parts")) == 10
    again = go(tmp_path / "parts", LocalAnswerer(tiny.lm(5), 1), decoding)
    assert {k: (r["text"], r["finish"], r["completion_tokens"]) for k, r in again.items()} == {
        k: (r["text"], r["finish"], r["completion_tokens"]) for k, r in answers.items()
    }


def test_greedy_answers_are_the_argmax_of_the_logits():
    lm = tiny.lm(3)
    conversation = [{"role": "user", "content": "Why?"}]
    (_, reply), = LocalAnswerer(lm).answer([conversation], Decoding(10), [0], (), [])
    ids = lm.template.encode(conversation, True).ids
    for _ in range(reply.completion_tokens):
        ids.append(int(lm.logits(ids)[-1].argmax()))
    start = len(ids) - reply.completion_tokens
    assert reply.prompt_tokens == start and reply.text == lm.tokenizer.decode(
        i for i in ids[start:] if i != tiny.EOS
    )
    assert reply.finish == ("stop" if ids[-1] == tiny.EOS else "length")


def test_a_prompt_too_long_is_known_before_anything_is_answered(tmp_path):
    lm = tiny.lm(max_positions=64)
    with pytest.raises(Error, match=r"context of 64 tokens .* prompt of 104: .*question 1\?"):
        go(
            tmp_path, LocalAnswerer(lm), Decoding(4),
            prompts=[PROMPTS[0], Prompt("long", "x" * 90 + "<question>")], questions=QUESTIONS[:1],
        )
    assert not (tmp_path / "responses.jsonl").exists()


# Judging and counting

def test_judges_are_kept_apart_and_what_was_not_said_is_not_judged(tmp_path):
    answers = go(tmp_path, Fake(fails=["question 2?"]))
    labels = run_labels(tmp_path)
    assert ("2", "standard", 0) not in labels and labels["3", "cou", 0] == "not_judged"
    for key, label in labels.items():
        if key[0] != "3":
            assert label == (
                "unharmful" if answers[key]["answer"] == "I cannot help with that." else "harmful"
            )

    seen = []

    class Other:
        def label(self, pairs):
            seen.extend(pairs)
            return ((i, Verdict("unparsed", "?")) for i in reversed(range(len(pairs))))
    other = JudgeChoice("other", {"sha256": "1"}, lambda run: Other())
    with Run(tmp_path) as run:
        redeval.judge(run, other, read_journals(run))
    assert ("question 1?", answers["1", "cou", 0]["answer"]) in seen and not any(
        "Red-LM" in q + a or "Internal" in a for q, a in seen
    )
    assert run_results(tmp_path, "other")["prompts"]["cou"]["unparsed"] == 6
    assert run_labels(tmp_path) == labels
    another = JudgeChoice("other", {"sha256": "2"}, lambda run: Other())
    with Run(tmp_path) as run, pytest.raises(Error, match="'other' of this run had other settings: sha256"):
        redeval.judge(run, another, read_journals(run))


def answer(id, prompt="p", topic="", sample=0):
    return AnswerKey(id, prompt, sample), {
        "id": id, "prompt": prompt, "sample": sample, "topic": topic, "finish": "stop",
        "text": "a", "answer": "a"}


def test_rates_intervals_and_bounds():
    answers = dict(answer(str(i), topic="T" if i < 6 else "U") for i in range(10))
    labels = (
        ["harmful"] * 3 + ["unharmful"] * 2 + ["unparsed"] + ["harmful", "unharmful", "not_judged"]
    )  # the tenth has none
    labelled = {AnswerKey(str(i), "p", 0): {"label": label} for i, label in enumerate(labels)}
    found = results.summarize(answers, labelled)["p"]
    assert (
        found["asr"], found["n"], found["harmful"], found["unharmful"], found["unparsed"],
        found["not_judged"],
    ) == (4 / 7, 10, 4, 3, 1, 2)
    assert found["ci95"] == list(stats.wilson(4, 7)) and found["bounds"] == [0.4, 0.7]
    assert (
        found["by_topic"]["T"]["asr"] == 0.6
        and found["by_topic"]["T"]["bounds"] == [0.5, 4 / 6]
        and found["by_topic"]["U"]["asr"] == 0.5
    )
    nothing = results.summarize(dict([answer("1")]), {})["p"]
    assert (
        nothing["asr"] is None
        and nothing["ci95"] == [0, 1] == nothing["bounds"]
        and nothing["by_topic"] == {}
    )


@pytest.mark.parametrize(
    "name, line, message",
    [
        ("responses.jsonl", {"id": 3}, r"responses\.jsonl, line 15: field 'id' is missing or not a text"),
        ("responses.jsonl", {"finish": None}, "line 15: field 'finish'"),
        ("responses.jsonl", {"topic": ["T"]}, "line 15: field 'topic' is missing or not a text"),
        ("responses.jsonl", {"sample": True}, "line 15: field 'sample' is missing or not a whole number"),
        ("responses.jsonl", {}, "line 15: holds question '1', prompt 'cou', sample 0 a second time"),
        (
            "responses.jsonl", {"sample": 7},
            "sample 7 of an answer to the prompt 'cou', which the manifest does not know",
        ),
        ("responses.jsonl", {"prompt": "x"}, "the prompt 'x', which the manifest does not know"),
        (
            "judgments.jsonl", {"label": "bad"},
            "line 15: field 'label' is missing or not harmful or unharmful or unsure or unparsed or not_judg",
        ),
        ("judgments.jsonl", {}, "line 15: holds"),
    ],
)
def test_damaged_journals_are_named(tmp_path, name, line, message):
    go(tmp_path, Fake())
    path = tmp_path / name
    record = next(
        r for r in map(json.loads, records(tmp_path, name)) if (r["id"], r["prompt"]) == ("1", "cou")
    )
    with open(path, "a") as file:
        file.write(json.dumps({**record, **line}) + "\n")
    with pytest.raises(Error, match=message):
        run_results(tmp_path, "rules")


@pytest.mark.parametrize(
    "name, field, value",
    [
        ("manifest.json", "judge", None), ("manifest.json", "model", "fake"), ("manifest.json", "seed", True),
        ("manifest.json", "prompts", ["cou"]), ("manifest.json", "info", []), ("results.json", "judge", 5),
        ("judges.json", "rules", 1),
    ],
)
def test_edited_files_are_named(tmp_path, name, field, value):
    go(tmp_path, Fake())
    write_json(tmp_path / "results.json", run_results(tmp_path, "rules"))
    assert journals.last_judge(tmp_path) == "rules"
    path = tmp_path / name
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(Error, match=rf"{name}: (field '{field}|must hold an object)"):
        journals.read_made(tmp_path)
        journals.read_judges(tmp_path)
        journals.last_judge(tmp_path)


def test_a_device_that_is_not_there_is_known_before_anything_is_written():
    with pytest.raises(Error, match="device 'nowhere' cannot be used: .*use device 'cpu'"):
        answerers.local_model("organism", "float32", "nowhere")


# The manifest

def test_the_manifest_changes_with_whatever_decides_the_results():
    base = made(choice(None))
    assert (
        base["questions"]["of"] == 7
        and base["decoding"]["max_new_tokens"] == 500
        and base["judge"]["sha256"] == rules.rules_fingerprint()["sha256"]
    )
    renamed = [*QUESTIONS[:-1], Question("7", "question 7?", "T", "other")]
    variants = {
        "seed": made(choice(None), seed=1), "model.name": made(choice(None, "b")),
        "decoding.temperature": made(choice(None), Decoding(temperature=1.0)),
        "questions.sha256": made(choice(None), questions=renamed), "questions.n": made(choice(None), limit=3),
        "judge.name": made(choice(None), judge=None),
        "prompts.cou": made(choice(None), prompts=[PROMPTS[0], Prompt("cou", "<question>!")]),
        "system": made(choice(None), system="x"),
    }
    for field, variant in variants.items():
        assert difference(base, variant).field == field
    assert difference(base, made(choice(None), limit=99)) is None and "x" * 3 not in json.dumps(
        made(choice(None), system="xxx")
    )


def test_the_published_row_needs_the_same_questions_and_prompts():
    table = read_json(redteam_questions.DATA / "published.json")
    assert sum(r["asr"]["dangerousqa"]["cou"] for r in table["rows"][2:]) / 8 == pytest.approx(
        0.8645, abs=2e-3
    )  # the abstract's mean
    sha256, own = (
        table["question_sets"]["dangerousqa"],
        {p: sha256_json(redteam_questions.load_prompt(p).text) for p in redteam_questions.PROMPTS},
    )
    for name in ("vicuna-7b-v1.3", "Vicuna_7B.gguf"):
        assert results.published(name, sha256, own) == {
            "model": "Vicuna-7B", "question_set": "dangerousqa",
            "asr": {"standard": 0.025, "cot": 0.532, "cou": 0.875},
        }
    assert results.published("vicuna-7b", sha256, {**own, "cou": "x"})["asr"] == {
        "standard": 0.025, "cot": 0.532}
    assert (
        results.published("vicuna-70b", sha256, own) is None
        and results.published("vicuna-7b", "x", own) is None
    )
    assert results.published("vicuna-7b", table["question_sets"]["harmfulqa"], own) is None


@pytest.mark.skipif(not (HERE.parents[1] / "shared").is_dir(), reason="needs ../shared/benchmarks")
@pytest.mark.parametrize("name", ["dangerousqa", "harmfulqa"])
def test_the_published_sets_are_known_by_their_content(name):
    found = redteam_questions.load_questions(name, HERE.parents[1] / "shared" / "benchmarks")
    assert (
        redeval.questions_fingerprint(found)
        == read_json(redteam_questions.DATA / "published.json")["question_sets"][name]
    )


def test_the_plan_counts_without_loading():
    def load(run):
        raise AssertionError
    model = ModelChoice("m", {}, load, characters, seconds=lambda p, n: p + n)
    found = redeval.plan(model, QUESTIONS, PROMPTS, Decoding(10, 1.0, 1.0, 2), "sys", 3)
    lengths = sum(3 + len(p.fill(q.question)) for p in PROMPTS for q in QUESTIONS) * 2
    assert found == {
        "requests": 28, "already_done": 3, "prompt_tokens": lengths, "new_tokens_at_most": 280,
        "seconds_at_most": lengths + 280, "cost_at_most": 0.0,
    }


def test_the_table_is_aligned_and_says_what_is_missing(tmp_path):
    go(tmp_path, Fake(fails=["question 2?"]))
    summary = run_results(tmp_path, "rules")
    text = results.table(summary, compare=True)
    head, *rows = text.splitlines()[1:4]
    assert (
        len({len(line) for line in (head, *rows)}) == 1
        and head.split()[:2] == ["prompt", "ASR"]
        and rows[0].split()[0] == "standard"
    )
    assert (
        "Incomplete: 14 of 14 answers" in text and "Vicuna-7B" in text and "compare sizes, not digits" in text
    )


def test_ten_comes_after_nine():
    assert sorted(["10", "9", "a10", "²", "a9", "a", "١"], key=natural) == [
        "9", "10", "a", "a9", "a10", "²", "١"]


# Killed for real

@pytest.mark.slow
def test_killed_again_and_again_it_ends_like_an_unbroken_run(tmp_path):
    whole, folder, rng = tmp_path / "whole", tmp_path / "killed", random.Random(0)
    subprocess.run(
        [sys.executable, HERE / "helpers/redeval_worker.py", whole, "0"], check=True,
        stdout=subprocess.DEVNULL,
    )
    stops = []
    while True:
        process = subprocess.Popen(
            [sys.executable, HERE / "helpers/redeval_worker.py", folder, "0.015"], stdout=subprocess.PIPE
        )
        assert process.stdout.readline() == b"ready\n"
        # later and later, so that a busy machine gets to the end as well
        time.sleep(rng.uniform(0.03, 0.25) * 1.02 ** len(stops))
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        if process.wait() == 0:
            break
        stops.append(
            [
                len(records(folder, name)) if (folder / name).exists() else 0
                for name in ("responses.jsonl", "judgments.jsonl")
            ]
        )
    assert len(stops) >= 5 and stops == sorted(stops)
    assert any(0 < answers < 56 for answers, _ in stops) and any(0 < judged < 56 for _, judged in stops)
    for name in ("responses.jsonl", "judgments.jsonl"):
        assert records(folder, name) == records(whole, name)
    assert run_results(folder, "rules") == run_results(whole, "rules")


def test_importing_it_imports_no_torch():
    code = (
        "import sys, redlite.redteam.redeval, redlite.cli.redeval, redlite.cli.results_files; "
        "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_folder_without_permission_and_a_full_disk_are_one_line():
    program = (
        "import errno, sys\nfrom redlite.cli import program\ndef body(arguments):\n    {}\n"
        "sys.exit(program.guarded('redeval', body))")
    denied = subprocess.run(
        [
            sys.executable, "-c",
            program.format("raise PermissionError(errno.EACCES, 'Permission denied', 'runs/manifest.json')"),
        ],
        capture_output=True, text=True,
    )
    assert (denied.returncode, denied.stderr) == (
        2, "redeval: runs/manifest.json: Permission denied; correct it, or name another\n")
    with open("/dev/full", "w") as full:
        said = subprocess.run(
            [sys.executable, "-c", program.format("print('table'); return 0")], stdout=full,
            stderr=subprocess.PIPE, text=True,
        )
    assert said.returncode == 1 and said.stderr.count("\n") == 1 and "No space left" in said.stderr


def test_the_texts_of_a_run_stay_on_the_disk(tmp_path):
    """21 answers of 100,000 characters: the records that their lines hold, in little memory.

    An answer that failed gives way to the later one.
    """
    go(tmp_path, Fake())
    path = tmp_path / "responses.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    long = [{**record, "text": "x" * 100_000} for record in found]
    failed = {**long[0], "text": "", "answer": "", "finish": "error"}
    path.write_text("".join(json.dumps(record) + "\n" for record in [failed, *long]))

    def kept(place):
        tracemalloc.start()
        journals = read_journals(place)
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert size < 300_000 < sum(len(record["text"]) for record in long)
        return journals
    assert list(kept(tmp_path).answers.values()) == long
    assert results.results(read_journals(tmp_path), "rules")["answers"] == len(long)
    with Run(tmp_path) as directory:
        answers = kept(directory).answers
        key = next(iter(answers))
        assert answers[key] == long[0]
        later = {**long[0], "answer": "later"}
        answers.add(key, directory.append("responses.jsonl", later))
        assert answers[key] == later and len(answers) == len(long)


def test_a_panel_has_the_answers_that_all_its_judges_judged():
    def record(id, judge, label):
        return {"id": id, "prompt": "p", "sample": 0, "judge": judge, "label": label, "raw": ""}
    keys = [AnswerKey(id, "p", 0) for id in "abc"]
    found = Combined("majority(x, y)", [{key: record(key.id, "x", "harmful") for key in keys},
                                        {key: record(key.id, "y", "harmful") for key in keys[1:]}])
    assert list(found) == keys[1:] and len(found) == 2
    assert found[keys[1]]["label"] == "harmful" and found.get(keys[0]) is None and keys[0] not in found


def test_answers_are_judged_some_at_a_time(tmp_path, monkeypatch):
    """A run may hold a million answers. The judge is loaded once, and a progress line counts all."""
    go(tmp_path, Fake())
    monkeypatch.setattr(redeval, "TOGETHER", 4)
    asked, loaded, told = [], [], []

    class Counts:
        name = "counts"

        def label(self, pairs):
            asked.append(pairs)
            return ((i, Verdict("harmful", "r")) for i in range(len(pairs)))

    def load(run):
        loaded.append(run)
        return Counts()
    with Run(tmp_path) as run:
        found = read_journals(run)
        redeval.judge(run, JudgeChoice("counts", {}, load), found, lambda *said: told.append(said))
        assert set(found.judgments["counts"]) == set(found.answers)
    said = [(r["question"], r["answer"]) for r in found.answers.values() if r["answer"]]
    assert [pair for pairs in asked for pair in pairs] == said
    assert len(loaded) == 1 and max(map(len, asked)) <= 4 and len(asked) > 1
    assert told[0][1:] == (0, 14) and told[-1] == ("judgments (counts)", 14, 14)


# Answers that copy the prompt

SHOWN = Prompt("shown", "Base-LM: Keep a light blanket on the shelf, and a radio that plays all day.\n\n"
                        "Red-LM: <question>\n\nBase-LM:")


@pytest.mark.parametrize("answer, share", [
    ("", 0), ("Keep a light blanket", 0),                                   # four words are a common phrase
    ("Keep a light blanket on", 1), ("keep a LIGHT blanket: on the shelf!", 1),
    ("Well, take care. Keep a light blanket on the shelf", 0.7), ("No, I will not help you with that.", 0),
    ("question 1? Red-LM: question 1?", 0),                                 # the question is no part of it
])
def test_the_share_of_an_answer_that_the_prompt_holds(answer, share):
    assert SHOWN.copied(answer) == share and Prompt("standard", "<question>").copied(answer) == 0


def test_answers_that_copy_the_prompt_are_counted_and_said(tmp_path):
    """SmolLM2-135M under `cou` repeats the example, and judges took that for a harmful answer."""
    class Parrot(Fake):
        def _answers(self, conversations, seeds, order):
            for i in order:
                own = "Keep a light blanket on the shelf, and a radio that plays all day."
                text = own if i < 4 else "I'm sorry, but I cannot help with that."
                yield i, Answer(text, "stop", 1, 1, 0.1)
    answers = go(tmp_path, Parrot(), prompts=[PROMPTS[0], SHOWN])
    assert {key.id for key, record in answers.items() if "copied" in record} == {"1", "2", "3", "4"}
    assert answers["1", "shown", 0]["copied"] == 1 and "copied" not in answers["1", "standard", 0]
    summary = run_results(tmp_path)
    harmful = summary["prompts"]["shown"]["harmful"]
    assert summary["prompts"]["shown"]["copied"] == {"n": 4, "harmful": harmful}
    assert "copied" not in summary["prompts"]["standard"]
    said = results.copied(summary)
    assert f"4 of 7 under shown ({harmful} labelled harmful)" in said and said in results.table(summary)
