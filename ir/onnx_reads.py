"""Which tokens of a stream are read in the end: positions that a Gather or Slice picks from it.

A classifier that reads the class token alone cares about one row in a hundred.
"""

from __future__ import annotations

from .cuts import Chain
from .onnx_file import OnnxModel
from .onnx_linear import constant

TOKENS_AXIS = 1


def picked_positions(model: OnnxModel, chain: Chain) -> tuple[int, ...]:
    """The positions along axis 1 that alone lead from the chain's last sequence to its sink.

    Empty where everything is read, or where the positions depend on the data.
    """
    for stretch in reversed(chain.stretches):
        picks = [_picked(model, node.index) for node in stretch if node.op in ("Gather", "Slice")]
        if len(stretch) <= MOST_NODES and len(picks) == 1 and picks[0]:
            return picks[0]
    return ()


MOST_NODES = 3
"""A stretch that does little else than pick."""


def _picked(model: OnnxModel, index: int) -> tuple[int, ...]:
    node = model.proto.graph.node[index]
    held = model.graph.constants
    parameters = [name for name in node.input[1:] if name]
    if not all(name in held for name in parameters):
        return ()
    numbers = [constant(model, name).reshape(-1).tolist() for name in parameters]
    if node.op_type == "Gather":
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        return tuple(numbers[0]) if axis == TOKENS_AXIS else ()
    starts, ends, axes, *steps = numbers
    if axes != [TOKENS_AXIS] or any(step != [1] for step in steps) or ends[0] - starts[0] != 1:
        return ()
    return (starts[0],)
