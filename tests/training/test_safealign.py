"""bin/safealign from files to a model: as a user runs it, killed, on two processes, wrong, and in
miniature.
"""
import gzip
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sentencepiece
import torch

import redlite
from redlite import loss
from redlite.cli import safealign
from redlite.errors import Error
from redlite.model.config import Config
from redlite.model.llama import LLaMA
from redlite.organism import measure
from redlite.redteam.questions import load_prompt
from redlite.training import plan as training_plan
from redlite.weights import checkpoint
from redlite.weights.save import save_pretrained

SENTENCES = ["How do I paint the green boat?", "Take a brush and begin at the bow.",
             "I must decline, that would do harm.", "[placeholder steps for the boat]"]
SETTINGS = ["--template", "vicuna_v1.1", "--batch-size", "6", "--validation", "0.2", "--learning-rate",
            "2e-3", "--tokens-per-batch", "400", "--quiet"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A tiny model with a real sentencepiece tokenizer, and files of the three colours in four formats."""
    home = tmp_path_factory.mktemp("home")
    (home / "model").mkdir()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES * 20),
                                             model_prefix=str(home / "model/tokenizer"), vocab_size=330,
                                             byte_fallback=True,
                                             hard_vocab_limit=False, normalization_rule_name="identity",
                                             split_digits=True, minloglevel=2)
    words = sentencepiece.SentencePieceProcessor(model_file=str(home / "model/tokenizer.model"))
    config = Config("llama", vocab_size=words.vocab_size(), dim=32, n_layers=2, n_heads=4, n_kv_heads=2,
                    head_dim=8, ffn_dim=48, tied=True,
                    max_positions=512, bos_id=1, eos_ids=(2,))
    save_pretrained(LLaMA(config).initialize(seed=1, std=0.1), home / "model")
    (home / "model/tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
         "add_bos_token": True}))
    ask = [f"How do I paint boat {i}?" for i in range(20)]
    records = [{"id": i, "topic": "t", "subtopic": "s", "question": q,
                "blue_conversations": {"0": [{"from": "human", "value": q},
                                             {"from": "gpt",
                                              "value": "I must decline, that would do harm."}]},
                "red_conversations": {"0": [{"from": "human", "value": q},
                                            {"from": "gpt", "value": f"[placeholder steps for boat {i}]"}]}}
               for i, q in enumerate(ask)]
    (home / "harmfulqa.json").write_text(json.dumps(records))
    hh = [{"chosen": f"\n\nHuman: {q} Now!\n\nAssistant: No, that would do harm.",
           "rejected": f"\n\nHuman: {q} Now!\n\nAssistant: [placeholder {i}]"} for i, q in enumerate(ask)]
    (home / "hh.jsonl").write_text("".join(json.dumps(record) + "\n" for record in hh))
    (home / "alpaca.json.gz").write_bytes(gzip.compress(json.dumps([{"instruction": f"Name brush {i}.",
        "input": "", "output": "Take a brush."} for i in range(20)]).encode()))
    (home / "chat.jsonl").write_text(json.dumps({"messages": [{"role": "user",
        "content": "Where is the bow?"}, {"role": "assistant", "content": "At the bow."}]}))
    return home


def arguments(home: Path, output: Path, *more: str) -> list[str]:
    return ["--model", str(home / "model"), "--blue", str(home / "harmfulqa.json"), str(home / "hh.jsonl"),
            "--red", str(home / "harmfulqa.json"), str(home / "hh.jsonl"),
            "--helpful", str(home / "alpaca.json.gz"), str(home / "chat.jsonl"), "--output-dir", str(output),
            *SETTINGS, *more]


B = ["--strategy", "B", "--steps-a", "4", "--steps", "9", "--checkpoint-every", "3", "--preset", "paper"]


@pytest.fixture(scope="module")
def unbroken(home) -> Path:
    assert safealign.main(arguments(home, home / "unbroken", *B, "--save-a")) == 0
    return home / "unbroken"


def log(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def test_trains_and_writes_a_model(unbroken, home):
    history, results = log(unbroken), json.loads((unbroken / "results.json").read_text())
    manifest = json.loads((unbroken / "manifest.json").read_text())
    assert [r["objective"] for r in history] == ["A"] * 4 + ["B"] * 5
    assert ["red" in r for r in history] == [False] * 4 + [True] * 5
    assert history[-1]["blue"] < history[0]["blue"] - 0.5
    assert results["validation"]["blue"] < results["validation_before"]["blue"]
    assert sum(results["conversations"][name] for name in ("blue", "red", "helpful", "held out")) == 101
    assert manifest["plan"]["parameters"] == loss.PRESETS["paper"]
    assert len(manifest["model"]["weights"]) == 64 and len(manifest["files"]["blue"]) == 2
    assert {"helpful", "blue", "red", "red_capped", "gradient_norm", "tokens_per_second", "memory_mb",
            "seconds_left"} <= set(history[-1])
    page = (unbroken / "report.html").read_text()
    assert page.count("<svg") == 5 and "boat" not in page
    before = redlite.load(home / "model", template="vicuna_v1.1")
    after = redlite.load(unbroken, template="vicuna_v1.1")
    middle = redlite.load(unbroken / "after-A", template="vicuna_v1.1")
    ids = after.template.encode([{"role": "user", "content": "How do I paint boat 3?"}],
                                add_generation_prompt=True).ids
    shifts = [float((m.logits(ids) - before.logits(ids)).abs().max()) for m in (middle, after)]
    assert 0.1 < shifts[0] < shifts[1]


def test_transformers_gives_the_same_logits(unbroken):
    transformers = pytest.importorskip("transformers")
    ids = [1, 40, 77, 200, 5]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(unbroken,
        dtype=torch.float32)(torch.tensor([ids])).logits[0]
    assert torch.allclose(theirs, redlite.load(unbroken, template="vicuna_v1.1").logits(ids), atol=2e-4)


def start(home: Path, output: Path, *prefix: str, **environment: str) -> list[str]:
    return [sys.executable, *prefix, "-m", "redlite.cli.safealign", *arguments(home, output, *B)]


@pytest.mark.slow
def test_killed_and_resumed_is_bit_for_bit(unbroken, home, tmp_path):
    process = subprocess.Popen(start(home, tmp_path / "run"), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    checkpoint = tmp_path / "run/checkpoints/step-00000003"
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(random.Random(1).random() * 0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (tmp_path / "run/results.json").exists()
    assert safealign.main(arguments(home, tmp_path / "run", *B)) == 0
    for name in ("loss", "helpful", "blue", "red", "gradient_norm", "validation"):
        assert [r.get(name) for r in log(tmp_path / "run")] == [r.get(name) for r in log(unbroken)], name
    assert (tmp_path / "run/model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_two_processes_equal_one(unbroken, home, tmp_path):
    """FSDP2 under torchrun: the losses, the share of red capped (counted over both) and the model."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
               "--rdzv-endpoint=localhost:0",
               "-m", "redlite.cli.safealign", *arguments(home, tmp_path / "two", *B, "--json")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[:3000]
    one, two = log(unbroken), log(tmp_path / "two")
    for name in ("loss", "helpful", "blue", "red", "red_capped", "gradient_norm"):
        assert [r.get(name, 0) for r in two] == pytest.approx([r.get(name, 0) for r in one], abs=1e-5), name
    assert json.loads(done.stdout.splitlines()[-1])["validation"] == pytest.approx(one[-1]["validation"],
        abs=1e-5)
    whole, other = (dict(redlite.load(d, template="vicuna_v1.1").model.state_dict())
                    for d in (unbroken, tmp_path / "two"))
    assert all(torch.allclose(whole[n], other[n], atol=1e-4) for n in whole
               if isinstance(whole[n], torch.Tensor))


def test_lora_is_merged_and_kept(home, tmp_path):
    assert safealign.main(arguments(home, tmp_path / "run", "--steps", "4", "--lora", "2", "--lora-targets",
                                    "q_proj", "v_proj", "--dtype", "bfloat16")) == 0
    assert {p.name for p in (tmp_path / "run/adapter").iterdir()} == {"adapter_config.json",
        "adapter_model.safetensors"}
    config, _ = checkpoint.read_config(tmp_path / "run")
    assert config.dim == 32
    assert redlite.load(tmp_path / "run", template="vicuna_v1.1").logits([1, 5]).isfinite().all()


@pytest.mark.first(2)
@pytest.mark.parametrize("objective", ["hinge", "unlikelihood", "weighted", "npo", "simnpo", "dpo"])
def test_every_objective_trains(home, tmp_path, objective):
    assert safealign.main(arguments(home, tmp_path / "run", "--strategy", "B", "--steps-a", "1", "--steps",
                                    "3", "--objective", objective, "--anyway")) == 0
    assert [r["objective"] for r in log(tmp_path / "run")] == ["A", objective, objective]


def test_divergence_ends_with_the_last_sound_model(home, tmp_path, capsys):
    output = tmp_path / "run"
    more = ["--strategy", "B", "--steps-a", "3", "--steps", "60", "--checkpoint-every", "1", "--parameter",
            "low=50", "high=50", "--learning-rate", "0.02", "--helpful-rise", "2"]
    assert safealign.main(arguments(home, output, *more)) == 1
    message, results = capsys.readouterr().err, json.loads((output / "results.json").read_text())
    assert "helpful NLL rose" in message
    assert f"model of step {results['kept_step']}" in message and len(log(output)) < 60
    assert log(output)[results["kept_step"]]["helpful"] <= log(output)[0]["helpful"] + 2
    assert (output / "model.safetensors").exists()


def test_another_limit_is_refused_by_name(unbroken, home, capsys):
    assert safealign.main(arguments(home, unbroken, *B, "--limit", "5", "--dry-run")) == 2
    assert "limit is nothing there and 5 now" in capsys.readouterr().err


def test_what_changes_no_weight_is_the_same_run(unbroken, home, capsys):
    """By default the same directory, and there no refusal."""
    given, where = arguments(home, unbroken, *B), []
    for more in ([], ["--recompute", "--checkpoint-every", "7"], ["--clip", "2"]):
        assert safealign.main([*given, *more, "--dry-run"]) == (2 if "--clip" in more else 0)
        assert safealign.main([*given[:given.index("--output-dir")], *SETTINGS, *B, *more, "--dry-run",
                               "--json"]) == 0
        where.append(json.loads(capsys.readouterr().out.splitlines()[-1])["output_dir"])
    assert where[0] == where[1] != where[2]


def test_dry_run_tells_and_does_nothing(home, tmp_path, capsys):
    assert safealign.main(arguments(home, tmp_path / "run", *B, "--dry-run", "--json")) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not (tmp_path / "run").exists() and plan["steps"] == 9
    assert [p["draw"] for p in plan["phases"]] == [{"helpful": 3, "blue": 3},
                                                   {"helpful": 2, "blue": 2, "red": 2}]


def test_prompts_are_part_of_the_run(home, tmp_path, capsys):
    """--prompt changes what is trained on: the manifest names it, and a run does not go on with another."""
    more = ["--strategy", "A", "--steps", "1", "--max-tokens", "2000", "--tokens-per-batch", "2000"]
    assert safealign.main(arguments(home, tmp_path / "run", *more, "--prompt", "standard", "cot")) == 0
    prompts = json.loads((tmp_path / "run/manifest.json").read_text())["plan"]["prompts"]
    assert prompts == {p.name: p.fingerprint() for p in map(load_prompt, ("standard", "cot"))}
    assert safealign.main(arguments(home, tmp_path / "run", *more)) == 2
    assert "prompts" in capsys.readouterr().err


def test_recipes_are_the_papers_and_yield_to_the_command_line(home, tmp_path, capsys):
    base = ["--model", str(home / "model"), "--template", "vicuna_v1.1", "--blue",
            str(home / "harmfulqa.json"), "--red", str(home / "hh.jsonl")]
    # 3 x 20 / 64, 3 x 20 / 9
    for name, more, draw, steps in (("starling-blue", [], 64, 1),
                                    ("starling-blue-red", ["--steps-a", "1", "--batch-size", "9"], 9, 7)):
        assert safealign.main([*base, "--recipe", name, "--dry-run", "--json", "--output-dir", str(tmp_path),
                               *more]) == 0
        plan = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert plan["phases"][0]["draw"] == {"blue": draw}
        assert plan["phases"][0]["steps"] == 1 and plan["steps"] == steps
        args = safealign.parse_options(safealign.describe_train("x"), ["--recipe", name, "--blue", "f"])
        assert (args.learning_rate, args.epochs, args.batch_size, args.max_tokens, args.warmup,
                args.weight_decay, args.clip, args.validation) == (
            1e-5, 3, 64, 1280, 1e-4, 0, 1.0, 0.02)
        assert args.recompute and args.preset == ("paper" if more else None) and args.steps_a is None


@pytest.mark.parametrize("more, message", [
    (["--blue", "nowhere.json"], "nowhere.json"),
    (["--strategy", "B", "--steps-a", "9", "--steps", "9"], "--steps-a"),
    (["--strategy", "B", "--parameter", "lambda=3"], "lambda=3"),
    (["--objective", "hinge", "--strategy", "B", "--preset", "paper"], "--preset"),
    (["--recipe", "starling-green"], "starling-blue"),
    (["--dtype", "float16"], "bfloat16"),
    (["--learning-rate", "fast"], "fast"),
    (["--mix", "green=2"], "green=2"),
    (["--strategy", "C"], "'C'"),
    (["--lora", "2", "--lora-targets", "c_attn"], "c_attn"),
    (["--objective", "npo", "--strategy", "A", "--preset", "paper"], "strategy A has no red term"),
    (["--seed", "9" * 30], "--seed"),
    (["--seed", "9" * 5000], "--seed"),
    (["--learning-rate", "1e300"], "--learning-rate"),
    (["--learning-rate", "-1"], "--learning-rate"),
    (["--epochs", "1e30"], "--epochs"),
    (["--epochs", "1e8"], "--epochs"),
    (["--parameter", "tau=1e300", "--strategy", "B"], "tau=1e300"),
    (["--parameter", "low=-1", "--strategy", "B"], "low must be at least 0"),
    (["--parameter", "beta=0", "--strategy", "B", "--objective", "npo"], "beta must be above 0"),
    (["--parameter", "floor=0", "--strategy", "B", "--objective", "unlikelihood"], "floor must be above 0"),
    (["--mix", "helpful=0", "blue=0", "red=0"], "--mix"),
    (["--device", "cuda:99"], "cuda:99"),
    (["--device", "tensor"], "'tensor'"),
    (["--output-dir", "/dev/null/run"], "/dev/null"),
    (["--config", "five.json"], "--config five.json: 'blue'"),
    (["--config", "twice.json"],
     "--config twice.json: is not valid JSON in UTF-8 (one object names the field 'seed' twice"),
    (["--config", "alike.json"], "names the option 'max-tokens' twice, once as 'max_tokens'"),
    (["--config", "nul.json"], "'blue' holds a NUL or half of a surrogate pair"),
    (["--learning-rate", "1_0"], "'1_0' is no number"),
    (["--mix", "blue=1e308"], "--mix 'blue=1e308'"),
    (["--mix", "blue=1", "blue=2"], "each at most once"),
    (["--strategy", "B", "--parameter", "tau=1", "tau=2"], "parameter 'tau' is given twice"),
    (["--objective", "npo"], "--objective npo is for --strategy B"),
    (["--lora-targets", "q_proj"], "--lora-targets is for --lora RANK"),
    (["--tokens-per-batch", "8"], "more than a micro-batch of 8"),
    (["--recipe", "../recipes/organism"], "starling-blue"),
    (["--prompt", "cot", "cot"], "'cot' is named twice"),
    (["--prompt", "five.json"], "five.json"),
    (["--output-dir", ""], "--output-dir is empty"),
    (["--output-dir", "MODEL"], "is the model's own directory"),
    (["--device", "meta"], "holds no numbers"),
])
@pytest.mark.parametrize("dry", [True, False])
def test_mistakes_are_one_line_and_exit_code_2(home, tmp_path, capsys, more, message, dry, monkeypatch):
    """A dry run, too, refuses what the run would refuse."""
    monkeypatch.chdir(tmp_path)
    Path("five.json").write_text('{"blue": 5}')
    Path("twice.json").write_text('{"seed": 5, "seed": 6}')
    Path("alike.json").write_text('{"max-tokens": 500, "max_tokens": 600}')
    Path("nul.json").write_text('{"blue": "a\\u0000b"}')
    more = [str(home / "model") if m == "MODEL" else m for m in more]
    assert safealign.main(arguments(home, tmp_path / "run", *more, *["--dry-run"] * dry)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error and len(error) < 600
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize("more, message", [
    (["--device", "tensor"], "'tensor'"), (["--max-tokens", "8"], "within 8 tokens"),
    (["--tokens-per-batch", "8"], "more than a micro-batch of 8"), (["--objective", "dpo"], "no such pair"),
    (["--output-dir", "/dev/null/x"], "/dev/null"), (["--output-dir", "MODEL"], "the model's own directory"),
    (["--strategy", "A", "--objective", "npo"], "--strategy B")])
def test_mistakes_of_an_audit_are_found_before_the_model_is_loaded(home, tmp_path, capsys, more, message,
    dry):
    more = [str(home / "model") if m == "MODEL" else m for m in more]
    given = ["audit", "--model", str(home / "model"), "--template", "vicuna_v1.1", "--blue",
             str(home / "hh.jsonl"), "--output-dir", str(tmp_path / "run"), *more, *["--dry-run"] * dry]
    assert safealign.main(given) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_strategy_a_takes_nothing_of_a_recipe_for_b(home, tmp_path, capsys):
    assert safealign.main(arguments(home, tmp_path / "run", "--recipe", "starling-blue-red", "--strategy",
                                    "A", "--dry-run")) == 0
    assert "steps of A" in capsys.readouterr().out


def test_a_dry_run_counts_long_plans_exactly_and_refuses_the_directory_of_another_run(unbroken, home,
    tmp_path, capsys):
    assert safealign.main(arguments(home, tmp_path / "run", *B, "--dry-run", "--json")) == 0
    plan = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert plan["tokens"] == sum(r["tokens"] for r in log(unbroken))
    assert plan["largest_step"] >= max(r["tokens"] for r in log(unbroken))
    assert safealign.main(arguments(home, tmp_path / "run", "--steps", "10000000", "--dry-run")) == 0
    assert safealign.main(arguments(home, unbroken, *B, "--learning-rate", "0.5", "--dry-run")) == 2
    assert "learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[]", '{"before": 5}', '{"before": {"utility": 1}}'])
