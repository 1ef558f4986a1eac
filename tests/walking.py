"""A walk over a small model, for the tests of what is fitted in one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx

from blockfold.calibration.runtime import Runtime
from blockfold.calibration.sources import open_data
from blockfold.calibration.splits import split
from blockfold.ir.onnx_file import OnnxModel, read
from blockfold.ir.spans import Span
from blockfold.passes.fit import Walk
from blockfold.passes.layout import anatomies, observe, offered
from blockfold.passes.stops import find_stops
from blockfold.passes.task import Task, make_task
from blockfold.tests.networks import Arrays


@contextmanager
def walking(
    model: onnx.ModelProto | OnnxModel, data: Arrays
) -> Iterator[tuple[Task, Walk, dict[str, Span]]]:
    source = model if isinstance(model, OnnxModel) else read(model)
    with open_data(data, source.inputs) as opened:
        task = make_task(source, opened, split(opened.samples), Runtime(threads=1), batch=16)
        streams = anatomies(task.plain)
        observed = observe(task, streams)
        spans, _ = offered(task.plain.graph, streams, observed)
        walk = Walk(task, find_stops(task, streams, observed))
        yield task, walk, {span.name: span for span in spans}
