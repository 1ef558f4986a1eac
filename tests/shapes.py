"""Random ONNX graphs of operations that move lengths about, for tests of where lengths come from.

Every value's lengths are followed at several sizes of the inputs at once, so that only operations
are drawn that are valid at all of them. Two inputs have lengths of their own, of which now the one
and now the other is 1.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from .networks import FLOAT, INT64, Arrays

SIZES = ((2, 5, 5), (3, 4, 1), (1, 1, 6))
"""Rows, length of x and ids, length of z."""

MOST_ELEMENTS = 3000
Length = tuple[int, ...]
"""One length at every size."""
Dims = tuple[Length, ...]


def same(number: int) -> Length:
    return (number,) * len(SIZES)


BATCH, OWN, OTHER = zip(*SIZES, strict=True)


def feeds(size: tuple[int, int, int]) -> Arrays:
    rows, own, other = size
    rng = np.random.default_rng(rows)
    return {
        "x": rng.standard_normal((rows, own, 4)).astype(np.float32),
        "z": rng.standard_normal((rows, other, 4)).astype(np.float32),
        "ids": rng.integers(0, 9, (rows, own)),
    }


class Shapes:
    """A graph under construction; `dims` holds the lengths of its floating values."""

    def __init__(self, seed: int, opset: int) -> None:
        self.rng = random.Random(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        four = same(4)
        self.dims: dict[str, Dims] = {"x": (BATCH, OWN, four), "z": (BATCH, OTHER, four)}
        steps = [name for name in dir(self) if name.startswith("draw_")]
        self.steps: list[Callable[[str], None]] = [getattr(self, name) for name in steps]

    def model(self, count: int) -> onnx.ModelProto:
        """`count` random steps, each on one of the latest values."""
        while count:
            recent = list(self.dims)[-6:]
            before = len(self.nodes)
            self.rng.choice(self.steps)(self.rng.choice(recent))
            count -= len(self.nodes) > before
        last = list(self.dims)[-1]
        sources = [
            helper.make_tensor_value_info("x", FLOAT, ("batch", "n", 4)),
            helper.make_tensor_value_info("z", FLOAT, ("batch", "m", 4)),
            helper.make_tensor_value_info("ids", INT64, ("batch", "n")),
        ]
        made = helper.make_tensor_value_info(last, FLOAT, [None] * len(self.dims[last]))
        graph = helper.make_graph(self.nodes, "shapes", sources, [made], self.initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    # building

    def node(self, op: str, *inputs: str, dims: Dims | None = None, **attributes: Any) -> str:
        """Append a node; its output is a floating value where its `dims` are given."""
        made = f"{op}{len(self.nodes)}"
        if dims is not None:
            self.dims[made] = dims
        self.nodes.append(helper.make_node(op, inputs, [made], made, **attributes))
        return made

    def constant(self, values: object, kind: type = np.int64) -> str:
        """A literal, stored in one of the ways there are."""
        array: NDArray[Any] = np.array(values, kind)
        name = f"c{len(self.initializers)}.{len(self.nodes)}"
        tensor = numpy_helper.from_array(array, name)
        if kind is np.int64 and self.rng.random() < 0.5:
            ways: list[dict[str, Any]] = [{"value": tensor}]
            if self.opset >= 12 and array.ndim < 2 and array.size:
                ways.append({"value_ints" if array.ndim else "value_int": array.tolist()})
            self.nodes.append(helper.make_node("Constant", [], [name], **self.rng.choice(ways)))
        else:
            self.initializers.append(tensor)
        return name

    def weight(self, *dims: int) -> str:
        return self.constant(np.full(dims, 0.1), np.float32)

    def with_axes(
        self, op: str, x: str, axes: Sequence[int], since: int, dims: Dims, **more: Any
    ) -> str:
        """Axes are an input of newer operators, an attribute of older ones; either may be < 0."""
        if op != "Unsqueeze":
            axes = [a - len(self.dims[x]) if self.rng.random() < 0.5 else a for a in axes]
        if self.opset >= since:
            return self.node(op, x, self.constant(list(axes)), dims=dims, **more)
        return self.node(op, x, dims=dims, axes=list(axes), **more)

    def length(self, x: str, axis: int) -> str:
        """One length of x as a tensor of one element, asked in one of the ways exporters do."""
        way = self.rng.choice(["gather", "scalar", "slice", "attribute", "int32"])
        if way == "attribute" and self.opset >= 15:
            return self.node("Shape", x, start=axis - len(self.dims[x]), end=axis + 1)
        shape = self.node("Shape", x)
        if way == "slice":
            bounds = [self.constant([axis]), self.constant([axis + 1]), self.constant([0])]
            return self.node("Slice", shape, *bounds)
        if way == "scalar":
            picked = self.node("Gather", shape, self.constant(axis - len(self.dims[x])), axis=0)
            if self.opset >= 13:
                return self.node("Unsqueeze", picked, self.constant([0]))
            return self.node("Unsqueeze", picked, axes=[0])
        if way == "int32":
            narrow = self.node("Cast", shape, to=TensorProto.INT32)
            picked = self.node("Gather", narrow, self.constant([axis]), axis=0)
            return self.node("Cast", picked, to=INT64)
        return self.node("Gather", shape, self.constant([axis]))

    def target(self, parts: Sequence[str | int]) -> str:
        """A shape from lengths and numbers."""
        names = [self.constant([p]) if isinstance(p, int) else p for p in parts]
        return self.node("Concat", *names, axis=0)

    def fits(self, dims: Dims) -> bool:
        counts = [prod(length[i] for length in dims) for i in range(len(SIZES))]
        return len(dims) <= 5 and max(counts) <= MOST_ELEMENTS

    def axis(self, dims: Dims) -> int:
        return self.rng.randrange(len(dims))

    # steps: each may find that it does not apply, and do nothing

    def draw_unary(self, x: str) -> None:
        op = self.rng.choice(["Relu", "Tanh", "Identity", "Neg", "Softmax"])
        if op != "Softmax":
            self.node(op, x, dims=self.dims[x])
        elif self.dims[x]:
            self.node(op, x, dims=self.dims[x], axis=-1)

    def draw_norm(self, x: str) -> None:
        if self.opset >= 17 and self.dims[x] and len(set(self.dims[x][-1])) == 1:
            scale = self.weight(self.dims[x][-1][0])
            self.node("LayerNormalization", x, scale, dims=self.dims[x])

    def draw_binary(self, x: str) -> None:
        other = self.rng.choice(list(self.dims))
        rank = max(len(self.dims[x]), len(self.dims[other]))
        a, b = ((same(1),) * (rank - len(d)) + d for d in (self.dims[x], self.dims[other]))
        dims = []
        for one, two in zip(a, b, strict=True):
            if not all(m == n or 1 in (m, n) for m, n in zip(one, two, strict=True)):
                return
            dims.append(tuple(map(max, one, two)))
        if self.fits(tuple(dims)):
            if self.rng.random() < 0.2:
                zero = self.constant(0, np.float32)
                positive = self.node("Greater", x, zero)
                self.node("Where", positive, x, other, dims=tuple(dims))
            else:
                op = self.rng.choice(["Add", "Mul", "Sub", "Min"])
                self.node(op, x, other, dims=tuple(dims))

    def draw_transpose(self, x: str) -> None:
        order = list(range(len(self.dims[x])))
        if self.rng.random() < 0.3:
            self.node("Transpose", x, dims=self.dims[x][::-1])
        elif order:
            self.rng.shuffle(order)
            self.node("Transpose", x, dims=tuple(self.dims[x][i] for i in order), perm=order)

    def draw_matmul(self, x: str) -> None:
        dims = self.dims[x]
        if len(dims) >= 2 and len(set(dims[-1])) == 1 and dims[-1][0]:
            width = self.rng.randint(1, 6)
            if len(dims) == 2 and self.rng.random() < 0.5:
                weight = self.weight(width, dims[-1][0])
                self.node("Gemm", x, weight, dims=(dims[0], same(width)), transB=1)
            else:
                weight = self.weight(dims[-1][0], width)
                self.node("MatMul", x, weight, dims=(*dims[:-1], same(width)))

    def draw_scores(self, x: str) -> None:
        dims = self.dims[x]
        if len(dims) >= 2 and self.fits((*dims[:-1], dims[-2])):
            order = [*range(len(dims) - 2), len(dims) - 1, len(dims) - 2]
            turned = self.node("Transpose", x, dims=tuple(dims[i] for i in order), perm=order)
            self.node("MatMul", x, turned, dims=(*dims[:-1], dims[-2]))

    def draw_reduce(self, x: str) -> None:
        dims = self.dims[x]
        axes = sorted(self.rng.sample(range(len(dims)), self.rng.randint(0, len(dims))))
        keep = self.rng.random() < 0.5
        op, since = self.rng.choice([("ReduceMean", 18), ("ReduceSum", 13), ("ReduceMax", 18)])
        kept = tuple(
            same(1) if i in axes else d for i, d in enumerate(dims) if keep or i not in axes
        )
        if axes:
            self.with_axes(op, x, axes, since, kept, keepdims=int(keep))
        elif dims:
            every = (same(1),) * len(dims) if keep else ()
            self.node(op, x, dims=every, keepdims=int(keep))

    def draw_unsqueeze(self, x: str) -> None:
        dims = list(self.dims[x])
        axes = [self.rng.randint(-len(dims) - 1, len(dims))]
        if self.rng.random() < 0.3:
            axes = [0, -1]
        rank = len(dims) + len(axes)
        rest = iter(dims)
        ones = {axis % rank for axis in axes}
        made = tuple(same(1) if i in ones else next(rest) for i in range(rank))
        if self.fits(made):
            self.with_axes("Unsqueeze", x, axes, 13, made)

    def draw_squeeze(self, x: str) -> None:
        ones = [i for i, d in enumerate(self.dims[x]) if d == same(1)]
        if ones:
            axes = self.rng.sample(ones, self.rng.randint(1, len(ones)))
            left = tuple(d for i, d in enumerate(self.dims[x]) if i not in axes)
            self.with_axes("Squeeze", x, axes, 13, left)

    def draw_merge(self, x: str) -> None:
        dims = self.dims[x]
        if len(dims) >= 2:
            last = tuple(a * b for a, b in zip(dims[-2], dims[-1], strict=True))
            wanted = self.constant([0] * (len(dims) - 2) + [-1])
            self.node("Reshape", x, wanted, dims=(*dims[:-2], last))

    def draw_divide(self, x: str) -> None:
        dims = self.dims[x]
        if dims and len(set(dims[-1])) == 1 and dims[-1][0] % 2 == 0 and len(dims) < 5:
            pair = self.rng.choice([[2, -1], [-1, 2], [2, dims[-1][0] // 2]])
            parts = tuple(same(dims[-1][0] // 2 if n == -1 else n) for n in pair)
            wanted = self.constant([0] * (len(dims) - 1) + pair)
            self.node("Reshape", x, wanted, dims=(*dims[:-1], *parts))

    def draw_flatten(self, x: str) -> None:
        dims = self.dims[x]
        if len(dims) >= 2 and len(set(dims[-1])) == 1:
            rows = tuple(prod(column) for column in zip(*dims[:-1], strict=True))
            wanted = self.constant([-1, dims[-1][0]])
            self.node("Reshape", x, wanted, dims=(rows, dims[-1]))
        elif not dims:
            self.node("Reshape", x, self.constant([1, -1]), dims=(same(1), same(1)))

    def draw_reshape(self, x: str) -> None:
        """The lengths in another order, asked of x itself; two of them merged, or one left open."""
        dims = self.dims[x]
        order = list(range(len(dims)))
        self.rng.shuffle(order)
        if not order:
            return
        parts: list[str | int] = []
        made: list[Length] = []
        open_ = self.rng.choice([-1, *order])
        for i in order:
            fixed = len(set(dims[i])) == 1 and self.rng.random() < 0.5
            part = dims[i][0] if fixed else self.length(x, i)
            parts.append(-1 if i == open_ else part)
            made.append(dims[i])
        self.node("Reshape", x, self.target(parts), dims=tuple(made))

    def draw_expand(self, x: str) -> None:
        """An axis of length one, or a new one, becomes as long as an axis of another value."""
        other = self.rng.choice(list(self.dims))
        if not self.dims[other]:
            return
        axis = self.axis(self.dims[other])
        wanted = self.dims[other][axis]
        dims = list(self.dims[x])
        parts: list[str | int] = [1] * len(dims)
        ones = [i for i, d in enumerate(dims) if d == same(1)]
        if ones:
            parts[ones[0]], dims[ones[0]] = self.length(other, axis), wanted
        elif self.fits((wanted, *dims)):
            parts, dims = [self.length(other, axis), *parts], [wanted, *dims]
        if self.fits(tuple(dims)) and parts:
            self.node("Expand", x, self.target(parts), dims=tuple(dims))

    def draw_gather(self, x: str) -> None:
        dims = self.dims[x]
        if self.rng.random() < 0.3 or not dims:
            self.node("Gather", self.weight(9, 3), "ids", dims=(BATCH, OWN, same(3)))
            return
        axis = self.axis(dims)
        choices: list[list[int] | int] = [0, -1, [0, -1, 0], [0]]
        index = self.rng.choice(choices)
        between = (same(len(index)),) if isinstance(index, list) else ()
        made = (*dims[:axis], *between, *dims[axis + 1 :])
        if self.fits(made):
            given = axis - len(dims) if self.rng.random() < 0.5 else axis
            self.node("Gather", x, self.constant(index), dims=made, axis=given)

    def draw_concat(self, x: str) -> None:
        if dims := list(self.dims[x]):
            axis = self.axis(self.dims[x])
            dims[axis] = tuple(2 * n for n in dims[axis])
            if self.fits(tuple(dims)):
                self.node("Concat", x, x, dims=tuple(dims), axis=axis - len(dims))

    def draw_slice(self, x: str) -> None:
        if dims := list(self.dims[x]):
            axis = self.axis(self.dims[x])
            start, stop, step = self.rng.choice([(0, 2, 1), (-1, 99, 1), (0, 99, 2), (-1, -99, -1)])
            dims[axis] = tuple(len(range(n)[start:stop:step]) for n in dims[axis])
            where = axis - len(dims) if self.rng.random() < 0.5 else axis
            given = [self.constant([n]) for n in (start, stop, where, step)]
            self.node("Slice", x, *given, dims=tuple(dims))

    def draw_split(self, x: str) -> None:
        dims = self.dims[x]
        fixed = [i for i, d in enumerate(dims) if len(set(d)) == 1 and d[0] >= 2]
        if fixed:
            axis = self.rng.choice(fixed)
            sizes = [1, dims[axis][0] - 1]
            made = [f"Split{len(self.nodes)}.{i}" for i in range(2)]
            self.dims |= {
                name: (*dims[:axis], same(size), *dims[axis + 1 :])
                for name, size in zip(made, sizes, strict=True)
            }
            inputs = [x, self.constant(sizes)] if self.opset >= 13 else [x]
            attributes: dict[str, Any] = {} if self.opset >= 13 else {"split": sizes}
            self.nodes.append(
                helper.make_node(
                    "Split", inputs, made, made[0], axis=axis - len(dims), **attributes
                )
            )

    def draw_filled(self, x: str) -> None:
        if self.dims[x]:
            axes = [self.axis(self.dims[x]) for _ in range(self.rng.randint(1, 3))]
            dims = tuple(self.dims[x][axis] for axis in axes)
            if self.fits(dims):
                parts = [self.length(x, axis) for axis in axes]
                self.node("ConstantOfShape", self.target(parts), dims=dims)

    def draw_conv(self, x: str) -> None:
        dims = self.dims[x]
        if len(dims) == 3 and len(set(dims[1])) == 1 and dims[1][0]:
            weight = self.weight(2, dims[1][0], 3)
            long = tuple((n - 1) // 2 + 1 for n in dims[2])
            made = (dims[0], same(2), long)
            self.node("Conv", x, weight, dims=made, pads=[1, 1], strides=[2], kernel_shape=[3])

    def draw_tile(self, x: str) -> None:
        if dims := list(self.dims[x]):
            axis = self.axis(self.dims[x])
            times = [2 if i == axis else 1 for i in range(len(dims))]
            dims[axis] = tuple(2 * n for n in dims[axis])
            if self.fits(tuple(dims)):
                self.node("Tile", x, self.constant(times), dims=tuple(dims))
