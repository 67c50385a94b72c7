"""Times training with redlite and with its peers, in turns, on the same conversations; weighs each alone.

Run where transformers, peft and accelerate are installed beside redlite's own packages:

    python tests/beside/compare_training.py DIR CONVERSATIONS [--large GGUF DIR] [--rows full-float32 …]
        [--conversations 16] [--rounds 3] [--threads 2] [--clock wall] [--json FILE]

DIR is a model as a Hugging Face directory, CONVERSATIONS a file that bin/safealign reads. --large is a bigger
model, as GGUF for redlite and as a directory for its peers, of which adapters alone are trained. A step
trains on the same conversations on every side: redlite packs them, the peers pad micro-batches of 4, sorted
by length, and have torch's fused AdamW. Only real tokens are counted, so padding counts against who pads.

Every row of ROWS is a process in which its sides take turns. The peak memory of a side is that of a process
that has it alone and does one step. --clock cpu counts the processor's seconds instead of the clock's: on a
machine that others use, with --threads 1, it says more.
"""
import argparse
import json
import platform
import resource
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
from redlite.model import lora
from redlite.training import conversations, dataset, trainer
from redlite.training.optimizer import AdamW

RATE, RANK = 1e-6, 8
# row → sides, redlite's first: program, number format, what is trained
ROWS = {
    "full-float32": ("redlite float32 full", "transformers float32 full"),
    "full-bfloat16": ("redlite bfloat16 full", "transformers bfloat16 full", "transformers autocast full"),
    "lora-float32": ("redlite float32 lora", "peft float32 lora"),
    "lora-bfloat16": ("redlite bfloat16 lora", "peft bfloat16 lora"),
    "large-bfloat16": ("redlite bfloat16 lora", "peft bfloat16 lora"),
    "large-int4": ("redlite int4 lora", "peft float32 lora"),
}
Batch = list[dataset.TokenizedConversation]


def redlite_side(args: argparse.Namespace, dtype: str, trained: str, large: bool) -> Callable[[Batch], None]:
    """A step with redlite: what trainer.run does, without what it does once a run."""
    path = args.large[0] if large else args.model
    if dtype == "int4":
        lm = LM.load(path, quantize="int4", trainable=True)
    else:
        lm = LM.load(path, dtype=dtype, trainable=True)
    lm.model.requires_grad_(trained == "full")
    if trained == "lora":
        lora.attach(lm.model, RANK)
    recipe = trainer.Recipe(learning_rate=RATE, per="token")
    scorer, optimizer, count = trainer.Scorer(lm.model), AdamW(lm.model.named_parameters()), 0

    def step(batch: Batch) -> None:
        nonlocal count
        count += 1
        mixture = dataset.Mixture(dataset.singles(batch), [dataset.Phase(1, {"helpful": len(batch)})], 0)
        trainer.accumulate(scorer, mixture, recipe, 0)
        optimizer.step(count, RATE, trainer._clipping(1.0, optimizer.norm()))
    return step


def peer_side(args: argparse.Namespace, dtype: str, trained: str, large: bool) -> Callable[[Batch], None]:
    """A step with transformers, or with peft's adapters."""
    from transformers import AutoModelForCausalLM
    kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(args.large[1] if large else args.model, dtype=kind).train()
    if trained == "lora":
        from peft import LoraConfig, get_peft_model
        settings = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=list(lora.TARGETS),
                              task_type="CAUSAL_LM")
        model = get_peft_model(model, settings)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.0, fused=True)

    def step(batch: Batch) -> None:
        batch = sorted(batch, key=len)
        total = sum(int(e.trained[1:].sum()) for e in batch)
        for part in (batch[i:i + 4] for i in range(0, len(batch), 4)):
            longest = max(map(len, part))
            ids, labels, mask = (torch.full((len(part), longest), fill) for fill in (0, -100, 0))
            for row, e in enumerate(part):
                ids[row, :len(e)] = torch.from_numpy(e.ids.astype("int64"))
                labels[row, :len(e)] = torch.where(torch.from_numpy(e.trained), ids[row, :len(e)], -100)
                mask[row, :len(e)] = 1
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
                loss = model(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=total).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return step


def in_turns(args: argparse.Namespace, row: str, sides: list[str]) -> dict[str, object]:
    """In a process of its own: tokens a second of each side, step by step, and the process's peak memory."""
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    template = LM.load(args.model, trainable=True).template
    found, _ = dataset.encode_all(conversations.read(args.conversations_file, "helpful")[0], template,
                                  args.max_tokens)
    large, steps = row.startswith("large"), {}
    for side in sides:
        program, dtype, trained = side.split()
        made = redlite_side if program == "redlite" else peer_side
        steps[side] = made(args, dtype, trained, large)
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    rounds = 0 if len(sides) == 1 else args.rounds
    for round_ in range(rounds + 1):
        batch = found[round_ * args.conversations:(round_ + 1) * args.conversations]
        tokens, order = sum(map(len, batch)), sides if round_ % 2 else sides[::-1]
        for side in order:
            start = clock()
            steps[side](batch)
            if round_ or not rounds:    # the first turn warms up
                speeds[side].append(tokens / (clock() - start))
                print(f"{row}, {side}: {tokens} tokens, {speeds[side][-1]:.1f} tokens/s", file=sys.stderr,
                      flush=True)
    return {"speeds": speeds, "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def child(row: str, sides: tuple[str, ...]) -> dict[str, object]:
    """`in_turns` in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", row, *sides]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace, row: str) -> dict[str, object]:
    """A row: tokens a second (median), the paired ratios to redlite, and each side's memory alone."""
    sides = ROWS[row]
    speeds = child(row, sides)["speeds"]
    memory = {side: child(row, (side,))["memory_mb"] for side in sides} if args.memory else {}
    ours, others = sides[0], sides[1:]
    ratios = {peer: statistics.median(a / b for a, b in zip(speeds[ours], speeds[peer], strict=True))
              for peer in others}
    return {"tokens_per_s": {side: statistics.median(s) for side, s in speeds.items()},
            "times_faster": ratios, "memory_mb": memory,
            "memory_of_peers": {peer: memory[ours] / memory[peer] for peer in others if memory}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("conversations_file")
    parser.add_argument("--large", nargs=2, metavar=("GGUF", "DIR"))
    parser.add_argument("--rows", nargs="+", choices=ROWS)
    parser.add_argument("--conversations", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--note", default="", help="what else ran on the machine")
    parser.add_argument("--json")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(in_turns(args, args.child[0], args.child[1:])))
        return
    rows = args.rows or [row for row in ROWS if args.large or not row.startswith("large")]
    result = {"what": (f"training steps of {args.conversations} conversations in turns; full: all weights; "
                       f"lora: rank {RANK}; seconds of the {args.clock} clock"),
              "machine": (f"{platform.machine()} ({library.isa()}), {args.threads} threads, "
                          f"torch {torch.__version__}, redlite {redlite.__version__}"),
              "note": args.note, "rows": {}}
    for row in rows:
        result["rows"][row] = measure(args, row)
        print(json.dumps({row: result["rows"][row]}), flush=True)
        if args.json:       # after each row, so that what was measured is kept
            Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
