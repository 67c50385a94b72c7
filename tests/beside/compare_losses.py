"""Shows whether bfloat16 training loses what float32 loses, but for bfloat16's own noise.

Run where transformers is installed beside redlite's own packages:

    python tests/beside/compare_losses.py DIR CONVERSATIONS [--sides "redlite float32" …] [--steps 200]
        [--threads 2] [--json FILE]

DIR is a model as a Hugging Face directory of bfloat16 numbers, CONVERSATIONS a file that bin/safealign reads.
Every side trains all weights on the same fresh conversations in the same order, so a step's loss is that of
text the model has not seen. The last --held-out conversations are scored before and after.

Two yardsticks tell what bfloat16's own noise is:
- redlite's bfloat16 with other random bits in its roundings
- transformers' autocast, which multiplies bfloat16 and keeps weights in float32, beside its own float32

A side is a process of its own. With --json its losses are kept, and the same command goes on behind them.
"""
import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import redlite
from redlite.inference.lm import LM
from redlite.kernels.cpu import library
from redlite.training import conversations, dataset, trainer
from redlite.training.optimizer import learning_rate

# side → program, number format, seed of the random bits
SIDES = {
    "redlite float32": ("redlite", "float32", 0),
    "redlite bfloat16": ("redlite", "bfloat16", 0),
    "redlite bfloat16, other bits": ("redlite", "bfloat16", 1),
    "transformers float32": ("transformers", "float32", 0),
    "transformers autocast": ("transformers", "autocast", 0),
    "transformers bfloat16": ("transformers", "bfloat16", 0),
}
PAIRS = (("redlite bfloat16", "redlite float32"), ("redlite bfloat16, other bits", "redlite float32"),
         ("redlite bfloat16, other bits", "redlite bfloat16"),
         ("transformers autocast", "transformers float32"), ("transformers bfloat16", "transformers float32"),
         ("transformers autocast", "redlite float32"), ("redlite float32", "transformers float32"))
Examples = list[dataset.TokenizedConversation]
Losses = dict[str, list[float] | float]
Say = Callable[[int, float], None]      # a step and its loss, when it is done


def data(args: argparse.Namespace) -> tuple[dataset.Mixture, Examples]:
    """The batches of every step, and what is held out."""
    template = LM.load(args.model, trainable=True).template
    found, _ = dataset.encode_all(conversations.read(args.conversations_file, "helpful")[0], template,
                                  args.max_tokens)
    needed = args.steps * args.conversations + args.held_out
    if len(found) < needed:
        raise SystemExit(f"{needed} conversations of at most {args.max_tokens} tokens are needed, and there "
                         f"are {len(found)}: raise --max-tokens, or lower --steps or --conversations")
    phase = dataset.Phase(args.steps, {"helpful": args.conversations})
    return dataset.Mixture(dataset.singles(found[:-args.held_out]), [phase], 0), found[-args.held_out:]


def recipe(args: argparse.Namespace, seed: int) -> trainer.Recipe:
    # The batches are short, so one loss may be far above the next: no rise ends the run.
    return trainer.Recipe(learning_rate=args.learning_rate, warmup_steps=args.steps // 20, per="token",
                          helpful_rise=1e9, seed=seed)


def redlite_losses(args: argparse.Namespace, dtype: str, seed: int, say: Say) -> Losses:
    lm = LM.load(args.model, dtype=dtype, trainable=True)
    lm.model.requires_grad_(True)
    mixture, held_out = data(args)
    history = trainer.run(lm.model, mixture, recipe(args, seed), validation=held_out,
                          on_step=lambda record: say(record["step"], record["loss"])).history
    before, after = history[0]["validation_before"], history[-1]["validation"]
    return {"losses": [record["loss"] for record in history], "before": before["helpful"],
            "after": after["helpful"]}


