"""Conditioning: penalties that make blocks of a torch model redundant, or less so, while it trains.

    with LaCoOT(model, weight=0.1) as lacoot:
        for x, y in batches:
            loss = task(model(x), y) + lacoot.penalty()
            loss.backward(); ...

Forward hooks see what named blocks take and give; `penalty()` is the weighted penalty of the last
forward pass, from the metrics in `calibration/metrics/`. The model is not changed: `close()`, or
leaving the `with`, takes every hook off. Blocks are named as in `model.named_modules()`, without
the `module.` of DataParallel or DistributedDataParallel; hand over the wrapper where there is one.
Of a block's tensors the first is the stream, whether alone or in a tuple, list, dict or keyword.

What is computed from half types, or under autocast, is computed in float32. Between a forward pass
and the next the tensors of the blocks stay in memory. Copies of the model report nothing, and a
model with hooks on cannot be pickled whole: save its state_dict, or close first.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from types import TracebackType
from typing import Self

import torch
from torch import nn

from ..calibration.metrics.cka import LEAST_UNBIASED, cka_matrix
from ..calibration.metrics.sliced_wasserstein import (
    DIRECTIONS,
    lacoot_order,
    max_sliced_wasserstein,
)
from ..ir.errors import BadInput
from .torch_taps import Call, Tap, find_blocks


class Penalty(ABC):
    """A penalty on named blocks; `LaCoOT` and `CKASR` say which."""

    def __init__(self, model: nn.Module, names: Sequence[str], weight: float) -> None:
        if not (math.isfinite(weight) and weight >= 0):
            raise BadInput(f"a weight of {weight} for a penalty: give a finite number, 0 or more")
        self.weight = weight
        self._tap = Tap(model, names)

    @abstractmethod
    def penalty(self) -> torch.Tensor:
        """The weighted penalty of the last forward pass: a scalar tensor to add to the loss."""

    def close(self) -> None:
        """Take the hooks off the model."""
        self._tap.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class LaCoOT(Penalty):
    """Pulls the input and output of blocks together, so that blocks can be removed afterwards.

        weight * mean over blocks k of MSW_2(x_k, y_k)

    with x_k, y_k (B, D) a block's input and output over the batch, flattened; smaller means more
    redundant. Published weights: ResNet-18 on CIFAR-10 5, MobileNetV2 9, Swin-T on CIFAR-10 0.1, on
    Tiny-ImageNet 1; with 50 random directions drawn anew each pass (`directions`), none improved
    (`steps` 0) and no scale (`dimension_scale` and `relative` False). What these mean, and why a
    weight depends on D without them: `calibration/metrics/sliced_wasserstein.py`. A network that
    normalises its stream before use can meet the published penalty by shrinking the stream as a
    whole, which makes no block redundant; `relative` leaves it no such way.

    `blocks` are names; without them, the items of the longest ModuleList or Sequential whose items
    are all of one class. Blocks must keep the shape. After training, `order()` gives the blocks in
    the order in which to put the identity in their place.
    Source: LaCoOT, arXiv 2406.08933.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[str] | None = None,
        *,
        weight: float,
        directions: int = DIRECTIONS,
        steps: int = 0,
        dimension_scale: bool = False,
        relative: bool = False,
    ) -> None:
        if directions < 1 or steps < 0:
            raise BadInput(
                f"{directions} directions with {steps} steps: give at least 1 and at least 0"
            )
        super().__init__(model, find_blocks(model) if blocks is None else blocks, weight)
        self._count, self._steps = directions, steps
        self._scale, self._relative = dimension_scale, relative

    def penalty(self) -> torch.Tensor:
        found = [value for values in self._distances().values() for value in values]
        return self.weight * torch.stack([value.to(found[0].device) for value in found]).mean()

    def distances(self) -> dict[str, float]:
        """MSW_2 of each block that the last forward pass went through, without weight."""
        with torch.no_grad():
            found = self._distances()
        return {name: fmean(float(value) for value in each) for name, each in found.items()}

    def order(self) -> list[str]:
        """Names of blocks, smallest distance in the last forward pass first: that of removal."""
        found = self.distances()
        names = list(found)
        return [names[place] for place in lacoot_order(list(found.values()))]

    def _distances(self) -> dict[str, list[torch.Tensor]]:
        found: dict[str, list[torch.Tensor]] = {}
        for name, calls in self._tap.calls().items():
            for call in calls:
                if call.x.shape != call.y.shape:
                    raise BadInput(
                        f"block '{name}' takes {tuple(call.x.shape)} and gives "
                        f"{tuple(call.y.shape)}: name in `blocks` only those that keep the shape"
                    )
                with _full_precision(call.y):
                    value = max_sliced_wasserstein(
                        _rows(call.x, name),
                        _rows(call.y, name),
                        count=self._count,
                        steps=self._steps,
                        dimension_scale=self._scale,
                        relative=self._relative,
                    )
                found.setdefault(name, []).append(value)
        return found


