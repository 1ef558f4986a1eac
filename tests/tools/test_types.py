"""The main job on models that were converted first: to float16, mixed precision, 8 bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from blockfold.calibration.runtime import load
from blockfold.ir.errors import Unsupported
from blockfold.tests.narrowing import narrowed
from blockfold.tests.networks import Arrays, labelled, run
from blockfold.tests.tools.harness import PLANTED, SAMPLES, hurry, network
from blockfold.tools import api
from blockfold.tools.results import Result

DROP = 0.05
TOLERANCE = 0.02
"""Of the largest logit: float16 keeps 11 bits, and four blocks round again and again."""


@pytest.fixture
def data() -> Arrays:
    return labelled(network(), SAMPLES)


def optimized(model: onnx.ModelProto | Path, data: Arrays, patch: pytest.MonkeyPatch) -> Result:
    hurry(patch)
    return api.optimize(model, data, max_drop=DROP, threads=1, provider="cpu")


def planted(result: Result) -> Any:
    """The decision on the block that is affine, perhaps beside others; a unit is a block here."""
    return next(d for d in result.plan.decisions if d.start <= PLANTED < d.stop)


def test_a_float16_model(data: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    half = narrowed(network())
    result = optimized(half, data, monkeypatch)
    assert planted(result).dtype == "float16"
    made = result.model.graph.initializer
    assert {t.data_type for t in made} == {TensorProto.FLOAT16}
    x = data["x"].astype(np.float16)
    before, after = (run(model, {"x": x})["logits"] for model in (half, result.model))
    assert after.dtype == np.float16
    assert np.abs(before - after).max() < TOLERANCE * np.abs(before).max()


def test_float16_inside_and_float32_at_the_ends(
    data: Arrays, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """onnxruntime's converter writes the Casts of the inputs behind those who read them."""
    load()
    from onnxruntime.transformers.float16 import convert_float_to_float16

    mixed = convert_float_to_float16(network(), keep_io_types=True)
    with pytest.raises(onnx.checker.ValidationError, match="topologically sorted"):
        onnx.checker.check_model(mixed)
    path = tmp_path / "mixed.onnx"
    path.write_bytes(mixed.SerializeToString())
    result = optimized(path, data, monkeypatch)
    assert planted(result).dtype == "float16"
    before, after = (run(model, {"x": data["x"]})["logits"] for model in (mixed, result.model))
    assert after.dtype == np.float32
    assert np.abs(before - after).max() < TOLERANCE * np.abs(before).max()


def test_bfloat16_is_refused_where_the_provider_cannot_run_it(
    data: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unsupported, match="take another --provider, or export in float32"):
        optimized(narrowed(network(), TensorProto.BFLOAT16), data, monkeypatch)


def quantized(folder: Path, data: Arrays, form: str) -> Path:
    """The network in 8 bits, by onnxruntime's own quantisers."""
    load()
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Arrays] = iter([{"x": data["x"][:32]}])

        def get_next(self) -> Arrays | None:
            return next(self.batches, None)

    source, target = folder / "float.onnx", folder / f"{form}.onnx"
    source.write_bytes(network().SerializeToString())
    if form == "dynamic":
        quantization.quantize_dynamic(source, target)
    else:
        kind = getattr(quantization.QuantFormat, form)
        quantization.quantize_static(source, target, Reader(), quant_format=kind)
    return target


@pytest.mark.parametrize("form", ["dynamic", "QDQ"])
def test_a_quantised_model_whose_stream_stays_in_floats(
    form: str, data: Arrays, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The map is in float32; a QuantizeLinear that read the exit reads the map."""
    path = quantized(tmp_path, data, form)
    result = optimized(path, data, monkeypatch)
    assert planted(result).dtype == "float32"
    before, after = (
        Counter(node.op_type for node in model.graph.node)
        for model in (onnx.load(path), result.model)
    )
    gone = "MatMulInteger" if form == "dynamic" else "QuantizeLinear"
    assert 0 < after[gone] < before[gone]
    result.save(tmp_path / "small.onnx")
    outputs = [
        run(source, {"x": data["x"]})["logits"] for source in (path, tmp_path / "small.onnx")
    ]
    right = [float((logits.argmax(-1) == data["labels"]).mean()) for logits in outputs]
    assert right[1] > right[0] - DROP


def test_a_stream_of_8_bits_is_refused_with_advice(
    data: Arrays, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = quantized(tmp_path, data, "QOperator")
    with pytest.raises(Unsupported, match=r"int8 and u?int8; optimize first, quantise after"):
        optimized(path, data, monkeypatch)
