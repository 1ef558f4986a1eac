"""What a comparison of methods finds."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...passes.methods import Method
from ...passes.surrogates import Form


@dataclass(frozen=True)
class Cell:
    """One method at one depth: what it replaced, its damage on the certify split, what is left.

    `damage` is the drop of the metric, or for embeddings 1 - the correlation of all pairwise
    similarities with the original's; `low` and `high` its 95 % interval; `smooth` is the mean
    damage by the smooth metric, `left` the share of FLOPs.
    """

    model: str
    table: str
    method: Method
    blocks: int
    damage: float
    low: float
    high: float
    smooth: float
    left: float
    replaced: tuple[str, ...]
    refits: int
    against_best: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Prediction:
    """Error of a surrogate at its exit, E |y - map|^2 / tr(Cyy): foretold on select, from moments,
    when the plan was chosen, and measured on the certify split in the model that came out.
    """

    span: str
    form: Form
    rows_per_column: float
    predicted: float
    measured: float


@dataclass(frozen=True)
class Ablation:
    """blockfold's plan at one depth without one of its parts."""

    blocks: int
    without: str
    damage: float
    smooth: float


@dataclass
class Comparison:
    """All cells of one model; `unit` is what their damages are of."""

    name: str
    unit: str
    original: float
    samples: int
    cells: list[Cell] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    ablations: list[Ablation] = field(default_factory=list)
