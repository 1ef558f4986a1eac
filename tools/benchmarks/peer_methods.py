"""What makes a model smaller, as plain functions in one table: published methods, other people's
tools as they are installed, blockfold, and 8-bit weights on top.

Each takes what is Given and hands back a Made, or raises a BlockfoldError that says why it cannot.
None looks at the certify split but blockfold, once, to certify what it has frozen.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from ...calibration.latency import Profile
from ...ir.errors import Unsupported
from ...ir.onnx_file import OnnxModel, read, write
from ...passes.budget import Budget
from ...passes.costs import CostModel, Costs
from ...passes.layout import anatomies, lay_out
from ...passes.methods import Method, Published
from ...passes.optimize import optimize
from ...passes.pipeline import ALL_PASSES, rewrite
from ...passes.task import Task
from ...passes.trial import Trials


@dataclass(frozen=True, eq=False)
class Given:
    """A task, the blocks to remove, and the shapes that will be served."""

    task: Task
    remove: int
    profile: Profile


@dataclass(frozen=True, eq=False)
class Made:
    """A model, how many blocks it has lost, and what stands in their place."""

    model: OnnxModel
    blocks: float = 0.0
    replaced: Sequence[str] = ()


@dataclass(frozen=True)
class Peer:
    """How a row is made: a function; the packages it needs; the row whose result it starts from."""

    run: Callable[[Given], Made]
    packages: tuple[str, ...] = ()
    upon: str | None = None


def published(method: Method) -> Callable[[Given], Made]:
    """A method of passes/methods.py, without the costs and promises that it has no use for."""

    def run(given: Given) -> Made:
        task = given.task
        layout = lay_out(task)
        free = CostModel(layout.anatomies, Costs(1.0, {}, {}))
        with Trials(task, layout, free, None) as trials:
            recipes = Published(trials).recipes(method, Budget.of(remove=given.remove))
            (trial,) = trials.fit_all(recipes)
            (replacements,) = trials.solved_on_both([trial])
        model = rewrite(task.model, replacements, {}, ALL_PASSES).model
        return Made(model, trial.blocks, [r.span.name for r in replacements])

    return run


def blockfold(given: Given) -> Made:
    """The whole job: costs measured, plans searched, the result certified and timed."""
    made = optimize(given.task, Budget.of(remove=given.remove), given.profile)
    decisions = made.plan.decisions
    named = [f"{decision.name}: {decision.surrogate}" for decision in decisions]
    return Made(made.model, sum(decision.blocks for decision in decisions), named)


def onnxsim_blocks(given: Given) -> Made:
    """onnxsim's own pruning of depth, then its simplifier, for the weights that it leaves behind.

    What it counts are residual branches, attention or MLP alone: as many are asked for as there are
    in so many blocks.
    """
    from onnxsim import apply_transformer_block_pruning, simplify

    task = given.task
    branches_of = [b.stop - b.start for stream in anatomies(task.plain) for b in stream.blocks]
    branches = round(given.remove * float(np.mean(branches_of)))
    samples = np.sort(np.concatenate([task.splits.fit, task.splits.select]))
    batches = [dict(batch.feeds) for batch in task.data.batches(samples, task.batch)]
    made = apply_transformer_block_pruning(
        _copy(task.model.proto), calibration_data=batches, num_blocks_to_drop=branches
    )
    if len(made.graph.node) == len(task.model.proto.graph.node):
        raise Unsupported(
            "it drops residual branches x + f(norm(x)) only, and finds none in this model"
        )
    said = f"{branches} of {sum(branches_of)} residual branches"
    return Made(read(simplify(made)[0]), float(given.remove), [said])


def onnxsim(given: Given) -> Made:
    from onnxsim import simplify

    return Made(read(simplify(_copy(given.task.model.proto))[0]))


def onnxslim(given: Given) -> Made:
    from onnxslim import slim

    return Made(read(slim(_copy(given.task.model.proto))))


def int8(given: Given) -> Made:
    """Dynamic quantization. Weights are unsigned: onnxruntime's ConvInteger takes no others.

    Shapes that the exporter wrote down go: the quantizer infers them anew, and where it transposes
    a weight it fails on the old ones.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = given.task.model
    bare = _copy(model.proto)
    del bare.graph.value_info[:]
    with tempfile.TemporaryDirectory(prefix="blockfold-") as folder:
        plain, made = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        write(OnnxModel(bare, model.folder), plain)
        quantize_dynamic(plain, made, weight_type=QuantType.QUInt8)
        return Made(read(onnx.load(made)))


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    """One that another tool may change."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def nothing(given: Given) -> Made:
    return Made(given.task.model)


ORIGINAL = "original"

PEERS: Mapping[str, Peer] = {
    ORIGINAL: Peer(nothing),
    "drop": Peer(published("drop")),
    "rba": Peer(published("rba")),
    "replaceme": Peer(published("replaceme")),
    "onnxsim, block pruning": Peer(onnxsim_blocks, ("onnxsim",)),
    "blockfold": Peer(blockfold),
    "onnxsim": Peer(onnxsim, ("onnxsim",)),
    "onnxslim": Peer(onnxslim, ("onnxslim",)),
    "int8": Peer(int8, ("onnxruntime.quantization",)),
    "blockfold + int8": Peer(int8, ("onnxruntime.quantization",), upon="blockfold"),
}
"""One row of the table each, in this order; `upon` stands before its user."""
