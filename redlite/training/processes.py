"""The processes that train one model together, as torchrun starts them: rank, number, sums.

One process alone is rank 0 of 1, and needs no process group.
"""
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def add_up(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def collect(values: list[T]) -> list[T]:
    """The lists of all processes, one after the other."""
    if not dist.is_initialized():
        return values
    every: list[list[T]] = [[] for _ in range(count())]
    dist.all_gather_object(every, values)
    return [value for own in every for value in own]


def barrier() -> None:
    """Wait for every process."""
    if dist.is_initialized():
        dist.barrier()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; a plain tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, gathered from every process; a plain tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@contextmanager
def joined(device: str) -> Iterator[bool]:
    """Join the processes that torchrun started, if it did, and leave them at the end; yields whether it did.

    device  "cuda": each process takes the GPU of its own number
    """
    many = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if not many:
        yield False
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        if device == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
        yield True
        barrier()               # the first process may still write: the others must not hang up on it
    finally:
        dist.destroy_process_group()
