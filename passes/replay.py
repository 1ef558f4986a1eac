"""Replay: make the model of a plan again, exactly, or solve an edited plan anew."""

from __future__ import annotations

from collections.abc import Mapping

from ..calibration.moments import Array
from ..ir.errors import BadInput
from ..ir.onnx_file import OnnxModel
from .base import PassResult
from .optimize import make_plan, provenance
from .pipeline import ALL_PASSES, rewrite
from .plan import Plan, replacements_of, span_of, tensor_bytes, tensors_of
from .replacement import Replacement
from .score import measure
from .task import Task


def require_parent(plan: Plan, model: OnnxModel) -> None:
    """BadInput unless the plan was made for this very model."""
    if model.sha256 != plan.model.sha256:
        raise BadInput(
            f"the plan was made for another model (sha256 {plan.model.sha256[:12]}..., this one "
            f"has {model.sha256[:12]}...); give the original it was made from"
        )


def replay(model: OnnxModel, plan: Plan, tensors: Mapping[str, Array]) -> PassResult:
    """The plan's model, byte for byte, from its solved tensors. The plan must be unedited."""
    require_parent(plan, model)
    return rewrite(model, replacements_of(plan, tensors), provenance(plan), ALL_PASSES)


def resolve(task: Task, plan: Plan) -> tuple[PassResult, Plan, bytes]:
    """Solve every map of an edited plan again on the task's data; also the new plan and tensors.

    Raises BadInput where a decision names values that the model does not have.
    """
    require_parent(plan, task.model)
    made = task.model.graph.producer
    for decision in plan.decisions:
        for name in (decision.entry, decision.exit):
            if name not in made and name not in task.model.graph.inputs:
                raise BadInput(f"the plan's {decision.name!r} names {name!r}, not in the model")
    spans = [span_of(decision) for decision in plan.decisions]
    replacements = []
    for decision, found in zip(plan.decisions, measure(task, spans, "solve again"), strict=True):
        if decision.surrogate == "identity":
            replacements.append(Replacement(found.span, None, found.identity_error))
        else:
            solution = found.solved_on_both()
            replacements.append(Replacement(found.span, solution, found.affine_error))
    tensors = tensor_bytes(tensors_of(replacements))
    fresh = make_plan(task, plan.budget, replacements, (), tensors)
    return rewrite(task.model, replacements, provenance(fresh), ALL_PASSES), fresh, tensors
