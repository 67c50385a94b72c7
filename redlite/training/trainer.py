"""The training loop: one readable loop over global batches, the same for one process and for many (FSDP2 under torchrun)."""
import math
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from redlite import kernels, loss
from redlite.model.llama import LLaMA
from redlite.model.sequences import packed_attention
from redlite.training import dataset
from redlite.training.checkpoints import Keeper
from redlite.training.optimizer import AdamW, learning_rate

FIGURES = ("loss", *loss.COLOURS, "red_tokens", "red_capped")


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of the optimiser and of the loop; what is trained on and by which objective is the mixture's."""
    learning_rate: float = 1e-5
    final_rate: float = 0.0              # of learning_rate, at the last step
    warmup_steps: int = 0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 1.0                    # the largest 2-norm of the gradient; 0: no clipping
    tokens_per_batch: int = 2048         # of a micro-batch; a step has as many micro-batches as its conversations need
    per: str = "response"                # what counts alike in a colour's mean: response, token or conversation
    checkpoint_every: int = 100          # steps
    evaluate_every: int = 0              # steps between validations; before the first and after the last there is always one
    helpful_rise: float = 1.0            # nats: stop when the helpful NLL has risen this much over its start (see `diverged`)
    recompute: bool = False              # activation checkpointing: keep each layer's input only
    seed: int = 0

    def deciding(self) -> dict:
        """What decides the weights of every step: a run that goes on may keep checkpoints at other steps, and recompute or not."""
        return {name: value for name, value in asdict(self).items() if name not in ("checkpoint_every", "recompute")}


@dataclass
class TrainingResult:
    """What a run came to: its figures step by step, the step whose weights the model now holds, and why it stopped early (or "")."""
    history: list[dict] = field(default_factory=list)
    step: int | None = None
    stopped: str = ""


class Scorer(nn.Module):
    """A model as the loss sees it: a batch in, the NLL of each trained token out. The whole use of the weights, so that FSDP can wrap it."""

    def __init__(self, model: LLaMA):
        super().__init__()
        self.llama = model

    def forward(self, batch: dataset.Batch) -> Tensor:
        p = batch.packed
        hidden_TD = self.llama(p.ids, p.positions, packed_attention(self.llama.config, p.offsets), p.lengths)
        return kernels.token_nll(hidden_TD, self.llama.output_weight, batch.targets)[batch.rows]


def run(model: LLaMA | Scorer, mixture: dataset.Mixture, recipe: Recipe, output_dir: str | Path | None = None,
        validation: list[dataset.TokenizedConversation] = (), on_step: Callable[[dict], None] = lambda record: None,
        manifest: dict | None = None) -> TrainingResult:
    """Train `model` in place on the global batch of every step of `mixture`.

    Trains the parameters that require gradients, on the device where they are. With an output_dir the run
    leaves manifest.json (the recipe, the data's hash, and what `manifest` adds), log.jsonl (one object a
    step), starts.jsonl (one each time it began or went on) and checkpoints/, and the same call goes on from the last checkpoint with the losses that an
    unbroken run would have had, bit for bit. Under torchrun every rank calls this, with the same
    arguments, and passes the scorer that `shard` made of the model.
    Raises Error for a directory of another recipe or other data, and what Mixture and pack raise.
    """
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    scorer = model if isinstance(model, Scorer) else Scorer(model)
    model, device = scorer.llama, scorer.llama.output_weight.device
    model.recompute = recipe.recompute
    optimizer = AdamW(model.named_parameters(), recipe.betas, recipe.eps, recipe.weight_decay, recipe.seed)
    keeper = Keeper(output_dir, (manifest or {}) | {"recipe": recipe.deciding(), "data": mixture.fingerprint()}, optimizer)
    start, history = keeper.resume()
    if start < mixture.steps:
        keeper.note_start({"step": start, "checkpoint_every": recipe.checkpoint_every, "recompute": recipe.recompute, "ranks": ranks, "torch": torch.__version__})
    outcome = TrainingResult(history, start)
    began = time.perf_counter()
    try:
        for step in range(start, mixture.steps):
            entered = time.perf_counter()
            phase, units = mixture.phase(step), mixture.step(step)
            before = {"validation_before": evaluate(scorer, validation, recipe, device)} if validation and step == 0 else {}
            share = dataset.shares(units, recipe.per)
            figures = torch.zeros(len(FIGURES), dtype=torch.float64, device=device)
            for part in dataset.pack(units, recipe.tokens_per_batch, ranks)[rank::ranks]:
                batch = dataset.collate(part, share, device)
                nll, value, coefficient = assess(scorer, batch, phase)
                nll.backward(coefficient * ranks)           # FSDP takes the mean over ranks; the parts of the loss add up
                figures += measure(value, nll.detach(), batch.responses, phase)
            if dist.is_initialized():
                dist.all_reduce(figures)
            norm = optimizer.norm()
            rate = learning_rate(step, mixture.steps, recipe.learning_rate, recipe.warmup_steps, recipe.final_rate)
            tokens = sum(len(e) for unit in units for e in unit)
            record = {"step": step, "objective": phase.objective, **named(figures, units), "gradient_norm": norm, "learning_rate": rate, **before}
            outcome.stopped = diverged(outcome.history, record, recipe)
            if not outcome.stopped:
                optimizer.step(step + 1, rate, min(1.0, recipe.clip / norm) if recipe.clip and norm else 1.0)
            last = step + 1 == mixture.steps or recipe.evaluate_every and (step + 1) % recipe.evaluate_every == 0
            if validation and last and not outcome.stopped:
                record["validation"] = evaluate(scorer, validation, recipe, device)
            seconds = time.perf_counter() - entered
            left = (time.perf_counter() - began) / (step - start + 1) * (mixture.steps - step - 1)
            record |= {"tokens": tokens, "tokens_per_second": tokens / seconds, "memory_mb": memory_mb(device), "seconds_left": left}
            outcome.history.append(record)
            keeper.log(record)
            on_step(record)
            if outcome.stopped:
                outcome.step = keeper.last_good(lambda s: sound(outcome.history, s, recipe))
                break
            outcome.step = step + 1
            if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == mixture.steps:
                keeper.save(step + 1, lambda s: sound(outcome.history, s, recipe))
    finally:
        optimizer.close()
        keeper.close()
    return outcome


