"""Which input marks padding, and what weight that gives each row of a value."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ir.errors import BadInput
from ..ir.graph import Value


def find_mask(inputs: Sequence[Value], name: str | None = None) -> str | None:
    """The whole-number or bool input (rows, length) that marks padding, or None.

    Without a name: the one with "mask" in its name; of several, the one with "attention" too; None
    where that leaves more than one. With a name: that input, BadInput where it cannot be a mask.
    """
    if name is None:
        named = [v.name for v in inputs if _can_be(v) and "mask" in v.name.lower()]
        if len(named) > 1:
            named = [mask for mask in named if "attention" in mask.lower()]
        return named[0] if len(named) == 1 else None
    for value in inputs:
        if value.name == name:
            if not _can_be(value):
                raise BadInput(
                    f"mask {name!r}: is {value.dtype} of shape {value.shape}; a mask is a "
                    "whole-number or bool input of shape (rows, length), 1 kept and 0 padding"
                )
            return name
    names = [value.name for value in inputs]
    near = difflib.get_close_matches(name, names, 1)
    meant = f" (is it {near[0]!r}?)" if near else ""
    raise BadInput(f"mask {name!r}: no such input{meant}; inputs: {', '.join(map(repr, names))}")


def _can_be(value: Value) -> bool:
    whole = value.dtype is not None and value.dtype.startswith(("bool", "int", "uint"))
    return whole and value.shape is not None and len(value.shape) == 2


def row_weights(
    mask: NDArray[Any], shape: tuple[int, ...], channel_axis: int
) -> NDArray[np.float64]:
    """Weights (n,) of a value's n rows, in C order over all axes but the channel: 0 for padding.

    `mask` has shape (rows, length). Where the value's axes without the channel do not begin with
    (rows, length), nothing says what is padding and every weight is 1.
    """
    axes = list(shape)
    del axes[channel_axis]
    weights = np.ones(axes)
    if tuple(axes[:2]) == mask.shape:
        weights *= (mask != 0).reshape(*mask.shape, *[1] * (len(axes) - 2))
    return weights.reshape(math.prod(axes))
