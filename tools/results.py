"""What the main jobs hand back, and how it is written to disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import onnx

from ..ir.blocks import Anatomy
from ..ir.errors import BadInput, NotMet
from ..ir.graph import Graph
from ..ir.onnx_file import OnnxModel, write
from ..ir.spans import Refusal, Span
from ..ir.staging import staged, write_bytes
from ..passes.facts import Facts
from ..passes.optimize import Attempt, Optimized
from ..passes.plan import Plan, tensors_path
from ..passes.score import Survey
from ..passes.verify import Verdict


@dataclass(frozen=True, eq=False)
class Result:
    """An optimized model: `model` (onnx.ModelProto), `plan`, `verdict`, and facts of both.

    `survey` tells a report of the original's layers.
    """

    optimized: Optimized
    before: Facts
    after: Facts
    survey: Survey | None

    @property
    def model(self) -> onnx.ModelProto:
        return self.optimized.model.proto

    @property
    def plan(self) -> Plan:
        return self.optimized.plan

    @property
    def verdict(self) -> Verdict:
        return self.optimized.verdict

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write model, plan and tensors; all of them or none. Returns their paths."""
        with staged(Path(path)) as folder:
            return self.fill(folder, Path(path))

    def fill(self, folder: Path, target: Path) -> tuple[Path, ...]:
        """Write all files of `target` into a folder that `staged` gave. Returns where they go."""
        model, tensors = self.optimized.model, self.optimized.tensors
        return fill(folder, target, model, self.plan, tensors)

    def report(self, path: str | os.PathLike[str], command: str | None = None) -> Path:
        """Write the report, one HTML file; `command` is what it says to run again."""
        from .report import document, page

        return page.write_page(document.of_result(self, titled(path), command), Path(path))


class NotKept(NotMet):
    """NotMet, with what was tried and a report of it."""

    def __init__(self, why: str, attempt: Attempt, before: Facts, survey: Survey | None) -> None:
        super().__init__(why)
        self.attempt, self.before, self.survey = attempt, before, survey

    def report(self, path: str | os.PathLike[str], command: str | None = None) -> Path:
        """Write the report, one HTML file; `command` is what it says to run again."""
        from .report import document, page

        return page.write_page(document.of_rejection(self, titled(path), command), Path(path))


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a model is made of; `survey` where there was data, which may have been `random`.

    `graph` is the one that the spans are of: fused residual sums are taken apart in it. `held`
    keeps what the model's weights lie in, where that is a temporary folder. `samples` are those
    that statistics hold, and those that are due, where the survey was read from statistics.
    """

    model: OnnxModel
    graph: Graph
    anatomies: tuple[Anatomy, ...]
    spans: tuple[Span, ...]
    refusals: tuple[Refusal, ...]
    survey: Survey | None
    random: bool = False
    held: object = None
    samples: tuple[int, int] | None = None

    def report(self, path: str | os.PathLike[str], command: str | None = None) -> Path:
        """Write the report, one HTML file; `command` is what it says to run again."""
        from .report import document, page

        return page.write_page(document.of_inspection(self, titled(path), command), Path(path))


@dataclass(frozen=True, eq=False)
class Applied:
    """A plan's model made again. `plan` is new, and `verdict` there, where it was solved anew.

    `reused`: the data is that of the plan, so the samples held back have been looked at before and
    the bound's level is void.
    """

    model: OnnxModel
    plan: Plan
    tensors: bytes
    verdict: Verdict | None
    reused: bool = False

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write model, plan and tensors; all of them or none. Returns their paths."""
        with staged(Path(path)) as folder:
            return self.fill(folder, Path(path))

    def fill(self, folder: Path, target: Path) -> tuple[Path, ...]:
        """Write all files of `target` into a folder that `staged` gave. Returns where they go."""
        return fill(folder, target, self.model, self.plan, self.tensors)


@dataclass(frozen=True)
class Verified:
    """A verdict on two models; `held_back` where only rows the new model was not made on count."""

    verdict: Verdict
    held_back: bool
    random: bool


def plan_path(model: Path) -> Path:
    """Where the plan of a written model lies: OUT.onnx -> OUT.plan.json."""
    return model.with_suffix(".plan.json")


def report_path(model: Path) -> Path:
    """Where the report on a model lies: OUT.onnx -> OUT.report.html."""
    return model.with_suffix(".report.html")


def titled(path: str | os.PathLike[str]) -> str:
    """What a report in that file is about: small.report.html -> small."""
    return Path(path).name.removesuffix(".html").removesuffix(".report")


def write_plan(plan: Plan, tensors: bytes, model: Path) -> None:
    path = plan_path(model)
    write_bytes(path, plan.model_dump_json(indent=2).encode() + b"\n")
    write_bytes(tensors_path(path), tensors)


def fill(
    folder: Path, target: Path, model: OnnxModel, plan: Plan, tensors: bytes
) -> tuple[Path, ...]:
    """Write model, plan and tensors of `target` into a staging folder. Returns where they go."""
    write(model, folder / target.name)
    write_plan(plan, tensors, folder / target.name)
    return to_be_written(folder, target)


def to_be_written(folder: Path, target: Path) -> tuple[Path, ...]:
    """Where the files of a staging folder will lie."""
    return tuple(sorted(target.parent / file.name for file in folder.iterdir()))


def refuse_to_overwrite(target: Path, *inputs: object) -> None:
    """BadInput where writing `target` and its side files would replace one of the inputs."""
    plan = plan_path(target)
    for source in inputs:
        if isinstance(source, str | os.PathLike) and Path(source).exists():
            for output in (target, plan, tensors_path(plan), report_path(target)):
                if output.exists() and output.samefile(source):
                    raise BadInput(f"{output}: is an input of this run; choose another -o")
