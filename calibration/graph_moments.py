"""Moments made by the model's own graph: sums of products stay on the device that runs it.

A copy of the model, cut off after the values of interest, gets nodes that make of every value its
rows minus a fixed shift, S, and add to sums over rows, w being 0 for padding and 1 elsewhere:

    sum w,   sum w S,   sum w Sx' Sy,   sum w cos(x, y),   sum w angle(x, y)

Products are float32, of a float64 model float64, and sums float64. The shift is the mean of the
first batch, so huge activations lose nothing; NaN and Inf stay in a sum and show in the end. Sums
enter and leave the session by reference: nothing else leaves the device, and they do so once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ..ir.onnx_extract import extract
from ..ir.onnx_file import OnnxModel
from .data import Batch, Dataset
from .moments import CoMoment
from .runtime import PROVIDERS, Runner, Runtime, load, open_session, refused
from .sums import Sums
from .sweep import Pair, Progress, Statistics, add_batch

PREFIX = "blockfold.moments"
BOOL = TensorProto.BOOL


class GraphSweep:
    """Statistics of pairs of values of a model: as `sweep` gathers them, but on the device."""

    def __init__(self, model: OnnxModel, runtime: Runtime, pairs: Sequence[Pair]) -> None:
        self._model, self._runtime, self.pairs = model, runtime, pairs
        self._values = Statistics(pairs).values
        self._runner = Runner(model, runtime, self._values)
        self._sums: _DeviceSums | None = None

    def __call__(
        self,
        data: Dataset,
        samples: NDArray[np.int64],
        batch: int,
        *,
        mask: str | None = None,
        progress: Progress = lambda _done: None,
    ) -> Statistics:
        """Statistics over the given samples.

        The first batch ever, which tells shift and dtypes, and batches that a fixed size fills up
        with copies are fetched.
        """
        found = Statistics(self.pairs)
        fixed = self._runner.fixed_batch
        started = False
        for rows in data.batches(samples, fixed or batch):
            if self._sums is None or (fixed is not None and len(rows.samples) != fixed):
                taps = add_batch(found, self._runner, rows, mask)
                if self._sums is None:
                    self._sums = _DeviceSums(self._model, self._runtime, found, taps, mask)
            else:
                if not started:
                    self._sums.reset()
                    started = True
                self._sums.add(rows)
            progress(len(rows.samples))
        if started and self._sums is not None:
            found = found.merged(self._sums.statistics())
        return found


class _DeviceSums:
    """A session of the model with its sums, which it is given and gives back by reference."""

    def __init__(
        self,
        model: OnnxModel,
        runtime: Runtime,
        first: Statistics,
        taps: Mapping[str, NDArray[Any]],
        mask: str | None,
    ) -> None:
        self._pairs, self._runtime = first.pairs, runtime
        self._shifts = {v: _shift(first.products[v, v], taps[v]) for v in first.values}
        made = _with_sums(model, first, taps, mask)
        self._inputs = [v.name for v in made.proto.graph.input if not v.name.startswith(PREFIX)]
        self._shapes = {
            value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
            for value in made.proto.graph.output
        }
        if runtime.provider == PROVIDERS["cuda"]:
            exact = {**runtime.provider_options, "use_tf32": "0"}
            runtime = replace(runtime, provider_options=exact)
        self._session = open_session(made, runtime)

    def reset(self) -> None:
        """Begin at zero."""
        ort = load()
        place = "cuda" if self._runtime.provider == PROVIDERS["cuda"] else "cpu"
        number = int(self._runtime.provider_options.get("device_id", 0))
        turns = [
            {
                name: ort.OrtValue.ortvalue_from_numpy(np.zeros(shape), place, number)
                for name, shape in self._shapes.items()
            }
            for _ in range(2)
        ]
        bindings = []
        for old, new in (turns, turns[::-1]):
            binding = self._session.io_binding()
            for name in self._shapes:
                binding.bind_ortvalue_input(_given(name), old[name])
                binding.bind_ortvalue_output(name, new[name])
            bindings.append(binding)
        self._bindings = cycle(zip(bindings, turns[::-1], strict=True))
        self._last = turns[0]

    def add(self, batch: Batch) -> None:
        """Run one batch. Raises BadInput where onnxruntime refuses the data."""
        binding, self._last = next(self._bindings)
        for name in self._inputs:
            binding.bind_cpu_input(name, batch.feeds[name])
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's errors share no public base class
            raise refused(error) from error

    def statistics(self) -> Statistics:
        """The sums, off the device, as moments about the means. BadInput names NaN or Inf."""
        held = {name: value.numpy() for name, value in self._last.items()}
        empty = Statistics(self._pairs)
        sums = Sums(
            {v: float(held[_weight(v)][0, 0]) for v in empty.values},
            {v: held[_sum(v)][0] for v in empty.values},
            {key: held[_product(*key)] for key in empty.keys},
            {pair: float(held[_cosine(pair)][0, 0]) for pair in empty.pairs},
            {pair: float(held[_angle(pair)][0, 0]) for pair in empty.pairs},
        )
        return sums.statistics(self._pairs, self._shifts)


def _shift(first: CoMoment, seen: NDArray[Any]) -> NDArray[np.floating]:
    """The mean (d,) of the first batch of a value, in the dtype that its rows are shifted in."""
    return first.mean_x.astype(np.float64 if seen.dtype == np.float64 else np.float32)


def _given(name: str) -> str:
    return f"{name}.before"


def _weight(value: str) -> str:
    return f"{PREFIX}.weight.{value}"


def _sum(value: str) -> str:
    return f"{PREFIX}.sum.{value}"


def _product(x: str, y: str) -> str:
    return f"{PREFIX}.product.{x}.{y}"


def _cosine(pair: Pair) -> str:
    return f"{PREFIX}.cosine.{pair.x}.{pair.y}"


def _angle(pair: Pair) -> str:
    return f"{PREFIX}.angle.{pair.x}.{pair.y}"


ARCCOS = (
    -0.0012624911,
    0.0066700901,
    -0.0170881256,
    0.0308918810,
    -0.0501743046,
    0.0889789874,
    -0.2145988016,
    1.5707963050,
)
"""arccos x = sqrt(1 - x) p(x) for x in [0, 1], to 2e-8: Abramowitz & Stegun 4.4.46, p from its
highest power on. CUDAExecutionProvider has no Acos, which would leave the device.
"""


class _Writer:
    """Appends nodes to a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph, self._count = graph, 0

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node of one output, whose name is returned."""
        self._count += 1
        made = f"{PREFIX}.{self._count}"
        self._graph.node.append(helper.make_node(op, inputs, [made], made, **attributes))
        return made

    def constant(self, array: NDArray[Any]) -> str:
        self._count += 1
        name = f"{PREFIX}.{self._count}"
        self._graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    def add_to(self, name: str, value: str, shape: tuple[int, int]) -> None:
        """Make an output `name` of shape `shape`: the input of that name so far, and the value."""
        total = self("Cast", value, to=TensorProto.DOUBLE)
        self._graph.node.append(helper.make_node("Add", [_given(name), total], [name]))
        for values, called in ((self._graph.input, _given(name)), (self._graph.output, name)):
            values.append(helper.make_tensor_value_info(called, TensorProto.DOUBLE, shape))


def _with_sums(
    model: OnnxModel, first: Statistics, taps: Mapping[str, NDArray[Any]], mask: str | None
) -> OnnxModel:
    """A copy of the model up to the values, its outputs the sums and nothing else."""
    piece = extract(model, (), first.values).proto
    graph = piece.graph
    del graph.output[:]
    if mask is not None and mask not in {value.name for value in graph.input}:
        graph.input.extend(v for v in model.proto.graph.input if v.name == mask)
    write = _Writer(graph)
    axes = {v: pair.channel_axis for pair in first.pairs for v in (pair.x, pair.y)}
    found = {v: _Rows(write, v, taps[v], axes[v], first, mask) for v in first.values}
    for value, rows in found.items():
        write.add_to(_weight(value), write("Gemm", rows.weights, rows.weights, transA=1), (1, 1))
        total = write("Gemm", rows.weights, rows.weighted, transA=1)
        write.add_to(_sum(value), total, (1, rows.width))
    for x, y in first.keys:
        product = write("Gemm", found[x].weighted, found[y].weighted, transA=1)
        write.add_to(_product(x, y), product, (found[x].width, found[y].width))
    for pair in first.pairs:
        rows = found[pair.x]
        cosines = rows.cosines(found[pair.y])
        for name, figures in ((_cosine(pair), cosines), (_angle(pair), rows.angles(cosines))):
            write.add_to(name, write("Gemm", rows.weights, figures, transA=1), (1, 1))
    return OnnxModel(piece, model.folder)


class _Rows:
    """Nodes that make of one value its `rows` (n, d), 0 in padding, their `weights` (n, 1), and
    `weighted`: the rows shifted, times these.
    """

    def __init__(
        self,
        write: _Writer,
        value: str,
        seen: NDArray[Any],
        channel_axis: int,
        first: Statistics,
        mask: str | None,
    ) -> None:
        self._write = write
        shift = _shift(first.products[value, value], seen)
        self.width, rank, self.dtype = len(shift), seen.ndim, shift.dtype
        code = helper.np_dtype_to_tensor_dtype(self.dtype)
        axis = channel_axis % rank
        last = value
        if axis != rank - 1:
            last = write("Transpose", value, perm=[*range(axis), *range(axis + 1, rank), axis])
        flat = write("Reshape", last, write.constant(np.array([-1, self.width])))
        rows = write("Cast", flat, to=code)
        self._one = self._number(1.0)
        lengths = self._slice(write("Shape", last), 0, rank - 1)
        masked = mask is not None and rank > 2
        if mask is not None and masked:
            kept = self._padding(write("Cast", mask, to=BOOL), lengths, rank - 1, code)
        else:
            kept = write("Expand", self._one, lengths)
        self.weights = write("Reshape", kept, write.constant(np.array([-1, 1])))
        if masked:  # what stands in padding may be NaN, which 0 times is no 0
            rows = write("Where", write("Cast", self.weights, to=BOOL), rows, self._number(0.0))
        self.rows, shifted = rows, write("Sub", rows, write.constant(shift))
        self.weighted = write("Mul", shifted, self.weights) if masked else shifted
        self._norms: str | None = None

    def _slice(self, vector: str, begin: int, end: int) -> str:
        ends = [self._write.constant(np.array([at])) for at in (begin, end)]
        return self._write("Slice", vector, *ends)

    def _padding(self, mask: str, lengths: str, axes: int, code: int) -> str:
        """The mask (n, length) as long as all axes; 1 everywhere where its shape does not fit."""
        write = self._write
        shape = write("Shape", mask)
        same = write("Equal", self._slice(lengths, 0, 2), shape)
        first, second = (write("Gather", same, write.constant(np.array([at]))) for at in (0, 1))
        fits = write("And", first, second)
        ones = write.constant(np.ones(2, np.int64))
        ends = write("Where", fits, shape, ones)
        cut = write("Slice", mask, write.constant(np.zeros(2, np.int64)), ends)
        deep = [write.constant(np.ones(axes - 2, np.int64))] if axes > 2 else []
        cut = write("Reshape", cut, write("Concat", ends, *deep, axis=0))
        kept = write("Expand", write("Cast", cut, to=code), lengths)
        return write("Where", fits, kept, self._one)

    def _dots(self, other: _Rows) -> str:
        """x . y, row by row (n, 1)."""
        ones = self._write.constant(np.ones((self.width, 1), self.dtype))
        return self._write("MatMul", self._write("Mul", self.rows, other.rows), ones)

    @property
    def norms(self) -> str:
        """|x|, row by row (n, 1)."""
        if self._norms is None:
            self._norms = self._write("Sqrt", self._dots(self))
        return self._norms

    def cosines(self, other: _Rows) -> str:
        """Row by row (n, 1), as of metrics/cosine: 0 where one row is zero, 1 where both are."""
        write, zero = self._write, self._number(0.0)
        norms = write("Mul", self.norms, other.norms)
        told = write("Greater", norms, zero)
        quotient = write("Div", self._dots(other), write("Where", told, norms, self._one))
        none = [write("Equal", rows.norms, zero) for rows in (self, other)]
        return write("Where", told, quotient, write("Where", write("And", *none), self._one, zero))

    def angles(self, cosines: str) -> str:
        """The angle of every cosine as a part of pi, row by row (n, 1)."""
        write = self._write
        size = write("Abs", cosines)
        polynomial = self._number(ARCCOS[0])
        for coefficient in ARCCOS[1:]:
            raised = write("Mul", polynomial, size)
            polynomial = write("Add", raised, self._number(coefficient))
        left = write("Max", write("Sub", self._one, size), self._number(0.0))
        acute = write("Mul", write("Mul", write("Sqrt", left), polynomial), self._number(1 / np.pi))
        is_blunt = write("Less", cosines, self._number(0.0))
        return write("Where", is_blunt, write("Sub", self._one, acute), acute)

    def _number(self, value: float) -> str:
        return self._write.constant(np.full(1, value, self.dtype))
