"""What a model weighs, for tables of before and after."""

from __future__ import annotations

from dataclasses import dataclass

from ..calibration.latency import Profile
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_flops import flops


@dataclass(frozen=True)
class Facts:
    """What a model weighs; `flops` at the profile, None where a shape is unknown."""

    nodes: int
    parameters: int
    size_bytes: int
    flops: int | None

    @classmethod
    def of(cls, model: OnnxModel, profile: Profile) -> Facts:
        shapes = {name: tuple(feed.shape) for name, feed in profile.feeds.items()}
        graph = model.graph
        return cls(
            len(graph.nodes), graph.parameters_stored, model.size_bytes, flops(model, shapes)
        )
