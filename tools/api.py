"""Jobs that look into a model or change it: open what was given, run the passes, hand back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from ..ir.errors import BadInput, NotMet
from ..ir.onnx_file import OnnxModel, read, write
from ..ir.onnx_unfuse import unfuse
from ..ir.staging import staged
from ..passes.budget import Budget
from ..passes.facts import Facts
from ..passes.layout import anatomies, offered
from ..passes.methods import METHODS, Method
from ..passes.optimize import (
    Freeze,
    Rejected,
    freeze_in_memory,
    require_enough_samples,
    why_not_kept,
)
from ..passes.optimize import optimize as run_optimize
from ..passes.pipeline import Switches
from ..passes.plan import read_plan, tensors_path
from ..passes.rating import METRICS, Metric
from ..passes.replay import replay, require_parent, resolve
from ..passes.score import score
from ..passes.task import droppable
from ..passes.verify import verify as run_verify
from .loading import find_module, is_module
from .opening import (
    as_planned,
    costs_of,
    opened_task,
    profile_of,
    read_model,
    refuse_module_options,
    settings_of,
)
from .results import (
    Applied,
    Inspection,
    NotKept,
    Result,
    refuse_to_overwrite,
    report_path,
    to_be_written,
    write_plan,
)
from .surveying import inspected

if TYPE_CHECKING:
    from .modules import Replayed
    from .opening import Model, Module, OnnxLike

SURVEYED = 256
"""Samples of the fit and of the select split that the layers are looked at on, for a report."""


def optimize(
    model: Model,
    data: object = None,
    *,
    max_drop: float | None = None,
    speedup: float | None = None,
    remove: float | None = None,
    max_size_bytes: int | None = None,
    costs: str | os.PathLike[str] | None = None,
    skip: Sequence[str] = (),
    method: Method = "blockfold",
    rank_by: Metric | None = None,
    drop_cache: bool = False,
    freeze: Freeze = freeze_in_memory,
    survey: bool = True,
    example_inputs: object = None,
    dynamic_shapes: Any = None,
    **settings: Any,
) -> Result:
    """Replace blocks of a model within a budget and certify the result.

    model: a path, a ModelProto, a torch.nn.Module or ExportedProgram; of these two the result's
    `model` is a torch.fx.GraphModule, and what is certified is the ONNX export. example_inputs: a
    tuple or dict of tensors to capture a module with; default two samples of the data.
    dynamic_shapes: as torch.export takes it; default the first axis of every input.
    data: anything `--data` takes, or arrays, an iterable, a reader.
    max_drop: quality that may be lost (0.01: one point); speedup, remove (blocks) and
    max_size_bytes: targets. costs: a plan to reuse measured costs of. skip: names of passes to
    leave out. method: a published method to run instead, for comparison (passes/methods).
    rank_by: a metric of redundancy that shortlists spans instead of the damage foretold of them.
    drop_cache: let the caches of an ONNX decoder (keys and values of earlier tokens) go with the
    blocks that keep them; the result then lacks these inputs and outputs.
    survey: whether the layers are looked at on a few samples, for the report.
    settings: the fields of Settings.

    Raises NotKept (a NotMet that can write a report), BadInput or Unsupported; see the errors.
    """
    loaded = find_module(model)
    if loaded is not None:
        from . import modules

        if drop_cache:
            raise BadInput(
                "drop_cache: a captured module keeps its inputs and outputs; export it and give "
                "the ONNX file"
            )
        given = loaded.inputs if example_inputs is None else example_inputs
        found = modules.captured(loaded.module, data, given, dynamic_shapes)
        decided = optimize(
            found.onnx,
            data,
            max_drop=max_drop,
            speedup=speedup,
            remove=remove,
            max_size_bytes=max_size_bytes,
            costs=costs,
            skip=skip,
            method=method,
            rank_by=rank_by,
            freeze=freeze,
            survey=survey,
            **settings,
        )
        return modules.finish(found, decided, settings_of(settings).runtime())
    refuse_module_options(example_inputs, dynamic_shapes)
    options = settings_of(settings)
    budget = Budget.of(max_drop, speedup, remove, max_size_bytes)
    switches = Switches(frozenset(skip))
    if method not in METHODS:
        raise BadInput(f"method={method!r}: unknown; it is one of {', '.join(METHODS)}")
    if rank_by is not None and rank_by not in METRICS:
        raise BadInput(f"rank_by={rank_by!r}: unknown; it is one of {', '.join(METRICS)}")
    if rank_by is not None and method != "blockfold":
        raise BadInput(f"--rank-by {rank_by}: --method {method} has a rule of its own; leave one")
    with opened_task(read_model(model), data, options, drop_cache=drop_cache) as task:
        profile = profile_of(task, options)
        known = None if costs is None else costs_of(Path(costs))
        before = Facts.of(task.model, task.runtime, profile)
        try:
            optimized = run_optimize(
                task,
                budget,
                profile,
                costs=known,
                method=method,
                rank_by=rank_by,
                freeze=freeze,
                switches=switches,
            )
        except Rejected as rejected:
            seen = score(task, most=SURVEYED) if survey else None
            raise NotKept(str(rejected), rejected.attempt, before, seen) from rejected
        after = Facts.of(optimized.model, task.runtime, profile)
        return Result(optimized, before, after, score(task, most=SURVEYED) if survey else None)


def optimize_to(
    path: str | os.PathLike[str],
    model: Model,
    data: object = None,
    *,
    report: bool = True,
    command: str | None = None,
    **options: Any,
) -> tuple[Result, tuple[Path, ...]]:
    """As `optimize`, into files: the very file that is renamed into place is the one certified.

    A module becomes an ONNX file, or where the path ends in .pt2 an ExportedProgram. The report
    beside it is written, too, where nothing else is; `command` is what it says to run again.
    """
    target = Path(path)
    parent = model if find_module(model) else read_model(model)
    refuse_to_overwrite(target, model, data)
    is_program = target.suffix == ".pt2"
    if is_program and isinstance(parent, OnnxModel):
        raise BadInput(f"{target}: only a torch module can be written so; name it OUT.onnx")
    beside = report_path(target)
    try:
        with staged(target) as folder:
            if not is_program:
                options["freeze"] = lambda made: _freeze(made, folder / target.name)
            result = optimize(parent, data, survey=report, **options)
            if is_program:
                result.fill(folder, target)
            else:
                write_plan(result.plan, result.optimized.tensors, folder / target.name)
            if report:
                result.report(folder / beside.name, command)
            return result, to_be_written(folder, target)
    except NotKept as error:
        if not report:
            raise
        try:
            error.report(beside, command)
        except BadInput as unwritten:
            raise NotMet(f"{error}; no report: {unwritten}") from error
        raise NotMet(f"{error}; what was tried is in {beside}") from error


def inspect(
    model: Model,
    data: object = None,
    *,
    statistics: Sequence[str | os.PathLike[str]] = (),
    drop_cache: bool = False,
    example_inputs: object = None,
    dynamic_shapes: Any = None,
    **settings: Any,
) -> Inspection:
    """Blocks and spans of a model, and with data how redundant they are; changes nothing.

    Of a torch module those of its ONNX export. statistics: files of `survey`, instead of data.
    drop_cache: as `optimize` takes it.
    """
    options = settings_of(settings)
    loaded = find_module(model)
    if loaded is not None:
        from . import modules

        given = loaded.inputs if example_inputs is None else example_inputs
        found = modules.captured(loaded.module, data, given, dynamic_shapes)
        seen = inspect(found.onnx, data, statistics=statistics, drop_cache=drop_cache, **settings)
        return replace(seen, held=found.held)
    refuse_module_options(example_inputs, dynamic_shapes)
    read_in = read_model(model)
    if statistics:
        if data is not None or options.random_samples is not None:
            raise BadInput("give data or statistics, not both: `survey` adds data to statistics")
        if drop_cache:
            raise BadInput("statistics have settled what may go: give drop_cache to `survey`")
        return inspected(read_in, statistics)
    if data is None and options.random_samples is None:
        plain = unfuse(read_in)
        streams = anatomies(plain)
        may_go = droppable(plain) if drop_cache else frozenset()
        spans, refusals = offered(plain.graph, streams, None, may_go)
        return Inspection(read_in, plain.graph, streams, tuple(spans), tuple(refusals), None)
    with opened_task(read_in, data, options, drop_cache=drop_cache) as task:
        survey = score(task)
        return Inspection(
            read_in,
            task.plain.graph,
            survey.layout.anatomies,
            survey.layout.spans,
            survey.layout.refusals,
            survey,
            task.data.random,
        )


@overload
def apply(
    model: Module, plan: str | os.PathLike[str], data: object = None, **options: Any
) -> Replayed: ...


@overload
def apply(
    model: OnnxLike, plan: str | os.PathLike[str], data: object = None, **options: Any
) -> Applied: ...


def apply(
    model: Model,
    plan: str | os.PathLike[str],
    data: object = None,
    *,
    max_drop: float | None = None,
    example_inputs: object = None,
    dynamic_shapes: Any = None,
    **settings: Any,
) -> Applied | Replayed:
    """Make the model of a plan again, byte for byte.

    In a torch module, which may be of another dtype than the plan was made in, the plan's maps are
    put as they are; the result is not certified.

    An edited plan is solved again, which needs data, split as the plan says; the result is
    certified only with max_drop.
    Raises NotMet where that promise is not kept.
    """
    options = settings_of(settings)
    path = Path(plan)
    if is_module(model):
        from . import modules

        if max_drop is not None:
            raise BadInput("a torch module's replay is not certified; apply the plan to its export")
        captured = modules.captured(model, data, example_inputs, dynamic_shapes)
        return modules.replayed(captured, path, options.runtime())
    refuse_module_options(example_inputs, dynamic_shapes)
    read_in = read_model(model)
    known, tensors = read_plan(path)
    exact = None if known.is_edited else freeze_in_memory(replay(read_in, known, tensors).model)
    if exact is not None and max_drop is None:
        return Applied(exact, known, tensors_path(path).read_bytes(), None)
    require_parent(known, read_in)
    if data is None and options.random_samples is None:
        why = "an edited plan must be solved again" if exact is None else "a drop must be judged"
        raise BadInput(f"{path}: {why}: give --data")
    promise = None if max_drop is None else Budget.of(max_drop).max_drop
    chosen = replace(
        as_planned(options, known), seed=known.data.seed, fractions=known.data.fractions
    )
    with opened_task(read_in, data, chosen, drop_cache=known.cache.allowed) as task:
        require_enough_samples(task, promise)
        if exact is not None:
            made, fresh, solved = exact, known, tensors_path(path).read_bytes()
        else:
            rewritten, fresh, solved = resolve(task, known)
            made = freeze_in_memory(rewritten.model)
        verdict = run_verify(task, made, task.splits.certify, promise)
        reused = task.data.digest == known.data.sha256
    if not verdict.kept:
        raise NotMet(why_not_kept(verdict))
    fresh = fresh.model_copy(update={"verdict": verdict})
    return Applied(made, fresh, solved, verdict, reused)


def apply_to(
    path: str | os.PathLike[str],
    model: OnnxLike,
    plan: str | os.PathLike[str],
    data: object = None,
    **options: Any,
) -> tuple[Applied, tuple[Path, ...]]:
    """As `apply`, into files; whether they can be written is found out first."""
    target = Path(path)
    refuse_to_overwrite(target, model, data)
    if target.exists() and target.samefile(plan):
        raise BadInput(f"{target}: is the plan itself; choose another name with -o")
    with staged(target) as folder:
        applied = apply(model, plan, data, **options)
        return applied, applied.fill(folder, target)


def _freeze(model: OnnxModel, path: Path) -> OnnxModel:
    write(model, path)
    return read(path)
