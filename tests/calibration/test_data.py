"""Calibration data: every form gives the same samples, and anything wrong is one clear line."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import tempfile
import tracemalloc
import weakref
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blockfold.calibration import intake
from blockfold.calibration.data import Dataset
from blockfold.calibration.sources import RANDOM_LENGTH, open_data, random_data
from blockfold.ir.errors import BadInput, BlockfoldError, Unsupported
from blockfold.ir.graph import Value

Arrays = dict[str, np.ndarray]

INPUTS = [Value("ids", "int64", ("batch", "seq")), Value("x", "float32", ("batch", 3))]
ROWS = 7


@pytest.fixture(autouse=True)
def spools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Temporary copies go to a folder of their own, which must be empty in the end."""
    folder = tmp_path / "spools"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


def arrays(rows: int = ROWS, length: int = 4, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.integers(0, 99, (rows, length)),
        "x": rng.standard_normal((rows, 3), np.float32),
        "labels": rng.integers(0, 9, rows),
        "groups": rng.integers(0, 3, rows),
    }


def cut(whole: Arrays, *ends: int) -> list[Arrays]:
    """Pieces of the rows, cut at `ends`."""
    pieces = [np.split(array, list(ends)) for array in whole.values()]
    return [dict(zip(whole, piece, strict=True)) for piece in zip(*pieces, strict=True)]


def contents(data: Dataset, size: int = 3) -> list[Any]:
    """Everything that can be read from a data set, as plain lists."""
    read: list[Any] = [data.names, data.samples, data.digest]
    read += [None if a is None else (str(a.dtype), a.tolist()) for a in (data.labels, data.groups)]
    for batch in data.batches(np.arange(data.samples), size):
        assert {len(feed) for feed in batch.feeds.values()} == {len(batch.samples)}
        read += [batch.samples.tolist()]
        read += [(name, str(feed.dtype), feed.tolist()) for name, feed in batch.feeds.items()]
    return read


class Reader:
    """As onnxruntime's CalibrationDataReader."""

    def __init__(self, items: list[Arrays]) -> None:
        self.items = iter(items)

    def get_next(self) -> Arrays | None:
        return next(self.items, None)


def saved(path: Any, save: Callable[..., None], whole: Arrays) -> Any:
    save(path, **whole)
    return path


def npz_folder(path: Path, pieces: list[Arrays]) -> Path:
    path.mkdir()
    for at, piece in enumerate(pieces):
        saved(path / f"{at:03}.npz", np.savez, piece)
    return path


def npy_folder(path: Path, whole: Arrays) -> Path:
    path.mkdir()
    for name, array in whole.items():
        np.save(path / f"{name}.npy", array)
    return path


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


# --- text naming a Python object

