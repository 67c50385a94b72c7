"""bin/safealign train: SAFE-ALIGN on one process or many."""
import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from redlite import __version__
from redlite.cli import evaluation
from redlite.cli.program import DONE, FAILED, GATE
from redlite.cli.progress import StepProgress, note
from redlite.cli.training_options import (
    PROGRAM,
    Files,
    check_output,
    files_of,
    hashes,
    mix_of,
    plan_of,
    recipe_of,
)
from redlite.errors import Error
from redlite.store import run_directory
from redlite.store.files import sha256_json, write_atomic, write_json
from redlite.store.run_directory import INFORMATION
from redlite.store.text import columns

if TYPE_CHECKING:
    from redlite.inference.lm import LM, Parts
    from redlite.model.llama import LLaMA
    from redlite.organism.measure import Stages
    from redlite.redteam.scorecard import Battery
    from redlite.training.dataset import Mixture
    from redlite.training.plan import Corpus, Plan
    from redlite.training.trainer import Recipe, TrainingResult

QUANTIZED_BYTES = {"int8": 34 / 32, "int4": 20 / 32}    # of a weight; blocks that a GGUF file has differ


def run(args: argparse.Namespace, command: str) -> int:
    """The body of `safealign train`."""
    if args.dtype == "float16":
        raise Error("--dtype float16: its range is too small to train in; use bfloat16 or float32")
    for_lora = [name for name in ("lora_alpha", "lora_targets", "adapter_only") if getattr(args, name)]
    if for_lora and not args.lora:
        option = for_lora[0].replace("_", "-")
        raise Error(f"--{option} is for --lora RANK, which is missing; add it, or leave this out")
    if args.quantize and not args.lora:
        raise Error(f"--quantize {args.quantize} keeps the weights as they are, and trains adapters beside "
                    "them: add --lora RANK, or leave this out")
    if not (args.blue or args.helpful or args.demo):
        raise Error("--blue and --helpful are missing: name files of conversations to train on "
                    "(without any option the embedded organism is aligned)")
    mix_of(args)        # a wrong one is said before torch is loaded
    from redlite.training import processes
    with processes.joined(args.device) as many:
        evaluation.check(args, many)
        if args.quantize and many:
            raise Error("--quantize trains in one process; leave torchrun out")
        args.quiet = args.quiet or processes.rank() > 0
        return _train(args, command, processes.rank() == 0, many)


class _Prepared(NamedTuple):
    """What a run is made of, checked before the model is loaded.

    manifest  {} in all processes but the first
    battery   what evaluations during training ask; None where there are none
    """
    parts: "Parts"
    plan: "Plan"
    corpus: "Corpus"
    mixture: "Mixture"
    recipe: "Recipe"
    manifest: dict[str, Any]
    output: Path
    battery: "Battery | None"


def _prepared(args: argparse.Namespace, command: str, first: bool) -> _Prepared:
    from redlite.inference import lm
    from redlite.training import colours
    from redlite.training import plan as planning
    parts = lm.parts(args.model, args.template, args.date)
    plan, files = plan_of(args), files_of(args, args.demo)
    corpus = planning.corpus(files, parts.template, plan, args.limit)
    if (fault := colours.fault(corpus.looks)) and not args.anyway:
        raise Error(f"{fault}; give each file to its own option, or add --anyway if they are right")
    mixture = planning.mixture(plan, corpus.training)
    plan = planning.settled(plan, mixture)
    recipe = recipe_of(args, mixture.steps)
    manifest = _manifest(args, command, parts, plan, files) if first else {}
    output = Path(args.output_dir or _default_directory(manifest, recipe, parts.path))
    lm.check_device(args.device)
    lm.packing(args.dtype, args.device, args.quantize, trainable=True)
    planning.require_fit(corpus, mixture, args.tokens_per_batch)
    battery = evaluation.battery(args) if args.evaluate_questions or args.evaluate_tasks else None
    if battery:
        evaluation.require_apart(battery, corpus, args.anyway)
    if first:
        check_output(output, manifest | {"recipe": recipe.deciding()}, parts.path)
    return _Prepared(parts, plan, corpus, mixture, recipe, manifest, output, battery)


