"""Evidence as a file: safetensors, with a record in its header. Nothing in it is ever run.

Tensors: of each half ("fit", "select") and key k "fit.k.product" (dx, dy), "fit.k.means" (dx + dy,)
and, for all keys, "fit.counts" (keys, 2): rows and weight; "fit.turns" (pairs, 2): cosines and
angles. Of each source j "j.fit", "j.select" and "j.samples" (n,), "j.classes" (n,), "j.layer.l"
(n, channels), "j.rows" (rectifiers,), "j.on.r" (units,) and, of each stream s, "j.pairs.s" (3,
layers, layers).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..calibration.metrics.activation_entropy import SideCounts
from ..calibration.moments import CoMoment
from ..calibration.pairwise import Pairwise
from ..calibration.splits import Fractions
from ..calibration.sweep import Pair, Statistics
from ..ir.errors import BadInput
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_unfuse import unfuse
from .evidence import Evidence, Source, pairs_of, widths_of
from .layout import Layout, anatomies, cut_values
from .similarity import Communities, Features, layers_of, pairs_of_layers, rectifiers_of
from .task import droppable

HEADER = "blockfold"
HALVES = ("fit", "select")

LARGEST: Mapping[type, float] = {np.float32: 1e15, np.float64: 1e40}
"""Features and sums above would overflow on the way to a metric."""

LEAST_WEIGHT = 1e-9
"""Of rows, where there are any."""

Tensors = Mapping[str, NDArray[Any]]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PairRecord(_Record):
    x: str
    y: str
    channel_axis: int


class SourceRecord(_Record):
    data_sha256: str
    due: NonNegativeInt
    seed: NonNegativeInt
    fractions: Fractions
    communities: Communities | None


class EvidenceRecord(_Record):
    """What the tensors are of; `layers` are the values that there are features of."""

    schema_version: Literal[1] = 1
    blockfold: str
    model_sha256: str
    mask: str | None
    random: bool
    droppable: tuple[str, ...]
    observed: dict[str, tuple[tuple[NonNegativeInt, ...], ...]]
    pairs: tuple[PairRecord, ...]
    layers: tuple[str, ...]
    rectifiers: tuple[str, ...]
    sources: tuple[SourceRecord, ...]


def evidence_bytes(evidence: Evidence) -> bytes:
    """The content of the file."""
    tensors: dict[str, NDArray[Any]] = {}
    for half, statistics in zip(HALVES, (evidence.fit, evidence.select), strict=True):
        counts = np.zeros((len(statistics.keys), 2))
        for at, key in enumerate(statistics.keys):
            part = statistics.products.get(key)
            if part is not None:
                counts[at] = part.rows, part.weight
                tensors[f"{half}.{at}.product"] = part.product
                tensors[f"{half}.{at}.means"] = np.concatenate([part.mean_x, part.mean_y])
        tensors[f"{half}.counts"] = counts
        turns = [(statistics.cosines[p], statistics.angles[p]) for p in statistics.pairs]
        tensors[f"{half}.turns"] = np.array(turns).reshape(-1, 2)
    sources, layers, sides = [], list(evidence.features.layers), list(evidence.features.sides)
    for j, (data, source) in enumerate(sorted(evidence.sources.items())):
        features = source.features
        tensors |= {f"{j}.fit": source.fit, f"{j}.select": source.select}
        tensors[f"{j}.samples"] = features.samples
        tensors |= {f"{j}.layer.{at}": features.layers[name] for at, name in enumerate(layers)}
        tensors[f"{j}.rows"] = np.array([features.sides[name].rows for name in sides], np.int64)
        tensors |= {f"{j}.on.{at}": features.sides[n].positive for at, n in enumerate(sides)}
        tensors |= {f"{j}.pairs.{at}": p.sums for at, p in enumerate(features.pairs.values())}
        if features.classes is not None:
            tensors[f"{j}.classes"] = features.classes
        sources.append(
            SourceRecord(
                data_sha256=data,
                due=source.due,
                seed=source.seed,
                fractions=source.fractions,
                communities=features.communities,
            )
        )
    record = EvidenceRecord(
        blockfold=version("blockfold"),
        model_sha256=evidence.model,
        mask=evidence.mask,
        random=evidence.random,
        droppable=tuple(sorted(evidence.droppable)),
        observed={name: tuple(map(tuple, seen)) for name, seen in evidence.observed.items()},
        pairs=tuple(PairRecord(**vars(pair)) for pair in evidence.fit.pairs),
        layers=tuple(layers),
        rectifiers=tuple(sides),
        sources=tuple(sources),
    )
    whole = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return save(whole, {HEADER: record.model_dump_json()})


def read_evidence(path: Path, model: OnnxModel) -> tuple[Evidence, Layout]:
    """Evidence of this very model, and the layout it is of.

    Raises BadInput for anything else: another file, a broken one, one of another model.
    """
    try:
        with safe_open(path, "np") as file:
            header = (file.metadata() or {}).get(HEADER)
            record = EvidenceRecord.model_validate_json(header or "")
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except OSError as error:
        raise BadInput(f"{path}: cannot read the statistics: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the header"
        raise BadInput(
            f"{path}: no statistics of `blockfold survey`: {where}: {first['msg']}"
        ) from error
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise BadInput(
            f"{path}: no statistics of `blockfold survey`, or a broken copy ({error})"
        ) from error
    if record.model_sha256 != model.sha256:
        raise BadInput(
            f"{path}: statistics of another model (sha256 {record.model_sha256[:12]}..., this one "
            f"has {model.sha256[:12]}...)"
        )
    plain = unfuse(model)
    streams = anatomies(plain)
    values = set(cut_values(streams))
    if set(record.observed) != values or not all(map(_are_shapes, record.observed.values())):
        raise _broken(path, "its shapes are not those of this model's cuts")
    may_go = frozenset(record.droppable)
    if not may_go <= droppable(plain):
        raise _broken(path, "it lets outputs go that are no caches")
    layout = Layout.of(plain.graph, streams, record.observed, may_go)
    pairs = tuple(Pair(p.x, p.y, p.channel_axis) for p in record.pairs)
    made = rectifiers_of(plain, layout)
    rectifiers = tuple(dict.fromkeys(name for unit in made.values() for name in unit))
    wanted = tuple(dict.fromkeys(pairs_of(layout))), tuple(layers_of(layout)), rectifiers
    if (pairs, record.layers, record.rectifiers) != wanted:
        raise BadInput(
            f"{path}: made with another version of blockfold ({record.blockfold}), which found "
            "other spans; gather again"
        )
    widths = widths_of(plain.graph, layout)
    reader = _Reader(path, tensors)
    fit, select = (_read_statistics(reader, half, pairs, widths) for half in HALVES)
    empty = pairs_of_layers(plain.graph, layout)
    sources = {
        source.data_sha256: _read_source(reader, str(j), source, record, widths, empty)
        for j, source in enumerate(record.sources)
    }
    if len(sources) != len(record.sources) or not sources:
        raise _broken(path, "its sources are not those of so many data sets")
    reader.require_nothing_left()
    found = Evidence(
        model.sha256, record.mask, record.random, may_go, record.observed, fit, select, sources
    )
    return found, layout


def _are_shapes(shapes: tuple[tuple[int, ...], ...]) -> bool:
    return len(shapes) == 2 and len(shapes[0]) == len(shapes[1])


def _broken(path: Path, why: str) -> BadInput:
    return BadInput(f"{path}: broken statistics: {why}; gather them again")


class _Reader:
    """Takes tensors one by one, each of the dtype and shape that it must have."""

    def __init__(self, path: Path, tensors: Tensors) -> None:
        self.path, self._left = path, dict(tensors)

    def has(self, name: str) -> bool:
        return name in self._left

    def take(self, name: str, dtype: type, *shape: int | None) -> NDArray[Any]:
        """A tensor whose shape may be anything where None stands, and that holds no NaN or Inf."""
        found = self._left.pop(name, None)
        if found is None:
            raise _broken(self.path, f"{name!r} is missing")
        fits = len(found.shape) == len(shape) and all(
            wanted in (None, size) for size, wanted in zip(found.shape, shape, strict=True)
        )
        if found.dtype != dtype or not fits:
            raise _broken(self.path, f"{name!r} is {found.dtype} {found.shape}")
        if not np.isfinite(found).all():
            raise _broken(self.path, f"{name!r} holds NaN or Inf")
        if np.abs(found).max(initial=0) > LARGEST.get(dtype, np.inf):
            raise _broken(self.path, f"{name!r} holds numbers beyond those of any network")
        return found

    def samples(self, name: str) -> NDArray[np.int64]:
        """Sample numbers (n,), each once, ascending."""
        found = self.take(name, np.int64, None)
        if found.size and (found[0] < 0 or (np.diff(found) <= 0).any()):
            raise _broken(self.path, f"{name!r} does not ascend from 0 on")
        return found

    def require_nothing_left(self) -> None:
        if self._left:
            raise _broken(self.path, f"{next(iter(self._left))!r} belongs to nothing")


def _read_statistics(
    reader: _Reader, half: str, pairs: tuple[Pair, ...], widths: Mapping[str, int]
) -> Statistics:
    found = Statistics(pairs)
    counts = reader.take(f"{half}.counts", np.float64, len(found.keys), 2)
    if (counts < 0).any() or (counts[:, 0] != np.floor(counts[:, 0])).any():
        raise _broken(reader.path, f"'{half}.counts' are no counts")
    turns = reader.take(f"{half}.turns", np.float64, len(pairs), 2)
    for sums, column in ((found.cosines, turns[:, 0]), (found.angles, turns[:, 1])):
        sums.update(zip(found.pairs, map(float, column), strict=True))
    for at, key in enumerate(found.keys):
        if reader.has(f"{half}.{at}.product"):
            dx, dy = (widths[value] for value in key)
            product = reader.take(f"{half}.{at}.product", np.float64, dx, dy)
            means = reader.take(f"{half}.{at}.means", np.float64, dx + dy)
            rows, weight = int(counts[at, 0]), float(counts[at, 1])
            found.products[key] = CoMoment(rows, weight, means[:dx], means[dx:], product)
    if len(found.products) not in (0, len(found.keys)):
        raise _broken(reader.path, f"some products of {half!r} are missing")
    return found


def _read_source(
    reader: _Reader,
    j: str,
    source: SourceRecord,
    record: EvidenceRecord,
    widths: Mapping[str, int],
    empty: Mapping[str, Pairwise],
) -> Source:
    fit, select, samples = (reader.samples(f"{j}.{part}") for part in (*HALVES, "samples"))
    count = len(samples)
    if np.intersect1d(fit, select).size or not np.isin(samples, fit).all():
        raise _broken(reader.path, f"the samples of source {j} are not of one split")
    if len(fit) + len(select) > source.due:
        raise _broken(reader.path, f"source {j} holds more samples than its data has")
    rows = {
        name: reader.take(f"{j}.layer.{at}", np.float32, count, widths[name])
        for at, name in enumerate(record.layers)
    }
    known = source.communities is not None
    classes = reader.take(f"{j}.classes", np.int64, count) if known else None
    seen = reader.take(f"{j}.rows", np.int64, len(record.rectifiers))
    sides = {}
    for at, name in enumerate(record.rectifiers):
        positive = reader.take(f"{j}.on.{at}", np.int64, None)
        if (positive < 0).any() or (positive > seen[at]).any():
            raise _broken(reader.path, f"'{j}.on.{at}' are no counts")
        sides[name] = SideCounts.of(int(seen[at]), positive)
    pairs = {}
    for at, (stream, none) in enumerate(empty.items()):
        sums = reader.take(f"{j}.pairs.{at}", np.float64, *none.sums.shape)
        if ((sums[0] != 0) & (sums[0] < LEAST_WEIGHT)).any():
            raise _broken(reader.path, f"'{j}.pairs.{at}' are no sums over rows")
        pairs[stream] = none.holding(sums)
    features = Features(samples, rows, classes, source.communities, sides, pairs)
    return Source(fit, select, source.due, source.seed, source.fractions, features)
