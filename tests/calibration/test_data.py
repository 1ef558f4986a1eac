"""Calibration data: every form gives the same samples, in batches of one shape."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blockfold.calibration import intake
from blockfold.calibration.data import Dataset
from blockfold.calibration.sources import open_data
from blockfold.ir.graph import Value
from blockfold.tests.feeding import (
    INPUTS,
    ROWS,
    Arrays,
    Reader,
    arrays,
    cut,
    npy_folder,
    npz_folder,
    refusal,
    saved,
)

pytestmark = pytest.mark.usefixtures("spools")


def contents(data: Dataset, size: int = 3) -> list[Any]:
    """Everything that can be read from a data set, as plain lists."""
    read: list[Any] = [data.names, data.samples, data.digest]
    read += [None if a is None else (str(a.dtype), a.tolist()) for a in (data.labels, data.groups)]
    for batch in data.batches(np.arange(data.samples), size):
        assert {len(feed) for feed in batch.feeds.values()} == {len(batch.samples)}
        read += [batch.samples.tolist()]
        read += [(name, str(feed.dtype), feed.tolist()) for name, feed in batch.feeds.items()]
    return read


def loader(whole: Arrays) -> torch.utils.data.DataLoader[Any]:
    rows = [{name: torch.from_numpy(a)[row] for name, a in whole.items()} for row in range(ROWS)]
    return torch.utils.data.DataLoader(rows, batch_size=2)  # type: ignore[arg-type]


def in_order(whole: Arrays, order: str) -> Arrays:
    return {name: np.asarray(array, order=order) for name, array in whole.items()}  # type: ignore[call-overload]


def swapped(whole: Arrays) -> Arrays:
    return {name: array.astype(array.dtype.newbyteorder(">")) for name, array in whole.items()}


def loosened(whole: Arrays) -> Arrays:
    """Other dtypes of the same kind that hold the same values."""
    return {n: a.astype(np.float64 if n == "x" else np.int16) for n, a in whole.items()}


FORMS: dict[str, Callable[[Path, Arrays], object]] = {
    "dict": lambda _, a: a,
    "dict of tensors": lambda _, a: {name: torch.from_numpy(array) for name, array in a.items()},
    "dict in Fortran order": lambda _, a: in_order(a, "F"),
    "dict, other dtypes": lambda _, a: loosened(a),
    "dict, other names of groups": lambda _, a: {
        **a,
        "groups": np.array(["late", "alpha", "mid"])[a["groups"]],
    },
    "dict in another order": lambda _, a: dict(reversed(a.items())),
    "npz": lambda p, a: saved(p / "a.npz", np.savez, a),
    "npz as text": lambda p, a: str(saved(p / "a.npz", np.savez, a)),
    "npz compressed": lambda p, a: saved(p / "a.npz", np.savez_compressed, a),
    "npz in Fortran order": lambda p, a: saved(p / "a.npz", np.savez, in_order(a, "F")),
    "npz, big-endian": lambda p, a: saved(p / "a.npz", np.savez, swapped(a)),
    "folder of one npz": lambda p, a: npz_folder(p / "f", [a]),
    "folder of npz": lambda p, a: npz_folder(p / "f", cut(a, 1, 3)),
    "folder of npz, one empty": lambda p, a: npz_folder(p / "f", cut(a, 2, 2)),
    "folder of npy": lambda p, a: npy_folder(p / "f", a),
    "folder of npy in Fortran order": lambda p, a: npy_folder(p / "f", in_order(a, "F")),
    "folder of npy, other dtypes": lambda p, a: npy_folder(p / "f", loosened(a)),
    "folder of npy, big-endian": lambda p, a: npy_folder(p / "f", swapped(a)),
    "list": lambda _, a: cut(a, 3),
    "generator": lambda _, a: (piece for piece in cut(a, 3, 5)),
    "function": lambda _, a: lambda: iter(cut(a, 3, 5)),
    "function giving a path": lambda p, a: lambda: saved(p / "a.npz", np.savez, a),
    "lists of numbers": lambda _, a: [{n: b.tolist() for n, b in c.items()} for c in cut(a, 4)],
    "reader": lambda _, a: Reader(cut(a, 1, 2, 6)),
    "torch DataLoader": lambda _, a: loader(a),
    "open already": lambda _, a: open_data(a, INPUTS),
}


@pytest.mark.parametrize("chunk_bytes", [intake.CHUNK_BYTES, 40])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(
    form: str, chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "CHUNK_BYTES", chunk_bytes)
    whole = arrays()
    source = FORMS[form](tmp_path, whole)
    with open_data(source, INPUTS) as data:
        read = contents(data)
    first = {g: at for at, g in enumerate(dict.fromkeys(whole["groups"].tolist()))}
    wanted: list[Any] = [("ids", "x"), ROWS, data.digest, ("int64", whole["labels"].tolist())]
    wanted += [("int64", [first[g] for g in whole["groups"].tolist()])]
    for at in range(0, ROWS, 3):
        rows = slice(at, min(at + 3, ROWS))
        wanted += [list(range(rows.start, rows.stop))]
        wanted += [("ids", "int64", whole["ids"][rows].tolist())]
        wanted += [("x", "float32", whole["x"][rows].tolist())]
    assert read == wanted
    with open_data(whole, INPUTS) as plain:
        assert data.digest == plain.digest


@pytest.mark.parametrize("form", ["npz", "dict", "folder of npy", "torch DataLoader"])
def test_the_digest_sees_every_difference(form: str, tmp_path: Path) -> None:
    def digest(whole: Arrays, inputs: list[Value] = INPUTS) -> str:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        with open_data(FORMS[form](folder, whole), inputs) as data:
            return data.digest

    whole = arrays()
    seen = {digest(whole)}
    for name in whole:
        other = {n: a.copy() for n, a in whole.items()}
        other[name][-1] += 1
        seen.add(digest(other))
    seen.add(digest({name: array[::-1].copy() for name, array in whole.items()}))
    seen.add(digest({**whole, "ids": whole["ids"].reshape(ROWS, 2, 2)}, [Value("ids"), INPUTS[1]]))
    seen.add(digest({n: a for n, a in whole.items() if n != "labels"}))
    seen.add(digest({n: a for n, a in whole.items() if n != "groups"}))
    seen.add(digest(whole, [INPUTS[0], Value("x", "float64", ("batch", 3))]))
    seen.add(digest(whole, [Value("ids", "uint64", ("batch", "seq")), INPUTS[1]]))
    assert digest(whole, INPUTS[::-1]) == digest(whole)
    renamed = {("y" if name == "x" else name): array for name, array in whole.items()}
    seen.add(digest(renamed, [INPUTS[0], Value("y", "float32", ("batch", 3))]))
    assert len(seen) == 12


def ragged() -> list[Arrays]:
    """Samples 0-1 have length 4, 2-4 length 6, 5-6 length 4, 7 length 4."""
    shapes = [(2, 4), (3, 6), (2, 4), (1, 4)]
    return [arrays(rows, length, seed) for seed, (rows, length) in enumerate(shapes)]


@pytest.mark.parametrize("form", ["folder", "iterable"])
def test_a_batch_has_one_shape(form: str, tmp_path: Path) -> None:
    pieces = ragged()
    source = npz_folder(tmp_path / "f", pieces) if form == "folder" else iter(pieces)
    rows = [row for piece in pieces for row in piece["ids"]]
    with open_data(source, INPUTS) as data:
        batches = list(data.batches(np.arange(8), 8))
        assert [batch.samples.tolist() for batch in batches] == [[0, 1], [2, 3, 4], [5, 6, 7]]
        for batch in batches:
            assert np.array_equal(batch.feeds["ids"], [rows[s] for s in batch.samples])
        some = [batch.samples.tolist() for batch in data.batches(np.array([7, 5, 1, 4, 2]), 1)]
        assert some == [[1], [2], [4], [5], [7]]
        (across,) = data.batches(np.array([7, 6, 0]), 8)
        assert np.array_equal(across.feeds["ids"], [rows[0], rows[6], rows[7]])
        assert data.typical().tolist() == [0, 1, 5, 6, 7]
        digest = data.digest
    for four, six, median in ((2, 1, 4), (1, 2, 6), (2, 2, 4)):
        with open_data([arrays(four, 4), arrays(six, 6)], INPUTS) as few:
            (batch,) = few.batches(few.typical()[:1], 1)
            assert batch.feeds["ids"].shape == (1, median)
    with open_data(pieces, INPUTS) as again:
        assert again.digest == digest
    with open_data([*pieces[:2], *cut(pieces[2], 1), pieces[3]], INPUTS) as finer:
        assert finer.digest == digest


def test_batches_are_checked_and_fresh() -> None:
    with open_data(arrays(), INPUTS) as data:
        assert list(data.batches(np.array([], np.int64), 2)) == []
        first = next(data.batches(np.arange(2), 2))
        first.feeds["x"][:] = 0
        assert next(data.batches(np.arange(2), 2)).feeds["x"].any()
        for bad in ([-1], [ROWS]):
            with pytest.raises(IndexError, match=f"{bad[0]}"):
                data.batches(np.array(bad), 1)
        with pytest.raises(ValueError, match="at least one row"):
            data.batches(np.arange(2), 0)
    with pytest.raises(ValueError, match="closed"):
        data.batches(np.arange(2), 1)


def test_what_stays_in_place_and_what_is_copied(tmp_path: Path, spools: Path) -> None:
    whole = arrays()
    for source in (whole, npy_folder(tmp_path / "f", whole)):
        with open_data(source, INPUTS) as data:
            assert data.spooled_bytes == 0
            assert not list(spools.iterdir())
    size = sum(whole[name].nbytes for name in ("ids", "x", "labels"))
    data = open_data(saved(tmp_path / "a.npz", np.savez_compressed, whole), INPUTS)
    (folder,) = spools.iterdir()
    assert data.spooled_bytes == size == sum(f.stat().st_size for f in folder.iterdir())
    data.close()
    assert not folder.exists()
    data.close()
    data = open_data(iter([whole]), INPUTS)
    assert len(list(spools.iterdir())) == 1
    del data
    gc.collect()
    assert not list(spools.iterdir())


def test_the_copy_goes_with_the_interpreter(spools: Path) -> None:
    code = (
        "import numpy as np, pathlib, sys\n"
        "from blockfold.calibration.sources import open_data\n"
        "from blockfold.ir.graph import Value\n"
        "data = open_data(iter([{'x': np.ones((2, 3))}]), [Value('x', 'float32', (None, 3))])\n"
        "sys.exit(len(list(pathlib.Path(sys.argv[1]).iterdir())))\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(spools)]
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(spools)}, check=False)
    assert done.returncode == 1  # one folder while it ran
    assert not list(spools.iterdir())


def test_an_iterable_is_never_held_in_memory() -> None:
    made: list[weakref.ref[np.ndarray]] = []

    def batches() -> Iterator[Arrays]:
        for at in range(48):
            x = np.full((8, 1 << 15), at, np.float32)  # 1 MiB
            made.append(weakref.ref(x))
            assert sum(ref() is not None for ref in made) <= 2
            yield {"x": x}

    inputs = [Value("x", "float32", ("batch", 1 << 15))]
    tracemalloc.start()
    try:
        with open_data(batches(), inputs) as data:
            assert data.samples == 48 * 8
            assert data.spooled_bytes == 48 << 20
            seen = [int(b.feeds["x"][0, 0]) for b in data.batches(np.arange(data.samples), 8)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == list(range(48))
    assert peak < 8 << 20


def test_tuples_follow_the_order_of_the_inputs() -> None:
    whole = arrays()
    bare = {name: array for name, array in whole.items() if name != "groups"}
    pairs = [(p["ids"], torch.from_numpy(p["x"])) for p in cut(whole, 3)]
    triples = [[p["ids"], p["x"], p["labels"]] for p in cut(whole, 3)]
    tensors = torch.utils.data.TensorDataset(*map(torch.from_numpy, bare.values()))
    with open_data(bare, INPUTS) as plain:
        for source in (triples, torch.utils.data.DataLoader(tensors, batch_size=3)):
            with open_data(source, INPUTS) as data:
                assert contents(data) == contents(plain)
    with open_data(pairs, INPUTS) as data:
        assert data.labels is None
        assert data.samples == ROWS
    said = refusal([(1, 2, 3, 4)], INPUTS)
    assert "item 0" in said
    assert "tuple of 4" in said


def test_labels_and_other_tensors() -> None:
    inputs = [Value("x", "bfloat16", ("batch", 2))]
    grad = torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True)
    with open_data({"x": grad, "labels": torch.full((3, 2), 0.5)}, inputs) as data:
        assert data.labels is not None
        assert (data.labels.dtype.name, data.labels.shape) == ("float64", (3, 2))
        assert next(data.batches(np.arange(3), 3)).feeds["x"].dtype == np.float32
    with open_data({"labels": np.ones((2, 4), np.int32)}, [Value("labels", "int64")]) as data:
        assert (data.names, data.labels) == (("labels",), None)
    said = refusal([{**a, "labels": np.zeros((1, n))} for n, a in enumerate(cut(arrays(2), 1), 1)])
    assert "item 1" in said
    assert "'labels'" in said


def test_lengths_that_are_typical_belong_together() -> None:
    """Each median by itself is that of another sample: 1 token, none before it, 6 in the mask."""
    names = ("ids", "past", "mask")
    inputs = [Value(name, "float32", ("batch", name)) for name in names]
    kinds = [(6, 0, 6)] * 3 + [(1, 6, 7)] * 3
    pieces = [
        {name: np.ones((1, n), np.float32) for name, n in zip(names, kind, strict=True)}
        for kind in kinds
    ]
    with open_data(pieces, inputs) as data:
        (batch,) = data.batches(data.typical(), 9)
        found = tuple(batch.feeds[name].shape[1] for name in names)
        assert found in kinds
        assert len(batch.samples) == 3


def test_a_past_of_length_zero(tmp_path: Path) -> None:
    inputs = [Value("past", "float32", ("batch", 2, "past", 4)), INPUTS[1]]
    whole = {"past": np.empty((3, 2, 0, 4), np.float32), "x": np.ones((3, 3), np.float32)}
    folder = npy_folder(tmp_path / "f", whole)
    archive = saved(tmp_path / "a.npz", np.savez_compressed, whole)
    digests = set()
    for source in (whole, folder, archive, iter(cut(whole, 1))):
        with open_data(source, inputs) as data:
            (batch,) = data.batches(np.arange(3), 9)
            assert batch.feeds["past"].shape == (3, 2, 0, 4)
            assert data.typical().tolist() == [0, 1, 2]
            digests.add(data.digest)
    assert len(digests) == 1
