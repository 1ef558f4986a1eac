"""How ONNX operators change dimensions, and the little arithmetic that exporters do with them.

One rule per operator: from what is known of the inputs to the dimensions of the first output
(SHAPES), or to its content where it is a small tensor of lengths (NUMBERS). None means: not known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx

from .graph import Node
from .lengths import Dim, Dims, Equalities, Length
from .onnx_ops import REDUCTIONS

MOST_NUMBERS = 64
"""Longer integer tensors are data, not shapes."""

LONGEST_RANK = 64
"""More axes than any runtime takes."""


@dataclass(frozen=True)
class Call:
    """One node with what is known of its inputs."""

    node: Node
    attributes: Mapping[str, int | Sequence[int]]
    shapes: Mapping[str, Dims | None]
    known: Mapping[str, tuple[Dim | None, ...]]
    equal: Equalities

    def shape(self, index: int) -> Dims | None:
        shape = self.shapes.get(self._name(index))
        return None if shape is None else tuple(map(self.equal.of, shape))

    def numbers(self, index: int) -> tuple[Dim | None, ...] | None:
        numbers = self.known.get(self._name(index))
        return numbers and tuple(None if dim is None else self.equal.of(dim) for dim in numbers)

    def attribute(self, name: str, default: int) -> int:
        value = self.attributes.get(name, default)
        return value if isinstance(value, int) else default

    def integers(self, name: str, index: int) -> list[int] | None:
        """Constant integers given by an attribute (older opsets) or as an input."""
        given = self.attributes.get(name, self.numbers(index))
        if given is None or isinstance(given, int):
            return None
        whole = [number for number in given if isinstance(number, int)]
        return whole if len(whole) == len(given) else None

    def _name(self, index: int) -> str:
        return self.node.inputs[index] if index < len(self.node.inputs) else ""


Rule = Callable[[Call], Dims | None]
Numbers = Callable[[Call], "tuple[Dim | None, ...] | None"]


def nothing(_: Call) -> None:
    return None


def same(call: Call) -> Dims | None:
    return call.shape(0)


def _broadcast(call: Call) -> Dims | None:
    shapes = [call.shape(i) for i, name in enumerate(call.node.inputs) if name]
    known = [shape for shape in shapes if shape is not None]
    return _joined(call, known) if len(known) == len(shapes) else None


def _joined(call: Call, shapes: Sequence[Dims]) -> Dims:
    """The first axes of the node's output, where these shapes are broadcast to one."""
    rank = max(map(len, shapes), default=0)
    padded = [_pad_ones(shape, rank) for shape in shapes]
    return tuple(
        call.equal.broadcast(column, Length(call.node.outputs[0], axis))
        for axis, column in enumerate(zip(*padded, strict=True))
    )


def _matmul(call: Call) -> Dims | None:
    a, b = call.shape(0), call.shape(1)
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return None
    call.equal.unite((a[-1], b[-2]))
    return (*_joined(call, (a[:-2], b[:-2])), a[-2], b[-1])


def _gemm(call: Call) -> Dims | None:
    a, b = call.shape(0), call.shape(1)
    if a is None or b is None or (len(a), len(b)) != (2, 2):
        return None
    return (
        a[1 if call.attribute("transA", 0) else 0],
        b[0 if call.attribute("transB", 0) else 1],
    )


def _transpose(call: Call) -> Dims | None:
    shape = call.shape(0)
    if shape is None:
        return None
    order = call.attributes.get("perm", tuple(reversed(range(len(shape)))))
    if isinstance(order, int) or sorted(order) != list(range(len(shape))):
        return None
    return tuple(shape[i] for i in order)


def _unsqueeze(call: Call) -> Dims | None:
    shape, axes = call.shape(0), call.integers("axes", 1)
    if shape is None or axes is None:
        return None
    rank = len(shape) + len(axes)
    ones = _axes(axes, rank)
    if ones is None or len(ones) < len(axes):
        return None
    rest = iter(shape)
    return tuple(1 if i in ones else next(rest) for i in range(rank))