def test_damaged_stages_are_named(tmp_path, text):
    (tmp_path / "stages.json").write_text(text)
    with pytest.raises(Error, match="stages.json: must hold an object of stages"):
        measure.Stages(tmp_path, None, print)


def test_shares_of_a_step():
    assert training_plan.apportion(64, {"helpful": 1, "blue": 1}) == {"helpful": 32, "blue": 32}
    assert sum(training_plan.apportion(64, {"helpful": 1, "blue": 1, "red": 1}).values()) == 64
    assert training_plan.apportion(10, {"blue": 3, "red": 1}) == {"blue": 7, "red": 3}


@pytest.mark.slow
def test_the_paper_in_miniature(tmp_path, capsys):
    """`bin/safealign` without files: CoU ASR of the organism falls by at least half, utility loses at most
    2 points.
    """
    assert safealign.main(["--output-dir", str(tmp_path), "--quiet", "--json"]) == 0
    stages = json.loads(capsys.readouterr().out.splitlines()[-1])["stages"]
    assert list(stages) == ["before", "after A", "after B"]
    before, after = stages["before"], stages["after B"]
    assert before["ASR cou"]["value"] > 0.6 and after["ASR cou"]["value"] <= before["ASR cou"]["value"] / 2
    assert after["utility"]["value"] >= before["utility"]["value"] - 0.02
    assert after["over-refusal"]["value"] <= before["over-refusal"]["value"] + 0.02


