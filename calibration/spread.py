"""Processes that share the work: each takes its part of the samples, and sums are over all.

`torchrun --nproc-per-node N` starts such processes; a program that has set up torch.distributed
itself is one of them, too. Any other process is alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..ir.errors import BadInput
from .moments import CoMoment

LAUNCHED = "TORCHELASTIC_RUN_ID"
"""Set by torchrun in every process that it starts."""


@dataclass(frozen=True)
class Processes:
    """This process is number `rank` of `size`; `device` is where torch sums what they hold."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """This process's part of the samples (n,): a stretch as long as the others', or one more"""
        return np.array_split(samples, self.size)[self.rank]

    def sum(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """The sum over all processes, which must all ask for it with arrays of one shape."""
        if self.size == 1 or array.size == 0:
            return array
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self.device, copy=True)
        torch.distributed.all_reduce(tensor)
        summed: NDArray[np.generic] = tensor.cpu().numpy()
        return summed

    def reduce(self, part: CoMoment) -> CoMoment:
        """The co-moment of the rows of all processes, equal in each to rounding.

        S = sum_k S_k + sum_k w_k (m_k - m)_x' (m_k - m)_y, which is Chan's update for many.
        """
        if self.size == 1:
            return part
        rows, weight = self.sum(np.array([part.rows, part.weight]))
        if weight == 0.0:
            return part
        means = np.concatenate([part.mean_x, part.mean_y])
        means = self.sum(means * part.weight) / weight
        mean_x, mean_y = np.split(means, [len(part.mean_x)])
        moved = np.outer(part.mean_x - mean_x, (part.mean_y - mean_y) * part.weight)
        product = self.sum(part.product + moved)
        return CoMoment(int(rows), float(weight), mean_x, mean_y, product.astype(np.float64))


ALONE = Processes()


@contextmanager
def processes() -> Iterator[Processes]:
    """The processes that this one belongs to; those of torchrun are joined within.

    They talk over NCCL where torch has CUDA, else over gloo.
    """
    known = sys.modules.get("torch.distributed")
    if known is not None and known.is_available() and known.is_initialized():
        yield _joined()
        return
    if LAUNCHED not in os.environ:
        yield ALONE
        return
    try:
        import torch
        import torch.distributed
    except ImportError as error:
        raise BadInput(
            "processes of torchrun need torch: pip install 'blockfold[torch]'"
        ) from error
    on_cuda = torch.cuda.is_available() and torch.distributed.is_nccl_available()
    if on_cuda:
        torch.cuda.set_device(local_rank())
    torch.distributed.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield _joined()
    finally:
        torch.distributed.destroy_process_group()


def is_leader() -> bool:
    """Whether this process is the one that writes; told before the others are joined."""
    if LAUNCHED in os.environ:
        return os.environ.get("RANK") == "0"
    with processes() as group:
        return group.leads


def local_rank() -> int | None:
    """Which of its machine's processes this is, where torchrun started it: that of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if LAUNCHED in os.environ else None


def _joined() -> Processes:
    import torch

    group = torch.distributed
    device = "cuda" if group.get_backend() == "nccl" else "cpu"
    return Processes(group.get_rank(), group.get_world_size(), device)