def _train(args: argparse.Namespace, command: str, first: bool, many: bool) -> int:
    """One process's part. first: the one that speaks and writes; many: whether there may be others."""
    from redlite import loss
    from redlite.training import plan as planning
    from redlite.training import trainer
    if args.demo and not args.quiet:
        note(f"{PROGRAM}: offline, with the embedded model organism: a toy that shows how the program works "
             "and says nothing about real models")
    parts, plan, corpus, mixture, recipe, manifest, output, battery = _prepared(args, command, first)
    if args.dry_run:
        return _show_plan(args, parts.path, corpus, mixture, output) if first else DONE

    device = "cpu" if many else args.device
    model = _loaded(args, parts, device)
    scorer = trainer.shard(model.model) if many else trainer.Scorer(model.model)
    if plan.strategy == "B" and plan.objective in loss.NEED_REFERENCE:
        training = trainer.references(scorer, corpus.training, args.tokens_per_batch)
        mixture = planning.mixture(plan, training)
    stages = _stages(output, model, args.quiet) if args.demo and not many else None
    watch = None
    if battery:
        made = manifest | {"recipe": recipe.deciding()}
        watch = evaluation.Evaluation(output, model, battery, args, made, command)
    live = StepProgress(mixture.steps, args.quiet)

    def on_step(record: dict[str, Any]) -> None:
        live(record)
        if record["step"] == plan.steps_a and not args.anyway:
            _require_a_push(record, plan)
        if record["step"] + 1 == plan.steps_a and plan.strategy == "B":
            if stages:
                stages.measure("after A")
            if args.save_a:
                _save(model.model, output / "after-A", parts.path, args)
    if first:
        _say_colours(args, corpus)
    if stages:
        stages.measure("before")
    try:
        result = trainer.run(scorer, mixture, recipe, output, corpus.validation, on_step, manifest, watch)
    except _Idle as idle:
        if first:
            note(f"{PROGRAM}: {idle}")
        return FAILED
    if result.step is None:
        if first:
            note(f"{PROGRAM}: stopped: {result.stopped}; no checkpoint was sound, so no model was written: "
                 "lower --learning-rate, --checkpoint-every or --evaluate-every")
        return GATE if result.watched else FAILED
    _save(model.model, output, parts.path, args)
    if stages:
        stages.measure(f"after {plan.strategy}")
    if first:
        _finish(args, output, corpus, mixture, result, stages, watch)
    if result.stopped:
        return GATE if result.watched else FAILED
    return GATE if args.until and not result.reached else DONE


def _loaded(args: argparse.Namespace, parts: "Parts", device: str) -> "LM":
    """The model with what is trained of it: all weights, or adapters beside weights that may be quantised."""
    from redlite.inference.lm import LM
    model = LM.load(parts, args.dtype, device, args.quantize, trainable=True)
    model.model.requires_grad_(True)
    if args.lora:
        _adapt(model.model, args)
    return model


def _say_colours(args: argparse.Namespace, corpus: "Corpus") -> None:
    """What the look at the answers found, and what is there for nothing."""
    from redlite.training import colours
    if corpus.looks and not (args.demo or args.quiet):
        note(f"{PROGRAM}: {colours.said(corpus.looks)}")
    if args.strategy == "A" and (unused := corpus.count("red")):
        note(f"{PROGRAM}: strategy A trains on no red conversation, so the {unused} given are not used; "
             "add --strategy B, or leave --red out")


def _stages(output: Path, model: Any, quiet: bool) -> "Stages":
    """What measures the organism before, between and after."""
    from redlite.organism import measure
    return measure.Stages(output, model, (lambda line: None) if quiet else note)


