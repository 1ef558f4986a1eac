"""The plan: every decision of an optimization as a document that prints, travels and replays.

Decisions and what they rest on are hashed; measurements of time and the verdict stand outside the
hash, for the model is frozen before they are taken. Solved tensors lie beside it as safetensors.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ..calibration.moments import Array
from ..calibration.solve import Solution
from ..ir.errors import BadInput
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_linear import linear_into
from ..ir.spans import Refusal, Span
from .budget import Budget
from .costs import Costs
from .plan_checks import require_map, require_place
from .rating import Metric
from .recipe import Healing
from .replacement import Replacement
from .surrogates import Form
from .verify import Verdict


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class ModelRecord(_Record):
    sha256: str
    size_bytes: int
    nodes: int
    parameters: int


class DataRecord(_Record):
    sha256: str
    samples: int
    fit: int
    select: int
    certify: int
    seed: int
    fractions: tuple[float, float, float]
    mask: str | None
    random: bool


class CacheRecord(_Record):
    """What became of a decoder's caches; `allowed`: they might go with the blocks that keep them.

    `inputs` and `outputs` of the original are gone, all others are there, under their old names.
    `still_read` are inputs whose outputs are gone, but that something else reads: they stay.
    """

    allowed: bool = False
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    still_read: tuple[str, ...] = ()


class Decision(_Record):
    """One replacement. `ridge`, `rows`, `input_rank` and `condition` tell how a map was solved.

    `folds` is the sum whose linear operation is solved again, `mask` the input that marks padding,
    `dropped` are outputs of the model that go with it.
    """

    name: str
    stream: str
    start: int
    stop: int
    blocks: float
    entry: str
    exit: str
    channel_axis: int
    rank: int
    dtype: str
    surrogate: Form
    predicted_error: float
    ridge: float | None = None
    rows: int | None = None
    input_rank: int | None = None
    condition: float | None = None
    warning: str | None = None
    folds: str | None = None
    mask: str | None = None
    width: int = 0
    strides: tuple[int, ...] = ()
    entry_width: int = 0
    dropped: tuple[str, ...] = ()


class TrialRecord(_Record):
    """A set of replacements tried on select, by name and surrogate."""

    replaced: tuple[str, ...]
    blocks: float
    drop: float
    expected_bound: float
    chance: float
    expected_speedup: float


class LatencyRecord(_Record):
    """Original over new: above 1 the new model is faster. low, high: 10th and 90th percentile."""

    profile: str
    ratio: float
    low: float
    high: float
    original_ms: float
    new_ms: float


class Plan(_Record):
    """See the module. `sha256` covers everything above it.

    `exit_errors` are what the decisions' predicted errors came to, on samples held back.
    """

    schema_version: Literal[1] = 1
    blockfold: str
    versions: dict[str, str]
    provider: str
    threads: int
    batch: int
    metric: str
    output: str
    budget: Budget
    skipped: tuple[str, ...]
    model: ModelRecord
    data: DataRecord
    decisions: tuple[Decision, ...]
    refits: tuple[Decision, ...] = ()
    method: str = "blockfold"
    rank_by: Metric | None = None
    healing: Healing = Healing()
    cache: CacheRecord = CacheRecord()
    refusals: tuple[Refusal, ...]
    tensors_sha256: str
    sha256: str = ""
    costs: Costs | None = None
    trials: tuple[TrialRecord, ...] = ()
    latency: LatencyRecord | None = None
    verdict: Verdict | None = None
    exit_errors: tuple[float, ...] = ()

    def digest(self) -> str:
        """Hash of the decisions and what they rest on."""
        measured = {"sha256", "costs", "trials", "latency", "verdict", "exit_errors"}
        content = self.model_dump(mode="json", exclude=measured)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def is_edited(self) -> bool:
        return self.digest() != self.sha256


def tensors_of(replacements: Sequence[Replacement]) -> dict[str, Array]:
    """The solved tensors, named by position: "0.W" (d, d), "0.b" (d,)."""
    found: dict[str, Array] = {}
    for at, replacement in enumerate(refits_last(replacements)):
        if replacement.solution is not None:
            found[f"{at}.W"] = np.ascontiguousarray(replacement.solution.W)
            found[f"{at}.b"] = np.ascontiguousarray(replacement.solution.b)
    return found


def refits_last(replacements: Sequence[Replacement]) -> list[Replacement]:
    return sorted(replacements, key=lambda replacement: replacement.form == "refit")


def tensor_bytes(tensors: Mapping[str, Array]) -> bytes:
    return save_tensors(dict(tensors))


FEW_ROWS_PER_CHANNEL = 10


def decision_of(replacement: Replacement) -> Decision:
    """The record of a replacement."""
    span, solution = replacement.span, replacement.solution
    few = None
    if solution is not None and solution.rows < FEW_ROWS_PER_CHANNEL * len(solution.W):
        few = f"solved on {solution.rows} rows for {len(solution.W)} channels: few; give more data"
    return Decision(
        name=span.name,
        stream=span.stream,
        start=span.start,
        stop=span.stop,
        blocks=span.blocks,
        entry=span.entry,
        exit=span.exit,
        channel_axis=span.channel_axis,
        rank=span.rank,
        dtype=span.dtype,
        surrogate=replacement.surrogate,
        predicted_error=replacement.predicted_error,
        ridge=None if solution is None else solution.ridge,
        rows=None if solution is None else solution.rows,
        input_rank=None if solution is None else solution.rank,
        condition=solution.condition if solution else None,
        warning=few,
        folds=None if replacement.linear is None else replacement.linear.value,
        mask=replacement.mask,
        width=span.width,
        strides=span.strides,
        entry_width=span.entry_width,
        dropped=span.dropped,
    )


def span_of(decision: Decision) -> Span:
    """The span that a decision replaces, as far as a rewrite needs it."""
    return Span(
        stream=decision.stream,
        start=decision.start,
        stop=decision.stop,
        entry=decision.entry,
        exit=decision.exit,
        channel_axis=decision.channel_axis,
        rank=decision.rank,
        dtype=decision.dtype,
        name=decision.name,
        blocks=decision.blocks,
        removed=frozenset(),
        side_inputs=(),
        width=decision.width,
        strides=decision.strides,
        entry_width=decision.entry_width,
        dropped=decision.dropped,
    )


def replacements_of(
    model: OnnxModel, plan: Plan, tensors: Mapping[str, Array]
) -> tuple[Replacement, ...]:
    """The replacements of an unedited plan, refits last; `model` as it is analysed.

    Raises BadInput where a tensor is missing or odd, or the model is not one they fit.
    """
    found = []
    made = Counter(decision.exit for decision in (*plan.decisions, *plan.refits))
    if made and max(made.values()) > 1:
        raise BadInput(f"the plan makes {max(made, key=made.__getitem__)!r} more than once")
    for at, decision in enumerate((*plan.decisions, *plan.refits)):
        solution = None
        if decision.surrogate != "identity":
            W, b = tensors.get(f"{at}.W"), tensors.get(f"{at}.b")
            if W is None or b is None or (b.ndim, W.ndim) != (1, 2) or W.shape[1] != len(b):
                raise BadInput(
                    f"the plan's tensors do not hold a map for {decision.name!r}; "
                    "keep PLAN.json and its .safetensors together"
                )
            solution = Solution(
                W,
                b,
                decision.ridge or 0.0,
                decision.rows or 0,
                decision.input_rank or 0,
                decision.condition or 0.0,
            )
        linear = None
        if decision.folds is not None:
            linear = linear_into(model, decision.folds)
            if linear is None:
                raise BadInput(
                    f"the plan folds {decision.folds!r}, which no linear operation of this model "
                    "feeds; give the original it was made from"
                )
        require_place(model, decision, linear)
        if solution is not None:
            require_map(model, decision, linear, solution.W, solution.b)
        found.append(
            Replacement(
                span_of(decision),
                solution,
                decision.predicted_error,
                decision.surrogate,
                linear,
                decision.mask,
            )
        )
    return tuple(found)


def tensors_path(plan: Path) -> Path:
    """Where the tensors of a plan lie: PLAN.json -> PLAN.safetensors."""
    return plan.with_suffix(".safetensors")


def read_plan(path: Path) -> tuple[Plan, dict[str, Array]]:
    """A plan and its tensors. Raises BadInput for anything that is not one, whole and unbroken."""
    try:
        plan = Plan.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadInput(f"{path}: cannot read the plan: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadInput(f"{path}: not a plan: {where}: {first['msg']}") from error
    beside = tensors_path(path)
    try:
        content = beside.read_bytes()
        tensors = load_tensors(content)
    except OSError as error:
        raise BadInput(
            f"{beside}: cannot read the plan's tensors: {error.strerror}; keep both files together"
        ) from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise BadInput(f"{beside}: broken tensors ({error}); copy the file again") from error
    if hashlib.sha256(content).hexdigest() != plan.tensors_sha256:
        raise BadInput(f"{beside}: its tensors belong to another plan; keep both files together")
    return plan, tensors
