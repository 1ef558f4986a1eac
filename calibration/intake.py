"""The one road from arrays as they arrive to a Dataset: every check, the hash and the copy.

Whatever form the data came in is items (a file, or one batch of an iterable) of pieces (one array
each); anything wrong with them is one line of BadInput that names the place.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..ir.errors import BadInput, BlockfoldError, Unsupported
from ..ir.graph import Value
from ..ir.stamp import Stamp
from .data import Column, Dataset, Spool, Stored

CHUNK_BYTES = 8 << 20  # what is read, checked and copied at a time
FAMILIES = {"b": "whole numbers", "i": "whole numbers", "u": "whole numbers", "f": "floats"}
NUMBERS = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
DTYPES: dict[str | None, np.dtype[Any] | None] = {
    None: None,  # as given
    "bfloat16": np.dtype(np.float32),  # NumPy has none
    **{name: np.dtype(name) for name in NUMBERS},
}


@dataclass(frozen=True, eq=False)
class Piece:
    """An array (rows, ...) as it arrives: `chunks()` gives its rows in order, a few at a time.

    `elements` is where the same rows lie in C order for good, or None where they must be copied.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: Callable[[], Iterator[NDArray[Any]]]
    elements: Stored | NDArray[Any] | None = None


@dataclass(frozen=True)
class Item:
    """Arrays that came together, and where from: for messages, and as files."""

    where: str
    pieces: Mapping[str, Piece]
    stamps: Sequence[Stamp] = ()


