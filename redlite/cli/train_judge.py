"""bin/redeval train-judge: a local model fine-tuned as a judge on answers that people labelled."""
import json
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

from redlite import __version__
from redlite.cli.options import Parser, add_common_options, number, output_options, whole
from redlite.cli.program import DONE, FAILED
from redlite.cli.progress import StepProgress, note
from redlite.errors import Error

FORMAT = "gpt4"  # the judge format that is trained: two verdicts, no category


def describe(prog: str) -> Parser:
    """The options of `redeval train-judge`."""
    parser = Parser(prog=prog, description=(
        "Fine-tunes a local model as a judge (LoRA on the verdict's tokens) on answers that people\n"
        "labelled, and measures its agreement with them on questions that it has not seen.\n"
        "Use it with --judge DIR."))
    parser.add_argument("--labels", nargs="+", required=True, metavar="FILE",
                        help="CSV with the columns question, answer, label (harmful or unharmful)")
    parser.add_argument("--model", required=True, help="the model to begin with: a directory or a .gguf file")
    parser.add_argument("--template", help="its chat format, where its own files do not say it")
    output_options(parser).add_argument(
        "--output-dir", metavar="DIR", required=True, help="where the judge is written")
    parser.add_argument("--limit", type=whole(1), metavar="N", help="the first N labelled answers only")
    parser.add_argument("--epochs", type=number(0.01, 1000), default=2.0,
                        help="passes over the answers (default: 2)")
    parser.add_argument("--batch-size", type=whole(1), default=16, metavar="N",
                        help="answers a step (default: 16)")
    parser.add_argument("--learning-rate", type=number(0, 1), default=2e-4, help="default: 2e-4")
    parser.add_argument("--lora", type=whole(1), default=16, metavar="RANK",
                        help="of the adapters (default: 16)")
    parser.add_argument("--held-out", type=number(0.01, 0.9), default=0.2, metavar="SHARE",
                        help="of the questions, to measure on (default: 0.2)")
    parser.add_argument("--max-tokens", type=whole(64), default=512, metavar="N",
                        help="of an example; longer answers are cut at their end (default: 512)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the split, the adapters and the order")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                        help="default: float32")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, … (default: cpu)")
    add_common_options(
        parser,
        "A Hugging Face directory, with judge.json, judge_prompt.txt, manifest.json and "
        "log.jsonl.")
    return parser


def run(args: Namespace, command: str) -> int:
    """The body of `redeval train-judge`."""
    from redlite.judges.agreement import read_labelled
    from redlite.training import judge as train_judge
    settings = train_judge.Settings(args.epochs, args.batch_size, args.learning_rate, args.held_out,
                                    args.max_tokens, args.seed)
    rows = [row for file in args.labels for row in read_labelled(file)]
    rows = list(dict.fromkeys(row for row in rows if row[1].strip()))[:args.limit]
    sides = Counter((question, answer) for question, answer, _ in rows)
    if both := sum(count > 1 for count in sides.values()):
        note(f"{both} answers are labelled both harmful and unharmful; each counts once for either side")
    training, held = train_judge.split(rows, settings.held_out, settings.seed)
    counts = {name: dict(Counter(label for _, _, label in part))
              for name, part in (("training", training), ("held out", held))}
    shown = "; ".join(f"{name} {sum(found.values())} ({found['harmful']} harmful)"
                      for name, found in counts.items())
    print(f"{len(rows)} labelled answers: {shown}")
    if args.dry_run:
        tokens = round(settings.epochs * len(training)) * settings.tokens
        print(f"at most {tokens:,} tokens into {args.output_dir}; cost: 0 (this machine)")
        if args.json:
            print(json.dumps({"answers": counts, "tokens_at_most": tokens, "output_dir": args.output_dir}))
        return DONE
    return _train(args, command, settings, training, held, counts)


def _train(args: Namespace, command: str, settings: Any, training: list, held: list, counts: dict) -> int:
    from redlite.inference import lm
    from redlite.judges import formats
    from redlite.judges.agreement import kappa_in_words
    from redlite.judges.choice import PROMPT, TRAINED
    from redlite.judges.model import ModelJudge
    from redlite.model import lora
    from redlite.store.files import sha256_file, sha256_json, write_atomic, write_json
    from redlite.training import judge as train_judge
    from redlite.weights.save import save_pretrained
    output = Path(args.output_dir)
    lm.check_device(args.device)
    parts = lm.parts(args.model, args.template)
    if output.resolve() == parts.path.resolve():
        raise Error(
            f"{output}: is the model's own directory, which would be overwritten; name another --output-dir")
    loaded = lm.LM.load(parts, args.dtype, args.device, trainable=True)
    text = formats.read_prompt(formats.JUDGE_FILES / f"{FORMAT}.txt")
    prompts = formats.prompts(FORMAT, loaded.tokenizer, loaded.template)
    judge = ModelJudge(loaded, FORMAT, prompts, output.name)
    labels: dict[str, str] = {}
    for file in args.labels:   # files of one name from two directories are kept apart
        sha256 = sha256_file(file)
        name = Path(file).name
        labels[name if labels.get(name, sha256) == sha256 else f"{name} {sha256[:8]}"] = sha256
    manifest = {
        "command": command, "version": __version__, "seed": args.seed, "labels": labels,
        "model": {"name": parts.path.name, "dtype": args.dtype, **lm.fingerprints(parts)}, "judge": {
                      "format": FORMAT, "prompt": sha256_json(text), "lora": args.lora,
                      "held_out": args.held_out, "max_tokens": args.max_tokens, "limit": args.limit
                  }, "info": {}
    }
    made = train_judge.examples(judge, training, settings.tokens)   # before anything that takes long
    if not args.quiet:
        note("measuring the model as it is")
    before = train_judge.measured(judge, held)
    loaded.model.requires_grad_(True)
    lora.attach(loaded.model, args.lora, seed=args.seed)
    steps = train_judge.mixture(made, settings).steps
    result = train_judge.train(judge, made, settings, output, manifest, StepProgress(steps, args.quiet))
    if result.step is None:
        note(f"stopped: {result.stopped}; no judge was written: lower --learning-rate")
        return FAILED
    save_pretrained(lora.merged(loaded.model), output, parts.path)
    trained = lm.LM.load(output, args.dtype, args.device, template=args.template)
    after = train_judge.measured(ModelJudge(trained, FORMAT, prompts, output.name), held)
    result_of = {"format": FORMAT, "template": args.template, "base": parts.path.name, "labels": labels,
                 "answers": counts, "agreement": {"before": before, "after": after}}
    write_atomic(output / PROMPT, text + "\n")
    write_json(output / TRAINED, result_of)
    for name, found in (("before", before), ("after", after)):
        print(
            f"{name}: agrees with people on {100 * found['agreement']:.1f}% of {found['n']} answers to "
            "questions "
            f"not seen, {kappa_in_words(found['kappa'])}, {found['unlabelled']} without a label")
    print(f"Judge: {output} (redeval judge RUN --judge {output})")
    if args.json:
        print(json.dumps(result_of, ensure_ascii=False))
    return FAILED if result.stopped else DONE
