"""The dataflow view: values and nodes of a graph, read-only, the same for every front end.

Nothing here knows ONNX or torch. A front end fills a Graph; cuts, blocks and spans are found on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

Dim = int | str | None
Shape = tuple[Dim, ...]

FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


@dataclass(frozen=True)
class Value:
    """A tensor that flows: its name, dtype by NumPy name, and shape where the file states one.

    A dimension is a number, a symbolic name (which proves nothing), or None. `shape` is None where
    not even the rank is known, `dtype` is None where the file does not say.
    """

    name: str
    dtype: str | None = None
    shape: Shape | None = None

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS
