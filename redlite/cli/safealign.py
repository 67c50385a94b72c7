"""bin/safealign: train a model to be safer (arXiv 2308.09662, section 4), see what the loss does, prove that it is right."""
import argparse
import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path

from redlite import __version__, data
from redlite.cli.config_file import from_config
from redlite.cli.options import Parser, add_common_options, add_machine_options, flag, number, whole
from redlite.cli.program import DONE, FAILED, dispatch, guarded, parse
from redlite.cli.progress import StepProgress, note
from redlite.errors import Error
from redlite.store import run_directory
from redlite.store.files import sha256_file, sha256_json, write_atomic, write_json
from redlite.store.run_directory import INFORMATION, Run

PROGRAM = "safealign"
EMBEDDED = "organism"
RECIPES = Path(data.__file__).parent / "recipes"
OBJECTIVES = ("A", "B", "hinge", "unlikelihood", "weighted", "npo", "simnpo", "dpo")    # of loss.py, which needs torch to be imported


def main(arguments: list[str] | None = None) -> int:
    """The program. Without a command's name it runs `train`."""
    return guarded(PROGRAM, lambda given: dispatch(PROGRAM, COMMANDS, "train", given, _parse), arguments)


def _parse(parser: Parser, arguments: list[str]) -> argparse.Namespace:
    """Options: the recipe's, then those of --config, then the command line, the later winning."""
    args = parse(parser, arguments)
    recipe = getattr(args, "recipe", None)
    if recipe is None and getattr(args, "demo", None) is False and args.model == EMBEDDED and not (args.blue or args.red or args.helpful):
        recipe = EMBEDDED
    if recipe is None:
        return args
    known = {p.stem: p for p in sorted(RECIPES.glob("*.json"))}
    if recipe not in known:
        raise Error(f"--recipe {recipe!r} is not known; use {', '.join(known)}, or --config for a file of your own")
    settings = from_config(parser, known[recipe])
    given = [*(from_config(parser, Path(args.config)) if args.config else []), *arguments]
    args = parser.parse_args([*settings, *given])
    if args.strategy == "A":    # what a recipe says of strategy B does not hold
        args = parser.parse_args([*(s for s in settings if not s.startswith(("--objective=", "--preset="))), *given])
    args.recipe, args.demo = recipe, recipe == EMBEDDED
    return args


# Options

