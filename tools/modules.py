"""The main jobs on torch modules: capture, decide on the ONNX export, make the same in the module.

What will serve is the export, so latencies, damages and the promise are those of the export.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from ..calibration.intake import one_line
from ..calibration.runtime import Runtime
from ..calibration.sweep import Pair
from ..ir.errors import BadInput, Unsupported
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_linear import linear_into
from ..ir.onnx_unfuse import unfuse
from ..ir.scratch import Scratch
from ..ir.torch_export import to_onnx
from ..ir.torch_module import CompressedModule
from ..ir.torch_view import capture
from ..passes.layout import anatomies
from ..passes.plan import Plan, read_plan, replacements_of
from ..passes.sweep import AnySweep, Sweep
from ..passes.task import Task
from ..passes.torch_sweep import ModuleSweep
from ..passes.transplant import Export, transplant
from .results import Result, to_be_written, write_plan

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True, eq=False)
class ModuleResult(Result):
    """An optimized module: `model` is a torch.fx.GraphModule, `onnx` what was certified.

    `inputs` are those that it was captured with, for an export of one's own.
    """

    module: CompressedModule
    inputs: Inputs
    dynamic_shapes: Any
    held: Scratch | None

    @property
    def model(self) -> CompressedModule:  # type: ignore[override]  # of the kind that was given
        return self.module

    @property
    def onnx(self) -> OnnxModel:
        return self.optimized.model

    def fill(self, folder: Path, target: Path) -> tuple[Path, ...]:
        """Write `.onnx`, or `.pt2` (torch.export), with plan and tensors."""
        if target.suffix != ".pt2":
            return super().fill(folder, target)
        args, kwargs = self.inputs
        program = capture(self.module, args, kwargs, self.dynamic_shapes)
        try:
            torch.export.save(program, folder / target.name)
        except (OSError, RuntimeError) as error:  # torch has a RuntimeError for a full disk
            raise BadInput(
                f"{target}: cannot write there: {one_line(error)}; choose another place"
            ) from error
        write_plan(self.plan, self.optimized.tensors, folder / target.name)
        return to_be_written(folder, target)


@dataclass(frozen=True, eq=False)
class Captured:
    """A module as torch captured it, and its export."""

    program: ExportedProgram
    onnx: OnnxModel
    inputs: Inputs
    dynamic_shapes: Any
    held: Scratch | None

    def export(self, runtime: Runtime) -> Export:
        plain = unfuse(self.onnx)
        return Export(plain, anatomies(plain), runtime)

    def sweep(self, task: Task, pairs: Sequence[Pair], taps: Sequence[str]) -> AnySweep:
        """A sweep on the accelerator where the module lies, on the CPU one of its export."""
        if not _is_on_accelerator(self.program):
            return Sweep(task, pairs, taps)
        try:
            export = self.export(task.runtime)
            return ModuleSweep(self.program, export, self.feeds, task, pairs)
        except Unsupported as error:
            warnings.warn(f"surveyed as ONNX: {error}", RuntimeWarning, stacklevel=2)
            return Sweep(task, pairs, taps)

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        """The inputs captured with, as the export takes them."""
        leaves = [leaf for leaf in pytree.tree_leaves(self.inputs) if _is_tensor(leaf)]
        arrays = [leaf.detach().cpu().numpy() for leaf in leaves]
        return dict(zip(self.onnx.graph.inputs, arrays, strict=True))


def captured(
    module: torch.nn.Module | ExportedProgram,
    data: object,
    example_inputs: object,
    dynamic_shapes: Any,
) -> Captured:
    """Capture and export a module in evaluation mode; what it was like is restored."""
    if isinstance(module, ExportedProgram):
        if module.example_inputs is None:
            raise BadInput("the ExportedProgram holds no example inputs; give example_inputs")
        program, inputs = module, module.example_inputs
    else:
        inputs = _inputs(module, data, example_inputs)
        _require_one_place(module, inputs)
        if dynamic_shapes is None:
            dynamic_shapes = free_batch(inputs)
        with evaluating(module):
            program = capture(module, *inputs, dynamic_shapes)
    onnx, held = to_onnx(program)
    return Captured(program, onnx, inputs, dynamic_shapes, held)


def finish(found: Captured, result: Result, runtime: Runtime) -> ModuleResult:
    """The result of optimizing the export, with the same made in the module."""
    export = found.export(runtime)
    tensors = _tensors(result.optimized.tensors)
    replacements = replacements_of(export.model, result.plan, tensors)
    module = transplant(found.program, export, replacements, found.feeds)
    return ModuleResult(
        result.optimized,
        result.before,
        result.after,
        result.survey,
        module,
        found.inputs,
        found.dynamic_shapes,
        found.held,
    )


@dataclass(frozen=True, eq=False)
class Replayed:
    """A module with a plan's maps in it."""

    model: CompressedModule
    plan: Plan