def collect(
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
    stamps: list[Stamp] = []
    try:
        for item in items:
            first = first or (item.where, set(item.pieces))
            stamps += item.stamps
            _check_names(item, [*feeds], first)
            _check_shapes(item, inputs)
            for name, piece in item.pieces.items():
                if name in feeds or name == "labels":
                    feeds.get(name, labels).add(piece, item.where)
                    continue
                for chunk in piece.chunks():
                    with blaming(f"{item.where}: array {name!r} holds what is no text"):
                        given = chunk.tolist()
                    codes = [numbers.setdefault(group, len(numbers)) for group in given]
                    groups.append(np.array(codes, np.int64))
        samples = feeds[inputs[0].name].samples
        if not samples:
            raise BadInput(
                f"{label}: holds no samples; a reader or generator can be read only once: rewind() "
                "it, or make another"
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
            stamps=stamps,
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
        said = f"{item.where}: holds {quoted(held)}, but the model takes {quoted(names)}"
        if missing:
            said += f"; missing {quoted(missing)}"
        for name in unknown:
            near = difflib.get_close_matches(name, missing or allowed, 1)
            said += f"; unknown {name!r}" + (f" (is it {near[0]!r}?)" if near else "")
        raise BadInput(f"{said}; rename, add or drop arrays")
    where, before = first
    if set(held) != before:
        raise BadInput(
            f"{item.where}: holds {quoted(held)}, but {where} holds {quoted(sorted(before))}; "
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
    if rows and not any(math.prod(pieces[value.name].shape) for value in inputs):
        raise BadInput(f"{item.where}: holds no numbers for its {rows} samples; give real ones")
    groups = None if "groups" in [value.name for value in inputs] else pieces.get("groups")
    if groups is not None and (len(groups.shape) != 1 or groups.dtype.kind not in "biuUS"):
        raise BadInput(
            f"{item.where}: 'groups' has shape {groups.shape} and dtype {groups.dtype}; "
            "give one whole number or text for each sample"
        )


class ColumnWriter:
    """Builds a Column piece by piece: values are checked, hashed and, unless they stay put, copied.

    Without a dtype, the first piece's is kept. Labels become int64 or float64, and of one shape.
    """

    def __init__(
        self, name: str, dtype: np.dtype[Any] | None, spool: Spool, *, labels: bool = False
    ) -> None:
        self.samples = 0
        self._name, self._dtype, self._spool, self._labels = name, dtype, spool, labels
        self._file, spool.files = f"{spool.files}.bin", spool.files + 1
        self._runs: list[tuple[int, tuple[int, ...]]] = []  # first sample, shape of one
        self._hash = hashlib.sha256()
        self._elements: Stored | NDArray[Any] | None = None

    def add(self, piece: Piece, where: str) -> None:
        """Take the rows of `piece` (rows, ...); BadInput for numbers that the dtype cannot hold."""
        here, shape = f"{where}: array {self._name!r}", piece.shape[1:]
        family = FAMILIES.get(piece.dtype.kind)
        if family is None:
            raise BadInput(f"{here} holds {piece.dtype}, not numbers; convert it first")
        dtype = self._dtype or piece.dtype.newbyteorder("=")
        if self._labels:
            dtype = self._dtype or np.dtype(np.float64 if family == "floats" else np.int64)
        if family != FAMILIES[dtype.kind]:
            raise BadInput(f"{here} holds {piece.dtype} where {dtype} is needed; convert it first")
        before = self._runs[-1][1] if self._runs else shape
        if len(shape) != len(before) or (self._labels and shape != before):
            raise BadInput(f"{here} has samples of shape {shape} after {before}; make them alike")
        self._dtype = dtype
        if piece.shape[0] and (not self._runs or shape != before):
            self._runs.append((self.samples, shape))
        for chunk in piece.chunks():
            ready = np.ascontiguousarray(_fitted(chunk, dtype, self.samples, here)).reshape(-1)
            self._hash.update(ready.astype(dtype.newbyteorder("<"), copy=False).data)
            if piece.elements is None:
                self._spool.write(self._file, ready)
            self.samples += len(chunk)
        self._elements = piece.elements

    def column(self) -> Column:
        """All that was added; at least one sample was."""
        assert self._dtype is not None
        starts = np.array([first for first, _ in self._runs] + [self.samples], np.int64)
        sizes = np.diff(starts) * [math.prod(shape) for _, shape in self._runs]
        offsets = np.cumsum(sizes) - sizes
        shapes = tuple(dict.fromkeys(shape for _, shape in self._runs))  # in order of appearance
        index = {shape: at for at, shape in enumerate(shapes)}
        kinds = np.array([index[shape] for _, shape in self._runs], np.int64)
        elements = self._elements
        if elements is None:
            elements = Stored(self._spool.path(self._file), self._dtype, 0, int(sizes.sum()))
        return Column(self._name, self._dtype, elements, starts, offsets, kinds, shapes)

    def fingerprint(self) -> str:
        """Name, dtype, shapes and bytes; how the samples were cut into pieces leaves no trace."""
        facts = [self._name, str(self._dtype), self.samples, self._runs]
        return json.dumps([*facts, self._hash.hexdigest()])


def _fitted(chunk: NDArray[Any], dtype: np.dtype[Any], first: int, here: str) -> NDArray[Any]:
    """`chunk` (rows, ...) as dtype, of the same family; `first` is the sample of its first row."""
    if dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            cast = chunk.astype(dtype, copy=False)
        if np.isfinite(cast).all():
            return cast
        bad = ~np.isfinite(cast)
        lost = "NaN or Inf" if not np.isfinite(chunk).all() else f"a value too large for {dtype}"
        fix = "drop or repair that sample"
    else:
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if not chunk.size or (int(chunk.min()) >= low and int(chunk.max()) <= high):
            return chunk.astype(dtype, copy=False)
        bad = (chunk < low) | (chunk > high)
        lost, fix = f"a value outside {low}..{high}", f"{dtype} is needed"
    row = int(bad.reshape(len(bad), -1).any(axis=1).argmax())
    raise BadInput(f"{here} holds {lost}, first in sample {first + row}; {fix}")


def quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def chunks_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Iterator[slice]:
    """Slices of the first axis, of about CHUNK_BYTES each."""
    step = max(1, CHUNK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))
    return (slice(at, at + step) for at in range(0, shape[0], step))


@contextlib.contextmanager
def blaming(what: str) -> Iterator[None]:
    """Whatever the user's code, or a reader of the user's bytes, raises becomes one line."""
    try:
        yield
    except BlockfoldError:
        raise
    except (Exception, SystemExit) as error:
        raise BadInput(f"{what} ({one_line(error)})") from error


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