class CKASR(Penalty):
    """Pushes the outputs of layers apart, which makes them less redundant: for sparse training.

        weight * sum over stages of sum over (i, j) in the stage, i = j too, of CKA(y_i, y_j)

    or, where `augmented`, over all layers of all stages, N of them,

        weight * 2 / (N (N-1)) * sum over i < j of CKA(y_i, y_j)

    with linear unbiased CKA of block outputs y_i (n, D), flattened. The pairs i = j add a constant.
    Published: weight 1e-4 on CIFAR, 1e-5 on ImageNet, the first 8 samples of every 5th batch. Here
    `samples` is 8 (at least 4; None for the whole batch) and `every` is 1: with 5, the passes in
    between have a penalty of 0. A pass counts when its penalty is asked for.

    `stages` are sequences of names, or without, one stage of the items of the longest ModuleList or
    Sequential whose items are all of one class.
    Source: CKA-SR, arXiv 2307.07389.
    """

    def __init__(
        self,
        model: nn.Module,
        stages: Sequence[Sequence[str]] | None = None,
        *,
        weight: float,
        augmented: bool = False,
        samples: int | None = 8,
        every: int = 1,
    ) -> None:
        if every < 1 or (samples is not None and samples < LEAST_UNBIASED):
            raise BadInput(
                f"{samples} samples of every {every} batches: unbiased CKA needs at least "
                f"{LEAST_UNBIASED} samples, and `every` at least 1"
            )
        if stages is not None and any(isinstance(stage, str) for stage in stages):
            raise BadInput("stages are sequences of names: give [[...], [...]], not [...]")
        self.stages = [find_blocks(model)] if stages is None else [list(s) for s in stages]
        names = [name for stage in self.stages for name in stage]
        if augmented and len(names) < 2:
            raise BadInput(f"{len(names)} layers have no pairs: name at least 2")
        super().__init__(model, names, weight)
        self._augmented, self._samples, self._every = augmented, samples, every
        self._passes, self._replicated = 0, isinstance(model, nn.DataParallel)

    def penalty(self) -> torch.Tensor:
        calls = self._tap.calls()
        everywhere = [call.y.device for each in calls.values() for call in each]
        turn = self._passes % self._every == 0
        self._passes += 1
        if not turn:
            return torch.zeros((), device=everywhere[0])
        stages = [[name for stage in self.stages for name in stage]]
        stages = stages if self._augmented else self.stages
        # Replicas hold different samples, one part of the batch each
        groups = [{device} for device in dict.fromkeys(everywhere)]
        groups = groups if self._replicated else [set(everywhere)]
        found = [self._alike(calls, stage, group) for group in groups for stage in stages]
        return self.weight / len(groups) * torch.stack([f.to(everywhere[0]) for f in found]).sum()

    def _alike(
        self, calls: Mapping[str, list[Call]], stage: Sequence[str], devices: set[torch.device]
    ) -> torch.Tensor:
        """The sum over a stage, or the mean over its pairs, of what was computed on `devices`.

        A block called several times is several layers: it has several outputs.
        """
        outputs = [
            _rows(call.y, name)[: self._samples]
            for name in stage
            for call in calls[name]
            if call.y.device in devices
        ]
        if not outputs:
            return torch.zeros(())
        with _full_precision(outputs[0]):
            alike: torch.Tensor = cka_matrix(
                [y.to(outputs[0].device) for y in outputs], unbiased=True
            )
            if not self._augmented:
                return alike.sum()
            pairs = torch.triu(torch.ones_like(alike), 1)
            return (alike * pairs).sum() / pairs.sum().clamp(min=1)


def _rows(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """(B, ...) as it is; refused where there is nothing beside the batch."""
    if tensor.ndim < 2:
        raise BadInput(
            f"block '{name}' takes or gives a tensor of shape {tuple(tensor.shape)}: "
            "a batch of samples along the first axis is needed"
        )
    return tensor


@contextmanager
def _full_precision(like: torch.Tensor) -> Iterator[None]:
    """Without autocast, which would take products in half precision."""
    with torch.autocast(like.device.type, enabled=False):
        yield
