"""Open what the user gave as calibration data, in any of its forms, as one checked Dataset.

Every form becomes items (a file, or one batch of an iterable) of pieces (one array each), and all
items go down one road; anything wrong is one line of BadInput that names the place.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import inspect
import math
import operator
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..ir.errors import BadInput, BlockfoldError, Unsupported
from ..ir.graph import Value
from .data import ColumnWriter, Dataset, Piece, Spool, Stored

CHUNK_BYTES = 8 << 20  # what is read, checked and copied at a time
RANDOM_LENGTH = 16  # random data: the length of every axis but the first that the model leaves open
RANDOM_ROWS = 64  # random data: samples made at a time
SPEC = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")  # module:attribute
UNREADABLE = "cannot be read; damaged or truncated?"
END = object()
NUMBERS = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
DTYPES: dict[str | None, np.dtype[Any] | None] = {
    None: None,  # as given
    "bfloat16": np.dtype(np.float32),  # NumPy has none
    **{name: np.dtype(name) for name in NUMBERS},
}


@runtime_checkable
class Reader(Protocol):
    """An onnxruntime CalibrationDataReader."""

    def get_next(self) -> Mapping[str, Any] | None: ...


@runtime_checkable
class Tensor(Protocol):
    """A torch.Tensor; torch itself is never imported."""

    def detach(self) -> Any: ...
    def cpu(self) -> Any: ...


@dataclass(frozen=True)
class Item:
    """Arrays that came together, and where from, for messages."""

    where: str
    pieces: Mapping[str, Piece]


def open_data(source: object, inputs: Sequence[Value]) -> Dataset:
    """The data set for a model with these inputs; close it after use.

    `source` is a path to an .npz whose arrays are named after the inputs, to a folder of such files
    or to a folder with INPUT.npy for each input; the text `module:attribute`; a mapping of arrays;
    an iterable of mappings, or of tuples in the order of the inputs; a reader with `get_next`; a
    callable giving any of these but text; or a Dataset, returned as it is. The first axis of every
    array is samples. `labels` and `groups` may stand beside the inputs, unless the model has an
    input of that name; a tuple's one further entry is labels. Feeds for a bfloat16 input are
    float32. Files and arrays that are read in place must not change meanwhile.
    Raises BadInput for anything wrong with the data, Unsupported for inputs that cannot be fed.
    """
    if isinstance(source, str) and SPEC.fullmatch(source) and not Path(source).exists():
        with _importable(Path.cwd()):
            return _open(_attribute(source), inputs, source)
    return _open(Path(source) if isinstance(source, str) else source, inputs, "the data given")


def _open(source: object, inputs: Sequence[Value], label: str) -> Dataset:
    if isinstance(source, Dataset):
        names = [value.name for value in inputs]
        if set(source.names) != set(names):
            raise BadInput(f"{label}: feeds {_list(source.names)}, the model takes {_list(names)}")
        return source
    if isinstance(source, os.PathLike):
        return _collect(_path_items(Path(source).absolute()), inputs, str(source))
    if isinstance(source, Mapping):
        return _collect(iter([_item(source, label, in_place=True)]), inputs, label)
    flows = isinstance(source, Reader | Iterable) and not inspect.isclass(source)
    if flows and not isinstance(source, str | bytes):
        return _collect(_stream_items(source, inputs, label), inputs, label)
    if callable(source) and not flows:
        with _blaming(f"{label}: calling it failed"):
            made = source()
        if isinstance(made, Reader | Iterable | os.PathLike | Dataset):
            return _open(made, inputs, label)
        label, source = f"{label}: what calling it gave", made
    raise BadInput(
        f"{label}: is a {type(source).__name__}; give a path, a dict of arrays, an iterable of "
        "dicts, a DataLoader or a CalibrationDataReader"
    )


def random_data(inputs: Sequence[Value], samples: int, seed: int) -> Dataset:
    """Made-up samples, for a dry run only: `random` is set on the result.

    Floats are normal; whole numbers 0..99, but 0 or 1 where the name has mask, type or segment in
    it (a mask: ones, then zeros). Open axes are RANDOM_LENGTH long. The same seed and NumPy give
    the same numbers.
    """
    for value in inputs:
        if value.shape is None or value.dtype is None:
            raise BadInput(f"input {value.name!r} states no shape or no dtype; give real data")
    label = f"random data (seed {seed})"
    if samples < 1 or seed < 0:
        raise BadInput(f"{label}: {samples} samples; give at least one, and a seed from 0 on")
    return _collect(_random_items(inputs, samples, seed, label), inputs, label, random=True)


def _random_items(inputs: Sequence[Value], samples: int, seed: int, label: str) -> Iterator[Item]:
    rng = np.random.default_rng(seed)
    for at in range(0, samples, RANDOM_ROWS):
        arrays: dict[str, NDArray[Any]] = {}
        for value in inputs:
            dims = [d if isinstance(d, int) else RANDOM_LENGTH for d in (value.shape or ())[1:]]
            shape, name = (min(RANDOM_ROWS, samples - at), *dims), value.name.lower()
            if value.is_float:
                arrays[value.name] = rng.standard_normal(shape, np.float32)
            elif "mask" in name and dims:
                kept = rng.integers(1, max(dims[-1], 1), (*shape[:-1], 1), endpoint=True)
                arrays[value.name] = np.broadcast_to(np.arange(dims[-1]) < kept, shape)
            else:
                few = value.dtype == "bool" or re.search("mask|type|segment", name)
                arrays[value.name] = rng.integers(0, 2 if few else 100, shape)
        yield _item(arrays, label)


# --- one road for all forms


def _collect(
    items: Iterator[Item], inputs: Sequence[Value], label: str, *, random: bool = False
) -> Dataset:
    """Check and gather all items; on any failure the temporary copy is removed."""
    spool = Spool()
    feeds = {
        value.name: ColumnWriter(value.name, dtype, spool) for value, dtype in _feedable(inputs)
    }
    labels = ColumnWriter("labels", None, spool, labels=True)
    numbers: dict[object, int] = {}  # of groups, in order of first appearance
    groups = [np.empty(0, np.int64)]
    first: tuple[str, set[str]] | None = None  # where, and what it held
    try:
        for item in items:
            first = first or (item.where, set(item.pieces))
            _check_names(item, [*feeds], first)
            _check_shapes(item, inputs)
            for name, piece in item.pieces.items():
                if name in feeds or name == "labels":
                    feeds.get(name, labels).add(piece, item.where)
                    continue
                for chunk in piece.chunks():
                    codes = [numbers.setdefault(group, len(numbers)) for group in chunk.tolist()]
                    groups.append(np.array(codes, np.int64))
        samples = feeds[inputs[0].name].samples
        if not samples:
            raise BadInput(
                f"{label}: holds no samples; a reader or generator can be read only once"
            )
        columns = [writer.column() for writer in feeds.values()]
        together = np.concatenate(groups)
        prints = [writer.fingerprint() for _, writer in sorted(feeds.items())]
        prints += [labels.fingerprint(), hashlib.sha256(together.astype("<i8").data).hexdigest()]
        return Dataset(
            columns,
            labels.column() if labels.samples else None,
            together if numbers else None,
            hashlib.sha256("\n".join(["blockfold data 1", *prints]).encode()).hexdigest(),
            spool,
            random=random,
        )
    except BaseException:
        spool.close()
        raise


def _feedable(inputs: Sequence[Value]) -> Iterator[tuple[Value, np.dtype[Any] | None]]:
    """Each input and the dtype it is fed in; Unsupported where an input cannot hold samples."""
    if not inputs:
        raise Unsupported("the model has no inputs, so no data can be fed to it")
    fixed: dict[int, str] = {}  # static first dims, and an input with each
    for value in inputs:
        if value.shape == ():
            raise Unsupported(
                f"input {value.name!r}: a scalar has no axis for samples; make it constant"
            )
        if value.shape and isinstance(value.shape[0], int):
            fixed.setdefault(value.shape[0], value.name)
        if value.dtype not in DTYPES:
            raise Unsupported(
                f"input {value.name!r}: takes {value.dtype}, and only numbers can be fed"
            )
        yield value, DTYPES[value.dtype]
    if len(fixed) > 1:
        sizes = ", ".join(f"{name!r} {size}" for size, name in fixed.items())
        raise Unsupported(
            f"inputs' first axes differ ({sizes}); make those that are not samples constant"
        )


def _check_names(item: Item, names: Sequence[str], first: tuple[str, set[str]]) -> None:
    held, allowed = list(item.pieces), [*names, "labels", "groups"]
    missing = [name for name in names if name not in held]
    unknown = [name for name in held if name not in allowed]
    if missing or unknown:
        said = f"{item.where}: holds {_list(held)}, but the model takes {_list(names)}"
        if missing:
            said += f"; missing {_list(missing)}"
        for name in unknown:
            near = difflib.get_close_matches(name, missing or allowed, 1)
            said += f"; unknown {name!r}" + (f" (is it {near[0]!r}?)" if near else "")
        raise BadInput(f"{said}; rename, add or drop arrays")
    where, before = first
    if set(held) != before:
        raise BadInput(
            f"{item.where}: holds {_list(held)}, but {where} holds {_list(sorted(before))}; "
            "give the same arrays everywhere"
        )


def _check_shapes(item: Item, inputs: Sequence[Value]) -> None:
    """Ranks, static dims, and one length for all."""
    pieces, lead = item.pieces, inputs[0].name
    for name, piece in pieces.items():
        if not piece.shape:
            raise BadInput(
                f"{item.where}: array {name!r} is one number; its first axis must be samples"
            )
    for value in inputs:
        shape, stated = pieces[value.name].shape, value.shape
        if stated is not None and (
            len(shape) != len(stated)
            or any(
                isinstance(d, int) and d != n for d, n in zip(stated[1:], shape[1:], strict=True)
            )
        ):
            wanted = ", ".join(["samples", *("any" if d is None else str(d) for d in stated[1:])])
            raise BadInput(
                f"{item.where}: array {value.name!r} has shape {shape} (rank {len(shape)}), "
                f"but the model takes ({wanted}) (rank {len(stated)}); reshape it"
            )
    rows = pieces[lead].shape[0]
    for name, piece in pieces.items():
        if piece.shape[0] != rows:
            raise BadInput(
                f"{item.where}: {name!r} has {piece.shape[0]} entries but {lead!r} has {rows} "
                "samples; the first axis of every array must be samples"
            )
    groups = None if "groups" in [value.name for value in inputs] else pieces.get("groups")
    if groups is not None and (len(groups.shape) != 1 or groups.dtype.kind not in "biuUS"):
        raise BadInput(
            f"{item.where}: 'groups' has shape {groups.shape} and dtype {groups.dtype}; "
            "give one whole number or text for each sample"
        )


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _chunks(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[slice]:
    """Slices of the first axis, of about CHUNK_BYTES each."""
    step = max(1, CHUNK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))
    return (slice(at, at + step) for at in range(0, shape[0], step))


# --- files


def _path_items(path: Path) -> Iterator[Item]:
    """One item for each .npz, or one for a whole folder of .npy."""
    with _blaming(f"{path}: {UNREADABLE}"):
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
        yield Item(str(path), {file.stem: _npy_piece(file) for file in npy})
    for file in npz:
        with _blaming(f"{file}: {UNREADABLE}"), zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            pieces = {name: _npz_piece(archive, info, file) for name, info in members.items()}
            yield Item(str(file), pieces)


def _npy_piece(path: Path) -> Piece:
    """A .npy file, read where it lies; one in Fortran order is copied."""
    with _blaming(f"{path}: {UNREADABLE}"), path.open("rb") as stream:
        shape, fortran, dtype = _header(stream, path.stat().st_size, path)
        begin = stream.tell()

    def chunks() -> Iterator[NDArray[Any]]:
        with _blaming(f"{path}: {UNREADABLE}"), path.open("rb") as stream:
            yield from _mapped(stream, begin, shape, fortran, dtype)

    return Piece(
        shape, dtype, chunks, None if fortran else Stored(path, dtype, begin, math.prod(shape))
    )


def _npz_piece(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Piece:
    """A member of an .npz, streamed; in Fortran order, by way of a scratch file."""
    with archive.open(info) as stream:
        shape, fortran, dtype = _header(stream, info.file_size, f"{path}: array {info.filename!r}")
        begin = stream.tell()

    def chunks() -> Iterator[NDArray[Any]]:
        with _blaming(f"{path}: {UNREADABLE}"), archive.open(info) as stream:
            if fortran:
                with tempfile.TemporaryFile() as scratch:
                    shutil.copyfileobj(stream, scratch, CHUNK_BYTES)
                    scratch.flush()
                    yield from _mapped(scratch, begin, shape, fortran, dtype)
                return
            stream.read(begin)
            for rows in _chunks(shape, dtype):
                part = (min(rows.stop, shape[0]) - rows.start, *shape[1:])
                taken = stream.read(math.prod(part) * dtype.itemsize)
                yield np.ndarray(part, dtype, taken)
            stream.read(1)  # at the end the checksum is compared

    return Piece(shape, dtype, chunks)


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
    shape, fortran, dtype = readers[version](stream)
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
    for rows in _chunks(shape, dtype):
        if math.prod(shape):
            yield np.memmap(stream, dtype, "r", begin, shape, "F" if fortran else "C")[rows]
        else:
            yield np.empty(shape, dtype)[rows]


# --- Python objects


def _attribute(spec: str) -> object:
    module, _, attribute = spec.partition(":")
    importlib.invalidate_caches()
    with _blaming(f"{spec}: importing module {module!r} failed"):
        found = importlib.import_module(module)
    try:
        return operator.attrgetter(attribute)(found)
    except AttributeError as error:
        near = difflib.get_close_matches(attribute, dir(found), 1)
        meant = f" (is it {near[0]!r}?)" if near else ""
        raise BadInput(f"{spec}: module {module!r} has no {attribute!r}{meant}") from error


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Meanwhile the folder stands first on the import path, as under `python -m`."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


@contextlib.contextmanager
def _blaming(what: str) -> Iterator[None]:
    """Whatever the user's code, or a reader of the user's bytes, raises becomes one line."""
    try:
        yield
    except BlockfoldError:
        raise
    except (Exception, SystemExit) as error:
        raise BadInput(f"{what} ({_line(error)})") from error


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _stream_items(source: Any, inputs: Sequence[Value], label: str) -> Iterator[Item]:
    """One item for each batch, read only when the one before it is stored."""
    names = [value.name for value in inputs]
    most = len(names) + ("labels" not in names)
    with _blaming(f"{label}: starting to read it failed"):
        batches = iter(source.get_next, None) if isinstance(source, Reader) else iter(source)
    for at in count():
        where = f"{label}: item {at}"
        with _blaming(f"{where}: reading it failed"):
            batch = next(batches, END)
        if batch is END:
            return
        if isinstance(batch, tuple | list) and len(names) <= len(batch) <= most:
            batch = dict(zip([*names, "labels"], batch, strict=False))
        if not isinstance(batch, Mapping):
            size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
            raise BadInput(
                f"{where}: is a {type(batch).__name__}{size}; give a dict of {_list(names)}, or a "
                f"tuple of {len(names)} arrays in that order, or {most} with labels last"
            )
        yield _item(batch, where)


def _item(batch: Mapping[str, Any], where: str, *, in_place: bool = False) -> Item:
    return Item(
        where,
        {str(k): _array_piece(v, f"{where}: array {k!r}", in_place) for k, v in batch.items()},
    )


def _array_piece(value: Any, where: str, in_place: bool) -> Piece:
    """An array, a torch tensor or nested numbers; never objects."""
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(
            f"{where}: is no array ({_line(error)}); give numbers in a regular shape"
        ) from error
    if array.dtype.hasobject:
        raise BadInput(f"{where}: holds Python objects; give plain numbers")
    stays = in_place and array.flags.c_contiguous
    return Piece(
        array.shape,
        array.dtype,
        lambda: (array[rows] for rows in _chunks(array.shape, array.dtype)),
        array.reshape(-1) if stays else None,
    )
