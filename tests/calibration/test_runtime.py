"""Runtimes and runners: a provider asked for is there or refused, taps give inner values."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from ml_dtypes import bfloat16
from onnx import TensorProto, helper

from blockfold.calibration import runtime
from blockfold.calibration.runtime import Runner, Runtime, choose_runtime, fixed_batch, load
from blockfold.ir.errors import BadInput, Unsupported
from blockfold.ir.onnx_extract import extract
from blockfold.ir.onnx_file import read
from blockfold.tests import networks
from blockfold.tests.narrowing import narrowed
from blockfold.tests.networks import compare, residual_mlp, run, samples, save_external

CPU = Runtime(threads=1)
CUDA = "CUDAExecutionProvider"


def cuda_works() -> bool:
    return choose_runtime().provider == CUDA


def test_the_cpu_by_its_short_and_its_long_name() -> None:
    for name in ("cpu", "CPU", "CPUExecutionProvider"):
        assert choose_runtime(name, 2) == Runtime("CPUExecutionProvider", 2)


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(BadInput) as caught:
        choose_runtime("warp")
    assert "--provider warp: unknown to this onnxruntime; it knows cpu, cuda" in str(caught.value)
    assert "CPUExecutionProvider" in str(caught.value)


def test_cuda_without_cuda_is_refused_and_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed by the wheel, but no driver behind it."""
    monkeypatch.setattr(runtime, "DRIVERS", {CUDA: "no-such-driver.so"})
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"]
    )
    with pytest.raises(BadInput, match="--provider cuda: CUDAExecutionProvider does not work"):
        choose_runtime("cuda")
    assert choose_runtime().provider == "CPUExecutionProvider"
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BadInput, match="--provider cuda: unknown to this onnxruntime"):
        choose_runtime("cuda")


def test_a_session_that_falls_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnxruntime.InferenceSession

    def fall_back(*arguments: object, **_options: object) -> object:
        return real(*arguments, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", fall_back)
    with pytest.raises(BadInput, match="CUDAExecutionProvider could not be used"):
        Runner(read(residual_mlp(1)), Runtime(CUDA, 1))


@pytest.mark.skipif(not cuda_works(), reason="no CUDA device, driver or library on this machine")
def test_cuda_gives_what_the_cpu_gives() -> None:
    model = residual_mlp(2)
    feeds = samples(model, 3)
    found = Runner(read(model), choose_runtime("cuda"))(feeds)
    compare(run(model, feeds), found, atol=0, rtol=1e-3)


def test_a_library_of_custom_operators_must_be_there(tmp_path: Path) -> None:
    missing = tmp_path / "ops.so"
    with pytest.raises(BadInput, match=r"ops\.so: no such file; give the library's path"):
        choose_runtime("cpu", custom_ops=[str(missing)])
    missing.write_bytes(b"not a library")
    chosen = choose_runtime("cpu", custom_ops=[str(missing)])
    assert chosen.custom_ops == (str(missing),)


def test_a_broken_library_of_custom_operators_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "ops.so"
    broken.write_bytes(b"not a library")
    with pytest.raises((BadInput, Unsupported)):
        Runner(read(residual_mlp(1)), Runtime(threads=1, custom_ops=(str(broken),)))


def test_taps_give_inputs_outputs_and_inner_values() -> None:
    model = residual_mlp(2)
    feeds = samples(model, 3)
    found = Runner(read(model), CPU, ["h1", "x", "h0", "logits", "h1"])(feeds)
    compare({**feeds, **run(model, feeds, ["h0", "h1"])}, found, atol=0, rtol=1e-6)
    assert not model.graph.output[1:]


def test_fewer_rows_than_a_fixed_batch_are_padded_and_cut_off() -> None:
    free = residual_mlp(1)
    feeds = samples(free, 6)
    runner = Runner(read(networks.fixed_batch(free, 4)), CPU, ["h0", "x"])
    assert runner.fixed_batch == 4
    for rows in (1, 3, 4):
        some = {"x": feeds["x"][:rows]}
        compare({**some, **run(free, some, ["h0"])}, runner(some), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("rows", "fixed"), [(None, None), (4, 4), (1, 1)])
def test_which_batch_a_model_fixes(rows: int | None, fixed: int | None) -> None:
    model = residual_mlp(1)
    if rows is not None:
        model = networks.fixed_batch(model, rows)
    assert fixed_batch(read(model)) == fixed


def test_data_that_the_model_cannot_take_is_refused() -> None:
    runner = Runner(read(residual_mlp(1)), CPU)
    for feeds in (
        {"x": np.zeros((2, 12, 9), np.float32)},
        {"x": np.zeros((2, 12, 8), np.float64)},
        {"y": np.zeros((2, 12, 8), np.float32)},
    ):
        with pytest.raises(BadInput, match="cannot run the model on this data") as caught:
            runner(feeds)
        assert "\n" not in str(caught.value)


def test_a_model_with_unknown_operators_is_unsupported() -> None:
    model = residual_mlp(1)
    model.opset_import.add(domain="com.example", version=1)
    model.graph.node[3].domain = "com.example"
    with pytest.raises(Unsupported, match="custom operators need --custom-ops"):
        Runner(read(model), CPU)


def test_external_weights_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = residual_mlp(1)
    folder = tmp_path / "model"
    folder.mkdir()
    source = read(save_external(model, folder))
    monkeypatch.chdir(tmp_path)
    feeds = samples(model, 2)
    compare(run(model, feeds, ["h0"]), Runner(source, CPU, ["h0"])(feeds), atol=0, rtol=1e-6)


def test_an_onnxruntime_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BadInput, match=r"onnxruntime cannot be imported.*pip install onnxruntime"):
        load()


def test_bfloat16_is_fed_and_fetched_as_float32() -> None:
    """onnxruntime's Python interface has no such arrays: inputs, taps and outputs get Casts."""
    kind = TensorProto.BFLOAT16
    nodes = [
        helper.make_node("Transpose", ["x"], ["inner"], perm=[1, 0]),
        helper.make_node("Concat", ["inner", "inner"], ["y"], axis=1),
    ]
    x_info = helper.make_tensor_value_info("x", kind, ("n", 3))
    y_info = helper.make_tensor_value_info("y", kind, (3, "m"))
    graph = helper.make_graph(nodes, "narrow", [x_info], [y_info])
    opsets = [helper.make_opsetid("", 20)]
    model = read(helper.make_model(graph, opset_imports=opsets, ir_version=9))
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    held = x.astype(bfloat16).astype(np.float32)
    assert (held != x).any()
    runner = Runner(model, Runtime(threads=1), ["inner", "x"])
    found = runner({"x": x})
    assert {name: array.dtype for name, array in found.items()} == dict.fromkeys(
        ("y", "inner", "x"), np.dtype(np.float32)
    )
    np.testing.assert_array_equal(found["inner"], held.T)
    np.testing.assert_array_equal(found["y"], np.hstack([held.T, held.T]))
    plain = Runner(model, Runtime(threads=1))
    np.testing.assert_array_equal(plain.run_whole({"x": x})["y"], found["y"])
    plain.run_only({"x": x})
    piece = Runner(extract(model, ["inner"], ["y"]), Runtime(threads=1))
    np.testing.assert_array_equal(piece.run_whole({"inner": x.T})["y"], found["y"])


def test_what_a_provider_cannot_run_in_a_type_is_said() -> None:
    model = narrowed(residual_mlp(1), TensorProto.BFLOAT16)
    with pytest.raises(Unsupported, match="in the model's types: take another --provider"):
        Runner(read(model), Runtime(threads=1))
