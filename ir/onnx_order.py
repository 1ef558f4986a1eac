"""The order of a file's nodes. ONNX wants makers before readers; runtimes load any order.

Some converters append their nodes at the end: onnxruntime's float16 conversion that keeps float32
at the ends (`keep_io_types`) writes the Casts of the inputs last.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

import onnx

from .onnx_view import captured


def in_order(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every node behind what it reads, else as early as in the file.

    The same object where that holds already, or where a cycle forbids it.
    """
    nodes = model.graph.node
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    awaited: list[set[int]] = []
    readers: dict[int, list[int]] = {}
    for index, node in enumerate(nodes):
        reads = (makers.get(name) for name in {*node.input, *captured(node)})
        awaited.append({maker for maker in reads if maker is not None})
        for maker in awaited[-1]:
            readers.setdefault(maker, []).append(index)
    if all(maker < index for index, makers_of in enumerate(awaited) for maker in makers_of):
        return model
    ready = [index for index, makers_of in enumerate(awaited) if not makers_of]
    heapify(ready)
    order: list[int] = []
    while ready:
        order.append(heappop(ready))
        for reader in readers.get(order[-1], ()):
            awaited[reader].discard(order[-1])
            if not awaited[reader]:
                heappush(ready, reader)
    if len(order) < len(nodes):
        return model
    moved = onnx.ModelProto()
    moved.CopyFrom(model)
    del moved.graph.node[:]
    moved.graph.node.extend(nodes[index] for index in order)
    return moved
