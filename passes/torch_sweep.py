"""The survey's sweep in a captured torch module, on the device where it lies.

Spans are those of its ONNX export; the captured graph computes the same values, which is checked on
a batch before.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.export import ExportedProgram

from ..calibration.runtime import fixed_batch
from ..calibration.sweep import Pair, Statistics
from ..calibration.torch_moments import DeviceStatistics
from ..ir.errors import Unsupported
from .similarity import Layers
from .sweep import compared
from .task import Advance, Samples, Task
from .transplant import Export, Feeds, places


class ModuleSweep:
    """As `Sweep`; what layers are compared by comes from the export.

    Raises Unsupported where module and export cannot be matched.
    """

    def __init__(
        self,
        program: ExportedProgram,
        export: Export,
        feeds: Feeds,
        task: Task,
        pairs: Sequence[Pair],
    ) -> None:
        if fixed_batch(export.model) is not None:
            raise Unsupported("it was captured for one size of batch; leave the first axis free")
        self._task, self._pairs = task, pairs
        wanted = {value for pair in pairs for value in (pair.x, pair.y)}
        self._door, self._nodes = places(program, export, wanted, feeds)
        self._inputs = dict(zip(export.model.graph.inputs, self._door.inputs, strict=False))

    def __call__(self, samples: Samples, advance: Advance, layers: Layers | None) -> Statistics:
        task, found = self._task, DeviceStatistics(self._pairs)
        if layers is not None:
            layers.run(compared(task, samples))
        for batch in task.data.batches(samples, task.batch):
            feeds = {node: batch.feeds[name] for name, node in self._inputs.items()}
            tensors = self._door.tensors(self._nodes.values(), feeds)
            taps = {value: tensors[node] for value, node in self._nodes.items()}
            mask = None
            if task.mask is not None:
                device = self._door.some_parameter().device
                mask = torch.from_numpy(np.ascontiguousarray(batch.feeds[task.mask])).to(device)
            found.add(taps, mask)
            advance(len(batch.samples))
        return found.statistics()
