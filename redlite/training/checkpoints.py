"""The log and the checkpoints of a training run, which can be killed at any moment and go on.

A checkpoint is a folder checkpoints/step-N of safetensors files. They hold the trained weights and both
moments of the optimizer, as whole tensors, so that any number of processes reads them. state.json has the
SHA-256 of each file. It is all the state there is besides: the batches and the random bits of a step follow
from the seed and its number. A folder is written beside its place and renamed.
"""
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from redlite.errors import Error, Incomplete
from redlite.store.files import GO_ON, encode, read_json, sha256_file, sha256_json, unwritable, write_atomic
from redlite.store.files import sync_directory as sync
from redlite.store.records import Kind, read_lines, require
from redlite.store.run_directory import INFORMATION, Run
from redlite.training import processes
from redlite.training.divergence import Record
from redlite.training.optimizer import AdamW

LOG, STARTS = "log.jsonl", "starts.jsonl"
KEPT = 2                   # the newest checkpoints; the newest that was found sound is kept besides
FILE_BYTES = 2 << 30       # of one checkpoint file: the most that rank 0 gathers at once
STATE: dict[str, Kind] = {"step": int, "sha256": dict, "run": (str, NoneType)}
MEND = "remove that checkpoint's folder to go on from an older one"


class Keeper:
    """The log and the checkpoints of one run; without a directory it keeps nothing.

    Only rank 0 writes, but every process makes every call.
    """

    def __init__(self, directory: str | Path | None, manifest: dict[str, Any], optimizer: AdamW):
        """Open the run directory. Raises Error when another process or another manifest has it."""
        self.root, self.optimizer = None if directory is None else Path(directory), optimizer
        self.first = processes.rank() == 0
        decides = {k: v for k, v in manifest.items() if k not in INFORMATION}
        self.made = "" if self.root is None else sha256_json(decides)  # what checkpoints say they are of
        self.run = Run(self.root, manifest) if self.root is not None and self.first else None

    def checkpoints(self) -> list[tuple[int, Path]]:
        """(step, folder) of every whole checkpoint, oldest first."""
        found = [] if self.root is None else (self.root / "checkpoints").glob("step-*")
        return sorted((int(p.name[5:]), p) for p in found if re.fullmatch(r"step-\d{8,18}", p.name))

    def resume(self) -> tuple[int, list[Record]]:
        """Load the newest checkpoint, if any; (the step to do next, the log up to it).

        Log lines of steps that will be done again are cut off.
        """
        if self.root is None:
            return 0, []
        log, found = self.root / LOG, self.checkpoints()
        step = found[-1][0] if found else 0
        if found:
            self.load(found[-1][1])
        history = read_lines(log)[0][:step]
        mend = "restore the log, or use another run directory"
        for number, record in enumerate(history):
            if not _is_record(record, number):
                raise Error(f"{log}, line {number + 1}: is not the record of step {number}; {mend}",
                            "output_dir")
        if len(history) < step:
            raise Error(f"{log}: has {len(history)} steps and the newest checkpoint is of step {step}; "
                        f"{mend}", "output_dir")
        processes.barrier()                                 # every process has read the log
        if self.first:
            write_atomic(log, b"".join(encode(r) + b"\n" for r in history))
            for torn in (self.root / "checkpoints").glob(".step-*"):
                shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
        return step, history

    def log(self, record: Record) -> None:
        """Append a step's figures; a number that JSON cannot hold is written as null."""
        if self.run:
            self.run.append(LOG, {k: None if _is_no_number(v) else v for k, v in record.items()})

    def note_start(self, record: dict[str, Any]) -> None:
        """Append how this process begins the run, or goes on with it."""
        if self.run:
            self.run.append(STARTS, record)

    def save(self, step: int, sound: Callable[[int], bool]) -> None:
        """Write checkpoints/step-N and remove old ones.

        Tensors are gathered one at a time, so no process holds the whole model twice. Raises Incomplete where
        the disk is full or fails; the older checkpoints are then as they were.
        sound  whether a checkpoint's weights were measured by the step that followed, and found good
        """
        if self.root is None:
            return
        folder = self.root / "checkpoints" / f".step-{step:08d}"
        try:
            self._write(folder)
            if self.first:
                self._finish(folder, step)
                self._remove_old(sound)
        except OSError as error:
            raise unwritable(folder, error) from None
        except SafetensorError as error:    # which has the system's error in words only
            raise Incomplete(f"{folder}: cannot be written ({error}); {GO_ON}") from None
        processes.barrier()

    def _write(self, folder: Path) -> None:
        """The tensor files; every process takes part, and the first one writes."""
        if self.first:
            folder.mkdir(parents=True)
        held: dict[str, Tensor] = {}
        size = files = 0
        for name, tensor in self._tensors():
            whole = processes.whole(tensor)
            if not self.first:
                continue
            if held and size + whole.nbytes > FILE_BYTES:
                save_file(held, folder / f"tensors-{files:05d}.safetensors")
                held, size, files = {}, 0, files + 1
            held[name], size = whole.detach().cpu().contiguous(), size + whole.nbytes
        if self.first:
            save_file(held, folder / f"tensors-{files:05d}.safetensors")

    def _finish(self, folder: Path, step: int) -> None:
        """Write state.json, and put the folder in its place when all of it is on the disk."""
        assert self.root is not None
        hashes = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
        (folder / "state.json").write_text(json.dumps({"step": step, "run": self.made, "sha256": hashes}))
        # The log of these steps must not reach the disk later than their weights.
        for path in (*folder.iterdir(), folder, self.root / LOG):
            sync(path)
        os.rename(folder, folder.with_name(folder.name[1:]))
        sync(folder.parent)

    def _remove_old(self, sound: Callable[[int], bool]) -> None:
        found = self.checkpoints()
        good = [step for step, _ in found if sound(step)][-1:]
        for step, old in found[:-KEPT]:
            if step not in good:
                shutil.rmtree(old)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Fill weights and moments from a checkpoint, each process its own part.

        Raises Error for a damaged one.
        """
        hashes, made = _read_state(folder)
        if self.first and made not in (self.made, None):    # None: of before checkpoints said so
            raise Error(f"{folder}: is of another run (another model, data or recipe); {MEND}")
        targets = dict(self._tensors())
        for path in sorted(folder.glob("*.safetensors")):
            if sha256_file(path) != hashes[path.name]:
                raise Error(f"{path}: is not what was written (its SHA-256 is not that of state.json); "
                            f"{MEND}")
            try:
                with safe_open(path, "pt") as file:
                    for name in file.keys():  # noqa: SIM118  (safe_open is no dict)
                        _fill(targets.pop(name, None), file.get_tensor(name), f"{path}: tensor {name}")
            except (SafetensorError, OSError) as error:
                raise Error(f"{path}: is damaged ({error}); {MEND}") from None
        if targets:
            raise Error(f"{folder}: tensor {next(iter(targets))} is missing; {MEND}")

    def last_good(self, sound: Callable[[int], bool]) -> int | None:
        """Load the newest checkpoint whose weights are sound; its step, or None when there is none."""
        good = [(step, folder) for step, folder in self.checkpoints() if sound(step)]
        if not good:
            return None
        step, folder = good[-1]
        self.load(folder)
        return step

    def close(self) -> None:
        """Give the run directory back."""
        if self.run:
            self.run.close()

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, p in self.optimizer.parameters.items():
            yield name, p.data
            yield f"mean:{name}", self.optimizer.mean[name]
            yield f"square:{name}", self.optimizer.square[name]


def _read_state(folder: Path) -> tuple[dict[str, str], str | None]:
    """The SHA-256 of each file that a checkpoint's state.json lists, if those are there, and of its run."""
    state_file = folder / "state.json"
    if not state_file.is_file():
        raise Error(f"{folder}: has no state.json, so it is no whole checkpoint; {MEND}")
    state = require(read_json(state_file), STATE, state_file, MEND)
    if state["step"] != int(folder.name[5:]):
        raise Error(f"{state_file}: names another step than its folder; {MEND}")
    there = {path.name for path in folder.glob("*.safetensors")}
    if differing := there ^ state["sha256"].keys():
        raise Error(f"{folder}: the files there are not those that state.json lists "
                    f"({sorted(differing)[0]!r}); {MEND}")
    return state["sha256"], state.get("run")


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _is_record(record: Record, step: int) -> bool:
    """Whether a line of the log is of this step and has every figure that going on relies on.

    null stands for a number that JSON cannot hold.
    """
    def are_figures(values: Any) -> bool:
        return isinstance(values, dict) and all(v is None or type(v) in (int, float) for v in values.values())

    others = ("objective", "validation_before", "validation", "measured_before", "measured")
    rest = {k: v for k, v in record.items() if k not in others}
    if type(rest.get("step")) is not int or rest["step"] != step:
        return False
    if not isinstance(record.get("objective"), str):
        return False
    if not are_figures(rest) or not all(are_figures(record.get(name, {})) for name in others[1:]):
        return False
    needed = ("loss", "gradient_norm", "tokens", "helpful" if "helpful" in rest else "blue")
    return all(rest.get(name) is not None for name in needed)


def _fill(target: Tensor | None, whole: Tensor, what: str) -> None:
    """target ← this process's part of the whole tensor, exactly."""
    if target is None or target.shape != whole.shape or target.dtype != whole.dtype:
        raise Error(f"{what} does not fit this model; use the run directory of the run that trained it",
                    "output_dir")
    if hasattr(target, "device_mesh") and hasattr(target, "placements"):
        from torch.distributed.tensor import distribute_tensor
        whole = distribute_tensor(whole.to(target.device), target.device_mesh, target.placements)
    processes.local(target).copy_(processes.local(whole))
