"""What the torch front end cannot do faithfully is refused, with the operation at fault."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blockfold.ir import torch_export
from blockfold.ir.errors import BadInput, Unsupported
from blockfold.ir.scratch import storing
from blockfold.ir.torch_door import TorchDoor
from blockfold.ir.torch_export import to_onnx
from blockfold.ir.torch_view import capture
from blockfold.tests.captures import Call, X


def looked_at_elsewhere(x: torch.Tensor) -> torch.Tensor:
    y = x + 1
    part = y[0]
    y.mul_(2)
    return part + y


def test_writing_into_memory_that_is_read_under_another_name() -> None:
    with pytest.raises(Unsupported, match=r"mul_.* read under another name; write the code"):
        TorchDoor(capture(Call(looked_at_elsewhere), (X,)))


def test_a_value_that_the_module_does_not_have() -> None:
    door = TorchDoor(capture(nn.ReLU(), (X,)))
    with pytest.raises(Unsupported, match=r"no value 'elsewhere' of its own.*export the module"):
        door.node("elsewhere")


def test_an_export_that_fails_is_told_in_torchs_last_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("much ado\n\nno operator for aten::beauty\n")

    monkeypatch.setattr(torch.onnx, "export", failing)
    with pytest.raises(Unsupported, match=r"cannot translate the module: no operator for aten::be"):
        to_onnx(capture(nn.ReLU(), (X,)))


def test_a_full_disk_is_no_fault_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def save(self, *_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: Full())
    monkeypatch.setattr(torch_export, "LARGEST_IN_MEMORY", -1)
    with pytest.raises(BadInput, match=r"temporary files .*No space left.*TMPDIR"):
        to_onnx(capture(nn.ReLU(), (X,)))


def test_an_error_without_the_systems_words_is_told_as_it_is() -> None:
    with pytest.raises(BadInput, match=r"\(100 requested and 8 written\)"), storing():
        raise OSError("100 requested and 8 written")
