"""The training loop over global batches, the same for one process and for many (FSDP2 under torchrun).

A step draws a global batch, cuts it into micro-batches, adds up their gradients, and updates the weights
once.
"""
import ctypes
import platform
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from redlite import kernels, loss
from redlite.model.llama import LLaMA
from redlite.model.sequences import packed_attention
from redlite.training import dataset, processes
from redlite.training.checkpoints import Keeper
from redlite.training.dataset import Batch, Mixture, Phase, TokenizedConversation, Unit
from redlite.training.divergence import Record, diverged, forgot, kept_colour, sound
from redlite.training.optimizer import AdamW, learning_rate
from redlite.training.watch import Watch

M_MMAP_THRESHOLD, MAPPED = -3, 1 << 18     # a parameter of glibc's mallopt, and its value in bytes
FIGURES = ("loss", *loss.COLOURS, "red_tokens", "red_capped")


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of the optimiser and of the loop; data and objectives are the mixture's."""
    learning_rate: float = 1e-5
    final_rate: float = 0.0              # of learning_rate; the cosine ends there one past the last step
    warmup_steps: int = 0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float = 1.0                    # the largest 2-norm of the gradient; 0: no clipping
    tokens_per_batch: int = 2048         # of a micro-batch; a step has as many as its conversations need
    per: str = "response"                # counts alike in a colour's mean: response, token or conversation
    checkpoint_every: int = 100          # steps
    evaluate_every: int = 0              # steps between validations; there is always one at either end
    helpful_rise: float = 1.0            # nats that the helpful NLL may rise (see divergence.py)
    recompute: bool = False              # activation checkpointing: keep each layer's input only
    seed: int = 0

    def deciding(self) -> dict[str, Any]:
        """What decides the weights of every step. A run may go on with other values of the rest."""
        free = ("checkpoint_every", "recompute")
        return {name: value for name, value in asdict(self).items() if name not in free}


@dataclass
class TrainingResult:
    """What a run came to.

    history  its figures, step by step
    step     the step whose weights the model now holds; None if there is no sound one
    stopped  why it stopped early, or ""
    watched  whether the watch (see watch.py) stopped it, and not a divergence
    reached  what was aimed at and ended it, or ""
    """
    history: list[Record] = field(default_factory=list)
    step: int | None = None
    stopped: str = ""
    watched: bool = False
    reached: str = ""


class Scorer(nn.Module):
    """A model as the loss sees it: a batch in, the NLL of each trained token out.

    This is the whole use of the weights, so that FSDP can wrap it.
    """

    def __init__(self, model: LLaMA):
        super().__init__()
        self.llama = model

    @property
    def device(self) -> torch.device:
        return self.llama.output_weight.device

    def forward(self, batch: Batch) -> Tensor:
        p = batch.packed
        attend = packed_attention(self.llama.config, p.offsets)
        hidden_TD = self.llama(p.ids, p.positions, attend, p.lengths)
        return self.llama.token_nll(hidden_TD, batch.targets)[batch.rows]

    def end_evaluation(self) -> None:
        """Give up other processes' weights again. FSDP does so by itself only after a backward."""
        reshard = getattr(self, "reshard", None)
        if reshard:
            reshard()


def run(model: LLaMA | Scorer, mixture: Mixture, recipe: Recipe, output_dir: str | Path | None = None,
        validation: Sequence[TokenizedConversation] = (),
        on_step: Callable[[Record], None] = lambda record: None,
        manifest: dict[str, Any] | None = None, watch: Watch | None = None) -> TrainingResult:
    """Train `model` in place on the global batch of every step of `mixture`.

    Trains the parameters that require gradients, on the device where they are. Under torchrun every process
    calls this, with the same arguments, and passes the scorer that `shard` made of the model.

    An output_dir gets manifest.json (the recipe, the data's hash, and what `manifest` adds), log.jsonl (one
    object a step), starts.jsonl (one each time that it began or went on) and checkpoints/. The same call goes
    on from the last checkpoint, with the losses of an unbroken run, bit for bit.
    `watch` measures the weights where validation does, and may end the run.
    Raises Error for a directory of another recipe or other data, and what Mixture and pack raise.
    """
    scorer = model if isinstance(model, Scorer) else Scorer(model)
    model, device = scorer.llama, scorer.device
    model.recompute = recipe.recompute
    if recipe.recompute:
        hand_back_memory()
    # The first use of attention tries torch's kernel out. Within a recomputed layer, that would happen in its
    # first pass only, and the two passes must save the same tensors.
    kernels.implementation("attention", device.type)
    optimizer = AdamW(model.named_parameters(), recipe.betas, recipe.eps, recipe.weight_decay, recipe.seed)
    made = (manifest or {}) | {"recipe": recipe.deciding(), "data": mixture.fingerprint()}
    keeper = Keeper(output_dir, made, optimizer)
    result, began = TrainingResult(), time.perf_counter()

    def good(step: int) -> bool:
        return sound(result.history, step, recipe.helpful_rise) and not (watch and watch.fault(step))
    try:
        start, result.history = keeper.resume()
        result.step = start
        result.reached = watch.reached(start) if watch and start else ""
        if start < mixture.steps:
            keeper.note_start({"step": start, "checkpoint_every": recipe.checkpoint_every,
                               "recompute": recipe.recompute, "ranks": processes.count(),
                               "torch": torch.__version__})
        for step in range(start, start if result.reached else mixture.steps):
            entered, done = time.perf_counter(), step + 1
            record = _step(scorer, optimizer, mixture, recipe, validation, result, step, watch)
            tokens, now = dataset.tokens(mixture.step(step)), time.perf_counter()
            record |= {"tokens": tokens, "tokens_per_second": tokens / (now - entered),
                       "memory_mb": memory_mb(device),
                       "seconds_left": (now - began) / (done - start) * (mixture.steps - done)}
            result.history.append(record)
            keeper.log(record)
            on_step(record)
            if result.stopped:
                result.step = keeper.last_good(good)
                break
            result.step = done
            watched = watch is not None and _is_evaluated(recipe, mixture, done)
            if done % recipe.checkpoint_every == 0 or done == mixture.steps or watched:
                keeper.save(done, good)
            if result.reached:
                break
    finally:
        optimizer.close()
        keeper.close()
    return result


