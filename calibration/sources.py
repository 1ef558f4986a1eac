"""Open what the user gave as calibration data, in any of its forms, as one checked Dataset.

Here the form is recognised, Python objects are read and random data is made. Files are read in
files.py; all forms go down the one road in intake.py.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..ir.errors import BadInput
from ..ir.graph import Value
from .data import Dataset
from .files import path_items
from .imports import SPEC, attribute, importable
from .intake import Item, Piece, blaming, chunks_of, collect, one_line, quoted

RANDOM_LENGTH = 16  # random data: the length of every axis but the first that the model leaves open
RANDOM_ROWS = 64  # random data: samples made at a time
END = object()


@runtime_checkable
class Reader(Protocol):
    """An onnxruntime CalibrationDataReader."""

    def get_next(self) -> Mapping[str, Any] | None: ...


@runtime_checkable
class Tensor(Protocol):
    """A torch.Tensor; torch itself is never imported."""

    def detach(self) -> Any: ...
    def cpu(self) -> Any: ...


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
        with importable(Path.cwd()):
            return _open(attribute(source), inputs, source)
    return _open(Path(source) if isinstance(source, str) else source, inputs, "the data given")


def _open(source: object, inputs: Sequence[Value], label: str) -> Dataset:
    if isinstance(source, Dataset):
        names = [value.name for value in inputs]
        if set(source.names) != set(names):
            raise BadInput(
                f"{label}: feeds {quoted(source.names)}, the model takes {quoted(names)}"
            )
        return source
    if isinstance(source, os.PathLike):
        return collect(path_items(Path(source).absolute()), inputs, str(source))
    if isinstance(source, Mapping):
        return collect(iter([_item(source, label, in_place=True)]), inputs, label)
    flows = isinstance(source, Reader | Iterable) and not inspect.isclass(source)
    if flows and not isinstance(source, str | bytes):
        return collect(_stream_items(source, inputs, label), inputs, label)
    if callable(source) and not flows:
        with blaming(f"{label}: calling it failed"):
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
    return collect(_random_items(inputs, samples, seed, label), inputs, label, random=True)


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


# --- Python objects


def _stream_items(source: Any, inputs: Sequence[Value], label: str) -> Iterator[Item]:
    """One item for each batch, read only when the one before it is stored."""
    names = [value.name for value in inputs]
    most = len(names) + ("labels" not in names)
    with blaming(f"{label}: starting to read it failed"):
        batches = iter(source.get_next, None) if isinstance(source, Reader) else iter(source)
    for at in count():
        where = f"{label}: item {at}"
        with blaming(f"{where}: reading it failed"):
            batch = next(batches, END)
        if batch is END:
            return
        if isinstance(batch, tuple | list) and len(names) <= len(batch) <= most:
            batch = dict(zip([*names, "labels"], batch, strict=False))
        if not isinstance(batch, Mapping):
            size = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
            raise BadInput(
                f"{where}: is a {type(batch).__name__}{size}; give a dict of {quoted(names)}, or a "
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
            f"{where}: is no array ({one_line(error)}); give numbers in a regular shape"
        ) from error
    if array.dtype.hasobject:
        raise BadInput(f"{where}: holds Python objects; give plain numbers")
    stays = in_place and array.flags.c_contiguous
    return Piece(
        array.shape,
        array.dtype,
        lambda: (array[rows] for rows in chunks_of(array.shape, array.dtype)),
        array.reshape(-1) if stays else None,
    )
