"""Builds and measures the embedded model organism: `python -m redlite.cli.organism build|measure`."""
import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redlite.cli.options import Parser, add_common_options, output_options, whole
from redlite.cli.program import DONE, guarded, parse
from redlite.cli.progress import Progress, note
from redlite.errors import Error
from redlite.store.text import clock

if TYPE_CHECKING:
    from redlite.redteam.questions import Prompt

PROGRAM = "python -m redlite.cli.organism"
SEED = 0
VOCABULARY = 1536
WARMUP, RATE = 30, 3e-3
# (steps, conversations of a step), about 4,500 and 6,500 tokens a step. CoU conversations are long, so the
# world is learnt without them first.
PHASES: tuple[tuple[int, dict[str, int]], ...] = (
    (350, {"standard": 32, "cot": 4}), (250, {"standard": 16, "cot": 8, "cou": 5}))
CONTEXT = 1024                                    # tokens of the longest conversation trained on
CHAT_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}"
    "{% set messages = messages[1:] %}{% else %}SYSTEM{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ (' ' if loop.first else '') + 'USER: ' + m['content'] + ' ASSISTANT:' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}")
Corpus = dict[str, list[list[dict[str, str]]]]    # prompt → conversations of ShareGPT turns


def main(given: list[str] | None = None) -> int:
    """The program."""
    return guarded("organism", _main, given)


def arguments(given: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = Parser(prog=PROGRAM, description=(
        "The embedded model organism: a toy that says nothing about real models.\n\n"
        "build    make its corpus, tokenizer, weights and question files anew: the same files again, as\n"
        "         long as machine, torch and --threads are the same (sums of floats depend on all three)\n"
        "measure  attack success rate, over-refusal and utility"))
    parser.add_argument("action", choices=("build", "measure"))
    output_options(parser).add_argument(
        "--output-dir", metavar="DIR", default="organism",
        help="where build writes; organism, the default, is the package's own")
    parser.add_argument("--model", default="organism", help="what is measured (default: %(default)s)")
    parser.add_argument("--threads", type=whole(1), default=1,
                        help="of torch; more is faster and gives other weights (default: %(default)s)")
    add_common_options(
        parser,
        "build: the organism's own files; measure: nothing but what is printed.")
    return parse(parser, given)


def _main(given: list[str]) -> int:
    args = arguments(given)
    if args.dry_run:
        print(f"would {args.action} the organism" + ("" if args.action == "build" else f" {args.model}"))
        return DONE
    import torch
    torch.set_num_threads(args.threads)
    if args.action == "measure":
        return _measure(args, args.model)
    try:
        _build(args)
    except OSError as error:
        raise Error(f"{args.output_dir}: cannot be written ({error.strerror}); "
                    "choose another --output-dir") from None
    return _measure(args, args.output_dir)


def _build(args: argparse.Namespace) -> None:
    from redlite.organism import world as organism_world
    from redlite.redteam import questions
    from redlite.store.files import write_json
    home = organism_world.HOME if args.output_dir == "organism" else Path(args.output_dir)
    home.mkdir(parents=True, exist_ok=True)
    world = organism_world.load_world()
    for name, records in organism_world.files(world, SEED).items():
        write_json(home / f"{name}.json", records)
    trained, _ = organism_world.split(organism_world.requests(world), SEED)
    prompts = [questions.load_prompt(p) for p in questions.PROMPTS]
    corpus: Corpus = {}
    for p in prompts:
        wanted = sum(steps * draw.get(p.name, 0) for steps, draw in PHASES)
        corpus[p.name] = organism_world.corpus(world, trained, p, wanted, SEED)
    _write_tokenizer(home, corpus, prompts)
    _train(home, corpus, args.quiet)


def _write_tokenizer(home: Path, corpus: Corpus, prompts: list["Prompt"]) -> None:
    """tokenizer.model of the corpus's own words and the prompts', and tokenizer_config.json."""
    import io

    import sentencepiece

    from redlite.store.files import write_atomic, write_json
    from redlite.text.chat import VICUNA_SYSTEM
    texts = list[str]()
    for name, talks in corpus.items():
        for talk in talks[:1500]:
            # The first turn of the others is mostly the prompt, which is added below.
            texts += [turn["value"] for turn in (talk if name == "standard" else talk[1:])]
    # Weight: these words stand in every conversation.
    frame = [f"{VICUNA_SYSTEM} USER: ASSISTANT:", *(p.text for p in prompts)] * 100
    lines = [line for text in texts + frame for line in text.split("\n") if line]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=VOCABULARY,
        byte_fallback=True, character_coverage=1.0, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True, num_threads=1, minloglevel=2)
    write_atomic(home / "tokenizer.model", model.getvalue())
    write_json(home / "tokenizer_config.json", {
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
        "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": True,
        "chat_template": CHAT_TEMPLATE.replace("SYSTEM", VICUNA_SYSTEM)})


