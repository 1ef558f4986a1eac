"""Capturing torch modules: what is refused, and that nothing of the module changes."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim

from blockfold.ir.errors import BadInput, Unsupported
from blockfold.ir.torch_view import capture
from blockfold.tests.captures import (
    ANY,
    Call,
    W,
    X,
)


def test_capturing_changes_nothing_of_the_module() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    program = capture(module, (W,))
    assert module.training
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())
    assert program.state_dict["0.weight"] is module[0].weight


class Plain:
    """Holds a tensor, unknown to torch."""

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held


class DynamicCache(Plain):
    pass


class Experts(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        for expert in (x > 0).nonzero():
            x = x * expert.sum()
        return x


def branch(x: torch.Tensor) -> torch.Tensor:
    return x + 1 if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("module", "dynamic", "words"),
    [
        (Call(branch), None, ("cannot capture Call at test_torch_capture.py:", "torch.where")),
        (Experts(), None, ('set_experts_implementation("batched_mm")', "cannot capture Experts")),
        (Call(DynamicCache), None, ("register_dynamic_cache_export_support()", "use_cache=False")),
        (Call(Plain), None, ("Plain", "register_pytree_node")),
        (Call(lambda x: torch.from_numpy(x.numpy())), None, ("numpy", "export the module to ONNX")),
        (Call(lambda x: x.view(4, 4)), {"args": ({0: ANY},)}, ("constant (4)", "Dim.AUTO")),
    ],
)
def test_what_torch_cannot_capture_is_refused_in_one_line(
    module: nn.Module, dynamic: Any, words: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    printed, logged = (request.getfixturevalue(name) for name in ("capfd", "caplog"))
    with pytest.raises(Unsupported) as caught:
        capture(module, (W,), dynamic_shapes=dynamic)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)
    assert printed.readouterr() == ("", "")
    assert all(record.levelno < logging.WARNING for record in logged.records)


def test_torchscript_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises against it, too
        traced = torch.jit.trace(nn.Linear(4, 4), W)  # type: ignore[no-untyped-call]
    with pytest.raises(Unsupported, match="TorchScript; give the module"):
        capture(traced, (W,))


@pytest.mark.parametrize(
    ("args", "kwargs", "dynamic", "words"),
    [
        ((X[0, :, :3],), None, None, "Linear does not run on the inputs given: mat1 and mat2"),
        ((), None, None, "does not run .* missing 1 required positional argument"),
        ((W,), {"bias": 1}, None, "does not run .* unexpected keyword argument"),
        ((W,), None, {"x": {0: ANY}}, r"inputs of Linear: .*\['input'\]"),
        ((W,), None, {"input": {7: Dim("b")}}, "dynamic_shapes for inputs and axes"),
        (W, None, None, r"args is a Tensor; give a tuple of inputs, such as \(x,\)"),
        ((), [W], None, "kwargs is a list"),
    ],
)
def test_inputs_that_do_not_fit_are_the_callers_to_mend(
    args: Any, kwargs: Any, dynamic: Any, words: str
) -> None:
    with pytest.raises(BadInput, match=words):
        capture(nn.Linear(4, 3), args, kwargs, dynamic)


def test_only_modules_are_captured() -> None:
    method: Any = nn.Linear(4, 3).forward
    with pytest.raises(BadInput, match=r"a torch\.nn\.Module is needed, not a method"):
        capture(method, (W,))


def test_a_failed_attempt_leaves_buffers_and_logs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(nn.BatchNorm1d(4), Call(branch))
    monkeypatch.setattr(logging.root.manager, "disable", 7)
    with pytest.raises(Unsupported):
        capture(module, (W,))
    assert module.state_dict()["0.num_batches_tracked"] == 0
    assert logging.root.manager.disable == 7