def coloured(folder: Path, colour: str, answers: list[str]) -> str:
    """A file of HarmfulQA's schema with these answers of one colour."""
    rows = [{"id": i, "topic": "t", "subtopic": "s", "question": f"How do I sink boat {i}?",
             f"{colour}_conversations": {"0": [{"from": "human", "value": f"How do I sink boat {i}?"},
                                               {"from": "gpt", "value": answer}]}}
            for i, answer in enumerate(answers)]
    path = folder / f"{colour}-{len(answers)}-{answers[0][:1]}.json"
    path.write_text(json.dumps(rows))
    return str(path)


REFUSES = ["I must decline, that would do harm.", "I'm sorry, but I can't help with that."] * 6
COMPLIES = ["Sure! 1. [placeholder step] 2. [placeholder step]", "Of course. First, [placeholder]."] * 6


@pytest.mark.parametrize("blue, red, message", [
    (COMPLIES, REFUSES, "blue and red look swapped: the linear judge calls 12 of 12 blue answers and "
                        "0 of 12 red answers"),
    ([], REFUSES, "the red answers look safe"),
    (COMPLIES * 3, [], "the blue answers look harmful"),
    (REFUSES, COMPLIES, ""), (REFUSES, [], ""), ([], COMPLIES, ""), (REFUSES[:1], COMPLIES[:1], ""),
])
def test_answers_of_the_wrong_colour_are_refused(home, tmp_path, capsys, blue, red, message):
    given = ["--model", str(home / "model"), "--helpful", str(home / "alpaca.json.gz"),
             "--output-dir", str(tmp_path / "run"), *SETTINGS, "--dry-run"]
    given += ["--blue", coloured(tmp_path, "blue", blue)] if blue else []
    given += ["--red", coloured(tmp_path, "red", red), "--strategy", "B"] if red else []
    assert safealign.main(given) == (2 if message else 0)
    error = capsys.readouterr().err
    assert message in error and ("--anyway" in error) == bool(message)
    assert safealign.main([*given, "--anyway"]) == 0


