"""Calibration data that is wrong is refused in one clear line."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockfold.calibration.sources import open_data
from blockfold.ir.errors import Unsupported
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


def signalling(array: np.ndarray) -> np.ndarray:
    """float64 with a first number that every operation complains of."""
    bits = array.astype(np.float64).view(np.uint64)
    bits[0, 0] = 0x7FF0000000000001
    return bits.view(np.float64)


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
    "signalling NaN": (lambda: changed("x", signalling), "'x'|NaN or Inf|sample 0"),
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


def test_npy_of_a_later_version(tmp_path: Path) -> None:
    folder = npy_folder(tmp_path / "f", arrays())
    with (folder / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, arrays()["x"], version=(3, 0))
    assert "is .npy version (3, 0), not 1.0 or 2.0" in refusal(folder)