def _manifest(args: argparse.Namespace, command: str, parts: "Parts", plan: "Plan",
              files: Files) -> dict[str, Any]:
    """What a run is made of. The trainer adds the recipe and the data's hash."""
    import torch

    from redlite import kernels
    from redlite.inference import lm
    device = args.device.partition(":")[0]
    lora = {"rank": args.lora, "alpha": args.lora_alpha, "targets": args.lora_targets} if args.lora else None
    used = {op: kernels.implementation(op, device) for op in kernels.MODULES}
    quantized = {"quantize": args.quantize} if args.quantize else {}    # older manifests do not name it
    return {"command": command, "version": __version__, "seed": args.seed,
            "model": {"name": parts.path.name, "dtype": args.dtype, "device": device, **quantized,
                      **lm.fingerprints(parts)},
            "plan": _kept(plan),
            "limit": args.limit, "lora": lora, "files": hashes(files),
            "info": {"recipe": args.recipe, "until": args.until, "while": getattr(args, "while"),
                     "max_unlabelled": args.max_unlabelled,
                     "torch": torch.__version__, "files": files, "kernels": used,
                     "started": time.strftime("%Y-%m-%d %H:%M:%S %Z")}}


def _kept(plan: "Plan") -> dict[str, Any]:
    """A plan for the manifest: prompts by their hashes, and no `answer_tokens` where older ones have none."""
    kept = asdict(plan) | {"prompts": {name: sha256_json(text) for name, text in plan.prompts.items()}}
    return {name: value for name, value in kept.items() if name != "answer_tokens" or value is not None}


def _default_directory(manifest: dict[str, Any], recipe: "Recipe", path: Path) -> str:
    """A name that stays the same for the same run.

    Every process needs it, and only the first has the manifest.
    """
    if "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        raise Error("--output-dir is missing: on several processes the run directory must be named")
    compared = {k: v for k, v in manifest.items() if k not in INFORMATION}
    return f"runs/safealign-{path.name}-{sha256_json([compared, recipe.deciding()])[:8]}"


def _adapt(model: "LLaMA", args: argparse.Namespace) -> None:
    from redlite.model import lora
    lora.attach(model, args.lora, args.lora_alpha, tuple(args.lora_targets or lora.TARGETS), args.seed)


def _save(model: "LLaMA", directory: Path, source: Path, args: argparse.Namespace) -> None:
    """The model in Hugging Face's layout, adapters merged, and the adapters beside it, or those alone.

    Every process calls this.
    """
    from redlite.model import lora
    from redlite.weights.save import save_pretrained
    if not args.adapter_only:
        save_pretrained(lora.merged(model) if args.lora else model, directory, source)
    if args.lora:
        lora.save_adapter(model, directory / "adapter", str(source.resolve()))


def _finish(args: argparse.Namespace, output: Path, corpus: "Corpus", mixture: "Mixture",
            result: "TrainingResult", stages: "Stages | None",
            watch: evaluation.Evaluation | None) -> None:
    """results.json, the page, and the table."""
    from redlite import loss
    from redlite.organism import measure
    from redlite.report import train_page
    first, last = result.history[0], result.history[(result.step or 1) - 1]
    figures = {"first": first, "last": last, "validation_before": first.get("validation_before", {}),
               "validation": last.get("validation", {})}
    summary = {"version": __version__, "model": str(output), "steps": mixture.steps, "kept_step": result.step,
               "stopped": result.stopped, "tokens": sum(r["tokens"] for r in result.history),
               "conversations": _counts(corpus, args.strategy)}
    for name, record in figures.items():
        summary[name] = {c: record[c] for c in loss.COLOURS if c in record}
    if stages:
        summary["stages"] = stages.found
    if result.reached or args.until or getattr(args, "while"):
        summary["reached"] = result.reached
        _say_what_is_written(output, result)
    if remark := _cap_remark(mixture, result):
        summary["remark"] = remark
        note(f"{PROGRAM}: {remark}")
    write_json(output / "results.json", summary)
    write_atomic(output / train_page.PAGE, train_page.page(output, summary))
    rows = [["NLL", "first step", "last step", "held out before", "held out after"]]
    for colour in loss.COLOURS:
        own = [summary[name].get(colour) for name in figures]
        if any(nll is not None for nll in own):
            rows.append([colour, *("–" if nll is None else f"{nll:.3f}" for nll in own)])
    print("\n".join(columns(rows)))
    if stages:
        print("\n" + measure.table(stages.found))
    written = f"Adapter: {output / 'adapter'}" if args.adapter_only else f"Model: {output}"
    print(f"{written}\nPage: {output / train_page.PAGE}", file=sys.stderr if args.json else sys.stdout)
    if result.stopped:
        note(f"{PROGRAM}: stopped: {result.stopped}; {output} holds the model of step {result.step}, "
             "the last sound checkpoint")
    elif result.reached:
        note(f"{PROGRAM}: {result.reached}")
    elif args.until and watch:
        note(f"{PROGRAM}: --until was not reached in {mixture.steps} steps: {watch.left(mixture.steps)}")
    if args.json:
        print(json.dumps(summary, ensure_ascii=False))