def _describe_train(prog: str) -> Parser:
    parser = Parser(prog=prog, description=(
        "SAFE-ALIGN (arXiv 2308.09662): strategy A trains on blue (safe) and helpful conversations; strategy B goes on, after --steps-a steps of A,\n"
        "with pushing red (harmful) responses away. Writes a Hugging Face directory, a log, checkpoints and a page; the same command again goes on\n"
        "where it stopped. Without options it aligns the embedded model organism and measures it before and after, offline.\n"
        "On several processes: torchrun --nproc-per-node N -m redlite.cli.safealign …"),
        epilog="Commands: train (may be left out), audit (what the loss does, token by token), prove (the gradients, on this machine); each has --help.")
    parser.set_defaults(demo=False)
    parser.add_argument("--recipe", metavar="NAME", help="settings to begin with: starling-blue or starling-blue-red (the paper's), organism")
    _add_data(parser)
    plan = parser.add_argument_group("what is trained")
    plan.add_argument("--strategy", choices=("A", "B"), default="A", help="default: %(default)s")
    plan.add_argument("--steps-a", type=whole(0), default=200, metavar="K", help="steps of A before red is drawn (default: %(default)s)")
    plan.add_argument("--epochs", type=number(0.001, 1e9), default=3.0, help="passes over the blue conversations (default: %(default)g)")
    plan.add_argument("--steps", type=whole(1, 10_000_000), metavar="N", help="steps in all, instead of --epochs")
    plan.add_argument("--batch-size", type=whole(1, 1_000_000), default=64, metavar="N", help="conversations a step, over all processes (default: %(default)s)")
    plan.add_argument("--mix", nargs="+", default=[], metavar="COLOUR=PART", help="parts of helpful, blue and red in a step (default: 1 each)")
    _add_objective(plan)
    plan.add_argument("--lora", type=whole(1, 1 << 16), metavar="RANK", help="train low-rank adapters; they are merged into the model that is written, and kept in adapter/ too")
    plan.add_argument("--lora-alpha", type=number(0.001, 1e6), metavar="X", help="the adapter's scale is X / RANK (default: 2 RANK)")
    plan.add_argument("--lora-targets", nargs="+", metavar="NAME", help="matrices that get an adapter (default: all seven of a layer)")
    loop = parser.add_argument_group("how")
    loop.add_argument("--learning-rate", type=number(0, 10), default=1e-5, metavar="X", help="at its peak (default: %(default)g)")
    loop.add_argument("--final-rate", type=number(0, 1), default=0.0, metavar="X", help="share of it that the cosine ends at (default: 0)")
    loop.add_argument("--warmup", type=number(0, 1), default=0.03, metavar="SHARE", help="of the steps (default: %(default)g)")
    loop.add_argument("--weight-decay", type=number(0, 10), default=0.0, metavar="X", help="default: 0")
    loop.add_argument("--clip", type=number(0, 1e30), default=1.0, metavar="X", help="largest norm of the gradient; 0: none (default: 1)")
    flag(loop, "recompute", "activation checkpointing: keep less, compute a layer twice; a run may go on with or without")
    loop.add_argument("--checkpoint-every", type=whole(1), default=100, metavar="N", help="steps (default: %(default)s); a run may go on with another")
    loop.add_argument("--evaluate-every", type=whole(0), default=0, metavar="N", help="steps; before the first and after the last it is always done")
    loop.add_argument("--helpful-rise", type=number(0, 1e30), default=1.0, metavar="NATS", help="stop when the helpful NLL rises this much (default: 1)")
    flag(loop, "save-a", "keep the model as it is after strategy A in after-A/ too")
    add_machine_options(loop)
    parser.add_argument("--output-dir", metavar="DIR", help="the run directory, which becomes the model's (default: one under ./runs)")
    add_common_options(parser)
    return parser


def _add_data(parser) -> None:
    group = parser.add_argument_group("model and conversations")
    group.add_argument("--model", default=EMBEDDED, help="a Hugging Face directory, a .gguf file, or organism, the embedded model (default)")
    group.add_argument("--template", help="the chat format, where the model's own files do not say it")
    for colour, what in (("blue", "safe"), ("red", "harmful"), ("helpful", "ordinary")):
        group.add_argument(f"--{colour}", nargs="+", metavar="FILE", help=f"{what} conversations: HarmfulQA, ShareGPT, messages, hh-rlhf, Alpaca or Open-Assistant; .json, .jsonl, .gz")
    group.add_argument("--limit", type=whole(1), metavar="N", help="the first N conversations of each colour only")
    group.add_argument("--max-tokens", type=whole(8), default=1280, metavar="N", help="of a conversation; later exchanges are cut, whole (default: %(default)s)")
    group.add_argument("--tokens-per-batch", type=whole(8), default=2048, metavar="N", help="of a packed micro-batch (default: %(default)s)")
    group.add_argument("--validation", type=number(0, 0.5), default=0.02, metavar="SHARE", help="of the questions, held out (default: %(default)g)")
    group.add_argument("--seed", type=whole(0), default=0, help="of everything drawn at random (default: 0)")


def _add_objective(group) -> None:
    group.add_argument("--objective", choices=OBJECTIVES[1:], help="of strategy B's red responses; see redlite/loss.py (default: B)")
    group.add_argument("--preset", choices=("paper", "capped"), help="of the objective B: the paper's coefficients, or bounded ones (default: capped)")
    group.add_argument("--parameter", nargs="+", default=[], metavar="NAME=X", help="of the objective, e.g. tau=2 beta=0.1 blue=1")
    group.add_argument("--per", choices=("response", "token", "conversation"), default="response", help="what counts alike in a colour's mean (default: %(default)s)")


