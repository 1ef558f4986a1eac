"""Small torch networks that training penalties are tested on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from blockfold.passes.condition import CKASR, LaCoOT, Penalty

WIDTH, BATCH = 6, 12


class Block(nn.Module):
    """x + scale * tanh(Wx): the identity at scale 0."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(WIDTH, WIDTH), scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.scale * torch.tanh(self.inner(x))


class Tupled(Block):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x), "attention"


class Net(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Linear(4, WIDTH)
        self.body = nn.ModuleList(blocks or [Block(), Block(0.3), Block()])
        self.neck = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.body:
            x = block(x)
        found: torch.Tensor = self.head(self.neck(x))
        return found


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def stream(net: Net, x: torch.Tensor) -> list[torch.Tensor]:
    """What enters the first block, and what each block gives."""
    values = [net.embed(x)]
    for block in net.body:
        values.append(block(values[-1]))
    return values


MAKERS: list[Callable[..., Penalty]] = [LaCoOT, CKASR]
BOTH = pytest.mark.parametrize("make", MAKERS, ids=["LaCoOT", "CKASR"])


def backward(loss: torch.Tensor) -> None:
    torch.autograd.backward(loss)


def gradient(net: Net) -> torch.Tensor:
    """That of the first block's weight."""
    block = net.body[0]
    assert isinstance(block, Block) and block.inner.weight.grad is not None
    return block.inner.weight.grad