def _step(scorer: Scorer, optimizer: AdamW, mixture: Mixture, recipe: Recipe,
          validation: Sequence[TokenizedConversation], result: TrainingResult, step: int,
          watch: Watch | None = None) -> Record:
    """Do a step, unless it diverges; its record.

    Says in `result.stopped` why training must end, if it must, and in `result.reached` why it may.
    """
    done = step + 1
    measured_before = watch.measure(0) if watch and step == 0 else {}
    before = evaluate(scorer, validation, recipe) if validation and step == 0 else {}
    record: Record = {"step": step, "objective": mixture.phase(step).objective}
    record |= accumulate(scorer, mixture, recipe, step)
    record |= {"gradient_norm": optimizer.norm(), "learning_rate": _rate(recipe, mixture, step)}
    if before:
        record["validation_before"] = before
    if measured_before:
        record["measured_before"] = measured_before
    result.stopped = diverged(result.history, record, recipe.helpful_rise)
    if result.stopped:
        return record
    optimizer.step(done, record["learning_rate"], _clipping(recipe.clip, record["gradient_norm"]))
    if validation and _is_evaluated(recipe, mixture, done):
        record["validation"] = evaluate(scorer, validation, recipe)
    if watch and _is_evaluated(recipe, mixture, done):
        record["measured"] = watch.measure(done)
        result.stopped = watch.fault(done)
        result.watched = bool(result.stopped)
        result.reached = "" if result.stopped else watch.reached(done)
    if done == mixture.steps or result.reached:     # no step follows that would measure these weights
        began_with = (result.history or [record])[0]
        record["kept_after"] = _kept_after(scorer, mixture, recipe, began_with)
        forgotten = forgot(began_with, record["kept_after"], recipe.helpful_rise)
        if forgotten:
            result.stopped, result.reached, result.watched = forgotten, "", False
    return record


def _kept_after(scorer: Scorer, mixture: Mixture, recipe: Recipe, began_with: Record) -> float:
    """The NLL now of what must be kept (see divergence.py) among the conversations of the first step."""
    colour = kept_colour(began_with)
    kept = [e for unit in mixture.step(0) for e in unit if e.colour == colour]
    return evaluate(scorer, kept, recipe)[colour]


def _rate(recipe: Recipe, mixture: Mixture, step: int) -> float:
    return learning_rate(step, mixture.steps, recipe.learning_rate, recipe.warmup_steps, recipe.final_rate)


def _clipping(clip: float, norm: float) -> float:
    """What gradients are multiplied by, so that their norm is at most `clip`; 0: no clipping."""
    return min(1.0, clip / norm) if clip and norm else 1.0


def _is_evaluated(recipe: Recipe, mixture: Mixture, done: int) -> bool:
    """Whether the held-out NLL is measured after so many steps."""
    return done == mixture.steps or (recipe.evaluate_every > 0 and done % recipe.evaluate_every == 0)


def accumulate(scorer: Scorer, mixture: Mixture, recipe: Recipe, step: int) -> dict[str, float]:
    """Backward through every micro-batch of a step; its figures by name."""
    units, phase = mixture.step(step), mixture.phase(step)
    figures = torch.zeros(len(FIGURES), dtype=torch.float64, device=scorer.device)
    for batch in batches(units, recipe, scorer.device):
        nll, value, coefficient = assess(scorer, batch, phase)
        # The parts of the loss add up over processes, but FSDP takes the mean of gradients.
        nll.backward(coefficient * processes.count())
        figures += measure(value, nll.detach(), batch.responses, phase)
    return named(processes.add_up(figures), units)


def own_parts(units: list[Unit], tokens_per_batch: int) -> list[list[Unit]]:
    """This process's micro-batches of a global batch."""
    return dataset.pack(units, tokens_per_batch, processes.count())[processes.rank()::processes.count()]


