"""blockfold in a workflow of the real Olive: what its page says, and promises that are not kept."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest

from blockfold.ir.errors import BadInput
from blockfold.tests.tools import pages
from blockfold.tests.tools.harness import CommandLine, Files, network

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("olive") is None,
        reason="Olive is not installed: pip install 'blockfold[olive]'",
    ),
]

PAGE = (pages.ROOT / "docs/olive.md").read_text()
LOADER = """
import numpy as np
from olive.data.registry import Registry


class Pairs:
    def __init__(self):
        arrays = np.load("samples.npz")
        self.x, self.labels = arrays["x"], arrays["labels"]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, at):
        return {"x": self.x[at], "unread": at}, int(self.labels[at])


@Registry.register_dataset()
def pairs(**_):
    return Pairs()
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package file, as the page has it made."""
    folder = tmp_path_factory.mktemp("package")
    (words,) = (words for words in pages.commands(PAGE) if words[0] == "python")
    pages.shell(words, folder)
    return folder / words[-1]


@pytest.fixture
def example(tmp_path: Path, files: Files, package: Path) -> Path:
    """A folder with model.onnx, samples.npz, the package file and the files of the page."""
    shutil.copy(files.model, tmp_path / "model.onnx")
    shutil.copy(files.data, tmp_path / "samples.npz")
    for name, content in pages.files(PAGE).items():
        (tmp_path / name).write_text(content)
    shutil.copy(package, tmp_path)
    return tmp_path


def run(folder: Path, **fold: Any) -> str:
    """What Olive says of the page's workflow, with other settings of the fold and no other pass."""
    workflow = json.loads((folder / "workflow.json").read_text())
    workflow["passes"] = {"fold": {"type": "Blockfold", "threads": 1, **fold}}
    (folder / "other.json").write_text(json.dumps(workflow))
    words = ["olive", "run", "--config", "other.json", "--package-config", "package.json"]
    return pages.shell(words, folder)


def test_the_page_runs(
    example: Path, command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(example)
    for words in pages.commands(PAGE):
        if words[0] == "olive":
            pages.shell(words, example)
        elif words[0] == "blockfold":
            assert command(*words[1:]).code == 0
    made = onnx.load(example / "out/model.onnx")
    operators = {node.op_type for node in made.graph.node}
    assert "DynamicQuantizeLinear" in operators
    plan = json.loads((example / "out/model.plan.json").read_text())
    assert plan["verdict"]["promise"] == 0.02 and plan["decisions"]
    assert plan["provider"] == "CPUExecutionProvider"
    again = ["apply", "model.onnx", "out/model.plan.json", "-o", "again.onnx"]
    assert command(*again).code == 0  # as the text says


def test_batches_of_a_data_config_are_data(example: Path) -> None:
    (example / "loader.py").write_text(LOADER)
    described = {
        "name": "pairs",
        "user_script": str(example / "loader.py"),
        "load_dataset_config": {"type": "pairs"},
        "dataloader_config": {"type": "default_dataloader", "params": {"batch_size": 64}},
    }
    run(example, max_drop=0.05, data_config=described)
    plan = json.loads((example / "out/model.plan.json").read_text())
    assert plan["metric"] == "accuracy"  # labels came along
    assert plan["data"]["samples"] == len(np.load(example / "samples.npz")["labels"])


@pytest.mark.parametrize(
    ("fold", "said"),
    [
        ({"data": "samples.npz", "max_drop": 0.05, "remove": 4}, "blockfold: cannot meet"),
        ({"max_drop": 0.05}, "by `data` or by `data_config`"),
    ],
)
def test_what_cannot_be_kept_fails_the_workflow(
    fold: dict[str, Any], said: str, example: Path
) -> None:
    onnx.save(network(planted=None), example / "model.onnx")
    with pytest.raises(AssertionError, match="ValueError: blockfold: ") as failed:
        run(example, **fold)
    assert said in str(failed.value)
    assert not (example / "out/model.onnx").exists()


def test_samples_come_by_one_way() -> None:
    from blockfold.tools.olive_pass import _data

    for given in ({"data": None, "data_config": None}, {"data": "x.npz", "data_config": {}}):
        with pytest.raises(BadInput, match="give samples by `data` or by `data_config`, one of"):
            _data(cast(Any, None), SimpleNamespace(**given))
