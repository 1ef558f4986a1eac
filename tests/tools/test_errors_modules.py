"""Torch modules, and what comes with them, that cannot be taken: one clear line each."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import blockfold
from blockfold.ir.errors import BadInput
from blockfold.passes.plan import Plan, read_plan
from blockfold.tests.tools.harness import hurry
from blockfold.tests.tools.modules import WIDTH, Network, network, samples
from blockfold.tools.modules import ModuleResult

INPUTS = (torch.zeros(2, 7, WIDTH),)
QUICK: dict[str, Any] = {"threads": 1, "provider": "cpu"}


@pytest.fixture(scope="module")
def result() -> ModuleResult:
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        found = blockfold.optimize(network(), samples(), remove=1, metric="nmse", **QUICK)
    assert isinstance(found, ModuleResult)
    return found


def planned(result: ModuleResult, folder: Path, change: Callable[[Plan], Plan]) -> Path:
    """The plan, changed, beside its tensors."""
    result.save(folder / "out.onnx")
    path = folder / "out.plan.json"
    path.write_text(change(read_plan(path)[0]).model_dump_json())
    return path


def signed(plan: Plan) -> Plan:
    return plan.model_copy(update={"sha256": plan.digest()})


def moved(plan: Plan, **to: Any) -> Plan:
    """The first decision elsewhere."""
    first, *others = plan.decisions
    return plan.model_copy(update={"decisions": (first.model_copy(update=to), *others)})


def refused(path: Path, module: torch.nn.Module, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        blockfold.apply(module, path, example_inputs=INPUTS, **QUICK)


def test_an_edited_plan(result: ModuleResult, tmp_path: Path) -> None:
    path = planned(result, tmp_path, lambda plan: moved(plan, blocks=9.0))
    refused(path, network(), r"out\.plan\.json: an edited plan is solved again on the ONNX export")


def test_a_plan_of_a_deeper_network(result: ModuleResult, tmp_path: Path) -> None:
    path = planned(result, tmp_path, lambda plan: signed(moved(plan, start=98, stop=99)))
    refused(path, Network(1), "is no stretch of this module")


def test_a_plan_that_folds_what_is_not_there(result: ModuleResult, tmp_path: Path) -> None:
    path = planned(result, tmp_path, lambda plan: signed(moved(plan, start=0, stop=1, folds="x")))
    refused(path, Network(1), "folds what this module has not")


def test_a_plan_that_drops_caches(result: ModuleResult, tmp_path: Path) -> None:
    def dropping(plan: Plan) -> Plan:
        cache = plan.cache.model_copy(update={"outputs": ("present",)})
        return signed(plan.model_copy(update={"cache": cache}))

    path = planned(result, tmp_path, dropping)
    refused(path, network(), "drops caches, and a captured module keeps its outputs; export it")


def test_a_promise_for_a_replay(result: ModuleResult, tmp_path: Path) -> None:
    path = planned(result, tmp_path, lambda plan: plan)
    with pytest.raises(BadInput, match=r"replay is not certified; apply the plan to its export"):
        blockfold.apply(network(), path, example_inputs=INPUTS, max_drop=0.1, **QUICK)


def test_a_program_without_example_inputs() -> None:
    program = torch.export.export(network().eval(), INPUTS)
    program._example_inputs = None
    with pytest.raises(BadInput, match="holds no example inputs; give example_inputs"):
        blockfold.inspect(program)


def test_a_program_that_cannot_be_written(result: ModuleResult, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"out\.pt2: cannot write there.*choose another place"):
        result.fill(tmp_path / "nowhere", tmp_path / "out.pt2")


def test_a_hugging_face_folder_without_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BadInput, match="needs transformers: pip install transformers"):
        blockfold.inspect(tmp_path)


def test_a_module_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadInput, match=r"need the package onnxscript: pip install 'blockfold\[tor"):
        blockfold.inspect(tmp_path)


def test_what_is_no_model_at_all() -> None:
    with pytest.raises(BadInput, match="int: no ONNX model; give a path or a ModelProto"):
        blockfold.inspect(3)  # type: ignore[arg-type]


def test_a_hugging_face_folder_that_holds_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "beauty"}')
    with pytest.raises(BadInput, match="cannot load the model: "):
        blockfold.inspect(tmp_path)


def test_data_that_cannot_be_read_for_example_inputs(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_bytes(b"hello")
    with pytest.raises(BadInput, match=r"text\.npz: cannot read the data"):
        blockfold.inspect(network(), tmp_path / "text.npz")