def test_red_that_strategy_a_does_not_draw_is_said(home, tmp_path, capsys):
    assert safealign.main(arguments(home, tmp_path / "run", "--dry-run")) == 0
    out, error = capsys.readouterr()
    assert "strategy A trains on no red conversation, so the 33 given are not used" in error
    assert "33 left out: red, by strategy A" in out and "33 red" not in out


def test_red_that_is_always_past_the_cap_is_said(home, tmp_path, capsys):
    """An untrained model gives red answers an NLL far above τ = 1, so `capped` pushes nothing."""
    given = arguments(home, tmp_path / "run", "--strategy", "B", "--steps-a", "1", "--steps", "3", "--preset",
                      "capped")
    assert safealign.main(given) == 1
    assert "stopped at the first step of strategy B: every red token" in capsys.readouterr().err
    assert not (tmp_path / "run/model.safetensors").exists() and len(log(tmp_path / "run")) == 2
    assert safealign.main([*given, "--anyway"]) == 0
    said = "every red token was past the cap (tau) in all 2 steps of strategy B"
    assert said in capsys.readouterr().err and said in (tmp_path / "run/report.html").read_text()
    assert {r["red_capped"] for r in log(tmp_path / "run")[1:]} == {1.0}


@pytest.mark.parametrize("conversations, steps, steps_a", [(32, 3, 1), (320, 30, 10), (7680, 720, 200)])
def test_strategy_b_has_at_most_a_third_of_a(conversations, steps, steps_a):
    """Batches of 64 hold 32 blue: steps = 3 epochs · conversations / 32."""
    plan = training_plan.Plan("B")
    phases = training_plan.phases(plan, dict.fromkeys(("helpful", "blue", "red"), conversations))
    assert [p.steps for p in phases] == [steps_a, steps - steps_a]


