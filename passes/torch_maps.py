"""Surrogates as torch modules: what `replacement.nodes` is for ONNX, in the same order of steps."""

from __future__ import annotations

import torch
from torch import nn

from ..calibration.moments import Array


def linear(W: Array, b: Array | None, like: torch.Tensor) -> nn.Linear:
    """x W + b with W (inputs, outputs), in the type and place of a tensor."""
    inputs, outputs = W.shape
    made = nn.Linear(inputs, outputs, b is not None, like.device, like.dtype)
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(W.T.copy()))
        if b is not None:
            made.bias.copy_(torch.from_numpy(b.copy()))
    return made


def convolution(
    W: Array, b: Array | None, like: torch.Tensor, size: int, axes: int, strides: tuple[int, ...]
) -> nn.Module:
    """A convolution on feature maps with W ((in k ...), out)."""
    classes: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
        1: nn.Conv1d,
        2: nn.Conv2d,
        3: nn.Conv3d,
    }
    channels = W.shape[0] // size**axes
    made = classes[axes](
        channels,
        W.shape[1],
        (size,) * axes,  # type: ignore[arg-type]  # one class for every number of axes
        strides or (1,) * axes,  # type: ignore[arg-type]
        (size // 2,) * axes,  # type: ignore[arg-type]
        bias=b is not None,
        device=like.device,
        dtype=like.dtype,
    )
    with torch.no_grad():
        made.weight.copy_(torch.from_numpy(W.T.reshape(made.weight.shape).copy()))
        if b is not None and made.bias is not None:
            made.bias.copy_(torch.from_numpy(b.copy()))
    return made


class Mean(nn.Module):
    """The mean over the positions of a sample; a mask (batch, length) has 0 for padding."""

    def __init__(self, is_map: bool) -> None:
        super().__init__()
        self.is_map = is_map

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if self.is_map:
            return x.mean(tuple(range(2, x.ndim)), keepdim=True)
        if mask is None:
            return x.mean(tuple(range(1, x.ndim - 1)), keepdim=True)
        row = mask.bool().to(x.dtype).unsqueeze(1)
        count = row.sum(2, keepdim=True)
        return (row / count.clamp_min(1)) @ x


class MapWithContext(nn.Module):
    """x W + (mean of x) V + b."""

    def __init__(self, map_: nn.Module, context: nn.Module, is_map: bool) -> None:
        super().__init__()
        self.map, self.context, self.mean = map_, context, Mean(is_map)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        made: torch.Tensor = self.map(x) + self.context(self.mean(x, mask))
        return made


class ResidualWithContext(nn.Module):
    """r R + (mean of r) V + (mean of u) W0 V: what is added to the linear operation's own term."""

    def __init__(self, map_: nn.Module, of_r: nn.Module, of_u: nn.Module, is_map: bool) -> None:
        super().__init__()
        self.map, self.of_residual, self.of_input = map_, of_r, of_u
        self.mean = Mean(is_map)

    def forward(
        self, r: torch.Tensor, u: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        means = self.of_residual(self.mean(r, mask)) + self.of_input(self.mean(u, mask))
        made: torch.Tensor = self.map(r) + means
        return made