def _say_what_is_written(output: Path, result: "TrainingResult") -> None:
    """Note in the manifest which step's weights the directory holds, and why."""
    made = run_directory.read_manifest(output)
    written = {"step": result.step, "why": result.stopped or result.reached or "all steps are done"}
    write_json(output / "manifest.json", {**made, "info": {**made.get("info", {}), "written": written}})


class _Idle(Exception):
    """Strategy B has nothing to push; the message says so to the user."""


def _require_a_push(record: dict[str, Any], plan: "Plan") -> None:
    """Raises _Idle where every red token of a step is past its cap and the objective leaves those alone."""
    if record.get("red_capped") == 1 and not plan.parameters.get("high", 0):
        raise _Idle("stopped at the first step of strategy B: every red token is past the cap (tau) already, "
                    "so B would train as A does, and no model was written; raise tau (--parameter tau=X), "
                    "use another --objective, or add --anyway")


def _cap_remark(mixture: "Mixture", result: "TrainingResult") -> str:
    """What to say where strategy B pushed nothing, since its red tokens were past the cap at every step."""
    own = mixture.phases[-1].parameters or {}
    if own.get("high", 0):      # the objective B goes on pushing past its cap
        return ""
    shares = [r["red_capped"] for r in result.history if r["objective"] in ("B", "hinge")]
    if not shares or min(shares) < 1:
        return ""
    return (f"every red token was past the cap (tau) in all {len(shares)} steps of strategy B, so it trained "
            "as strategy A does; raise tau (--parameter tau=X), or use another --objective")


def _counts(corpus: "Corpus", strategy: str) -> dict[str, int]:
    """How many conversations are used and left out, as results.json names them."""
    found = {c: corpus.count(c) for c in ("helpful", "blue", "red") if corpus.count(c)}
    found["held out"] = len(corpus.validation)
    if strategy == "A" and "red" in found:
        found["left out: red, by strategy A"] = found.pop("red")
    return found | {f"left out: {why}": n for why, n in corpus.notes.items()}


def _show_plan(args: argparse.Namespace, path: Path, corpus: "Corpus", mixture: "Mixture",
               output: Path) -> int:
    """What --dry-run prints."""
    import torch

    from redlite.model.llama import LLaMA
    from redlite.training import plan as planning
    from redlite.weights import checkpoint
    with torch.device("meta"):
        model = LLaMA(checkpoint.read_config(path)[0])
    weights, cost = sum(p.numel() for p in model.parameters()), planning.cost(mixture)
    if args.lora:
        _adapt(model, args)
    size = QUANTIZED_BYTES.get(args.quantize) or (2 if args.dtype == "bfloat16" else 4)
    held = weights * size * (1 if args.lora else 4) / 1e9     # weights, gradients and both moments
    phases = [{"steps": p.steps, "objective": p.objective, "draw": p.draw} for p in mixture.phases]
    flops = 6 * weights * cost["tokens"]
    plan = {"steps": mixture.steps, "phases": phases, "conversations": _counts(corpus, args.strategy), **cost,
            "parameters": weights, "flops": flops, "weights_and_state_gb": held, "output_dir": str(output)}
    print(f"{mixture.steps} steps into {output}")
    for p in mixture.phases:
        drawn = ", ".join(f"{n} {c}" for c, n in p.draw.items())
        print(f"  {p.steps} steps of {p.objective}, each of {drawn}")
    print("conversations: " + ", ".join(f"{n} {c}" for c, n in _counts(corpus, args.strategy).items()))
    print(f"{cost['tokens']:,} tokens, {flops:.2e} operations; "
          f"weights, gradients and optimizer {held:.2f} GB")
    print("cost: 0 (this machine)")
    _say_colours(args, corpus)
    if args.json:
        print(json.dumps(plan))
    return DONE