def _squeeze(call: Call) -> Dims | None:
    shape, axes = call.shape(0), call.integers("axes", 1)
    if shape is None or axes is None:
        return None
    gone = _axes(axes, len(shape))
    return None if gone is None else tuple(d for i, d in enumerate(shape) if i not in gone)


def _axes(given: Sequence[int], rank: int) -> set[int] | None:
    """Axes counted from the front; None where a value of that rank has not all of them."""
    if rank > LONGEST_RANK or not all(-rank <= axis < rank for axis in given):
        return None
    return {axis % rank for axis in given}


def _reshape(call: Call) -> Dims | None:
    before, wanted = call.shape(0), call.numbers(1)
    if before is None or wanted is None or None in wanted:
        return None
    copies = not call.attribute("allowzero", 0)
    dims = [
        before[i] if copies and dim == 0 and i < len(before) else dim
        for i, dim in enumerate(wanted)
    ]
    open_axis = [i for i, dim in enumerate(dims) if dim == -1]
    known = [dim for dim in dims if dim is not None and dim != -1]
    if open_axis:
        rest = _quotient(before, known)
        dims[open_axis[0]] = (
            rest if rest is not None else Length(call.node.outputs[0], open_axis[0])
        )
    return tuple(dim for dim in dims if dim is not None)


def _quotient(total: Sequence[Dim], parts: Sequence[Dim]) -> Dim | None:
    """What is left of a product when all `parts` are divided out, if that is one dimension."""
    above = Counter(dim for dim in total if isinstance(dim, Length))
    below = Counter(dim for dim in parts if isinstance(dim, Length))
    number, divisor = (prod(d for d in dims if isinstance(d, int)) for dims in (total, parts))
    left = list((above - below).elements())
    if below - above or divisor == 0 or number % divisor:
        return None
    factor = number // divisor
    if left:
        return left[0] if len(left) == 1 and factor == 1 else None
    return factor


def _gather(call: Call) -> Dims | None:
    data, index = call.shape(0), call.shape(1)
    if data is None or index is None:
        return None
    axes = _axes([call.attribute("axis", 0)], len(data))
    if axes is None or len(data) + len(index) > LONGEST_RANK:
        return None
    (axis,) = axes
    return (*data[:axis], *index, *data[axis + 1 :])


def _concat(call: Call) -> Dims | None:
    """The joined axis is left to the file; on the others all inputs are equal."""
    shapes = [call.shape(i) for i in range(len(call.node.inputs))]
    first = shapes[0]
    if first is None or len(shapes) == 1:
        return first
    joined = _axes([call.attribute("axis", 0)], len(first))
    if joined is None:
        return None
    alike = [shape for shape in shapes if shape is not None and len(shape) == len(first)]
    return tuple(
        Length(call.node.outputs[0], axis) if axis in joined else call.equal.unite(dims)
        for axis, dims in enumerate(zip(*alike, strict=True))
    )


def _expand(call: Call) -> Dims | None:
    shape, wanted = call.shape(0), call.numbers(1)
    if shape is None or wanted is None or None in wanted:
        return None
    targets = [dim for dim in wanted if dim is not None]
    return _joined(call, (shape, tuple(targets)))


def _pad_ones(dims: Sequence[Dim], rank: int) -> Dims:
    return (1,) * (rank - len(dims)) + tuple(dims)


def _filled(call: Call) -> Dims | None:
    numbers = call.numbers(0) or ()
    dims = tuple(dim for dim in numbers if dim is not None)
    return dims if len(dims) == len(numbers) > 0 else None


def _slice(call: Call) -> Dims | None:
    shape, axes = call.shape(0), call.integers("axes", 3)
    if shape is None or axes is None:
        return None
    cut = _axes(axes, len(shape))
    if cut is None:
        return None
    out = call.node.outputs[0]
    return tuple(Length(out, i) if i in cut else dim for i, dim in enumerate(shape))


