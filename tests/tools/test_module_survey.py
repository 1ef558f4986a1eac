"""A module on an accelerator is surveyed there; what comes out is what its export gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from blockfold.calibration.runtime import Runtime
from blockfold.calibration.sources import open_data
from blockfold.calibration.splits import split
from blockfold.passes.evidence import pairs_of
from blockfold.passes.layout import lay_out
from blockfold.passes.sweep import Sweep
from blockfold.passes.task import make_task
from blockfold.passes.torch_sweep import ModuleSweep
from blockfold.tests.calibration.test_graph_moments import check
from blockfold.tests.tools.modules import network, samples
from blockfold.tools import modules

QUICK: dict[str, Any] = {"threads": 1, "provider": "cpu"}
NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch has no CUDA here")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_CUDA)])
def test_a_module_s_own_sweep_is_that_of_its_export(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, data = network().to(device), samples(60)
    found = modules.captured(module, data, None, None)
    with open_data(data, found.onnx.inputs) as opened:
        task = make_task(found.onnx, opened, split(60), Runtime(threads=1), batch=7)
        pairs, taps = pairs_of(lay_out(task)), ()
        own = ModuleSweep(found.program, found.export(task.runtime), found.feeds, task, pairs)
        theirs = Sweep(task, pairs)
        for part in (task.splits.fit, task.splits.select):
            check(own(part, quiet, None), theirs(part, quiet, None))
        if device == "cpu":
            assert isinstance(found.sweep(task, pairs, taps), Sweep)
            monkeypatch.setattr(modules, "_is_on_accelerator", lambda _program: True)
        assert isinstance(found.sweep(task, pairs, taps), ModuleSweep)
        fixed = modules.captured(module, data, None, {"x": None})
        with pytest.warns(RuntimeWarning, match="surveyed as ONNX: .* one size of batch"):
            assert isinstance(fixed.sweep(task, pairs, taps), Sweep)


def quiet(_done: int) -> None:
    pass
