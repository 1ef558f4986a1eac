"""What removing blocks leaves of ViT-S, against the table of RBA, read as one map for each span."""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import pytest

from blockfold.calibration.solve import Solution
from blockfold.ir.blocks import anatomy
from blockfold.ir.cuts import find_chains
from blockfold.ir.onnx_file import OnnxModel, read
from blockfold.ir.spans import Span, prove
from blockfold.passes.pipeline import build
from blockfold.passes.replacement import Replacement

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed"),
]
WIDTH, CLASSES = 384, 10
FULL = 21.82
LEFT = {1: 20.19, 2: 18.42, 3: 16.64, 4: 14.87}
"""Millions of parameters, with the pooler and a head of 10 classes."""


class Exported(NamedTuple):
    parameters: int  # of the module; its file holds constants of the exporter besides
    model: OnnxModel


@pytest.fixture(scope="module")
def vit_s(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    import torch
    from transformers import ViTConfig, ViTModel

    from blockfold.tools.support.exporters import quiet

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = ViTModel(
                ViTConfig(hidden_size=WIDTH, num_attention_heads=6, intermediate_size=4 * WIDTH)
            )
            self.head = torch.nn.Linear(WIDTH, CLASSES)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.head(self.vit(pixel_values=pixels).pooler_output)
            return made

    path = tmp_path_factory.mktemp("vit") / "model.onnx"
    module = Classifier().eval()
    for parameter in module.parameters():  # equal ones would be stored once
        torch.nn.init.normal_(parameter, std=0.02)
    with quiet():
        pixels = torch.zeros(1, 3, 224, 224)
        torch.onnx.export(module, (pixels,), path, external_data=False, verbose=False)
    return Exported(sum(p.numel() for p in module.parameters()), read(path))


def test_the_full_model_has_as_many_as_published(vit_s: Exported) -> None:
    assert vit_s.parameters / 1e6 == pytest.approx(FULL, abs=0.005)
    assert vit_s.model.graph.parameters_stored == pytest.approx(vit_s.parameters, rel=0.002)


@pytest.mark.parametrize("blocks", LEFT)
def test_one_map_stands_for_any_run_of_blocks(vit_s: Exported, blocks: int) -> None:
    """A block is 12 d^2 + 13 d, a map d^2; ours has a bias, d, besides."""
    model = vit_s.model
    stream = anatomy(model.graph, find_chains(model.graph)[0])
    assert len(stream.blocks) == 12
    run = stream.blocks[4 : 4 + blocks]
    span = prove(model.graph, stream, run[0].start, run[-1].stop)
    assert isinstance(span, Span)
    solution = Solution(np.eye(WIDTH), np.zeros(WIDTH), 0.0, 1, WIDTH, 1.0)
    after = build(model, [Replacement(span, solution, 0.0)]).graph.parameters_stored
    gone = model.graph.parameters_stored - after
    own = 12 * WIDTH**2 + 13 * WIDTH
    # what exporters store beside weights, such as shapes, may go or come
    assert gone == pytest.approx(blocks * own - WIDTH**2 - WIDTH, abs=20)
    assert (vit_s.parameters - gone - WIDTH) / 1e6 == pytest.approx(LEFT[blocks], abs=0.005)
