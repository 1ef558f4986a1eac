"""The survey as a job that is spread: over processes, over machines, over days; files add it up."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..calibration.runtime import PROVIDERS
from ..calibration.spread import Processes, is_leader, local_rank, processes
from ..ir.errors import BadInput
from ..ir.onnx_file import OnnxModel
from ..ir.onnx_unfuse import unfuse
from ..ir.staging import staged, write_bytes
from ..passes.evidence import Evidence, Gatherer, merge, surveyed
from ..passes.evidence_file import evidence_bytes, read_evidence
from ..passes.layout import Layout, lay_out
from ..passes.score import read_out
from ..passes.sweep import ChooseSweep, Sweep
from ..passes.task import Samples, silent
from .loading import find_module
from .opening import Settings, opened_task, read_model, refuse_module_options, settings_of
from .results import Inspection, refuse_to_overwrite

if TYPE_CHECKING:
    from .opening import Model

Files = Sequence[str | os.PathLike[str]]
Kept = Callable[[Evidence], None]
"""Is handed what has been gathered so far."""


def let_go(_evidence: Evidence) -> None:
    """A Kept that keeps nothing."""


@dataclass(frozen=True, eq=False)
class Surveyed:
    """Statistics of a model's spans and layers, on `held` of the `due` samples of their data.

    `written` is the file they lie in, if this process wrote one.
    """

    evidence: Evidence
    written: tuple[Path, ...] = ()

    @property
    def held(self) -> int:
        return self.evidence.held

    @property
    def due(self) -> int:
        return self.evidence.due

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them for `inspect`, or to be added to others; whole or not at all."""
        _write(self.evidence, Path(path))


def survey(
    model: Model,
    data: object = None,
    *,
    statistics: Files = (),
    shard: tuple[int, int] = (1, 1),
    every: int | None = None,
    drop_cache: bool = False,
    kept: Kept = let_go,
    example_inputs: object = None,
    dynamic_shapes: Any = None,
    **settings: Any,
) -> Surveyed:
    """Gather what `inspect` shows of a model on data, all of it or a part, and add up parts.

    statistics: files to go on from; their samples are not run again, and without data they are only
    added up. shard: (2, 4) is the second of four parts. every: so many samples at a time, else all;
    `kept` is handed what is there after each time. drop_cache: as `optimize` takes it. settings:
    the fields of Settings.

    Processes that torchrun started, or that have set up torch.distributed, share the work; each
    returns the whole, and `kept` is called in the first.

    Raises BadInput or Unsupported; see the errors.
    """
    on: ChooseSweep
    loaded = find_module(model)
    if loaded is not None:
        from . import modules

        given = loaded.inputs if example_inputs is None else example_inputs
        found = modules.captured(loaded.module, data, given, dynamic_shapes)
        read_in, on = found.onnx, found.sweep
    else:
        refuse_module_options(example_inputs, dynamic_shapes)
        read_in, on = read_model(model), Sweep
    options = settings_of(settings)
    part, parts = shard
    if not 1 <= part <= parts:
        raise BadInput(f"shard {part}/{parts}: give K/N, K from 1 to N")
    if every is not None and every < 1:
        raise BadInput(f"every={every}: must be a whole number from 1")
    known = _read(read_in, statistics)[0] if statistics else None
    if data is None and options.random_samples is None and known is not None:
        kept(known)
        return Surveyed(known)
    with (
        processes() as group,
        opened_task(read_in, data, _placed(options, group), drop_cache=drop_cache) as task,
    ):
        left = np.array_split(surveyed(task.splits), parts)[part - 1]
        if known is not None and task.data.digest in known.sources:
            left = np.setdiff1d(left, known.sources[task.data.digest].samples)
        require_agreement(group, left)
        gather = Gatherer(task, lay_out(task), group, on)
        for chunk in _chunks(left, every):
            fresh = gather(chunk)
            known = fresh if known is None else known.merged(fresh)
            if group.leads:
                kept(known)
    assert known is not None
    return Surveyed(known)


def survey_to(
    path: str | os.PathLike[str],
    model: Model,
    data: object = None,
    *,
    statistics: Files = (),
    resume: bool = False,
    **options: Any,
) -> Surveyed:
    """As `survey`, into a file; `every` so many samples, one that holds more takes its place.

    resume: go on from that file where it is there.
    """
    target = Path(path)
    refuse_to_overwrite(target, model, data)
    if is_leader():
        with staged(target):  # whether it can be written is found out first
            pass
    if resume and target.exists():
        statistics = [*statistics, target]
    written: list[Path] = []

    def kept(evidence: Evidence) -> None:
        _write(evidence, target)
        written[:] = [target]

    found = survey(model, data, statistics=statistics, kept=kept, **options)
    return replace(found, written=tuple(written))


def inspected(model: OnnxModel, statistics: Files) -> Inspection:
    """What statistics say of the model that they were gathered on."""
    evidence, layout = _read(model, statistics)
    plain = unfuse(model)
    return Inspection(
        model,
        plain.graph,
        layout.anatomies,
        layout.spans,
        layout.refusals,
        read_out(layout, plain, evidence),
        evidence.random,
        samples=(evidence.held, evidence.due),
    )


def _read(model: OnnxModel, statistics: Files) -> tuple[Evidence, Layout]:
    """All of the statistics added up, and the layout that they are of."""
    found = [read_evidence(Path(path), model) for path in statistics]
    return merge([evidence for evidence, _ in found]), found[0][1]


def _write(evidence: Evidence, target: Path) -> None:
    with staged(target) as folder:
        write_bytes(folder / target.name, evidence_bytes(evidence))


def _chunks(samples: Samples, every: int | None) -> list[Samples]:
    """Stretches of so many samples, at least one even where there are none."""
    step = every or max(1, len(samples))
    return [samples[at : at + step] for at in range(0, max(1, len(samples)), step)]


def _placed(options: Settings, group: Processes) -> Settings:
    """The settings with a GPU of its own for every process, and a single one that tells how far."""
    own = options.provider_options
    gpu = local_rank()
    if gpu is not None and options.runtime().provider == PROVIDERS["cuda"]:
        own = {"device_id": str(gpu), **own}
    stage = options.stage if group.leads else silent
    return replace(options, provider_options=own, stage=stage)


def require_agreement(group: Processes, left: Samples) -> None:
    """BadInput where processes do not have the same samples to share."""
    counts = group.sum(np.eye(group.size, dtype=np.int64)[group.rank] * len(left))
    if (counts != len(left)).any():
        raise BadInput(
            f"the processes have {', '.join(map(str, np.unique(counts)))} samples to share: let "
            "all of them read the same data and statistics"
        )