def _reduce(call: Call) -> Dims | None:
    shape, axes = call.shape(0), call.integers("axes", 1)
    if shape is None or axes is None:
        return None
    if not axes:
        axes = [] if call.attribute("noop_with_empty_axes", 0) else list(range(len(shape)))
    gone = _axes(axes, len(shape))
    if gone is None:
        return None
    if call.attribute("keepdims", 1):
        return tuple(1 if i in gone else dim for i, dim in enumerate(shape))
    return tuple(dim for i, dim in enumerate(shape) if i not in gone)


def _conv(call: Call) -> Dims | None:
    shape, kernel = call.shape(0), call.shape(1)
    if shape is None or kernel is None or len(shape) != len(kernel) or len(shape) < 2:
        return None
    out = call.node.outputs[0]
    return (shape[0], kernel[0], *(Length(out, i) for i in range(2, len(shape))))


SHAPES: Mapping[str, Rule] = {
    **dict.fromkeys(
        "Cast CastLike Identity Dropout Softmax LogSoftmax Relu LeakyRelu Elu Selu Sigmoid "
        "HardSigmoid HardSwish Swish Tanh Softplus Softsign Mish Gelu FastGelu QuickGelu BiasGelu "
        "Erf Exp Log Sqrt Reciprocal Neg Abs Clip Sin Cos Floor Ceil Round Sign Not Trilu "
        "CumSum".split(),
        same,
    ),
    **dict.fromkeys(
        "Add Sub Mul Div Pow Min Max Mod Where Sum Mean PRelu And Or Xor Equal Greater "
        "GreaterOrEqual Less LessOrEqual".split(),
        _broadcast,
    ),
    **dict.fromkeys(REDUCTIONS, _reduce),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Gather": _gather,
    "Concat": _concat,
    "Expand": _expand,
    "Slice": _slice,
    "Conv": _conv,
    "ConstantOfShape": _filled,
}
"""The dimensions of an operator's first output."""


def _number_shape(call: Call) -> tuple[Dim | None, ...] | None:
    shape = call.shape(0)
    if shape is None:
        return None
    return shape[call.attribute("start", 0) : call.attribute("end", len(shape))]


def _number_same(call: Call) -> tuple[Dim | None, ...] | None:
    return call.numbers(0)


def _number_unsqueeze(call: Call) -> tuple[Dim | None, ...] | None:
    numbers = call.numbers(0)
    return numbers if numbers is not None and len(numbers) == 1 else None


def _number_cast(call: Call) -> tuple[Dim | None, ...] | None:
    kinds = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    return call.numbers(0) if call.attribute("to", 0) in kinds else None


def _number_gather(call: Call) -> tuple[Dim | None, ...] | None:
    data, index = call.numbers(0), call.integers("", 1)
    if data is None or index is None or not all(-len(data) <= i < len(data) for i in index):
        return None
    return tuple(data[i] for i in index)


def _number_concat(call: Call) -> tuple[Dim | None, ...] | None:
    """Parts of unknown content still count, as long as their lengths are known."""
    joined: list[Dim | None] = []
    for index in range(len(call.node.inputs)):
        part, shape = call.numbers(index), call.shape(index)
        if part is None:
            count = shape[0] if shape is not None and len(shape) == 1 else None
            if not isinstance(count, int) or count > MOST_NUMBERS:
                return None
            part = (None,) * count
        joined += part
        if len(joined) > MOST_NUMBERS:
            return None
    return tuple(joined)


def _number_slice(call: Call) -> tuple[Dim | None, ...] | None:
    data = call.numbers(0)
    bounds = [call.integers("", index) for index in (1, 2, 4)]
    start, stop, step = (bound[0] if bound else None for bound in bounds)
    if data is None or start is None or stop is None:
        return None
    return data[start : stop : step or 1]


NUMBERS: Mapping[str, Numbers] = {
    **dict.fromkeys(("Identity", "Squeeze"), _number_same),
    "Unsqueeze": _number_unsqueeze,
    "Cast": _number_cast,
    "Shape": _number_shape,
    "Gather": _number_gather,
    "Concat": _number_concat,
    "Slice": _number_slice,
}
"""The content of an operator's output where it is shape arithmetic."""