def _describe_audit(prog: str) -> Parser:
    parser = Parser(prog=prog, description=(
        "Shows what the loss does to each token of given conversations: its role, whether it is trained, its NLL, its coefficient, whether it was\n"
        "capped; as ledger.jsonl and as a page. It runs the code that training runs, on one step that holds all these conversations."))
    _add_data(parser)
    _add_objective(parser)
    parser.add_argument("--strategy", choices=("A", "B"), default="B", help="default: %(default)s")
    add_machine_options(parser)
    parser.add_argument("--output-dir", metavar="DIR", help="default: runs/audit-MODEL")
    add_common_options(parser)
    return parser


def _describe_prove(prog: str) -> Parser:
    parser = Parser(prog=prog, description="Checks every objective and every implementation of token_nll on this machine against float64: a table of worst\n"
                           "errors, exit code 0 if all hold, 1 if one does not.")
    add_common_options(parser)
    return parser


# train

def _train(args, command: str) -> int:
    if args.dtype == "float16":
        raise Error("--dtype float16: its range is too small to train in; use bfloat16 or float32")
    if not args.lora and (args.lora_alpha is not None or args.lora_targets):
        raise Error(f"--lora-{'targets' if args.lora_targets else 'alpha'} is for --lora RANK, which is missing; add it, or leave this out")
    if not (args.blue or args.helpful or args.demo):
        raise Error("--blue and --helpful are missing: name files of conversations to train on (without any option the embedded organism is aligned)")
    import torch.distributed as dist

    many = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if many:
        dist.init_process_group("nccl" if args.device.startswith("cuda") else "gloo")
    try:
        code = _train_here(args, command, dist.get_rank() if many else 0, many)
        if many:
            dist.barrier()               # the first rank still writes: the others must not hang up on it
        return code
    finally:
        if many:
            dist.destroy_process_group()


def _train_here(args, command: str, rank: int, many: bool) -> int:
    """One process's part of `train`; rank 0 speaks and writes."""
    from redlite.inference import lm
    from redlite.training import plan as training_plan
    from redlite.training import trainer
    args.quiet = args.quiet or rank > 0
    if many and args.device == "cuda":
        import torch
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    if args.demo and not args.quiet:
        note(f"{PROGRAM}: offline, with the embedded model organism: a toy that shows how the program works and says nothing about real models")
    parts = lm.parts(args.model, args.template)
    plan = _plan(args)
    files = _files(args, args.demo)
    corpus = training_plan.corpus(files, parts.template, plan, args.limit)
    mixture = training_plan.mixture(plan, corpus.training)
    recipe = _recipe(args, mixture.steps)
    manifest = _manifest(args, command, parts, plan, files) if rank == 0 else {}
    output = Path(args.output_dir or _default_directory(manifest, recipe, args, parts.path))
    lm.check_device(args.device)
    training_plan.require_fit(corpus, mixture, args.tokens_per_batch)
    if rank == 0:
        _check_output(output, manifest | {"recipe": recipe.deciding()}, parts.path)
    if args.dry_run:
        return _show_plan(args, parts.path, corpus, mixture, output) if rank == 0 else DONE

    model = lm.LM.load(args.model, args.dtype, "cpu" if many else args.device, template=args.template, trainable=True)
    model.model.requires_grad_(True)
    if args.lora:
        _adapt(model.model, args)
    scorer = trainer.shard(model.model) if many else trainer.Scorer(model.model)
    if plan.strategy == "B" and plan.objective in ("npo", "dpo"):
        corpus = training_plan.Corpus(trainer.references(scorer, corpus.training, args.tokens_per_batch), corpus.validation, corpus.notes)
        mixture = training_plan.mixture(plan, corpus.training)

    stages = None
    if args.demo and not many:
        from redlite.organism import measure
        stages = measure.Stages(output, model, (lambda line: None) if args.quiet else note)
    live = StepProgress(mixture.steps, args.quiet)

    def on_step(record: dict) -> None:
        live(record)
        if record["step"] + 1 == plan.steps_a and plan.strategy == "B":
            if stages:
                stages.measure("after A")
            if args.save_a:
                _save(model.model, output / "after-A", parts.path, args)
    if stages:
        stages.measure("before")
    outcome = trainer.run(scorer, mixture, recipe, output, corpus.validation, on_step, manifest)
    if outcome.step is None:
        if rank == 0:
            note(f"{PROGRAM}: stopped: {outcome.stopped}; no checkpoint was sound, so no model was written: lower --learning-rate, or --checkpoint-every")
        return FAILED
    _save(model.model, output, parts.path, args)
    if rank:
        return DONE if not outcome.stopped else FAILED
    if stages:
        stages.measure(f"after {plan.strategy}")
    return _finish(args, output, corpus, mixture, outcome, stages.found if stages else None)


