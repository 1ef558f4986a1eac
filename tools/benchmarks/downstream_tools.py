"""Tools that people apply to ONNX models, each as a function from a file to something that runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray

from ...calibration.latency import Runs
from ...calibration.runtime import Feeds, Runner, load
from ...passes.task import Task, thinned
from ..opening import read_model

MOST_CALIBRATION = 64
"""Samples that a static quantisation sees."""


class Served(Runs, Protocol):
    """A model ready to run: outputs by name, or run and dropped."""

    def __call__(self, feeds: Feeds) -> Mapping[str, NDArray[Any]]: ...


@dataclass(frozen=True)
class Tool:
    """A tool by its name and the distributions that hold it, the first installed one counting.

    `serve` applies it to a file, may write another, and gives what runs.
    """

    name: str
    distributions: tuple[str, ...]
    serve: Callable[[Task, Path, Path], Served]
    is_timed: bool = True


def _by(
    name: str, distributions: tuple[str, ...], convert: Callable[[Task, Path, Path], None]
) -> Tool:
    """A tool that makes one ONNX file of another, which onnxruntime then runs."""

    def serve(task: Task, source: Path, target: Path) -> Served:
        logging.disable(logging.WARNING)
        try:
            convert(task, source, target)
        finally:
            logging.disable(logging.NOTSET)
        return Runner(read_model(target), task.runtime)

    return Tool(name, distributions, serve)


def _prepared(source: Path, target: Path) -> Path:
    """The model as onnxruntime's quantisers want it: shapes inferred, constants folded."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = target.with_name(f"prepared.{source.name}")
    quant_pre_process(source, prepared)
    return prepared


def _dynamic(_task: Task, source: Path, target: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(_prepared(source, target), target)


def _static(task: Task, source: Path, target: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            samples = thinned(task.splits.fit, MOST_CALIBRATION)
            self._batches = task.data.batches(samples, 1)

        def get_next(self) -> Feeds | None:
            batch = next(self._batches, None)
            return None if batch is None else dict(batch.feeds)

    prepared, form = _prepared(source, target), QuantFormat.QDQ
    quantize_static(prepared, target, Reader(), quant_format=form, per_channel=True)


def _half_runtime(_task: Task, source: Path, target: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def _half_common(_task: Task, source: Path, target: Path) -> None:
    from onnxconverter_common.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


def _slim(_task: Task, source: Path, target: Path) -> None:
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), target)


def _simplify(_task: Task, source: Path, target: Path) -> None:
    import onnxsim

    simplified, is_same = onnxsim.simplify(onnx.load(source))
    if not is_same:
        raise ValueError("onnxsim found its own result to differ")
    onnx.save(simplified, target)


def _transformers(_task: Task, source: Path, target: Path) -> None:
    from onnxruntime.transformers.optimizer import optimize_model

    optimize_model(str(source), "bert", num_heads=0, hidden_size=0).save_model_to_file(str(target))


def _extended(_task: Task, source: Path, target: Path) -> None:
    ort = load()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


class _Foreign:
    """What another runtime serves: it takes all inputs."""

    def taken(self, feeds: Feeds) -> dict[str, NDArray[np.generic]]:
        return dict(feeds)


class _OpenVino(_Foreign):
    """A model compiled by OpenVINO for the CPU, on the task's threads, in float32."""

    def __init__(self, task: Task, source: Path, _target: Path) -> None:
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if task.runtime.threads:
            settings["INFERENCE_NUM_THREADS"] = str(task.runtime.threads)
        self._compiled = openvino.Core().compile_model(str(source), "CPU", settings)
        self._request = self._compiled.create_infer_request()
        self._names = task.model.graph.outputs

    def __call__(self, feeds: Feeds) -> Mapping[str, NDArray[Any]]:
        found = self._request.infer(dict(feeds))
        return {name: np.array(found[name]) for name in self._names}

    def run_only(self, feeds: dict[str, np.ndarray]) -> None:
        self._request.infer(feeds)


class _Reference(_Foreign):
    """ONNX's own evaluator, the meaning of the operators in NumPy."""

    def __init__(self, _task: Task, source: Path, _target: Path) -> None:
        from onnx.reference import ReferenceEvaluator

        self._evaluator = ReferenceEvaluator(str(source))

    def __call__(self, feeds: Feeds) -> Mapping[str, NDArray[Any]]:
        return dict(
            zip(self._evaluator.output_names, self._evaluator.run(None, dict(feeds)), strict=True)
        )

    def run_only(self, feeds: dict[str, np.ndarray]) -> None:
        self._evaluator.run(None, feeds)


RUNTIME = ("onnxruntime", "onnxruntime-gpu")

TOOLS = (
    _by("onnxruntime, dynamic quantisation", RUNTIME, _dynamic),
    _by("onnxruntime, static quantisation (QDQ)", RUNTIME, _static),
    _by("onnxruntime, float16", RUNTIME, _half_runtime),
    _by("onnxconverter-common, float16", ("onnxconverter-common",), _half_common),
    _by("onnxslim", ("onnxslim",), _slim),
    _by("onnxsim", ("onnxsim",), _simplify),
    _by("onnxruntime, transformers optimizer", RUNTIME, _transformers),
    _by("onnxruntime, extended level, saved", RUNTIME, _extended),
    Tool("OpenVINO, CPU", ("openvino",), _OpenVino),
    Tool("onnx, reference evaluator", ("onnx",), _Reference, is_timed=False),
)
