"""Replay: make the model of a plan again, exactly, or solve an edited plan anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..calibration.moments import Array
from ..ir.blocks import Anatomy
from ..ir.channels import ObservedShapes
from ..ir.errors import BadInput
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_unfuse import unfuse
from ..ir.spans import Refusal, Span, prove
from .base import PassError, PassResult
from .fit import Walk
from .layout import anatomies, observe
from .optimize import make_plan, provenance
from .pipeline import Switches, rewrite
from .plan import Decision, Plan, replacements_of, tensor_bytes, tensors_of
from .recipe import Recipe
from .replacement import Replacement
from .stops import find_stops
from .surrogates import CONTEXT, FOLDED, Wish
from .task import Task


def require_parent(plan: Plan, model: OnnxModel) -> None:
    """BadInput unless the plan was made for this very model."""
    if model.sha256 != plan.model.sha256:
        raise BadInput(
            f"the plan was made for another model (sha256 {plan.model.sha256[:12]}..., this one "
            f"has {model.sha256[:12]}...); give the original it was made from"
        )


def replay(model: OnnxModel, plan: Plan, tensors: Mapping[str, Array]) -> PassResult:
    """The plan's model, byte for byte, from its solved tensors. The plan must be unedited.

    Raises BadInput where it was not made for this model, whatever its hash says.
    """
    require_parent(plan, model)
    switches = Switches(frozenset(plan.skipped))
    replacements = replacements_of(unfuse(model), plan, tensors)
    try:
        return rewrite(model, replacements, provenance(plan), switches)
    except PassError as error:
        raise BadInput(f"the plan does not fit the model: {error}") from error


def resolve(task: Task, plan: Plan) -> tuple[PassResult, Plan, bytes]:
    """Solve every map of an edited plan again on the task's data; also the new plan and tensors.

    Raises BadInput where a decision is not a span of the model, or two of them touch.
    """
    require_parent(plan, task.model)
    switches = Switches(frozenset(plan.skipped))
    streams = {stream.chain.source: stream for stream in anatomies(task.plain)}
    observed = observe(task, list(streams.values()))
    spans = _prove_again(task, plan, streams, observed)
    forms = [decision.surrogate for decision in plan.decisions]
    wishes = tuple(Wish(span, form) for span, form in zip(spans, forms, strict=True))
    walk = Walk(task, find_stops(task, list(streams.values()), observed))
    for wish in wishes:
        _require_form(wish, walk)
    replacements: tuple[Replacement, ...] = ()
    if wishes:
        (fitted,) = walk([Recipe(wishes, plan.healing)])
        fitted.require()
        fitted.close()
        (replacements,) = walk.solved_on_both([(fitted.recipe, fitted.replacements)])
    tensors = tensor_bytes(tensors_of(replacements))
    fresh = make_plan(
        task,
        plan.budget,
        switches,
        replacements,
        plan.healing,
        plan.refusals,
        tensors,
        plan.method,
        plan.rank_by,
    )
    return rewrite(task.model, replacements, provenance(fresh), switches), fresh, tensors


def _prove_again(
    task: Task, plan: Plan, streams: Mapping[str, Anatomy], observed: ObservedShapes
) -> list[Span]:
    """The spans of the decisions, proved on the model: an edited file is not to be trusted."""
    spans: list[Span] = []
    for decision in plan.decisions:
        stream = streams.get(decision.stream)
        cuts = () if stream is None else stream.chain.cuts
        if stream is None or not 0 <= decision.start < decision.stop < len(cuts):
            raise BadInput(f"the plan's {decision.name!r} is no stretch of a stream of this model")
        at = decision.start, decision.stop
        proved = prove(task.plain.graph, stream, *at, observed, task.droppable)
        if isinstance(proved, Refusal):
            raise BadInput(
                f"the plan's {decision.name!r} cannot be replaced: {proved.reason} ({proved.node})"
            )
        _require_same(decision, proved)
        if any(proved.touches(other) for other in spans):
            raise BadInput(f"the plan's {decision.name!r} touches another of its spans; join them")
        spans.append(replace(proved, name=decision.name))
    return spans


def _require_form(wish: Wish, walk: Walk) -> None:
    """BadInput where a span cannot have the form of surrogate that an edited plan asks for."""
    span, form = wish.span, wish.form
    begin = span.stream, span.start
    is_fed = any(stop.linear and (stop.stream, stop.cut) == begin for stop in walk.stops)
    is_aligned = any(s.is_aligned and (s.stream, s.cut) == begin for s in walk.stops)
    if form == "refit":
        why = "a refit stands for no span"
    elif span.strides and form not in ("affine", "conv"):
        why = "its ends differ in shape"
    elif form in FOLDED and not is_fed:
        why = "no linear operation feeds its entry"
    elif form == "conv" and not span.is_map:
        why = "its ends are no feature maps"
    elif form in CONTEXT & FOLDED and not is_aligned:
        why = "what feeds its entry has no mean of its own"
    elif form in CONTEXT and span.rank < 3:
        why = "its samples have a single row each"
    else:
        return
    raise BadInput(f"the plan's {span.name!r} cannot be {form!r}: {why}; choose another surrogate")


def _require_same(decision: Decision, proved: Span) -> None:
    for field in ("entry", "exit", "channel_axis", "rank", "dtype"):
        said, found = getattr(decision, field), getattr(proved, field)
        if said != found:
            raise BadInput(
                f"the plan's {decision.name!r} has {field} {said!r}, the model {found!r}; "
                "choose spans by start and stop as `inspect --json` lists them"
            )