def assess(scorer: nn.Module, batch: dataset.Batch, phase: dataset.Phase) -> tuple[Tensor, Tensor, Tensor]:
    """(NLL [N] with its graph, the loss, ∂L/∂NLL [N]) of a micro-batch: what training applies and what the ledger (audit.py) prints."""
    nll = scorer(batch)
    return nll, *loss.coefficients(phase.objective, nll, batch.responses, phase.parameters)


def measure(value: Tensor, nll: Tensor, responses: loss.Responses, phase: dataset.Phase) -> Tensor:
    """This micro-batch's part of FIGURES [6] float64: the loss, the mean NLL of each colour, red tokens, and those of them past the cap."""
    part = (responses.share * responses.mean(nll)).double()
    means = [part[responses.colour == c].sum() for c in range(len(loss.COLOURS))]
    red = responses.length[responses.colour == loss.RED].sum()
    past = loss.capped(phase.objective, nll, responses, phase.parameters).sum()
    return torch.stack([x.double() for x in (value, *means, red, past)])


def named(figures: Tensor, units: list[dataset.Unit]) -> dict:
    """FIGURES by name; a colour that the step does not hold is left out, and red_capped is a share of its tokens."""
    values = dict(zip(FIGURES, figures.tolist()))
    held = {e.colour for unit in units for e in unit}
    out = {"loss": values["loss"]} | {c: values[c] for c in loss.COLOURS if c in held}
    return out | ({"red_capped": values["red_capped"] / values["red_tokens"]} if "red" in held else {})


WINDOW = 8    # steps whose mean is held against the bound: one batch is easier or harder than another


def diverged(history: list[dict], record: dict, recipe: Recipe) -> str:
    """Why the run must stop at this step, or "": a figure that is no number, or the NLL of the helpful (without any, the blue) responses too high.

    Too high is, over its start (see `risen`): `helpful_rise` nats in the mean of WINDOW steps, or twice that in one step.
    """
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(record[name]):
            return f"{name} is {record[name]} at step {record['step']}"
    colour = kept_colour(record)
    for steps, start, now in risen([r[colour] for r in (*history, record) if colour in r]):
        bound = recipe.helpful_rise * (2 if steps == 1 else 1)
        if now > start + bound:
            return (f"the {colour} NLL rose from {start:.3f} to {now:.3f}{f' (mean of {steps} steps)' if steps > 1 else ''} by step {record['step']}, "
                    f"more than the bound of {bound:g} nats")
    return ""


