"""Plans that lie: a plan's hash is no signature, so what it says is checked against the model."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockfold.calibration.moments import Array
from blockfold.ir.errors import BadInput
from blockfold.passes.plan import read_plan, tensor_bytes, tensors_path
from blockfold.passes.replay import replay
from blockfold.tests.fuzz.mutate import CANARY
from blockfold.tests.fuzz.targets import FORMS, planned

FOLDED = FORMS.index("folded")


def replayed(folder: Path, plan: Mapping[str, Any], tensors: bytes | None = None) -> None:
    """Write the plan with its tensors, seal it as its owner would, and make its model."""
    model, _, own = planned()
    content = own if tensors is None else tensors
    path = folder / "p.plan.json"
    sealed = {**plan, "tensors_sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(sealed))
    tensors_path(path).write_bytes(content)
    found, maps = read_plan(path)
    replay(model, found.model_copy(update={"sha256": found.digest()}), maps)


def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(planned()[1].model_dump_json())
    return found


def test_the_plan_itself_is_sound(tmp_path: Path) -> None:
    replayed(tmp_path, document())


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("exit", "none", "no node of this model makes 'none'"),
        ("exit", "x", "no node of this model makes 'x'"),
        ("entry", "../../secret", "this model has no value '../../secret'"),
        ("entry", "logits", "'logits' does not come before"),
        ("dtype", "object", "not 'object'"),
        ("dtype", CANARY, f"not '{CANARY}'"),
        ("dtype", "float16", "is float32, not 'float16'"),
        ("rank", 10**9, "rank 1000000000"),
        ("rank", 0, "rank 0"),
        ("channel_axis", 7, "channels on axis 7"),
        ("strides", [10**9], "strides (1000000000,)"),
        ("folds", None, "folds None"),
        ("folds", "h11", "does not come before"),
        ("folds", "x", "which no linear operation of this model feeds"),
        ("surrogate", "affine", "folds"),
        ("surrogate", "affine + folded", "a map of 8 rows is no 'affine + folded'"),
        ("mask", "../mask", "this model has no input '../mask'"),
    ],
)
def test_places_that_the_model_has_not(
    field: str, value: object, said: str, tmp_path: Path
) -> None:
    plan = document()
    plan["decisions"][FOLDED][field] = value
    with pytest.raises(BadInput) as caught:
        replayed(tmp_path, plan)
    assert said in str(caught.value)


def test_one_place_is_not_made_twice(tmp_path: Path) -> None:
    plan = document()
    plan["decisions"][0] |= {name: plan["decisions"][1][name] for name in ("entry", "exit")}
    with pytest.raises(BadInput, match="more than once"):
        replayed(tmp_path, plan)


def maps() -> dict[str, Array]:
    from safetensors.numpy import load

    return {name: tensor.copy() for name, tensor in load(planned()[2]).items()}


@pytest.mark.parametrize(
    "tensor",
    [
        np.full((4, 4), np.nan),
        np.full((4, 4), np.inf),
        np.full((4, 4), 1e300),
        np.ones((4, 4), np.int64),
        np.ones((4, 4), np.bool_),
        np.ones((0, 4)),
    ],
    ids=["NaN", "Inf", "too large", "whole", "bool", "empty"],
)
def test_tensors_that_are_no_map(tensor: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not fit the model"):
        replayed(tmp_path, document(), tensor_bytes(maps() | {"0.W": tensor}))


def test_a_map_of_the_wrong_size_for_what_is_folded(tmp_path: Path) -> None:
    for rows in (4, 7, 16):
        changed = maps() | {f"{FOLDED}.W": np.ones((rows, 4))}
        with pytest.raises(BadInput, match=f"a map of {rows} rows is no 'folded'"):
            replayed(tmp_path, document(), tensor_bytes(changed))


def test_no_text_of_a_plan_is_code_or_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every text in turn naming code that could be imported, nothing of it runs."""
    (tmp_path / "blockfold_canary.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(tmp_path.rglob("*"))

    def walk(place: Any) -> None:
        for key in place if isinstance(place, dict) else range(len(place)):
            kept = place[key]
            if isinstance(kept, dict | list):
                walk(kept)
            elif isinstance(kept, str):
                for text in (CANARY, "../blockfold_canary.py", str(tmp_path / "out")):
                    place[key] = text
                    folder = tmp_path / "plans"
                    folder.mkdir(exist_ok=True)
                    try:
                        replayed(folder, plan)
                    except BadInput as error:
                        assert "imported" not in str(error)
                place[key] = kept

    plan = document() | {"refusals": [], "costs": None}
    plan["decisions"] = plan["decisions"][:1]
    walk(plan)
    assert "blockfold_canary" not in sys.modules
    made = {path.name for path in set(tmp_path.rglob("*")) - before}
    assert made == {"plans", "p.plan.json", "p.plan.safetensors"}