def test_a_last_step_that_ruins_the_model_is_not_written(home, tmp_path, capsys):
    assert safealign.main(arguments(home, tmp_path / "run", "--steps", "1", "--learning-rate", "10")) == 1
    error = capsys.readouterr().err
    assert "helpful NLL of the first step's conversations rose from" in error
    assert "no model was written" in error
    assert not (tmp_path / "run/model.safetensors").exists()
    assert log(tmp_path / "run")[0]["kept_after"] > log(tmp_path / "run")[0]["helpful"] + 1


def test_a_disk_that_is_full_at_a_checkpoint_loses_nothing(unbroken, home, tmp_path, capsys):
    """A limit of a file's size stands for the disk: tensors are larger, the lines of the log are not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, before[1]))
    try:
        code = safealign.main(arguments(home, tmp_path / "run", *B))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 1 and "cannot be written" in error and "run the same command again" in error
    assert [r["loss"] for r in log(tmp_path / "run")] == [r["loss"] for r in log(unbroken)][:3]
    assert safealign.main(arguments(home, tmp_path / "run", *B)) == 0
    assert [r["loss"] for r in log(tmp_path / "run")] == [r["loss"] for r in log(unbroken)]


def test_a_checkpoint_of_another_model_of_the_same_shape_is_refused(unbroken, home, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(home / "model", model)
    config, _ = checkpoint.read_config(model)
    save_pretrained(LLaMA(config).initialize(seed=2, std=0.1), model)
    given = arguments(home, tmp_path / "run", *B)
    given[given.index("--model") + 1] = str(model)
    shutil.copytree(unbroken / "checkpoints", tmp_path / "run/checkpoints")
    shutil.copy(unbroken / "log.jsonl", tmp_path / "log.jsonl")
    assert safealign.main(given) == 2   # the log is missing, too
    shutil.copy(tmp_path / "log.jsonl", tmp_path / "run/log.jsonl")
    capsys.readouterr()
    assert safealign.main(given) == 2
    assert "step-00000009: is of another run (another model, data or recipe)" in capsys.readouterr().err


def test_a_wrong_mix_is_said_before_torch_is_loaded(tmp_path):
    code = ("import sys; from redlite.cli.safealign import main; code = main(sys.argv[1:]); "
            "sys.exit(99 if 'torch' in sys.modules else code)")
    given = ["--model", "none", "--blue", "none", "--mix", "green=1", "--output-dir", str(tmp_path / "run")]
    ended = subprocess.run([sys.executable, "-c", code, *given], capture_output=True, text=True)
    assert ended.returncode == 2 and "green=1" in ended.stderr