def batches(units: list[Unit], recipe: Recipe, device: torch.device) -> Iterator[Batch]:
    """`own_parts` as tensors, each response with its share of the whole global batch."""
    share = dataset.shares(units, recipe.per)
    for part in own_parts(units, recipe.tokens_per_batch):
        yield dataset.collate(part, share, device)


def assess(scorer: nn.Module, batch: Batch, phase: Phase) -> tuple[Tensor, Tensor, Tensor]:
    """(NLL [N] with its graph, the loss, ∂L/∂NLL [N]) of a micro-batch.

    Training applies these coefficients, and the ledger (ledger.py) prints them.
    """
    nll = scorer(batch)
    return nll, *loss.coefficients(phase.objective, nll, batch.responses, phase.parameters)


def measure(value: Tensor, nll: Tensor, responses: loss.Responses, phase: Phase) -> Tensor:
    """This micro-batch's part of FIGURES [6] float64.

    They are the loss, the mean NLL of each colour, the red tokens, and those of them past the cap.
    """
    part = (responses.share * responses.mean(nll)).double()
    means = [part[responses.colour == c].sum() for c in range(len(loss.COLOURS))]
    red = responses.length[responses.colour == loss.RED].sum()
    past = loss.capped(phase.objective, nll, responses, phase.parameters).sum()
    return torch.stack([x.double() for x in (value, *means, red, past)])


def named(figures: Tensor, units: list[Unit]) -> dict[str, float]:
    """FIGURES by name: only the colours that the units hold, and red_capped as a share of the red tokens."""
    values = dict(zip(FIGURES, figures.tolist(), strict=True))
    held = {e.colour for unit in units for e in unit}
    out = {name: values[name] for name in FIGURES[:4] if name == "loss" or name in held}
    if "red" in held:
        out["red_capped"] = values["red_capped"] / values["red_tokens"]
    return out


@torch.no_grad()
def evaluate(scorer: Scorer, examples: Sequence[TokenizedConversation], recipe: Recipe) -> dict[str, float]:
    """The mean NLL of each colour over held-out examples, weighted as in training."""
    units: list[Unit] = [(e,) for e in examples]
    total = torch.zeros(len(FIGURES), dtype=torch.float64, device=scorer.device)
    for batch in batches(units, recipe, scorer.device):
        total += measure(total[0], scorer(batch), batch.responses, Phase(1, {}))
    processes.add_up(total)
    scorer.end_evaluation()
    out = named(total, units)
    return {c: out[c] for c in loss.COLOURS if c in out}


@torch.no_grad()
def references(model: LLaMA | Scorer, examples: list[TokenizedConversation],
               tokens_per_batch: int) -> list[TokenizedConversation]:
    """The examples with the summed NLL of each response under `model` as it is now, for NPO and DPO.

    Every process calls this.
    """
    scorer = model if isinstance(model, Scorer) else Scorer(model)
    order = {id(e): i for i, e in enumerate(examples)}
    found: list[tuple[int, tuple[float, ...]]] = []
    for part in own_parts([(e,) for e in examples], tokens_per_batch):
        batch = dataset.collate(part, lambda e, k: 1.0, scorer.device)
        values = batch.responses.sum(scorer(batch)).tolist()
        for (e,) in part:
            found.append((order[id(e)], tuple(values[:len(e.responses)])))
            values = values[len(e.responses):]
    found = processes.collect(found)
    scorer.end_evaluation()
    return dataset.with_references(examples, [sums for _, sums in sorted(found)])


def memory_mb(device: torch.device) -> float:
    """The most memory held so far, in MiB: the process's on a CPU, torch's on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def hand_back_memory() -> None:
    """Have glibc map each block of MAPPED bytes and more by itself, so that what is freed leaves the process.

    Else it raises that bound to the largest block freed, up to 32 MiB. What `recompute` frees then stays in
    the heap, cut up by what is kept, as if nothing were computed again. Other C libraries are left alone.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED)


def shard(model: LLaMA) -> Scorer:
    """The model with its weights spread over the processes (FSDP2), layer by layer, for `run`."""
    from torch.distributed.fsdp import fully_shard  # PyTorch 2.6; the rest of redlite asks for less

    scorer = Scorer(model)
    for block in model.model.layers:
        fully_shard(block)
    fully_shard(scorer)             # adds FSDPModule's methods, `reshard` among them
    return scorer


@torch.no_grad()
def gather(scorer: Scorer) -> LLaMA | None:
    """The whole model on the CPU of rank 0 again, None on the other ranks; one weight at a time."""
    first, config = processes.rank() == 0, scorer.llama.config
    whole = LLaMA(config).to(next(scorer.parameters()).dtype) if first else None
    targets = dict(whole.named_parameters()) if whole else {}
    for name, p in scorer.llama.named_parameters():
        value = processes.whole(p)
        if first:
            targets[name].copy_(value)
    return whole