def risen(seen: list[float]) -> list[tuple[int, float, float]]:
    """(steps, start, mean of so many last steps) for one step and for WINDOW, once there are more.

    The start is the first step's NLL or, if that batch happened to be an easy one, the mean of the first WINDOW steps before the last.
    """
    if len(seen) < 2:
        return []
    early = seen[:-1][:WINDOW]
    start = max(seen[0], sum(early) / len(early))
    return [(n, start, sum(seen[-n:]) / n) for n in (1, WINDOW) if len(seen) > n]


def sound(history: list[dict], step: int, recipe: Recipe) -> bool:
    """Whether the weights before `step` were measured by that step and found good: numbers, the kept NLL within `helpful_rise` of its start."""
    if step >= len(history):
        return False
    record, colour = history[step], kept_colour(history[step])
    rises = risen([r[colour] for r in history[:step + 1] if colour in r])[:1]
    return all(isinstance(record[k], float) and math.isfinite(record[k]) for k in ("loss", "gradient_norm")) \
        and all(now <= start + recipe.helpful_rise for _, start, now in rises)


def kept_colour(record: dict) -> str:
    """The colour that training must not harm: helpful, or blue where a step has no helpful conversation."""
    return "helpful" if "helpful" in record else "blue"


@torch.no_grad()
def evaluate(scorer: nn.Module, examples: list[dataset.TokenizedConversation], recipe: Recipe, device) -> dict[str, float]:
    """The mean NLL of each colour over held-out examples, weighted as in training."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    units = [(e,) for e in examples]
    share, total = dataset.shares(units, recipe.per), torch.zeros(len(FIGURES), dtype=torch.float64, device=device)
    for part in dataset.pack(units, recipe.tokens_per_batch, ranks)[rank::ranks]:
        batch = dataset.collate(part, share, device)
        total += measure(total[0], scorer(batch), batch.responses, dataset.Phase(1, {}))
    if dist.is_initialized():
        dist.all_reduce(total)
        scorer.reshard()                                        # no backward follows, after which FSDP would do it
    out = named(total, units)
    return {c: out[c] for c in loss.COLOURS if c in out}


@torch.no_grad()
def references(model: LLaMA | Scorer, examples: list[dataset.TokenizedConversation], tokens_per_batch: int) -> list[dataset.TokenizedConversation]:
    """The examples with the summed NLL of each response under `model` as it is now, for the objectives that need it. Every rank calls this."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    scorer = model if isinstance(model, Scorer) else Scorer(model)
    order, device = {id(e): i for i, e in enumerate(examples)}, scorer.llama.output_weight.device
    found: list[tuple[int, tuple[float, ...]]] = []
    for part in dataset.pack([(e,) for e in examples], tokens_per_batch, ranks)[rank::ranks]:
        batch = dataset.collate(part, lambda e, k: 1.0, device)
        values = batch.responses.sum(scorer(batch)).tolist()
        for (e,) in part:
            found.append((order[id(e)], tuple(values[:len(e.responses)])))
            values = values[len(e.responses):]
    if dist.is_initialized():
        every: list = [None] * ranks
        dist.all_gather_object(every, found)
        found = [pair for part in every for pair in part]
        scorer.reshard()
    return dataset.with_references(examples, [sums for _, sums in sorted(found)])


def memory_mb(device: torch.device) -> float:
    """The most memory held so far, in MiB: the process's on a CPU, torch's on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def shard(model: LLaMA) -> Scorer:
    """The model with its weights spread over the ranks of the process group (FSDP2), layer by layer, for `run`."""
    from torch.distributed.fsdp import fully_shard  # PyTorch 2.6; the rest of redlite asks for less

    scorer = Scorer(model)
    for block in model.model.layers:
        fully_shard(block)
    return fully_shard(scorer)      # adds FSDPModule's methods, `reshard` among them


@torch.no_grad()
def gather(scorer: Scorer) -> LLaMA | None:
    """The whole model on rank 0's CPU again, None on the other ranks; one weight at a time."""
    first, config = dist.get_rank() == 0, scorer.llama.config
    whole = LLaMA(config).to(next(scorer.parameters()).dtype) if first else None
    targets = dict(whole.named_parameters()) if first else {}
    for name, p in scorer.llama.named_parameters():
        value = p.full_tensor()
        if first:
            targets[name].copy_(value)
    return whole
