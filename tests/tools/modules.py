"""A torch network of residual blocks and samples for it, for the tests of the tools."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from blockfold.tests.networks import Arrays

WIDTH, CLASSES, ROWS = 12, 5, 400


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.LayerNorm(WIDTH), nn.Dropout(0.2)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.drop(self.down(functional.relu(self.up(self.norm(x)))))
        return x + made


class Network(nn.Module):
    """x (batch, 7, WIDTH) -> blocks, a BatchNorm over channels, the mean -> classes."""

    table: torch.Tensor

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block() for _ in range(depth)])
        self.norm, self.head = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES)
        self.register_buffer("table", torch.ones(7, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.table + torch.arange(7, device=x.device, dtype=x.dtype)[:, None] / 7
        for block in self.blocks:
            x = block(x)
        made: torch.Tensor = self.head(self.norm(x.transpose(1, 2)).mean(2))
        return made


def network() -> Network:
    torch.manual_seed(0)
    module = Network()
    for name, parameter in module.named_parameters():
        if "down" in name:
            parameter.data *= 0.5
    return module


def samples(rows: int = ROWS, seed: int = 0) -> Arrays:
    return {"x": np.random.default_rng(seed).standard_normal((rows, 7, WIDTH)).astype(np.float32)}
