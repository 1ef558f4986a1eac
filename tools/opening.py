"""Opening what the user gave: settings, a model, data and plans, made into a task."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from ..calibration.data import Dataset
from ..calibration.latency import Profile, profile_from_data
from ..calibration.quality import METRICS, Judge
from ..calibration.runtime import Runtime, choose_runtime, fixed_batch
from ..calibration.sources import open_data, random_data
from ..calibration.splits import DEFAULT, Fractions, Splits, split
from ..ir.errors import BadInput
from ..ir.onnx_file import OnnxModel, read
from ..passes.costs import Costs
from ..passes.optimize import PLAN_KEY
from ..passes.plan import Plan, read_plan
from ..passes.task import Stage, Task, make_task, silent
from .results import plan_path

if TYPE_CHECKING:
    import torch

    Module = torch.nn.Module | torch.export.ExportedProgram
    OnnxLike = str | os.PathLike[str] | onnx.ModelProto | OnnxModel
    Model = OnnxLike | Module


@dataclass(frozen=True)
class Settings:
    """How models are run and judged. Every field has a default that suits most models.

    metric: a name, as of `--metric`, or a function f(outputs, labels) -> (samples,).
    random_samples: so many made-up samples instead of data, stamped as such in the result.
    profile: lengths of axes to time at, `{"batch": 1, "seq": 128}`; default batch 1 and medians.
    """

    metric: str | Judge | None = None
    output: str | None = None
    mask: str | None = None
    provider: str | None = None
    threads: int = 0
    provider_options: Mapping[str, str] = field(default_factory=dict)
    custom_ops: tuple[str, ...] = ()
    batch: int = 32
    seed: int = 0
    fractions: Fractions = DEFAULT
    random_samples: int | None = None
    profile: Mapping[str, int] = field(default_factory=dict)
    stage: Stage = silent

    def __post_init__(self) -> None:
        """Raise BadInput for numbers that cannot be."""
        least = {"batch": 1, "threads": 0, "seed": 0, "random_samples": 1}
        numbers = {name: getattr(self, name) for name in least} | dict(self.profile)
        for name, number in numbers.items():
            if number is None and name == "random_samples":
                continue
            if not isinstance(number, int) or number < least.get(name, 1):
                raise BadInput(
                    f"{name}={number!r}: must be a whole number from {least.get(name, 1)}"
                )

    def runtime(self) -> Runtime:
        return choose_runtime(self.provider, self.threads, self.provider_options, self.custom_ops)


def read_model(model: Model) -> OnnxModel:
    """An ONNX model. Raises BadInput for torch modules: their callers take them apart before."""
    if isinstance(model, OnnxModel):
        return model
    if not isinstance(model, str | os.PathLike | onnx.ModelProto):
        raise BadInput(f"{type(model).__name__}: no ONNX model; give a path or a ModelProto")
    return read(model)


def refuse_module_options(example_inputs: object, dynamic_shapes: object) -> None:
    if example_inputs is not None or dynamic_shapes is not None:
        raise BadInput("example_inputs and dynamic_shapes are for torch modules, not for ONNX")


def settings_of(settings: Mapping[str, Any]) -> Settings:
    try:
        return Settings(**settings)
    except TypeError as error:
        known = ", ".join(field.name for field in fields(Settings))
        raise BadInput(f"{error}; settings are {known}") from error


@contextmanager
def opened_data(model: OnnxModel, data: object, options: Settings) -> Iterator[Dataset]:
    if (data is None) == (options.random_samples is None):
        raise BadInput("give calibration data with --data, or a number with --random-data")
    if options.random_samples is not None:
        opened = random_data(model.inputs, options.random_samples, options.seed)
    else:
        opened = open_data(data, model.inputs)
    with opened:
        yield opened


@contextmanager
def opened_task(
    model: OnnxModel, data: object, options: Settings, *, drop_cache: bool = False
) -> Iterator[Task]:
    with opened_data(model, data, options) as opened:
        splits = split(
            opened.samples, fractions=options.fractions, seed=options.seed, groups=opened.groups
        )
        yield task_of(model, opened, splits, options, drop_cache=drop_cache)


def task_of(
    model: OnnxModel,
    data: Dataset,
    splits: Splits,
    options: Settings,
    *,
    drop_cache: bool = False,
) -> Task:
    return make_task(
        model,
        data,
        splits,
        options.runtime(),
        metric=options.metric,
        output=options.output,
        mask=options.mask,
        batch=options.batch,
        stage=options.stage,
        drop_cache=drop_cache,
    )


def profile_of(task: Task, options: Settings) -> Profile:
    return profile_from_data(task.data, task.model.inputs, options.profile, fixed_batch(task.model))


def costs_of(path: Path) -> Costs:
    known, _ = read_plan(path)
    if known.costs is None:
        raise BadInput(f"--costs {path}: that plan holds no measured costs")
    return known.costs


def as_planned(options: Settings, plan: Plan) -> Settings:
    """The settings, with what they leave open as the plan has it; a plan names no code to run."""
    if options.metric is None and plan.metric not in METRICS:
        raise BadInput(
            f"the plan was judged by {plan.metric!r}, which is none of our metrics, and no plan "
            "may load code: name it with --metric"
        )
    return replace(
        options,
        metric=plan.metric if options.metric is None else options.metric,
        output=options.output or plan.output,
        mask=options.mask or plan.data.mask,
    )


def plan_beside(
    new: Model, read_in: OnnxModel, given: str | os.PathLike[str] | None
) -> Plan | None:
    """The plan given, or the one beside the new model, if there is one.

    Raises BadInput where the model says that it was made by another plan.
    """
    if given is not None:
        path = Path(given)
    elif isinstance(new, str | os.PathLike) and plan_path(Path(new)).is_file():
        path = plan_path(Path(new))
    else:
        return None
    plan = read_plan(path)[0]
    made_by = {entry.key: entry.value for entry in read_in.proto.metadata_props}.get(PLAN_KEY)
    if made_by not in (None, plan.sha256):
        raise BadInput(
            f"{path}: not the plan of that model, which names another; if a run that wrote them "
            "was cut short, run it again; else name the right one with --plan"
        )
    return plan
