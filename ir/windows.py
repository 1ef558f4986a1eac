"""How a convolution looks at its input."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Kernel size, strides and dilations per spatial axis; `pads` begin and end, as in ONNX."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
