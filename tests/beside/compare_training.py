"""Times full fine-tuning in float32 with redlite and with transformers, in turns in one process, on the
same conversations. Run where transformers is installed beside redlite:

    python tests/beside/compare_training.py HF_DIR CONVERSATIONS [--conversations 16] [--rounds 3] [--json
    FILE]

HF_DIR is a model as a Hugging Face directory, CONVERSATIONS a file that bin/safealign reads. A step trains
on the same conversations on both sides: redlite packs them, transformers pads micro-batches of 4 (sorted by
length) to their longest and gets torch's AdamW. Only real tokens are counted, so padding counts against who
pads.
"""
import argparse
import json
import platform
import statistics
import time

import torch

import redlite
from redlite.inference.lm import LM
from redlite.training import conversations, dataset, trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hf")
    parser.add_argument("conversations_file")
    parser.add_argument("--conversations", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    args = parser.parse_args()
    torch.set_num_threads(2)
    from transformers import AutoModelForCausalLM
    ours = LM.load(args.hf, trainable=True)
    ours.model.requires_grad_(True)
    found, _ = dataset.encode_all(conversations.read(args.conversations_file, "helpful")[0], ours.template,
                                  args.max_tokens)
    peer = AutoModelForCausalLM.from_pretrained(args.hf, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-6)

    def redlite_step(batch):
        mixture = dataset.Mixture(dataset.singles(batch), [dataset.Phase(1, {"helpful": len(batch)})], 0)
        trainer.run(ours.model, mixture, trainer.Recipe(learning_rate=1e-6, per="token"))

    def transformers_step(batch):
        batch = sorted(batch, key=len)
        total = sum(int(e.trained[1:].sum()) for e in batch)
        for part in (batch[i:i + 4] for i in range(0, len(batch), 4)):
            longest = max(map(len, part))
            ids, labels, mask = (torch.full((len(part), longest), fill) for fill in (0, -100, 0))
            for row, e in enumerate(part):
                ids[row, :len(e)] = torch.from_numpy(e.ids.astype("int64"))
                labels[row, :len(e)] = torch.where(torch.from_numpy(e.trained), ids[row, :len(e)], -100)
                mask[row, :len(e)] = 1
            peer(input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=total).loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    speeds = {"redlite": [], "transformers": []}
    for round_ in range(args.rounds + 1):
        batch = found[round_ * args.conversations:(round_ + 1) * args.conversations]
        tokens = sum(map(len, batch))
        for name, step in (("redlite", redlite_step), ("transformers", transformers_step)):
            start = time.perf_counter()
            step(batch)
            if round_:  # the first turn warms up
                speeds[name].append(tokens / (time.perf_counter() - start))
                print(f"{name}: {tokens} tokens, {speeds[name][-1]:.1f} tokens/s", flush=True)
    median = {name: statistics.median(s) for name, s in speeds.items()}
    result = {"what": f"full fine-tuning, float32, {args.conversations} conversations a step",
              "machine": (f"{platform.machine()}, 2 threads, torch {torch.__version__}, "
                          f"redlite {redlite.__version__}"),
              "tokens_per_s": median, "ratio": median["redlite"] / median["transformers"]}
    print(json.dumps(result))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
