"""What lies beside a model is not run: code in a Hugging Face folder, pickled weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from blockfold.ir.errors import BadInput
from blockfold.tools.loading import find_module

transformers = pytest.importorskip("transformers")

TINY = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
    "vocab_size": 11,
    "max_position_embeddings": 8,
}


def folder_of(path: Path, **changes: object) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(TINY | changes))
    (path / "modeling_canary.py").write_text("raise SystemExit('imported')")
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder whose weights are safetensors."""
    folder = folder_of(tmp_path / "sound")
    transformers.BertModel(transformers.BertConfig(**TINY)).save_pretrained(folder)
    return folder_of(folder)


def test_a_sound_folder_is_loaded(weights: Path) -> None:
    loaded = find_module(weights)
    assert loaded is not None
    assert type(loaded.module).__name__ == "BertModel"


@pytest.mark.parametrize("kind", ["bert", "canary"])
def test_code_in_the_folder_is_not_run(kind: str, weights: Path) -> None:
    """Nor is the person asked whether it should be."""
    mapped = dict.fromkeys(("AutoConfig", "AutoModel"), "modeling_canary.Model")
    folder = folder_of(weights, model_type=kind, auto_map=mapped, architectures=["Model"])
    try:
        find_module(folder)
    except BadInput as error:
        assert "imported" not in str(error)
    assert not [name for name in sys.modules if "modeling_canary" in name]


def test_pickled_weights_are_not_read(weights: Path) -> None:
    import torch

    (weights / "model.safetensors").unlink()
    torch.save({}, weights / "pytorch_model.bin")
    with pytest.raises(BadInput, match="cannot load the model"):
        find_module(weights)


@pytest.mark.parametrize("name", ["pipeline", "Trainer", "AutoTokenizer", "logging", 5])
def test_a_name_that_is_no_model_is_not_taken(name: object, weights: Path) -> None:
    folder = folder_of(weights, architectures=[name])
    try:
        loaded = find_module(folder)
    except BadInput:
        return
    assert loaded is not None
    assert isinstance(loaded.module, transformers.PreTrainedModel)
