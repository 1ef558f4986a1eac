"""Data files made to drown or mislead: one line of BadInput each, before memory is taken."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from blockfold.calibration.sources import open_data
from blockfold.ir.errors import BadInput
from blockfold.ir.graph import Value

INPUTS = [Value("x", "float32", ("batch", None))]


def npy(
    description: str, shape: str, body: bytes = b"", version: int = 1, length: int = 0
) -> bytes:
    """A .npy file that says what it likes."""
    text = f"{{'descr': {description}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    size = (length or len(text)).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + body


def zipped(path: Path, packing: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content, packing)
    return path


def refused(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        open_data(path, INPUTS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def both(tmp_path: Path, content: bytes) -> list[Path]:
    """The same array in an .npz and as a file in a folder."""
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "x.npy").write_bytes(content)
    return [zipped(tmp_path / "a.npz", x=content), raw]


@pytest.mark.parametrize("shape", ["(10**12, 2)", "(1000000000000, 2)", "(2, 9223372036854775807)"])
def test_shapes_larger_than_the_file(shape: str, tmp_path: Path) -> None:
    for path in both(tmp_path, npy("'<f4'", shape, bytes(16))):
        said = refused(path)
        assert "is truncated" in said or "cannot be read" in said


def test_samples_without_a_number(tmp_path: Path) -> None:
    """10^12 samples of nothing take no room in the file, but for each there would be an index."""
    for path in both(tmp_path, npy("'<f4'", "(1000000000000, 0)")):
        assert "holds no numbers for its 1000000000000 samples" in refused(path)


def test_headers_longer_than_any(tmp_path: Path) -> None:
    for path in both(tmp_path, npy("'<f4'", "(1, 2)", bytes(8), version=2, length=2**31)):
        assert "has a header of 2,147,483,648 bytes" in refused(path)


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_that_unpack_all_at_once(packing: int, tmp_path: Path) -> None:
    """A kilobyte of bzip2 is a gigabyte of zeros, and comes whole whatever is asked for."""
    content = npy("'<f4'", "(1, 2)", bytes(8))
    path = zipped(tmp_path / "a.npz", packing, x=content)
    assert "packed in a way that NumPy never uses" in refused(path)
    with open_data(zipped(tmp_path / "b.npz", zipfile.ZIP_DEFLATED, x=content), INPUTS) as data:
        assert data.samples == 1


def test_a_bomb_is_unpacked_in_pieces_to_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MB of zeros in 64 kB: sound data, which no more than a chunk at a time is held of."""
    taken: list[int] = []
    read = zipfile.ZipExtFile.read

    def spied(self: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
        found = read(self, n)
        taken.append(len(found))
        return found

    monkeypatch.setattr(zipfile.ZipExtFile, "read", spied)
    rows = 8 << 20
    content = npy("'<f4'", f"({rows}, 2)", bytes(8 * rows))
    path = zipped(tmp_path / "a.npz", zipfile.ZIP_DEFLATED, x=content)
    assert path.stat().st_size < 1 << 17
    with open_data(path, INPUTS) as data:
        assert data.samples == rows
    assert sum(taken) > 8 * rows
    assert max(taken) <= 8 << 20


@pytest.mark.parametrize("description", ["'|O'", "[('a', '|O')]", "('|O', (2,))"])
def test_nothing_pickled_is_loaded(
    description: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    monkeypatch.setattr(pickle, "load", lambda *_: pytest.fail("unpickled"))
    for path in both(tmp_path, npy(description, "(1, 2)", b"cos\nsystem\n(S'true'\ntR.")):
        assert "pickled objects" in refused(path) or "cannot be read" in refused(path)


@pytest.mark.parametrize("description", ["'<U0'", "'|S0'", "'|V0'", "('<f4', (3,))", "'<M8[D]'"])
def test_odd_types(description: str, tmp_path: Path) -> None:
    for path in both(tmp_path, npy(description, "(1000000000000, 1)")):
        refused(path)


def test_groups_of_text_that_is_none(tmp_path: Path) -> None:
    """Four bytes that are no character: NumPy itself fails on them."""
    groups = npy("'<U1'", "(1,)", b"\xff\xff\xff\x7f")
    path = zipped(tmp_path / "a.npz", x=npy("'<f4'", "(1, 2)", bytes(8)), groups=groups)
    assert "array 'groups' holds what is no text" in refused(path)


def test_a_file_wins_over_code_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a path `module:attribute` is there, it is data; nothing is imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostile_data.py").write_text("raise SystemExit('imported')")
    stream = io.BytesIO()
    np.savez(stream, x=np.ones((2, 3), np.float32))
    Path("hostile_data:rows").write_bytes(stream.getvalue())
    with open_data("hostile_data:rows", INPUTS) as data:
        assert data.samples == 2
    Path("hostile_data:rows").unlink()
    with pytest.raises(BadInput, match="imported"):
        open_data("hostile_data:rows", INPUTS)
