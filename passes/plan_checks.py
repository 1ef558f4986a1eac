"""Whether what a plan says fits a model: a plan is a file, and its hash is no signature.

What passes here makes a model that is sound, if not a good one: that is for `verify` to judge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import numpy as np
from ml_dtypes import finfo

from ..calibration.moments import Array
from ..ir.errors import BadInput
from ..ir.graph import FLOATS
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_linear import Linear, matrix
from ..ir.spans import LONGEST_STRIDE
from .surrogates import CONTEXT, FOLDED, kernel_size

if TYPE_CHECKING:
    from .plan import Decision

LONGEST_RANK = 8


def require_place(model: OnnxModel, decision: Decision, linear: Linear | None) -> None:
    """BadInput unless the decision speaks of values that the model has, in their order."""
    graph = model.graph
    exit_, entry = graph.producer.get(decision.exit), graph.producer.get(decision.entry)
    if exit_ is None:
        _refuse(decision, f"no node of this model makes {decision.exit!r}")
    if entry is None and decision.entry not in graph.inputs:
        _refuse(decision, f"this model has no value {decision.entry!r}")
    if entry is not None and decision.surrogate != "refit" and entry.index >= exit_.index:
        _refuse(decision, f"{decision.entry!r} does not come before {decision.exit!r}")
    known = graph.value(decision.exit).dtype
    if decision.dtype not in FLOATS or known not in (None, decision.dtype):
        _refuse(decision, f"{decision.exit!r} is {known}, not {decision.dtype!r}")
    axes = decision.rank - 2
    least = 3 if decision.surrogate in CONTEXT else 1
    if not least <= decision.rank <= LONGEST_RANK or decision.channel_axis not in (-1, 1):
        _refuse(decision, f"rank {decision.rank}, channels on axis {decision.channel_axis}")
    if decision.strides and (
        len(decision.strides) != axes
        or not all(1 <= stride <= LONGEST_STRIDE for stride in decision.strides)
    ):
        _refuse(decision, f"strides {decision.strides}")
    if (linear is None) == (decision.surrogate in FOLDED):
        _refuse(decision, f"{decision.surrogate!r} folds {decision.folds!r}")
    if linear is not None and exit_.index < graph.producer[linear.value].index:
        _refuse(decision, f"{linear.value!r} does not come before {decision.exit!r}")
    if decision.mask is not None and decision.mask not in graph.inputs:
        _refuse(decision, f"this model has no input {decision.mask!r}")


def require_map(
    model: OnnxModel, decision: Decision, linear: Linear | None, W: Array, b: Array
) -> None:
    """BadInput unless W (rows, d) and b (d,) are numbers of the form the surrogate has."""
    d, rows = len(b), len(W)
    most = float(finfo(decision.dtype).max)  # type: ignore[no-untyped-call]
    for tensor in (W, b):
        if tensor.dtype != np.float64 or not d or not np.abs(tensor).max(initial=0.0) <= most:
            _refuse(decision, f"its tensors are not {decision.dtype} numbers")
    if linear is not None:
        form = decision.surrogate
        own = 0 if form in ("folded", "refit") else d * (1 + (form in CONTEXT))
        fits = matrix(model, linear).shape == (rows - own, d)
    elif decision.surrogate in CONTEXT:
        fits = rows == 2 * d
    else:
        is_map = decision.channel_axis == 1 and decision.rank > 2
        fits = rows % (kernel_size(decision.surrogate) ** (decision.rank - 2) if is_map else 1) == 0
    if not fits or not rows:
        _refuse(decision, f"a map of {rows} rows is no {decision.surrogate!r} of {d} channels")


def _refuse(decision: Decision, why: str) -> NoReturn:
    raise BadInput(f"the plan's {decision.name!r} does not fit the model: {why}")