def replayed(found: Captured, plan: Path, runtime: Runtime) -> Replayed:
    """The plan's replacements made in a module, which may be of another dtype, uncertified.

    Raises BadInput where the plan is edited, or of another network.
    """
    known, tensors = read_plan(plan)
    if known.is_edited:
        raise BadInput(f"{plan}: an edited plan is solved again on the ONNX export; give that")
    export = found.export(runtime)
    if known.cache.outputs:
        raise BadInput(f"{plan}: drops caches, and a captured module keeps its outputs; export it")
    is_same = found.onnx.sha256 == known.model.sha256
    placed = known if is_same else _placed(export, known)
    replacements = replacements_of(export.model, placed, tensors)
    feeds = found.feeds if is_same else None
    return Replayed(transplant(found.program, export, replacements, feeds), known)


def _placed(export: Export, plan: Plan) -> Plan:
    """The plan with the names that its places have in another export of the network."""
    by_name = {stream.chain.source: stream for stream in export.streams}

    def renamed(decision: Any) -> Any:
        stream = by_name.get(decision.stream)
        if stream is None and len(export.streams) == 1:
            stream = export.streams[0]
        if stream is None or decision.stop >= len(stream.chain.cuts):
            raise BadInput(f"the plan's {decision.name!r} is no stretch of this module")
        cuts = stream.chain.cuts
        begin, end = cuts[decision.start], cuts[decision.stop]
        folds = None if decision.folds is None else begin.first
        if folds is not None and linear_into(export.model, folds) is None:
            raise BadInput(f"the plan's {decision.name!r} folds what this module has not")
        return decision.model_copy(
            update={
                "stream": stream.chain.source,
                "entry": decision.entry if decision.entry in begin.values else begin.last,
                "exit": end.first,
                "folds": folds,
                "dtype": export.model.graph.value(end.first).dtype or decision.dtype,
            }
        )

    return plan.model_copy(
        update={
            "decisions": tuple(map(renamed, plan.decisions)),
            "refits": tuple(map(renamed, plan.refits)),
        }
    )


def _tensors(content: bytes) -> Mapping[str, Any]:
    from safetensors.numpy import load

    return load(content)


@contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Within: all of the module is in evaluation mode."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def free_batch(inputs: Inputs) -> Any:
    """dynamic_shapes that leave the first axis of every tensor free."""

    def free(leaf: object) -> object:
        return {0: Dim.AUTO} if _is_tensor(leaf) and leaf.ndim else None  # type: ignore[attr-defined]

    args, kwargs = inputs
    by_place, by_name = pytree.tree_map(free, (args, kwargs))
    return (*by_place, *by_name.values()) if args else by_name


def _is_on_accelerator(program: ExportedProgram) -> bool:
    tensors = (*program.parameters(), *program.buffers())
    return any(tensor.device.type != "cpu" for tensor in tensors)


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor)


def _inputs(module: torch.nn.Module, data: object, given: object) -> Inputs:
    """Example inputs as (args, kwargs): those given, else the first samples of the data."""
    if given is None:
        place = next(iter(module.parameters()), torch.zeros(0)).device
        found = {name: torch.from_numpy(rows).to(place) for name, rows in _first(data).items()}
        return (), found
    if isinstance(given, Mapping):
        return (), dict(given)
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], dict):
        args, kwargs = given
        return tuple(args), dict(kwargs)
    if isinstance(given, tuple):
        return given, {}
    if isinstance(given, torch.Tensor):
        return (given,), {}
    raise BadInput(
        f"example_inputs is a {type(given).__name__}; give a tensor, a tuple of positional ones, a "
        "dict by name, or (tuple, dict)"
    )


APART = frozenset({"labels", "groups"})


def _first(data: object) -> dict[str, np.ndarray]:
    """Two samples of data that lies there as arrays, by the names of the module's inputs."""
    arrays: Mapping[str, Any] | None = data if isinstance(data, Mapping) else None
    if isinstance(data, str | os.PathLike) and str(data).endswith(".npz"):
        try:
            with np.load(data, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files if name not in APART}
        except (OSError, ValueError) as error:
            raise BadInput(f"{data}: cannot read the data: {error}") from error
    if arrays is None:
        raise BadInput("give example_inputs: a tuple or dict of tensors as the module is called")
    found = {name: np.asarray(rows)[:2] for name, rows in arrays.items() if name not in APART}
    return {
        name: rows.astype(np.float32) if rows.dtype == np.float64 else rows
        for name, rows in found.items()
    }


def _require_one_place(module: torch.nn.Module, inputs: Inputs) -> None:
    """BadInput where example inputs are not on the device of the weights."""
    place = next((p.device for p in module.parameters()), None)
    for leaf in pytree.tree_leaves(inputs):
        if place is not None and _is_tensor(leaf) and leaf.device != place:
            raise BadInput(
                f"the module is on {place} and an example input on {leaf.device}; move one of them"
            )
