"""Score: measure how redundant each unit and block of a model is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..calibration.metrics.affine_r2 import affine_r2
from ..calibration.metrics.block_redundancy import block_redundancy
from ..calibration.metrics.cca import nbl_bound
from ..calibration.solve import Solution, solve_held_out
from ..calibration.sweep import Statistics
from ..ir.errors import BadInput
from ..ir.onnx_file import OnnxModel
from ..ir.spans import Span
from .evidence import Evidence, pair_of
from .layout import Layout, lay_out
from .similarity import (
    Layers,
    Likeness,
    Similarity,
    StreamLayers,
    rectifiers_of,
    streams_of,
)
from .sweep import Sweep
from .task import Task, thinned

MOST_NUMBERS = 2**27
"""Of all second moments held at once, over both splits: 1 GiB. More spans take another pass."""


@dataclass(frozen=True)
class Redundancy:
    """A span, how redundant it is, and its affine map.

    block_redundancy, cosine, angular_distance and nbl_bound are over the fit split; affine_r2 and
    identity_error (E |y - x|^2 / tr(Cyy)) over the select split, which the map was not solved on.
    `likeness` is None where there are too few samples to compare layers on.
    """

    span: Span
    solution: Solution
    block_redundancy: float
    cosine: float
    angular_distance: float
    nbl_bound: float
    affine_r2: float
    identity_error: float
    likeness: Likeness | None

    @property
    def block_influence(self) -> float:
        return 1.0 - self.cosine


@dataclass(frozen=True)
class Survey:
    """The layout of a model and the redundancy of its units and blocks that keep the shape."""

    layout: Layout
    spans: tuple[Redundancy, ...]
    similarities: tuple[Similarity, ...] = ()


def score(task: Task, most: int | None = None) -> Survey:
    """Survey units, blocks and layers in one sweep over the fit and select splits.

    Of both splits `most` samples at most, evenly spread, are looked at.
    """
    if most is not None:
        fit, select = (thinned(half, most) for half in (task.splits.fit, task.splits.select))
        task = replace(task, splits=replace(task.splits, fit=fit, select=select))
    layout = lay_out(task)
    spans = [span for span in layout.spans if not span.strides]
    found, streams = _measured(task, layout, spans, "survey")
    return Survey(layout, tuple(found), tuple(stream.summary() for stream in streams))


def read_out(layout: Layout, model: OnnxModel, evidence: Evidence) -> Survey:
    """What evidence says of a model, as it is analysed, and of its layout.

    Raises BadInput where it holds no samples of the fit split or none of select.
    """
    for part in ("fit", "select"):
        if not any(len(getattr(source, part)) for source in evidence.sources.values()):
            raise BadInput(
                f"the statistics hold no samples to {part} on yet: gather more, or give the other "
                "parts beside them"
            )
    streams = streams_of(layout, rectifiers_of(model, layout), evidence.features)
    spans = [span for span in layout.spans if not span.strides]
    found = [_redundancy(span, evidence.fit, evidence.select, streams) for span in spans]
    return Survey(layout, tuple(found), tuple(stream.summary() for stream in streams))


def measure(task: Task, layout: Layout, spans: Sequence[Span], stage: str) -> list[Redundancy]:
    """How redundant spans that keep the shape are."""
    return _measured(task, layout, spans, stage)[0]


def _measured(
    task: Task, layout: Layout, spans: Sequence[Span], stage: str
) -> tuple[list[Redundancy], tuple[StreamLayers, ...]]:
    layers = Layers(task, layout)
    streams: tuple[StreamLayers, ...] = ()
    found: list[Redundancy] = []
    parts = list(_parts(spans))
    splits = task.splits
    with task.stage(stage, len(parts) * (len(splits.fit) + len(splits.select))) as advance:
        for at, part in enumerate(parts):
            watched = layers if at == 0 else None
            run = Sweep(task, [pair_of(span) for span in part], layers.taps if watched else ())
            fit, select = (run(half, advance, watched) for half in (splits.fit, splits.select))
            streams = streams or layers.streams()
            found += [_redundancy(span, fit, select, streams) for span in part]
    return found, streams


def _parts(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """The spans in parts whose moments fit into memory, at least one part."""
    part: list[Span] = []
    numbers = 0
    for span in spans:
        own = 2 * 2 * span.width**2  # Cxy and Cyy, on two splits
        if part and numbers + own > MOST_NUMBERS:
            yield part
            part, numbers = [], 0
        part.append(span)
        numbers += own
    yield part


def _redundancy(
    span: Span, fit: Statistics, select: Statistics, streams: Sequence[StreamLayers]
) -> Redundancy:
    pair = pair_of(span)
    seen, held = fit.moments(pair), select.moments(pair)
    solution = solve_held_out(seen, held)
    own = [layers for layers in streams if layers.stream.chain.source == span.stream]
    return Redundancy(
        span=span,
        solution=solution,
        block_redundancy=block_redundancy(seen),
        cosine=fit.cosine(pair),
        angular_distance=fit.angular_distance(pair),
        nbl_bound=nbl_bound(seen),
        affine_r2=affine_r2(held, solution),
        identity_error=held.error(None, None) / (held.variance or 1.0),
        likeness=own[0].between(span.start, span.stop) if own else None,
    )