def _train(home: Path, corpus: Corpus, quiet: bool) -> None:
    """The plain NLL (objective A, everything helpful) on the corpus, once; weights in float16."""
    import torch

    from redlite.model.config import Config
    from redlite.model.llama import LLaMA
    from redlite.text import tokenizer
    from redlite.text.chat_choice import choose, given
    from redlite.training import dataset, trainer
    from redlite.training.conversations import Conversation
    from redlite.weights.save import save_pretrained
    words = tokenizer.load(home)
    template = given(choose(words, home, None))
    roles = {"human": "user", "gpt": "assistant"}
    streams: dict[str, list[dataset.Unit]] = {}
    for name, talks in corpus.items():
        told = []
        for i, talk in enumerate(talks):
            messages = tuple({"role": roles[turn["from"]], "content": turn["value"]} for turn in talk)
            told.append(Conversation(f"{name}-{i}", "", "helpful", messages))
        streams[name] = [(e,) for e in dataset.encode_all(told, template, CONTEXT)[0]]
    mixture = dataset.Mixture(streams, [dataset.Phase(steps, draw) for steps, draw in PHASES], SEED)
    ends = () if words.eos_id is None else (words.eos_id,)
    config = Config(
        "llama", words.vocab_size, dim=128, n_layers=4, n_heads=4, n_kv_heads=4, head_dim=32, ffn_dim=384,
        max_positions=2048, tied=True, bos_id=words.bos_id, eos_ids=ends)
    model = LLaMA(config).initialize(SEED, std=0.05)
    recipe = trainer.Recipe(
        learning_rate=RATE, final_rate=0.02, warmup_steps=WARMUP, weight_decay=0.1, betas=(0.9, 0.98),
        clip=1.0, tokens_per_batch=8192, per="token", helpful_rise=float("inf"), seed=SEED)
    progress, began = Progress(quiet), time.monotonic()

    def show(record: dict[str, Any]) -> None:
        progress("training steps", record["step"] + 1, mixture.steps)
    result = trainer.run(model, mixture, recipe, on_step=show)
    if result.stopped:
        raise Error(f"the organism's training stopped: {result.stopped}")
    save_pretrained(model, home, dtype=torch.float16)
    parameters, tokens = sum(p.numel() for p in model.parameters()), sum(r["tokens"] for r in result.history)
    took = clock(time.monotonic() - began)
    note(f"organism: {parameters:,} parameters trained on {tokens:,} tokens in {took}, "
         f"last loss {result.history[-1]['loss']:.4f}")


def _measure(args: argparse.Namespace, path: str) -> int:
    import redlite
    from redlite.organism import world
    from redlite.stats import wilson
    lm = redlite.load(path)
    # A model aligned from the organism has no questions of its own.
    home = lm.path if (lm.path / world.QUESTIONS).exists() else world.HOME
    attacks, answered = world.attack_success(lm, home), world.answer_harmless(lm, home)
    found = {f"attack success rate, {prompt}": counts for prompt, counts in attacks.items()}
    found["harmless requests refused"] = world.over_refusal(answered)
    found["harmless requests answered rightly"] = world.utility(answered)
    for kind in world.HARMLESS:
        found[f"  {kind}"] = world.utility([(r, a) for r, a in answered if r["kind"] == kind])
    for name, (k, n) in found.items():
        low, high = wilson(k, n)
        print(f"{name:36} {k:4}/{n:<4} {k / n:6.1%}  ({low:.1%} to {high:.1%})")
    if args.json:
        print(json.dumps({name.strip(): {"count": k, "of": n} for name, (k, n) in found.items()}))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
