"""What a training run keeps on disk: its log and its checkpoints, so that it can be killed at any moment and go on.

A checkpoint is a folder checkpoints/step-N of safetensors files with the trained weights and both moments of
the optimizer, whole tensors whatever the number of ranks, so that any number of ranks reads it. It is
written beside its place and renamed. state.json has the SHA-256 of each, and is all the rest of the state there is: the
batches and the random bits of step t follow from the seed and t alone.
"""
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from redlite.errors import Error
from redlite.store.files import encode, read_json, sha256_file, write_atomic
from redlite.store.records import read_lines, require
from redlite.store.run_directory import Run
from redlite.training.optimizer import AdamW, local

LOG, STARTS = "log.jsonl", "starts.jsonl"
KEPT = 2                   # the newest checkpoints, and beside them the newest that a later step measured and found sound
FILE_BYTES = 2 << 30       # of one checkpoint file: the most that rank 0 gathers at once


class Keeper:
    """The log and the checkpoints of one run; without a directory it keeps nothing. Only rank 0 writes, every rank calls."""

    def __init__(self, directory: str | Path | None, manifest: dict, optimizer: AdamW):
        """Open the run directory. Raises Error when a run with another manifest, or another process, has it."""
        self.root, self.optimizer = None if directory is None else Path(directory), optimizer
        self.first = not dist.is_initialized() or dist.get_rank() == 0
        self.run = Run(self.root, manifest) if self.root is not None and self.first else None

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of every whole checkpoint, oldest first."""
        found = [] if self.root is None else (self.root / "checkpoints").glob("step-*")
        return sorted((int(p.name[5:]), p) for p in found if re.fullmatch(r"step-\d{8,18}", p.name))

    def resume(self) -> tuple[int, list[dict]]:
        """Load the newest checkpoint, if any; (the step to do next, the log up to it). The log of steps that will be done again is cut off."""
        if self.root is None:
            return 0, []
        found = self.checkpoints()
        step = found[-1][0] if found else 0
        if found:
            self.load(found[-1][1])
        history = read_lines(self.root / LOG)[0][:step]
        for number, record in enumerate(history):
            if not _is_record(record, number):
                raise Error(f"{self.root / LOG}, line {number + 1}: is not the record of step {number}; restore the log or use another --output-dir")
        if len(history) < step:
            raise Error(f"{self.root / LOG}: has {len(history)} steps and the newest checkpoint is of step {step}; restore the log or use another --output-dir")
        barrier()                                           # every rank has read the log
        if self.first:
            write_atomic(self.root / LOG, b"".join(encode(r) + b"\n" for r in history))
            for torn in (self.root / "checkpoints").glob(".step-*"):
                shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
        return step, history

    def log(self, record: dict) -> None:
        """Append a step's figures; a number that JSON cannot hold is written as null."""
        if self.run:
            self.run.append(LOG, {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()})

    def note_start(self, record: dict) -> None:
        """Append how this process begins the run, or goes on with it."""
        if self.run:
            self.run.append(STARTS, record)

    def save(self, step: int, sound: Callable[[int], bool]) -> None:
        """Write checkpoints/step-N and remove old ones. Tensors are gathered one at a time: no rank holds the whole model twice.

        sound: whether the weights of a checkpoint were measured by the step that followed, and found good.
        """
        if self.root is None:
            return
        folder = self.root / "checkpoints" / f".step-{step:08d}"
        if self.first:
            folder.mkdir(parents=True)
        held, size, files = {}, 0, 0
        for name, tensor in self._tensors():
            whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
            if not self.first:
                continue
            if held and size + whole.nbytes > FILE_BYTES:
                save_file(held, folder / f"tensors-{files:05d}.safetensors")
                held, size, files = {}, 0, files + 1
            held[name], size = whole.detach().cpu().contiguous(), size + whole.nbytes
        if self.first:
            save_file(held, folder / f"tensors-{files:05d}.safetensors")
            hashes = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
            (folder / "state.json").write_text(json.dumps({"step": step, "sha256": hashes}))
            for path in (*folder.iterdir(), folder, self.root / LOG):   # the log of these steps must not be younger than their weights
                _sync(path)
            os.rename(folder, folder.with_name(folder.name[1:]))
            _sync(folder.parent)
            found = self.checkpoints()
            good = [s for s, _ in found if sound(s)][-1:]
            for s, old in found[:-KEPT]:
                if s not in good:
                    shutil.rmtree(old)
        barrier()

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Fill weights and moments from a checkpoint, each rank its own part."""
        mend = "remove that checkpoint's folder to go on from an older one"
        if not (folder / "state.json").is_file():
            raise Error(f"{folder}: has no state.json, so it is no whole checkpoint; {mend}")
        state = require(read_json(folder / "state.json"), {"step": int, "sha256": dict}, folder / "state.json", mend)
        if state["step"] != int(folder.name[5:]):
            raise Error(f"{folder / 'state.json'}: names another step than its folder; {mend}")
        files = sorted(folder.glob("*.safetensors"))
        if differing := {path.name for path in files} ^ state["sha256"].keys():
            raise Error(f"{folder}: the files there are not those that state.json lists ({sorted(differing)[0]!r}); {mend}")
        targets = dict(self._tensors())
        for path in files:
            if sha256_file(path) != state["sha256"][path.name]:
                raise Error(f"{path}: is not what was written (its SHA-256 is not that of state.json); {mend}")
            try:
                with safe_open(path, "pt") as file:
                    for name in file.keys():
                        _fill(targets.pop(name, None), file.get_tensor(name), f"{path}: tensor {name}")
            except (SafetensorError, OSError) as error:
                raise Error(f"{path}: is damaged ({error}); {mend}") from None
        if targets:
            raise Error(f"{folder}: tensor {next(iter(targets))} is missing; {mend}")

    def last_good(self, sound: Callable[[int], bool]) -> int | None:
        """Load the newest checkpoint whose weights are sound; its step, or None when there is none."""
        good = [(s, p) for s, p in self.checkpoints() if sound(s)]
        if good:
            self.load(good[-1][1])
        return good[-1][0] if good else None

    def close(self) -> None:
        """Give the run directory back."""
        if self.run:
            self.run.close()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, p in self.optimizer.parameters.items():
            yield name, p.data
            yield f"mean:{name}", self.optimizer.mean[name]
            yield f"square:{name}", self.optimizer.square[name]


def _is_record(record: dict, step: int) -> bool:
    """Whether a line of the log is of this step and has every figure that going on relies on; null stands for a number that JSON cannot hold."""
    def figures(values: dict) -> bool:
        return all(v is None or type(v) in (int, float) for v in values.values())

    held = [record.get(name, {}) for name in ("validation_before", "validation")]
    rest = {k: v for k, v in record.items() if k not in ("objective", "validation_before", "validation")}
    return type(rest.get("step")) is int and rest["step"] == step and isinstance(record.get("objective"), str) and figures(rest) \
        and all(isinstance(h, dict) and figures(h) for h in held) \
        and all(rest.get(k) is not None for k in ("loss", "gradient_norm", "tokens", "helpful" if "helpful" in rest else "blue"))


def _fill(target: Tensor | None, whole: Tensor, what: str) -> None:
    """target ← this rank's part of the whole tensor, exactly."""
    if target is None or target.shape != whole.shape or target.dtype != whole.dtype:
        raise Error(f"{what} does not fit this model; use the --output-dir of the run that trained it")
    if hasattr(target, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor
        whole = local(distribute_tensor(whole.to(target.device), target.device_mesh, target.placements))
    local(target).copy_(whole)


def barrier() -> None:
    """Wait for every rank."""
    if dist.is_initialized():
        dist.barrier()


def _sync(path: Path) -> None:
    """Have the disk hold a file or a folder before anything else happens."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