def _files(args, demo: bool) -> dict[str, list[str]]:
    """The files of each colour; in the demonstration, the organism's where none is named."""
    named = {c: getattr(args, c) or [] for c in ("blue", "red", "helpful")}
    if not demo:
        return named
    from redlite.organism import measure
    return {c: files or [str(measure.FILES[c])] for c, files in named.items()}


def _objective(args) -> str:
    if args.strategy == "A" and args.objective:
        raise Error(f"--objective {args.objective} is for --strategy B, and strategy A has no red term; leave it out, or use --strategy B")
    return "A" if args.strategy == "A" else args.objective or "B"


def _check_output(output: Path, manifest: dict, model: Path) -> None:
    """Raises the Error that making the run directory would raise, and one where it is the model's own; for a dry run too."""
    if output.resolve() == model.resolve():
        raise Error(f"--output-dir {output}: is the model's own directory, which would be overwritten; name another")
    run_directory.check(output, manifest)


def _plan(args):
    from redlite.training import plan as training_plan
    mix = {"helpful": 1.0, "blue": 1.0, "red": 1.0}
    for text in args.mix:
        colour, _, part = text.partition("=")
        if colour not in mix or sum(colour == t.partition("=")[0] for t in args.mix) > 1:
            raise Error(f"--mix {text!r}: must be COLOUR=PART with a colour of {', '.join(mix)}, each at most once")
        try:
            mix[colour] = number(0, 1e9)(part)
        except argparse.ArgumentTypeError as error:
            raise Error(f"--mix {text!r}: {error}") from None
    objective = _objective(args)
    parameters = training_plan.parameters(objective, args.preset, args.parameter)
    return training_plan.Plan(args.strategy, objective, parameters, args.steps_a, args.epochs, args.steps, args.batch_size, mix,
                      args.max_tokens, args.validation, args.seed)


def _recipe(args, steps: int):
    from redlite.training import trainer
    return trainer.Recipe(args.learning_rate, args.final_rate, math.ceil(args.warmup * steps), args.weight_decay, clip=args.clip,
                        tokens_per_batch=args.tokens_per_batch, per=args.per, checkpoint_every=args.checkpoint_every,
                        evaluate_every=args.evaluate_every, helpful_rise=args.helpful_rise, recompute=args.recompute, seed=args.seed)


def _manifest(args, command: str, parts, plan, files: dict[str, list[str]]) -> dict:
    """What a run is made of. The recipe and the data's hash are added by the trainer."""
    import torch

    from redlite import kernels
    from redlite.inference import lm
    device = args.device.partition(":")[0]
    lora = {"rank": args.lora, "alpha": args.lora_alpha, "targets": args.lora_targets} if args.lora else None
    return {"command": command, "version": __version__, "seed": args.seed,
            "model": {"name": parts.path.name, "dtype": args.dtype, "device": device, **lm.fingerprints(parts)},
            "plan": asdict(plan), "limit": args.limit, "lora": lora, "files": {c: [sha256_file(f) for f in fs] for c, fs in files.items()},
            "info": {"recipe": args.recipe, "torch": torch.__version__, "files": files, "kernels": {op: kernels.implementation(op, device) for op in kernels.MODULES}}}


