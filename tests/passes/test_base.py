"""The sealed pass: no subclass gets round the postconditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import onnx
import pytest

from blockfold.ir.onnx_file import OnnxModel, read
from blockfold.passes.base import Pass, PassError, PassResult
from blockfold.tests.networks import residual_mlp

Edit = Callable[[onnx.ModelProto], object]


class Custom(Pass):
    """A pass that edits a copy as it is told."""

    name: ClassVar[str] = "custom"

    def __init__(self, edit: Edit) -> None:
        self.edit = edit

    def run(self, model: OnnxModel) -> PassResult:
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        self.edit(proto)
        return PassResult(OnnxModel(proto, model.folder), ("edited",))


class Careful(Custom):
    """Checks more than every pass does."""

    def requires(self, model: OnnxModel) -> None:
        if model.opset < 17:
            raise PassError("needs opset 17")

    def ensures(self, before: OnnxModel, result: PassResult) -> None:
        if len(result.model.graph.nodes) >= len(before.graph.nodes):
            raise PassError("removed nothing")


def rename_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "pooled"


def new_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("extra", 1, (1,)))


def swap_outputs(model: onnx.ModelProto) -> None:
    model.graph.output.append(onnx.helper.make_tensor_value_info("pooled", 1, ("batch", 8)))


BROKEN: list[tuple[Edit, str]] = [
    (rename_output, "changed the model's outputs"),
    (new_input, "changed the model's inputs"),
    (swap_outputs, "changed the model's outputs"),
    (lambda m: m.graph.input[0].type.tensor_type.shape.dim.pop(), "changed the model's inputs"),
    (
        lambda m: setattr(m.graph.output[0].type.tensor_type, "elem_type", 11),
        "changed the model's outputs",
    ),
    (lambda m: m.graph.node.pop(3), "made an invalid graph"),
    (lambda m: m.graph.initializer.pop(0), "made an invalid graph"),
    (lambda m: setattr(m.graph.node[0], "op_type", "NoSuchOp"), "made an invalid graph"),
]


@pytest.mark.parametrize(("edit", "said"), BROKEN)
def test_a_broken_promise_is_a_pass_error(edit: Edit, said: str) -> None:
    with pytest.raises(PassError, match=said) as caught:
        Custom(edit)(read(residual_mlp(1)))
    assert "pass custom" in str(caught.value)


def test_a_sound_result_is_handed_back_with_its_changes() -> None:
    def note(model: onnx.ModelProto) -> None:
        model.doc_string = "seen"

    result = Custom(note)(read(residual_mlp(1)))
    assert result.changes == ("edited",)
    assert result.model.proto.doc_string == "seen"


def test_requires_and_ensures_of_a_subclass_hold_too() -> None:
    with pytest.raises(PassError, match="removed nothing"):
        Careful(lambda _: None)(read(residual_mlp(1)))
    old = residual_mlp(1)
    old.opset_import[0].version = 12
    with pytest.raises(PassError, match="needs opset 17"):
        Careful(lambda _: pytest.fail("run"))(OnnxModel(old, read(residual_mlp(1)).folder))


def test_a_pass_without_run_cannot_be_made() -> None:
    class Empty(Pass):
        name: ClassVar[str] = "empty"

    with pytest.raises(TypeError, match="abstract"):
        Empty()  # type: ignore[abstract]
