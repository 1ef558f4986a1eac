"""The network that experiments are made on: the demo's vision transformer, smaller, once per seed.

A seed chooses the 600 images that are trained on, the first weights and the order of batches.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from ...calibration.flops import flops
from ...ir.errors import NotMet
from ...passes.budget import Budget
from ...passes.condition import LaCoOT
from ...passes.costs import CostModel, Costs, count_costs
from ...passes.layout import Layout, lay_out
from ...passes.optimize import optimize
from ...passes.task import Task
from .. import opening
from ..demo import train

WIDTH, DEPTH, EPOCHS = 16, 6, 60
DEEP_DEPTH, DEEP_EPOCHS = 8, 150


@cache
def trained(
    seed: int,
    width: int = WIDTH,
    depth: int = DEPTH,
    epochs: int = EPOCHS,
    lacoot: float = 0.0,
    relative: bool = False,
) -> train.VisionTransformer:
    """A network trained with a LaCoOT penalty of that weight; the same object each time."""
    images, labels, _, _ = train.split(seed)
    torch.manual_seed(seed)
    model = train.VisionTransformer(width, depth)
    if lacoot == 0.0:
        train.fit(model, images, labels, epochs)
        return model
    with LaCoOT(model, weight=lacoot, relative=relative) as conditioned:
        train.fit(model, images, labels, epochs, penalty=conditioned.penalty)
    return model


def deep(seed: int, lacoot: float = 0.0, relative: bool = False) -> train.VisionTransformer:
    """One that is deeper than digits call for, and trained for longer."""
    return trained(seed, WIDTH, DEEP_DEPTH, DEEP_EPOCHS, lacoot, relative)


@contextmanager
def opened(model: train.VisionTransformer, seed: int) -> Iterator[Task]:
    """The network's ONNX export as a task, on the images that training never saw."""
    _, _, images, labels = train.split(seed)
    settings = opening.Settings(metric="accuracy", seed=seed, threads=1)
    with tempfile.TemporaryDirectory(prefix="blockfold-") as folder:
        path = Path(folder, "digits.onnx")
        train.export(model, path)
        data = {"image": images, "labels": labels}
        with opening.opened_task(opening.read_model(path), data, settings) as task:
            yield task


def flop_costs(task: Task, layout: Layout) -> Costs:
    """Costs in FLOPs of one image: no clock has a part in what an experiment finds."""
    return count_costs(task, layout, opening.profile_of(task, opening.Settings()))


def free(layout: Layout) -> CostModel:
    """For what is given, not searched for: everything costs nothing."""
    return CostModel(layout.anatomies, Costs(1.0, {}, {}))


def compressed(task: Task, promise: float) -> tuple[float, float]:
    """Blocks replaced and share of FLOPs saved within a drop; nothing where none is certified."""
    layout = lay_out(task)
    profile = opening.profile_of(task, opening.Settings())
    try:
        made = optimize(task, Budget(promise), profile, costs=flop_costs(task, layout))
    except NotMet:
        return 0.0, 0.0
    before, after = (
        flops(model, task.runtime, profile.feeds) for model in (task.model, made.model)
    )
    return sum(decision.blocks for decision in made.plan.decisions), 1 - after / before