def _default_directory(manifest: dict, recipe, args, path: Path) -> str:
    """A name that stays the same for the same run; every rank needs it, and only rank 0 has the manifest."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise Error("--output-dir is missing: on several processes the run directory must be named")
    digest = sha256_json([{k: v for k, v in manifest.items() if k not in INFORMATION}, recipe.deciding()])[:8]
    return f"runs/safealign-{path.name}-{digest}"


def _adapt(model, args) -> None:
    from redlite.model import lora as model_lora
    model_lora.attach(model, args.lora, args.lora_alpha, tuple(args.lora_targets or model_lora.TARGETS), args.seed)


def _save(model, directory: Path, source: Path, args) -> None:
    """The model in Hugging Face's layout, adapters merged; and the adapters beside it. Every rank calls this."""
    from redlite.model import lora as model_lora
    from redlite.weights import checkpoint
    checkpoint.save_pretrained(model_lora.merged(model) if args.lora else model, directory, source)
    if args.lora:
        model_lora.save_adapter(model, directory / "adapter", str(source.resolve()))


def _finish(args, output: Path, corpus, mixture, outcome, stages: dict | None) -> int:
    """results.json, the page, the table; the exit code."""
    from redlite import loss
    from redlite.report import train_page
    from redlite.store.text import columns
    first, last = outcome.history[0], outcome.history[(outcome.step or 1) - 1]
    pick = {"first": first, "last": last, "validation_before": first.get("validation_before", {}), "validation": last.get("validation", {})}
    summary = {"version": __version__, "model": str(output), "steps": mixture.steps, "kept_step": outcome.step, "stopped": outcome.stopped,
               "tokens": sum(r["tokens"] for r in outcome.history), "conversations": _counts(corpus),
               **{k: {c: r[c] for c in loss.COLOURS if c in r} for k, r in pick.items()}, **({"stages": stages} if stages else {})}
    write_json(output / "results.json", summary)
    write_atomic(output / train_page.PAGE, train_page.page(output, summary))
    rows = [["NLL", "first step", "last step", "held out before", "held out after"]]
    rows += [[c, *("–" if (v := summary[k].get(c)) is None else f"{v:.3f}" for k in pick)] for c in loss.COLOURS if any(c in summary[k] for k in pick)]
    print("\n".join(columns(rows)))
    if stages:
        from redlite.organism import measure
        print("\n" + measure.table(stages))
    print(f"Model: {output}\nPage: {output / train_page.PAGE}", file=sys.stderr if args.json else sys.stdout)
    if outcome.stopped:
        note(f"{PROGRAM}: stopped: {outcome.stopped}; {output} holds the model of step {outcome.step}, the last sound checkpoint")
    if args.json:
        print(json.dumps(summary, ensure_ascii=False))
    return FAILED if outcome.stopped else DONE


def _counts(corpus) -> dict[str, int]:
    return {**{c: n for c in ("helpful", "blue", "red") if (n := corpus.count(c))}, "held out": len(corpus.validation),
            **{f"left out: {why}": n for why, n in corpus.notes.items()}}


