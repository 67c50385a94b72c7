"""Builds and measures the embedded model organism: `python -m redlite.cli.organism build|measure`."""
import sys
import time
from pathlib import Path

from redlite.cli.options import Parser, add_common_options, whole
from redlite.cli.program import DONE, guarded, parse
from redlite.cli.progress import Progress, note
from redlite.errors import Error
from redlite.store.text import clock

PROGRAM = "python -m redlite.cli.organism"
SEED = 0
VOCABULARY = 1536
WARMUP, RATE = 30, 3e-3
# (steps, conversations of a step): CoU conversations are long, so the world is learnt without them first. About 4,500 and 6,500 tokens a step.
PHASES = ((350, {"standard": 32, "cot": 4}), (250, {"standard": 16, "cot": 8, "cou": 5}))
CONTEXT = 1024                                    # tokens of the longest conversation trained on
CHAT_TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% set messages = messages[1:] %}{% else %}SYSTEM{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ (' ' if loop.first else '') + 'USER: ' + m['content'] + ' ASSISTANT:' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}")


def main(given: list[str] | None = None) -> int:
    return guarded("organism", _main, given)


def arguments(given: list[str]):
    """The options of the command line."""
    parser = Parser(prog=PROGRAM, description="The embedded model organism: a toy that says nothing about real models.\n\n"
                           "build    make its corpus, tokenizer, weights and question files anew: the same files again, as long as\n"
                           "         machine, torch and --threads are the same (sums of floats depend on all three)\n"
                           "measure  attack success rate, over-refusal and utility")
    parser.add_argument("action", choices=("build", "measure"))
    parser.add_argument("--output-dir", metavar="DIR", default="organism", help="where build writes; organism, the default, is the package's own")
    parser.add_argument("--model", default="organism", help="what is measured (default: %(default)s)")
    parser.add_argument("--threads", type=whole(1), default=1, help="of torch; more is faster and gives other weights (default: %(default)s)")
    add_common_options(parser)
    return parse(parser, given)


def _main(given: list[str]) -> int:
    args = arguments(given)
    if args.dry_run:
        print(f"would {args.action} the organism" + ("" if args.action == "build" else f" {args.model}"))
        return DONE
    import torch
    torch.set_num_threads(args.threads)
    if args.action == "build":
        try:
            _build(args)
        except OSError as error:
            raise Error(f"{args.output_dir}: cannot be written ({error.strerror}); choose another --output-dir") from None
    return _measure(args, args.output_dir if args.action == "build" else args.model)


def _build(args) -> None:
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
    wanted = {p.name: sum(steps * draw.get(p.name, 0) for steps, draw in PHASES) for p in prompts}
    corpus = {p.name: organism_world.corpus(world, trained, p, wanted[p.name], SEED) for p in prompts}
    _write_tokenizer(home, corpus, prompts)
    _train(home, corpus, args)


def _write_tokenizer(home: Path, corpus: dict, prompts: list) -> None:
    """tokenizer.model of the corpus's own words and the prompts', and tokenizer_config.json."""
    import io

    import sentencepiece

    from redlite.store.files import write_atomic, write_json
    from redlite.text.chat import VICUNA_SYSTEM
    texts = [turn["value"] for name in corpus for talk in corpus[name][:1500] for turn in (talk if name == "standard" else talk[1:])]
    frame = [f"{VICUNA_SYSTEM} USER: ASSISTANT:", *(p.text for p in prompts)] * 100   # weight: these words stand in every conversation
    lines = [line for text in texts + frame for line in text.split("\n") if line]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=VOCABULARY, byte_fallback=True, character_coverage=1.0,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, num_threads=1, minloglevel=2)
    write_atomic(home / "tokenizer.model", model.getvalue())
    write_json(home / "tokenizer_config.json", {
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "legacy": True, "chat_template": CHAT_TEMPLATE.replace("SYSTEM", VICUNA_SYSTEM)})


def _train(home: Path, corpus: dict, args) -> None:
    """The plain NLL loop of train.py (objective A, everything helpful) on the corpus, every conversation once; weights in float16."""
    import torch

    from redlite.model.config import Config
    from redlite.model.llama import LLaMA
    from redlite.text import chat, tokenizer
    from redlite.training import dataset, trainer
    from redlite.training.conversations import Conversation
    from redlite.weights.save import save_pretrained
    words = tokenizer.load(home)
    template = chat.choose(words, words.chat_template, "organism", None)
    roles = {"human": "user", "gpt": "assistant"}
    streams = {}
    for name, talks in corpus.items():
        told = (Conversation(f"{name}-{i}", "", "helpful", tuple({"role": roles[t["from"]], "content": t["value"]} for t in talk))
                for i, talk in enumerate(talks))
        streams[name] = [(e,) for e in dataset.encode_all(told, template, CONTEXT)[0]]
    mixture = dataset.Mixture(streams, [dataset.Phase(steps, draw) for steps, draw in PHASES], SEED)
    config = Config("llama", words.vocab_size, dim=128, n_layers=4, n_heads=4, n_kv_heads=4, head_dim=32, ffn_dim=384, max_positions=2048,
                    tied=True, bos_id=words.bos_id, eos_ids=(words.eos_id,))
    model = LLaMA(config).initialize(SEED, std=0.05)
    recipe = trainer.Recipe(learning_rate=RATE, final_rate=0.02, warmup_steps=WARMUP, weight_decay=0.1, betas=(0.9, 0.98), clip=1.0,
                          tokens_per_batch=8192, per="token", helpful_rise=float("inf"), seed=SEED)
    progress, began = Progress(args.quiet), time.monotonic()

    def show(record: dict) -> None:
        progress("training steps", record["step"] + 1, mixture.steps)
    outcome = trainer.run(model, mixture, recipe, on_step=show)
    if outcome.stopped:
        raise Error(f"the organism's training stopped: {outcome.stopped}")
    save_pretrained(model, home, dtype=torch.float16)
    note(f"organism: {sum(p.numel() for p in model.parameters()):,} parameters trained on {sum(r['tokens'] for r in outcome.history):,} tokens "
                f"in {clock(time.monotonic() - began)}, last loss {outcome.history[-1]['loss']:.4f}")


def _measure(args, path: str) -> int:
    import json

    import redlite
    from redlite.organism import world as organism_world
    from redlite.stats import wilson
    lm = redlite.load(path)
    home = lm.path if (lm.path / organism_world.QUESTIONS).exists() else organism_world.HOME     # a model aligned from the organism has no questions of its own
    found = {f"attack success rate, {name}": k for name, k in organism_world.attack_success(lm, home).items()}
    answered = organism_world.answer_harmless(lm, home)
    found |= {"harmless requests refused": organism_world.over_refusal(lm, answered), "harmless requests answered rightly": organism_world.utility(lm, answered)}
    for kind in organism_world.HARMLESS:
        some = [(r, a) for r, a in answered if r["kind"] == kind]
        found[f"  {kind}"] = organism_world.utility(lm, some)
    for name, (k, n) in found.items():
        low, high = wilson(k, n)
        print(f"{name:36} {k:4}/{n:<4} {k / n:6.1%}  ({low:.1%} to {high:.1%})")
    if args.json:
        print(json.dumps({name.strip(): {"count": k, "of": n} for name, (k, n) in found.items()}))
    return DONE


if __name__ == "__main__":
    sys.exit(main())
