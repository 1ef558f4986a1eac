"""Evidence adds up to that of all samples, and files hold it; what does not belong is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from blockfold.calibration.runtime import Runtime
from blockfold.calibration.sources import open_data
from blockfold.calibration.splits import split
from blockfold.calibration.spread import ALONE, Processes
from blockfold.ir.errors import BadInput
from blockfold.ir.onnx_file import read
from blockfold.ir.onnx_unfuse import unfuse
from blockfold.passes import evidence, similarity
from blockfold.passes.evidence import Evidence, Gatherer, merge, surveyed
from blockfold.passes.evidence_file import HEADER, evidence_bytes, read_evidence
from blockfold.passes.layout import lay_out
from blockfold.passes.score import Survey, read_out, score
from blockfold.passes.task import Task, make_task
from blockfold.tests.networks import (
    Arrays,
    labelled,
    masked_encoder,
    residual_cnn,
    residual_mlp,
    samples,
)
from blockfold.tests.together import together

MODEL = residual_mlp(2)
DATA = labelled(MODEL, 120)


@contextmanager
def opened(model: onnx.ModelProto, data: Arrays, seed: int = 0) -> Iterator[Task]:
    source = read(model)
    with open_data(data, source.inputs) as found:
        splits = split(found.samples, seed=seed)
        yield make_task(source, found, splits, Runtime(threads=1))


def gathered(
    model: onnx.ModelProto = MODEL,
    data: Arrays = DATA,
    part: slice = slice(None),
    group: Processes = ALONE,
    seed: int = 0,
) -> Evidence:
    with opened(model, data, seed) as task:
        return Gatherer(task, lay_out(task), group)(surveyed(task.splits)[part])


def saw(found: Evidence, model: onnx.ModelProto = MODEL) -> Survey:
    with opened(model, DATA if model is MODEL else samples(model, 8)) as task:
        return read_out(lay_out(task), task.plain, found)


FIGURES = ("block_redundancy", "cosine", "angular_distance", "nbl_bound", "affine_r2")


def assert_same(found: Survey, wanted: Survey) -> None:
    """Equal but for the rounding of float32 products in batches of another size."""
    assert len(found.spans) == len(wanted.spans) > 0
    for a, b in zip(found.spans, wanted.spans, strict=True):
        assert a.span == b.span
        for name in FIGURES:
            assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-3, abs=1e-5), name
    assert len(found.similarities) == len(wanted.similarities)
    for c, d in zip(found.similarities, wanted.similarities, strict=True):
        assert (c.samples, c.communities) == (d.samples, d.communities)
        np.testing.assert_allclose(c.cka, d.cka, rtol=1e-5)
        assert [u.activation_entropy for u in c.units] == [u.activation_entropy for u in d.units]
        if c.modularity is not None and d.modularity is not None:
            np.testing.assert_allclose(c.modularity, d.modularity, rtol=1e-5)


@pytest.mark.parametrize("model", [MODEL, residual_cnn(), masked_encoder(2)])
def test_parts_in_any_order_add_up_to_the_survey(model: onnx.ModelProto) -> None:
    data = labelled(model, 120)
    parts = [gathered(model, data, part) for part in (slice(40, None), slice(25), slice(25, 40))]
    with opened(model, data) as task:
        wanted = score(task)
    for order in ([0, 1, 2], [2, 0, 1]):
        whole = merge([parts[at] for at in order])
        assert whole.held == whole.due == 60
        assert_same(saw(whole, model), wanted)
    part = saw(parts[0], model)
    assert part.spans[0].cosine != pytest.approx(wanted.spans[0].cosine, rel=1e-4)


@pytest.mark.parametrize("size", [2, 3])
def test_processes_together_gather_the_survey(size: int) -> None:
    for found in together(size, lambda group: gathered(group=group)):
        assert found.held == found.due == 60
        assert_same(saw(found), saw(gathered()))


def test_more_processes_than_samples_are_no_harm() -> None:
    few = slice(2)
    for found in together(5, lambda group: gathered(part=few, group=group)):
        assert found.held == 2
        np.testing.assert_allclose(
            found.features.layers["x"], gathered(part=few).features.layers["x"]
        )


def test_data_sets_add_up_and_features_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    other = gathered(data=labelled(MODEL, 80, seed=1))
    for room in (evidence, similarity):
        monkeypatch.setattr(room, "MOST_SAMPLES", 40)
    both, again = (merge(order) for order in ([gathered(), other], [other, gathered()]))
    assert both.held == both.due == 100
    assert len(both.features) == 40
    np.testing.assert_array_equal(both.features.layers["x"], again.features.layers["x"])
    assert saw(both).spans[0].cosine == pytest.approx(saw(again).spans[0].cosine, rel=1e-9)


def test_samples_that_are_there_twice_are_refused() -> None:
    with pytest.raises(BadInput, match=r"12 samples .* two of the statistics"):
        gathered(part=slice(20)).merged(gathered(part=slice(8, 30)))


def test_other_models_splits_and_masks_are_refused() -> None:
    found = gathered(part=slice(20))
    with pytest.raises(BadInput, match="two models"):
        found.merged(gathered(residual_mlp(2, seed=3)))
    with pytest.raises(BadInput, match="--seed"):
        found.merged(gathered(part=slice(20, None), seed=1))
    with pytest.raises(BadInput, match="--mask"):
        found.merged(replace(found, mask="other"))


def test_statistics_of_one_half_alone_say_nothing_yet() -> None:
    with opened(MODEL, DATA) as task:
        found = Gatherer(task, lay_out(task), ALONE)(task.splits.fit)
    with pytest.raises(BadInput, match="no samples to select on"):
        saw(found)


# --- files


@pytest.fixture(scope="module")
def content() -> bytes:
    return evidence_bytes(gathered())


def test_a_file_holds_all_of_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    path.write_bytes(content)
    found, layout = read_evidence(path, read(MODEL))
    assert evidence_bytes(found) == content
    wanted = saw(gathered())
    assert read_out(layout, unfuse(read(MODEL)), found).similarities == wanted.similarities
    assert [r.affine_r2 for r in read_out(layout, unfuse(read(MODEL)), found).spans] == [
        r.affine_r2 for r in wanted.spans
    ]
    assert content == evidence_bytes(gathered())


def test_evidence_of_no_samples_has_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    path.write_bytes(evidence_bytes(gathered(part=slice(0))))
    found, _ = read_evidence(path, read(MODEL))
    assert found.held == 0
    assert_same(saw(found.merged(gathered())), saw(gathered()))


RECORDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown key": (lambda r: r.update(run="rm"), "run"),
    "unknown version": (lambda r: r.update(schema_version=2), "schema_version"),
    "other model": (lambda r: r.update(model_sha256="0" * 64), "another model"),
    "negative shape": (lambda r: r["observed"].update(x=[[1, 2, -1]] * 2), "observed"),
    "missing shape": (lambda r: r["observed"].pop("x"), "shapes"),
    "odd shape": (lambda r: r["observed"].update(x=[[1, 2, 3], [1, 2]]), "shapes"),
    "other widths": (
        lambda r: r.update(observed={n: [[1, 12, 9], [2, 12, 9]] for n in r["observed"]}),
        "",
    ),
    "no pairs": (lambda r: r.update(pairs=[]), "other spans"),
    "other layers": (lambda r: r.update(layers=["x"]), "other spans"),
    "other rectifiers": (lambda r: r.update(rectifiers=[]), "other spans"),
    "other outputs": (lambda r: r.update(droppable=["y"]), "no caches"),
    "no sources": (lambda r: r.update(sources=[]), "sources"),
    "twice the source": (lambda r: r["sources"].append(r["sources"][0]), ""),
    "too many samples": (lambda r: r["sources"][0].update(due=3), "more samples"),
    "unknown classes": (lambda r: r["sources"][0].update(communities="x"), "communities"),
}
TENSORS: dict[str, tuple[Callable[[dict[str, np.ndarray]], object], str]] = {
    "missing product": (lambda t: t.pop("fit.0.product"), "missing"),
    "missing means": (lambda t: t.pop("fit.1.means"), "missing"),
    "further tensor": (lambda t: t.update(more=np.zeros(1)), "belongs to nothing"),
    "float32": (lambda t: t.update({"fit.turns": t["fit.turns"].astype("f4")}), "float32"),
    "wrong shape": (lambda t: t.update({"fit.0.product": np.zeros((8, 7))}), "(8, 7)"),
    "scalar": (lambda t: t.update({"0.fit": np.array(3)}), "0.fit"),
    "NaN": (lambda t: t["select.0.product"].__setitem__((0, 0), np.nan), "NaN"),
    "negative rows": (lambda t: t["fit.counts"].__setitem__((0, 0), -1), "no counts"),
    "half a row": (lambda t: t["fit.counts"].__setitem__((0, 0), 0.5), "no counts"),
    "more sides than rows": (lambda t: t["0.on.0"].__setitem__(0, 10**6), "no counts"),
    "weights below zero": (lambda t: t["0.pairs.0"].__setitem__((0, 0, 0), -1.0), "no sums"),
    "no pairs": (lambda t: t.pop("0.pairs.0"), "is missing"),
    "hardly a row": (lambda t: t["0.pairs.0"].__setitem__((0, 0, 0), 1e-300), "no sums"),
    "a huge sum": (lambda t: t["fit.0.product"].__setitem__((0, 0), 1e200), "any network"),
    "a huge feature": (lambda t: t["0.layer.0"].__setitem__((0, 0), 1e30), "any network"),
    "samples fall": (lambda t: t.update({"0.fit": t["0.fit"][::-1].copy()}), "ascend"),
    "both halves": (lambda t: t.update({"0.select": t["0.fit"]}), "one split"),
    "features of others": (
        lambda t: t.update({"0.samples": t["0.samples"] + 10**6}),
        "one split",
    ),
}


def edited(content: bytes, path: Path, edit: Callable[..., object], what: str) -> None:
    """Write the file with its record or its tensors edited."""
    path.write_bytes(content)
    with safe_open(path, "np") as file:
        record = json.loads(file.metadata()[HEADER])
        names = file.keys()
        tensors = {tensor: file.get_tensor(tensor) for tensor in names}
    edit(record if what == "record" else tensors)
    path.write_bytes(save(tensors, {HEADER: json.dumps(record)}))


@pytest.mark.parametrize(
    ("what", "name"),
    [*(("record", name) for name in RECORDS), *(("tensors", name) for name in TENSORS)],
)
def test_hostile_files_are_refused(what: str, name: str, content: bytes, tmp_path: Path) -> None:
    edit, word = RECORDS[name] if what == "record" else TENSORS[name]
    path = tmp_path / "s.safetensors"
    edited(content, path, edit, what)
    with pytest.raises(BadInput, match=r"s\.safetensors") as refused:
        read_evidence(path, read(MODEL))
    assert word in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_edited_to_the_same_is_read(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    edited(content, path, lambda _: None, "record")
    assert evidence_bytes(read_evidence(path, read(MODEL))[0]) == content


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"text, no statistics",
        b"\xff" * 64,
        save({"a": np.zeros(2)}),
        save({"a": np.zeros(2)}, {HEADER: "["}),
        save({"a": np.zeros(2)}, {HEADER: "[" * 100_000}),
        save({"a": np.zeros(2)}, {HEADER: "{}"}),
    ],
    ids=range(7),
)
def test_what_is_no_such_file_is_refused(broken: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    path.write_bytes(broken)
    with pytest.raises(BadInput, match="no statistics of `blockfold survey`"):
        read_evidence(path, read(MODEL))


def test_truncated_and_missing_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    for size in range(0, len(content), len(content) // 20):
        path.write_bytes(content[:size])
        with pytest.raises(BadInput):
            read_evidence(path, read(MODEL))
    with pytest.raises(BadInput, match="cannot read"):
        read_evidence(tmp_path / "nowhere.safetensors", read(MODEL))
    with pytest.raises(BadInput, match="cannot read"):
        read_evidence(tmp_path, read(MODEL))