def _show_plan(args, path: Path, corpus, mixture, output: Path) -> int:
    import torch

    from redlite.model.llama import LLaMA
    from redlite.training import plan as training_plan
    from redlite.weights import checkpoint
    with torch.device("meta"):
        model = LLaMA(checkpoint.read_config(path)[0])
    weights, cost = sum(p.numel() for p in model.parameters()), training_plan.cost(mixture)
    if args.lora:
        _adapt(model, args)
    size = 2 if args.dtype == "bfloat16" else 4
    plan = {"steps": mixture.steps, "phases": [{"steps": p.steps, "objective": p.objective, "draw": p.draw} for p in mixture.phases],
            "conversations": _counts(corpus), **cost, "parameters": weights,
            "flops": 6 * weights * cost["tokens"], "weights_and_state_gb": weights * size * (1 if args.lora else 4) / 1e9, "output_dir": str(output)}
    print(f"{plan['steps']} steps into {output}")
    for p in plan["phases"]:
        print(f"  {p['steps']} steps of {p['objective']}, each of " + ", ".join(f"{n} {c}" for c, n in p["draw"].items()))
    print("conversations: " + ", ".join(f"{n} {c}" for c, n in plan["conversations"].items())
          + f"\n{plan['tokens']:,} tokens, {plan['flops']:.2e} operations; weights, gradients and optimizer {plan['weights_and_state_gb']:.2f} GB"
          + "\ncost: 0 (this machine)")
    if args.json:
        print(json.dumps(plan))
    return DONE


# audit, prove

def _audit(args, command: str) -> int:
    from redlite.inference import lm
    from redlite.store.text import columns
    from redlite.training import dataset, ledger, trainer
    from redlite.training import plan as training_plan
    demo = args.model == EMBEDDED and not (args.blue or args.red or args.helpful)
    if demo:
        args.limit = args.limit or 8
        if not args.quiet:
            note(f"{PROGRAM}: the first {args.limit} conversations of each colour of the embedded model organism; it says nothing about real models")
    files = _files(args, demo)
    if not any(files.values()):
        raise Error("--blue, --red and --helpful are missing: name files of conversations to look at")
    objective = _objective(args)
    phase = dataset.Phase(1, {}, objective, training_plan.parameters(objective, args.preset, args.parameter))
    found = training_plan.read(files, args.limit)[0]
    parts = lm.parts(args.model, args.template)
    output = Path(args.output_dir or f"runs/audit-{parts.path.name}")
    manifest = {"command": command, "version": __version__, "seed": args.seed, "model": {"name": parts.path.name, "dtype": args.dtype, **lm.fingerprints(parts)},
                "objective": objective, "parameters": phase.parameters, "per": args.per, "max_tokens": args.max_tokens,
                "files": {c: [sha256_file(f) for f in fs] for c, fs in files.items()}, "limit": args.limit}
    pairs = ledger.encoded(found, parts.template, objective, args.max_tokens, args.tokens_per_batch)
    lm.check_device(args.device)
    _check_output(output, manifest, parts.path)
    if args.dry_run:
        print(f"would put {len(pairs)} conversations through the objective {objective} and write {output}/{ledger.LEDGER}; cost: 0 (this machine)")
        return DONE
    model = lm.LM.load(args.model, args.dtype, args.device, template=args.template, trainable=True)
    recipe = trainer.Recipe(tokens_per_batch=args.tokens_per_batch, per=args.per)
    lead = f"{len(pairs)} conversations, {parts.path.name}, objective {objective} " + ", ".join(f"{k}={v:g}" for k, v in phase.parameters.items())
    with Run(output, manifest) as directory:
        totals = ledger.write(directory, trainer.Scorer(model.model), pairs, model.template, model.tokenizer, phase, recipe, lead)
    print("\n".join(columns([["", *next(iter(totals.values()))], *([c, *map(str, t.values())] for c, t in totals.items())])))
    print(f"Ledger: {output / ledger.LEDGER}\nPage: {output / ledger.PAGE}", file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps({"output_dir": str(output), "totals": totals}))
    return DONE


def _prove(args, command: str) -> int:
    from redlite.training import prove
    if args.dry_run:
        print("would check every objective and implementation here; cost: 0 (this machine)")
        return DONE
    result = prove.prove()
    if args.json:
        print(json.dumps(result))
    return DONE if result["ok"] else FAILED


COMMANDS = {"train": (_describe_train, _train), "audit": (_describe_audit, _audit), "prove": (_describe_prove, _prove)}

if __name__ == "__main__":
    sys.exit(main())