def padded(examples: Examples) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and labels [B, L]; −100 where nothing is trained."""
    longest = max(map(len, examples))
    ids, mask, labels = (torch.full((len(examples), longest), fill) for fill in (0, 0, -100))
    for row, e in enumerate(examples):
        ids[row, :len(e)], mask[row, :len(e)] = torch.from_numpy(e.ids.astype("int64")), 1
        labels[row, :len(e)] = torch.where(torch.from_numpy(e.trained), ids[row, :len(e)], -100)
    return ids, mask, labels


def peer_losses(args: argparse.Namespace, dtype: str, seed: int, say: Say) -> Losses:
    """With transformers' model and torch's AdamW, the same steps."""
    from transformers import AutoModelForCausalLM
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=kind).train()
    made, (mixture, held_out) = recipe(args, seed), data(args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0, fused=True)

    def loss(examples: Examples) -> torch.Tensor:
        ids, mask, labels = padded(examples)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
            return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    @torch.no_grad()
    def score() -> float:
        """The mean over the held-out tokens, as redlite's validation."""
        parts = [held_out[i:i + 4] for i in range(0, len(held_out), 4)]
        counts = [sum(int(e.trained[1:].sum()) for e in part) for part in parts]
        return sum(float(loss(part)) * n for part, n in zip(parts, counts, strict=True)) / sum(counts)
    before, losses = score(), []
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.learning_rate, made.warmup_steps)
        value = loss([e for unit in mixture.step(step) for e in unit])
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), made.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
        say(step, losses[-1])
    return {"losses": losses, "before": before, "after": score()}


def losses_of(args: argparse.Namespace, side: str) -> Losses:
    """The losses of a side, in this process."""
    torch.set_num_threads(args.threads)
    program, dtype, seed = SIDES[side]
    began = time.perf_counter()

    def say(step: int, loss: float) -> None:
        if (step + 1) % 20 == 0:
            print(f"{side}: step {step + 1}, loss {loss:.4f}, {time.perf_counter() - began:.0f} s",
                  file=sys.stderr, flush=True)
    return (redlite_losses if program == "redlite" else peer_losses)(args, dtype, seed, say)


def difference(ours: Losses, other: Losses) -> dict[str, float | list[float]]:
    """What parts two runs: the differences of their steps' losses, ours less the other's, and held out.

    quarters  the mean of each quarter of the steps; a drift would grow from one to the next
    error     of the mean of a quarter, as if steps were independent; the largest of the four
    """
    apart = [a - b for a, b in zip(ours["losses"], other["losses"], strict=True)]
    size = len(apart) // 4
    quarters = [apart[i * size:(i + 1) * size] for i in range(4)]
    return {"mean": statistics.fmean(apart), "mean_size": statistics.fmean(map(abs, apart)),
            "largest": max(map(abs, apart)), "quarters": [statistics.fmean(q) for q in quarters],
            "error": max(statistics.stdev(q) for q in quarters) / size ** 0.5,
            "held_out_before": ours["before"] - other["before"],
            "held_out_after": ours["after"] - other["after"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("conversations_file")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--conversations", type=int, default=2, help="a step")
    parser.add_argument("--held-out", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--learning-rate", type=float, default=2e-5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(losses_of(args, args.child)))
        return
    setting = {name: getattr(args, name)
               for name in ("steps", "conversations", "held_out", "max_tokens", "learning_rate")}
    result = {"what": "losses of training all weights on the same conversations, each once; nats a token",
              "machine": (f"{platform.machine()} ({library.isa()}), torch {torch.__version__}, "
                          f"redlite {redlite.__version__}"), "setting": setting, "sides": {}}
    if args.json and Path(args.json).exists():
        kept = json.loads(Path(args.json).read_text())
        if kept["setting"] != setting:
            raise SystemExit(f"{args.json}: was made with {kept['setting']}; name another file")
        result["sides"] = kept["sides"]
    for side in args.sides:
        if side not in result["sides"]:
            command = [sys.executable, __file__, *sys.argv[1:], "--child", side]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            result["sides"][side] = json.loads(done.stdout.splitlines()[-1])
        sides = result["sides"]
        result["pairs"] = {f"{a} − {b}": difference(sides[a], sides[b])
                           for a, b in PAIRS if a in sides and b in sides}
        if args.json:
            Path(args.json).write_text(json.dumps(result, ensure_ascii=False) + "\n")
    for side, found in result["sides"].items():
        print(f"{side}: held out {found['before']:.4f} → {found['after']:.4f}")
    for pair, found in result["pairs"].items():
        quarters = ", ".join(f"{x:+.4f}" for x in found["quarters"])
        print(f"{pair}: a step {found['mean_size']:.4f} apart (at most {found['largest']:.4f}); "
              f"means of quarters {quarters} (± {found['error']:.4f}); held out before "
              f"{found['held_out_before']:+.4f}, after {found['held_out_after']:+.4f}")


if __name__ == "__main__":
    main()
