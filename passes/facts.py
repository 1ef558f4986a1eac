"""What a model weighs, for tables of before and after."""

from __future__ import annotations

from dataclasses import dataclass

from ..calibration.flops import flops
from ..calibration.latency import Profile
from ..calibration.runtime import Runtime
from ..ir.onnx_file import OnnxModel


@dataclass(frozen=True)
class Facts:
    """What a model weighs; `flops` at the profile, of matrix products and convolutions."""

    nodes: int
    parameters: int
    size_bytes: int
    flops: int

    @classmethod
    def of(cls, model: OnnxModel, runtime: Runtime, profile: Profile) -> Facts:
        graph = model.graph
        return cls(
            len(graph.nodes),
            graph.parameters_stored,
            model.size_bytes,
            flops(model, runtime, profile.feeds),
        )