MODULE = """
import numpy as np
from onnxruntime.quantization import CalibrationDataReader

ITEMS = [{"ids": np.full((2, 4), at), "x": np.ones((2, 3))} for at in range(3)]

def generate():
    import beside_it
    yield from ITEMS

class Reader(CalibrationDataReader):
    def __init__(self):
        self.items = iter(ITEMS)

    def get_next(self):
        return next(self.items, None)

reader = Reader()

class Box:
    items = ITEMS

def broken():
    yield ITEMS[0]
    raise ValueError("lost\\nand found")

def fails():
    raise RuntimeError("no data today")

NUMBER = 3
TEXT = "a.npz"
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    folder = tmp_path / "here"
    folder.mkdir()
    name = "calib_of_test_data"
    (folder / f"{name}.py").write_text(MODULE)
    (folder / "beside_it.py").touch()
    (folder / "calib_broken.py").write_text("import nothing_of_this_name\n")
    (folder / "calib_exits.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(folder)
    yield name
    for stale in (name, "beside_it", "calib_broken", "calib_exits"):
        sys.modules.pop(stale, None)


@pytest.mark.parametrize("attribute", ["ITEMS", "generate", "Reader", "reader", "Box.items"])
def test_text_names_an_iterable(module: str, attribute: str) -> None:
    with open_data(f"{module}:{attribute}", INPUTS) as data:
        ids = [batch.feeds["ids"][0, 0] for batch in data.batches(np.arange(6), 2)]
    assert ids == [0, 1, 2]
    assert str(Path.cwd()) not in sys.path


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("{}:broken", "item 1|ValueError: lost and found"),
        ("{}:fails", "calling it failed|RuntimeError: no data today"),
        ("{}:genrate", "no 'genrate'|is it 'generate'"),
        ("{}:NUMBER", "is a int|give a path"),
        ("{}:TEXT", "is a str|give a path"),
        ("no_such_module:data", "importing module 'no_such_module' failed"),
        ("calib_broken:data", "importing module 'calib_broken' failed|nothing_of_this_name"),
        ("calib_exits:data", "importing module 'calib_exits' failed|SystemExit"),
    ],
)
def test_text_that_gives_nothing(module: str, spec: str, words: str) -> None:
    said = refusal(spec.format(module))
    assert spec.format(module) in said
    for word in words.split("|"):
        assert word in said
    assert str(Path.cwd()) not in sys.path


def test_the_current_folder_is_importable_only_where_text_was_given(module: str) -> None:
    def generate() -> Iterator[Arrays]:
        import beside_it  # type: ignore[import-not-found]

        yield from beside_it.ITEMS

    assert "No module named 'beside_it'" in refusal(generate)
    assert "No module named" not in refusal(f"{module}:NUMBER")


# --- refusals


def refusal(
    source: object, inputs: list[Value] = INPUTS, error: type[BlockfoldError] = BadInput
) -> str:
    with pytest.raises(error) as caught:
        open_data(source, inputs)
    assert caught.value.exit_code == (3 if error is Unsupported else 2)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(name: str, change: Callable[[np.ndarray], Any]) -> Arrays:
    whole = arrays()
    return {**whole, name: change(whole[name])}


def without(*names: str) -> Arrays:
    return {name: array for name, array in arrays().items() if name not in names}


def planted(name: str, row: int, value: float, dtype: str) -> Arrays:
    def plant(array: np.ndarray) -> np.ndarray:
        array = array.astype(dtype)
        array[row, 1] = value
        return array

    return changed(name, plant)


WRONG: dict[str, tuple[Callable[[], Arrays], str]] = {
    "missing input": (lambda: without("x"), "'x'|missing 'x'|model takes 'ids', 'x'"),
    "unknown array": (lambda: {**arrays(), "extra": np.ones(ROWS)}, "unknown 'extra'"),
    "near name": (lambda: {**without("ids"), "idz": np.ones(1)}, "unknown 'idz'|is it 'ids'"),
    "near label": (lambda: {**without("labels"), "label": np.ones(1)}, "is it 'labels'"),
    "rank": (lambda: changed("ids", lambda a: a[0]), "'ids'|(4,)|rank 1|(samples, seq)"),
    "static dim": (lambda: changed("x", lambda a: a[:, :2]), "'x'|(7, 2)|(samples, 3)"),
    "one number": (lambda: {**arrays(), "labels": np.array(1)}, "'labels'|one number"),
    "floats for ints": (lambda: changed("ids", lambda a: a * 1.0), "'ids'|float64|int64 is needed"),
    "ints for floats": (lambda: changed("x", lambda a: a.astype(int)), "'x'|int64|float32"),
    "text": (lambda: changed("x", lambda a: a.astype(str)), "'x'|<U|not numbers"),
    "complex": (lambda: changed("x", lambda a: a * 1j), "'x'|complex64|not numbers"),
    "too large an int": (lambda: planted("ids", 5, 2**63, "uint64"), "'ids'|sample 5|outside"),
    "too large a float": (lambda: planted("x", 4, 1e39, "float64"), "'x'|sample 4|too large"),
    "NaN": (lambda: planted("x", 6, np.nan, "float32"), "'x'|NaN or Inf|sample 6"),
    "Inf": (lambda: planted("x", 2, -np.inf, "float64"), "'x'|NaN or Inf|sample 2"),
    "NaN label": (lambda: changed("labels", lambda a: a * np.nan), "'labels'|"),
    "no samples": (lambda: {n: a[:0] for n, a in arrays().items()}, "no samples"),
    "lengths": (lambda: changed("x", lambda a: a[:5]), "'x' has 5|'ids' has 7 samples"),
    "labels' length": (lambda: changed("labels", lambda a: a[:6]), "'labels' has 6|7 samples"),
    "groups' length": (lambda: changed("groups", lambda a: a[:1]), "'groups' has 1|7 samples"),
    "groups' rank": (lambda: changed("groups", lambda a: a[:, None]), "'groups'|(7, 1)|one whole"),
    "groups of floats": (lambda: changed("groups", lambda a: a / 2), "'groups'|float64"),
    "empty": (dict, "missing 'ids', 'x'"),
}


@pytest.mark.parametrize("form", ["dict", "npz", "folder of npy", "iterable", "second item"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_arrays(case: str, form: str, tmp_path: Path) -> None:
    make, words = WRONG[case]
    wrong, where = make(), "the data given"
    source: object = wrong
    if form == "npz":
        source, where = saved(tmp_path / "a.npz", np.savez, wrong), "a.npz"
    elif form == "folder of npy":
        source, where = npy_folder(tmp_path / "raw", wrong), "raw"
        words = words if wrong else "holds no .npz and no .npy"
    elif form == "iterable":
        source, where = iter([wrong]), "the data given"
    elif form == "second item" and case != "no samples":
        source, where = iter([arrays(), wrong]), "item 1"
        for row in range(ROWS):
            words = words.replace(f"sample {row}", f"sample {row + ROWS}")
    said = refusal(source)
    for word in [where, *words.split("|")]:
        assert word in said


FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no such file": (lambda p: p / "a.npz", "a.npz: no such file or folder|give an .npz"),
    "text for npz": (lambda p: written(p / "a.npz", b"ids,x\n1,2\n"), "a.npz: cannot be read"),
    "empty npz": (lambda p: written(p / "a.npz", b""), "a.npz: cannot be read"),
    "truncated npz": (lambda p: written(p / "a.npz", packed()[:-100]), "a.npz: cannot be read"),
    "damaged npz": (lambda p: written(p / "a.npz", flipped(packed())), "a.npz: cannot be read|CRC"),
    "text within npz": (lambda p: zipped(p, {"ids.npy": b"1, 2"}), "a.npz: cannot be read|magic"),
    "cut array in npz": (lambda p: zipped(p, {"x.npy": raw()[:-3]}), "'x.npy': is truncated|write"),
    "pickle in npz": (lambda p: zipped(p, {"x.npy": raw(object)}), "'x.npy': holds pickled"),
    "pickle in npy": (lambda p: npy_folder(p / "f", {"x": np.array([{}])}), "x.npy: holds pickled"),
    "cut npy": (lambda p: written(p / "x.npy", raw()[:-3]).parent, "x.npy: is truncated|write"),
    "text for npy": (lambda p: written(p / "x.npy", b"1, 2").parent, "x.npy: cannot be read"),
    "one npy": (lambda p: written(p / "x.npy", raw()), "x.npy: is a single .npy|its folder"),
    "empty folder": (lambda p: p, "holds no .npz and no .npy"),
    "mixed folder": (lambda p: mixed(p), "holds .npz and .npy"),
    "other arrays": (
        lambda p: npz_folder(p / "f", [arrays(), without("labels")]),
        "001.npz|000.npz|'labels'|same arrays",
    ),
    "other rank": (
        lambda p: npz_folder(p / "f", [arrays(), changed("x", lambda a: a[:, None])]),
        "001.npz|'x'|(7, 1, 3)",
    ),
}


def raw(dtype: type = float) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ones((2, 3)).astype(dtype))
    return stream.getvalue()


def packed() -> bytes:
    stream = io.BytesIO()
    saved(stream, np.savez, arrays())
    return stream.getvalue()


def flipped(content: bytes) -> bytes:
    """One bit of the numbers in the second array turned."""
    at = content.index(arrays()["x"].tobytes())
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def zipped(folder: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return folder / "a.npz"


def mixed(folder: Path) -> Path:
    saved(folder / "a.npz", np.savez, arrays())
    return written(folder / "x.npy", raw()).parent


@pytest.mark.parametrize("case", FILES)
def test_wrong_files(case: str, tmp_path: Path) -> None:
    make, words = FILES[case]
    folder = tmp_path / "given"
    folder.mkdir()
    said = refusal(make(folder))
    for word in words.split("|"):
        assert word in said


def test_wrong_iterables() -> None:
    assert "no samples" in refusal(iter([]))
    assert "no samples" in refusal(Reader([]))
    pieces = cut(arrays(), 2, 4)
    del pieces[2]["labels"]
    said = refusal(iter(pieces))
    assert "item 2" in said
    assert "item 0 holds" in said
    for item, words in {
        3: "item 0: is a int|dict of 'ids', 'x'",
        None: "item 0: is a NoneType",
        (1,): "item 0: is a tuple of 1",
    }.items():
        for word in words.split("|"):
            assert word in refusal([item])
    said = refusal([{"ids": [[1, 2], [3]], "x": np.ones((2, 3))}])
    assert "item 0: array 'ids'" in said
    assert "regular shape" in said
    assert "Python objects" in refusal({"ids": np.array([None]), "x": np.ones((1, 3))})
    for source in (3, None, object(), b"a.npz", lambda: list):
        assert "give a path, a dict of arrays" in refusal(source)
    with open_data(arrays(), INPUTS) as data:
        said = refusal(data, [Value("y", "float32", ("batch", 3))])
        assert "feeds 'ids', 'x'" in said
        assert "takes 'y'" in said


def test_unstated_ranks_must_agree() -> None:
    said = refusal(iter([{"y": np.ones((2, 3))}, {"y": np.ones((2, 3, 1))}]), [Value("y")])
    assert "item 1: array 'y'" in said
    with open_data({"y": np.ones((2, 3), np.uint8)}, [Value("y")]) as data:
        assert next(data.batches(np.arange(2), 2)).feeds["y"].dtype == np.uint8


def test_bools_and_small_ints_where_the_values_survive() -> None:
    inputs = [Value("m", "int64", ("n", 2)), Value("b", "bool", ("n", 2))]
    whole = {"m": np.array([[True, False]]), "b": np.array([[1, 0]])}
    with open_data(whole, inputs) as data:
        feeds = next(data.batches(np.arange(1), 1)).feeds
        assert [(f.dtype.name, f.tolist()) for f in feeds.values()] == [
            ("int64", [[1, 0]]),
            ("bool", [[True, False]]),
        ]
    assert "outside 0..1" in refusal({**whole, "b": np.array([[1, 2]])}, inputs)


def test_no_room_for_the_copy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    said = refusal(iter([arrays()]))
    assert "cannot write temporary files" in said
    assert "TMPDIR" in said


def test_a_file_that_goes_while_in_use(tmp_path: Path) -> None:
    with open_data(npy_folder(tmp_path / "f", arrays()), INPUTS) as data:
        (tmp_path / "f" / "x.npy").unlink()
        with pytest.raises(BadInput, match=r"x\.npy: gone"):
            assert next(data.batches(np.arange(2), 2)).feeds


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([INPUTS[0], Value("scale", "float32", ())], "'scale'|scalar"),
        ([Value("x", "float32", (8, 3)), Value("scale", "float32", (1,))], "'x' 8|'scale' 1"),
        ([Value("words", "object", ("n",))], "'words'|object"),
        ([], "no inputs"),
    ],
)
def test_models_that_cannot_be_fed(inputs: list[Value], words: str) -> None:
    said = refusal(arrays(), inputs, Unsupported)
    for word in words.split("|"):
        assert word in said


# --- random data


def test_random_data() -> None:
    inputs = [
        Value("input_ids", "int64", ("batch", "seq")),
        Value("attention_mask", "int64", ("batch", "seq")),
        Value("token_type_ids", "int32", ("batch", "seq")),
        Value("pixels", "float16", (1, 3, None)),
        Value("flag", "bool", ("batch",)),
    ]
    with random_data(inputs, 150, 1) as data, random_data(inputs, 150, 1) as same:
        assert data.random
        assert data.samples == 150
        assert data.digest == same.digest
        (batch,) = data.batches(np.arange(150), 150)
        assert batch.feeds.keys() == {value.name for value in inputs}
    for value in inputs:
        feed = batch.feeds[value.name]
        assert feed.dtype == value.dtype
        assert feed.shape[2:] == (RANDOM_LENGTH,) * (len(value.shape or ()) - 2)
    assert set(np.unique(batch.feeds["input_ids"])) <= set(range(100))
    assert len(np.unique(batch.feeds["input_ids"])) > 50
    assert set(np.unique(batch.feeds["token_type_ids"])) == {0, 1}
    mask = batch.feeds["attention_mask"]
    assert mask[:, 0].all()
    assert np.all(np.diff(mask, axis=1) <= 0)
    assert not mask.all()
    assert 0.9 < batch.feeds["pixels"].std() < 1.1
    with random_data(inputs, 150, 2) as other:
        assert other.digest != data.digest
    with open_data(arrays(), INPUTS) as real:
        assert not real.random
    for bad in ((0, 0), (3, -1)):
        with pytest.raises(BadInput, match="at least one"):
            random_data(inputs, *bad)
    with pytest.raises(BadInput, match="'y' states no shape"):
        random_data([Value("y", "float32")], 1, 0)


def test_a_temporary_copy_that_goes_while_in_use() -> None:
    """As a cleaner of old temporary files may do."""
    with open_data(iter([arrays()]), INPUTS) as data:
        for file in Path(tempfile.gettempdir()).glob("blockfold-*.scratch/*.bin"):
            file.unlink()
        with pytest.raises(BadInput, match=r"\.bin: gone or shorter while in use"):
            assert next(data.batches(np.arange(2), 2)).feeds


def test_a_file_that_changes_while_in_use(tmp_path: Path) -> None:
    with open_data(npy_folder(tmp_path / "f", arrays()), INPUTS) as data:
        assert next(data.batches(np.arange(2), 2)).feeds
        np.save(tmp_path / "f" / "x.npy", arrays()["x"] + 1)
        with pytest.raises(BadInput, match=r"x\.npy: changed while in use.*run again"):
            assert next(data.batches(np.arange(2), 2)).feeds
        with pytest.raises(BadInput, match=r"x\.npy: changed while in use"):
            data.require_unchanged()


def test_npy_of_a_later_version(tmp_path: Path) -> None:
    folder = npy_folder(tmp_path / "f", arrays())
    with (folder / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, arrays()["x"], version=(3, 0))
    assert "is .npy version (3, 0), not 1.0 or 2.0" in refusal(folder)
