"""Times the loss and RED-EVAL-shaped generation beside their peers on a GPU, in turns in one process. Each
peer is used where it is installed beside redlite:

    python tests/beside/compare_gpu.py [--rounds 5] [--json FILE]        peers: liger-kernel,
    cut-cross-entropy, transformers

Loss: forward and backward at a 7B model's width in bfloat16, with the peak of memory beyond inputs and
gradients. Generation: the same random 7B model on both sides.
"""
import argparse
import importlib.util
import json
import statistics

import torch
from torch.nn import functional as F

from redlite import kernels
from redlite.perf import gpu

SHAPES = [(n, 4096, v) for v in (32000, 128256) for n in (8192, 32768)]


def chunked(hidden, weight, targets, rows=1024):
    """Cross-entropy in chunks of rows, each recomputed in the backward: what torch.compile is given."""
    def body(h, t):
        return F.cross_entropy((h @ weight.T).float(), t, reduction="sum")
    parts = [torch.utils.checkpoint.checkpoint(body, h, t, use_reentrant=False)
             for h, t in zip(hidden.split(rows), targets.split(rows), strict=True)]
    return torch.stack(parts).sum() / len(targets)


def losses() -> dict:
    """name → function(hidden, weight, targets) → mean NLL; and the peers that are not here."""
    found, missing = {"redlite": lambda h, w, t: kernels.token_nll(h, w, t).mean(),
                      "torch.compile of chunks": torch.compile(chunked)}, []
    if hasattr(F, "linear_cross_entropy"):
        found["F.linear_cross_entropy"] = F.linear_cross_entropy
    else:
        missing.append("F.linear_cross_entropy (a newer torch)")
    if importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
        liger = LigerFusedLinearCrossEntropyLoss()
        found["Liger-Kernel"] = lambda h, w, t: liger(w, h, t)
    else:
        missing.append("liger-kernel")
    if importlib.util.find_spec("cut_cross_entropy"):
        from cut_cross_entropy import linear_cross_entropy
        found["cut-cross-entropy, exact"] = lambda h, w, t: linear_cross_entropy(h, w, t, impl="cce_exact")
    else:
        missing.append("cut-cross-entropy")
    return found, missing


def loss_step(function, hidden, weight, targets) -> tuple[float, int]:
    """Seconds of a forward and backward, and its peak of memory beyond what was there and the two
    gradients.
    """
    hidden.grad = weight.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    took = gpu.seconds(lambda: function(hidden, weight, targets).backward(), "cuda")
    return took, torch.cuda.max_memory_allocated() - before - hidden.nbytes - weight.nbytes


def compare_losses(rounds: int) -> tuple[dict, list[str]]:
    functions, missing = losses()
    found = {}
    for N, D, V in SHAPES:
        hidden, weight = (torch.randn(n, D, device="cuda",
                                      dtype=torch.bfloat16).mul_(D ** -0.5
                                          if n == V else 1).requires_grad_() for n in (N, V))
        targets = torch.randint(V, (N,), device="cuda")
        took = {name: [] for name in functions}
        for _ in range(rounds + 2):
            for name, function in functions.items():
                took[name].append(loss_step(function, hidden, weight, targets))
        rows = {name: {"seconds": statistics.median(s for s, _ in runs[2:]),
                       "extra_mib": runs[-1][1] / 2 ** 20} for name, runs in took.items()}
        found[f"{N} x {D} x {V}"] = rows
        for name, row in rows.items():
            ratio = row["seconds"] / rows["redlite"]["seconds"]
            print(f"loss {N} × {D} × {V}: {name:26} {1e3 * row['seconds']:8.2f} ms  "
                  f"{ratio:5.2f} × redlite's  {row['extra_mib']:8.0f} MiB more", flush=True)
    return found, missing


def compare_generation() -> tuple[dict, list[str]]:
    shape, config = gpu.REDEVAL, gpu.SEVEN_B
    model = gpu.random_model(config, torch.bfloat16, "cuda")
    found = {"redlite": gpu.redeval(model, shape, "cuda")["seconds"]}
    del model
    torch.cuda.empty_cache()
    if not importlib.util.find_spec("transformers"):
        return found, ["transformers"]
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        peer = LlamaForCausalLM(LlamaConfig(vocab_size=config.vocab_size, hidden_size=config.dim,
                                            intermediate_size=config.ffn_dim,
                                            num_hidden_layers=config.n_layers,
                                            num_attention_heads=config.n_heads,
                                            max_position_embeddings=config.max_positions)).eval()
    torch.set_default_dtype(torch.float32)
    ids = torch.randint(config.vocab_size, (shape["requests"], shape["shared"] + shape["own"]), device="cuda")
    for batch in (32, 64, 128, 256):
        def generate(count, batch=batch):
            with torch.no_grad():
                for part in ids[:count].split(batch):
                    peer.generate(input_ids=part, attention_mask=torch.ones_like(part),
                                  max_new_tokens=shape["new"], min_new_tokens=shape["new"], do_sample=False,
                                  pad_token_id=0)
        try:
            gpu.seconds(lambda batch=batch: generate(batch), "cuda")
            found[f"transformers, batch {batch}"] = gpu.seconds(lambda: generate(len(ids)), "cuda")
        except torch.cuda.OutOfMemoryError:
            print(f"transformers, batch {batch}: out of memory", flush=True)
    for name, took in found.items():
        print(f"RED-EVAL-shaped: {name:26} {took:8.2f} s  {took / found['redlite']:5.2f} × redlite's",
              flush=True)
    return found, []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    args = parser.parse_args()
    (loss, missing), (generation, absent) = compare_losses(args.rounds), compare_generation()
    found = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "loss": loss,
             "generation": generation, "not_compared": missing + absent}
    for name in missing + absent:
        print(f"not compared: {name} is not installed")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(found, file, indent=1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
