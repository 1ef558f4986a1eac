"""Calibration data in .npz and .npy files, as items of pieces; nothing pickled is ever loaded."""

from __future__ import annotations

import io
import math
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ..ir.errors import BadInput
from ..ir.scratch import storing
from ..ir.stamp import Stamp
from .data import Stored
from .intake import CHUNK_BYTES, Item, Piece, blaming, chunks_of

UNREADABLE = "cannot be read; damaged or truncated?"

PACKINGS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
"""What NumPy writes, and what is unpacked no faster than it is asked for."""

LONGEST_HEADER_BYTES = 10_000


def path_items(path: Path) -> Iterator[Item]:
    """One item for each .npz, or one for a whole folder of .npy."""
    with blaming(f"{path}: {UNREADABLE}"):
        found, folder = path.exists(), path.is_dir()
        files = sorted(path.iterdir()) if folder else [path]
    if not found:
        raise BadInput(f"{path}: no such file or folder; give an .npz, a folder, or module:name")
    if path.suffix.lower() == ".npy" and not folder:
        raise BadInput(
            f"{path}: is a single .npy; give its folder, holding INPUT.npy for each input"
        )
    npy = [file for file in files if file.suffix.lower() == ".npy"]
    npz = [file for file in files if file.suffix.lower() == ".npz"] if folder else files
    if npy and npz:
        raise BadInput(f"{path}: holds .npz and .npy files; leave one kind in the folder")
    if not npy and not npz:
        raise BadInput(f"{path}: holds no .npz and no .npy file; put the samples there")
    if npy:
        stamps = [_stamp(file) for file in npy]
        pieces = {file.stem: _npy_piece(file, at) for file, at in zip(npy, stamps, strict=True)}
        yield Item(str(path), pieces, stamps)
    for file in npz:
        stamp = _stamp(file)
        with blaming(f"{file}: {UNREADABLE}"), zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            pieces = {name: _npz_piece(archive, info, file) for name, info in members.items()}
            yield Item(str(file), pieces, [stamp])


def _stamp(path: Path) -> Stamp:
    with blaming(f"{path}: {UNREADABLE}"):
        return Stamp.of(path)


def _npy_piece(path: Path, stamp: Stamp) -> Piece:
    """A .npy file, read where it lies; one in Fortran order is copied."""
    with blaming(f"{path}: {UNREADABLE}"), path.open("rb") as stream:
        shape, fortran, dtype = _header(stream, path.stat().st_size, path)
        begin = stream.tell()

    def chunks() -> Iterator[NDArray[Any]]:
        with blaming(f"{path}: {UNREADABLE}"), path.open("rb") as stream:
            yield from _mapped(stream, begin, shape, fortran, dtype)

    stored = None if fortran else Stored(path, dtype, begin, math.prod(shape), stamp)
    return Piece(shape, dtype, chunks, stored)


def _npz_piece(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Piece:
    """A member of an .npz, streamed; in Fortran order, by way of a scratch file."""
    if info.compress_type not in PACKINGS:
        raise BadInput(
            f"{path}: array {info.filename!r} is packed in a way that NumPy never uses; "
            "write it again with numpy.savez_compressed"
        )
    with archive.open(info) as stream:
        shape, fortran, dtype = _header(stream, info.file_size, f"{path}: array {info.filename!r}")
        begin = stream.tell()

    def chunks() -> Iterator[NDArray[Any]]:
        with blaming(f"{path}: {UNREADABLE}"), archive.open(info) as stream:
            if fortran:
                with tempfile.TemporaryFile() as scratch:
                    with storing():
                        shutil.copyfileobj(stream, scratch, CHUNK_BYTES)
                        scratch.flush()
                    yield from _mapped(scratch, begin, shape, fortran, dtype)
                return
            stream.read(begin)
            for rows in chunks_of(shape, dtype):
                part = (min(rows.stop, shape[0]) - rows.start, *shape[1:])
                taken = stream.read(math.prod(part) * dtype.itemsize)
                yield np.ndarray(part, dtype, taken)
            stream.read(1)  # at the end the checksum is compared

    return Piece(shape, dtype, chunks)


HEADER_PREFIX = {(1, 0): 2, (2, 0): 4}
"""Bytes that tell how long the header is, by version of the format."""


def _header(
    stream: IO[bytes], size: int, where: object
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and dtype of a .npy of `size` bytes; leaves the stream at the data."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(stream)
    if version not in readers:
        raise BadInput(f"{where}: is .npy version {version}, not 1.0 or 2.0; save plain numbers")
    prefix = stream.read(HEADER_PREFIX[version])
    length = int.from_bytes(prefix, "little")
    if length > LONGEST_HEADER_BYTES:
        raise BadInput(f"{where}: has a header of {length:,} bytes; save plain numbers")
    shape, fortran, dtype = readers[version](io.BytesIO(prefix + stream.read(length)))
    if dtype.hasobject:
        raise BadInput(
            f"{where}: holds pickled objects, which are never loaded; save plain numbers"
        )
    needed = stream.tell() + math.prod(shape) * dtype.itemsize
    if size < needed or min(shape, default=0) < 0:
        raise BadInput(f"{where}: is truncated, {size} of {needed} bytes; write it again")
    return shape, fortran, dtype


def _mapped(
    stream: IO[bytes], begin: int, shape: tuple[int, ...], fortran: bool, dtype: np.dtype[Any]
) -> Iterator[NDArray[Any]]:
    """The rows of an array in a file, mapped anew for each chunk so that pages do not pile up."""
    for rows in chunks_of(shape, dtype):
        if math.prod(shape):
            yield np.memmap(stream, dtype, "r", begin, shape, "F" if fortran else "C")[rows]
        else:
            yield np.empty(shape, dtype)[rows]
