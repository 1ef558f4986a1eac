"""blockfold: fold near-affine blocks of a trained network into single matrices.

import blockfold

result = blockfold.optimize("model.onnx", "samples.npz", max_drop=0.01)
result.save("small.onnx")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .ir.errors import BadInput, BlockfoldError, NotMet, Unsupported

if TYPE_CHECKING:
    from .tools.api import apply, inspect, optimize
    from .tools.comparing import bench, rank, verify
    from .tools.results import NotKept
    from .tools.surveying import survey

__all__ = [
    "BadInput",
    "BlockfoldError",
    "NotKept",
    "NotMet",
    "Unsupported",
    "apply",
    "bench",
    "inspect",
    "optimize",
    "rank",
    "survey",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import the jobs, and what they need, when one is first used."""
    if name in __all__:
        from .tools import api, comparing, surveying

        rooms = {"survey": surveying} | dict.fromkeys(comparing.__all__, comparing)
        return getattr(rooms.get(name, api), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
