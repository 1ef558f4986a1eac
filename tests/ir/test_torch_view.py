"""What the torch front end takes for one value, and where it lets derivatives pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from blockfold.ir.channels import channel_axis
from blockfold.ir.cuts import find_chains
from blockfold.ir.graph import Kind
from blockfold.ir.torch_view import capture, view
from blockfold.tests.captures import (
    LENGTH,
    Call,
    Language,
    V,
    W,
    X,
    attend,
    decomposed,
    from_torch,
    last,
    seen,
)

COPIES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "clone": lambda x: x.clone(),
    "detach": lambda x: x.detach(),
    "alias": torch.ops.aten.alias,
    "to": lambda x: x.to(torch.float32),
    "type_as": lambda x: x.type_as(x),
    "view": lambda x: x.view(x.shape),
    "expand": lambda x: x.expand(2, -1, -1),
    "repeat": lambda x: x.repeat(1, 1, 1),
    "permute": lambda x: x.permute(0, 1, -1),
    "transpose": lambda x: x.transpose(1, -2),
    "slice": lambda x: x[:, :3],
    "dropout": lambda x: functional.dropout(x, training=False),
    "dropout in place": lambda x: functional.dropout(x, 0.5, False, inplace=True),
    "dropout of nothing": lambda x: functional.dropout(x, 0.0, training=True),
    "channels dropout": lambda x: functional.dropout1d(x, training=False),
    "pad": lambda x: functional.pad(x, (0, 0, 0, 0)),
}

OTHERS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Kind]] = {
    "to": (lambda x: x.to(torch.float64), Kind.VIEW),
    "view": (lambda x: x.view(6, 4), Kind.VIEW),
    "other bits": (lambda x: x.view(torch.int32), Kind.OTHER),
    "expand": (lambda x: x[:, None].expand(2, 5, 3, 4), Kind.OTHER),
    "same shape, swapped": (lambda x: x[:, :, :3].transpose(1, 2), Kind.VIEW),
    "same shape, permuted": (lambda x: x[:, :, :3].permute(0, 2, 1), Kind.VIEW),
    "slice": (lambda x: x[:, 1:], Kind.OTHER),
    "dropout": (lambda x: functional.dropout(x, training=True), Kind.POINTWISE),
    "same shape, moved": (lambda x: functional.pad(x, (1, -1)), Kind.VIEW),
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_is_another_name_of_its_value(name: str) -> None:
    graph = seen(lambda x: COPIES[name](x).relu())
    (relu,) = graph.nodes
    assert (relu.inputs, relu.outputs, graph.outputs) == (("args_0",), ("relu",), ("relu",))
    (copy,) = graph.values.keys() - {"args_0", "relu"}
    assert graph.value(copy).name == "args_0"


@pytest.mark.parametrize(("shorter", "read"), [(0, "args_0"), (1, "slice_1")])
def test_copies_of_lengths_are_proved_by_symbols(shorter: int, read: str) -> None:
    def cut(x: torch.Tensor) -> torch.Tensor:
        return x[:, : x.shape[1] - shorter].reshape(-1, x.shape[1] - shorter, 4).relu()

    assert seen(cut, X, dynamic_shapes={"args": (LENGTH,)}).nodes[-1].inputs == (read,)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_copy_is_a_node(name: str) -> None:
    function, kind = OTHERS[name]
    graph = seen(function)
    assert (graph.nodes[-1].kind, graph.nodes[-1].outputs) == (kind, graph.outputs)


def test_an_output_may_be_a_value_of_another_name() -> None:
    graph = seen(lambda x: (x.transpose(1, 2).contiguous(), x.clone(), 3, None))
    assert graph.outputs == ("transpose", "args_0")
    assert graph.value("contiguous").name == "transpose"


def test_checks_are_no_nodes() -> None:
    def checked(x: torch.Tensor) -> torch.Tensor:
        length = x.nonzero().shape[0]
        return torch.zeros(length) + x.sum().to(torch.float64)

    program = capture(Call(checked), (X,))
    for dialect in (program, decomposed(program)):
        assert any("assert" in node.name for node in dialect.graph.nodes)
        assert not any("assert" in node.name for node in view(dialect).nodes)


# Kinds, axes, derivatives

MAPS = torch.zeros(2, 4, 6, 6)
NUMBERS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("function", "op", "kind", "axis"),
    [
        (lambda x: x + x.exp(), "aten.add", Kind.ADD, None),
        (lambda x: torch.add(x, other=x.exp(), alpha=2), "aten.add", Kind.ADD, None),
        (lambda x: x + 1, "aten.add", Kind.POINTWISE, None),
        (lambda x: x + x.shape[0], "aten.add", Kind.POINTWISE, None),
        (lambda x: x.exp().mul_(2), "aten.mul_", Kind.POINTWISE, None),
        (lambda x: torch.max(x, x.exp()), "aten.max", Kind.POINTWISE, None),
        (lambda x: x.max(1), "aten.max", Kind.REDUCE, None),
        (lambda x: x.mean(-1), "aten.mean", Kind.REDUCE, None),
        (lambda x: functional.linear(x, W), "aten.linear", Kind.OTHER, -1),
        (lambda x: x @ W, "aten.matmul", Kind.OTHER, -1),
        (lambda x: torch.addmm(V, x[0], W), "aten.addmm", Kind.OTHER, -1),
        (lambda x: functional.layer_norm(x, (4,)), "aten.layer_norm", Kind.NORM, -1),
        (lambda x: attend(x, x, x), "aten.squeeze", Kind.VIEW, None),
        (lambda x: x.shape[0] * 2 + torch.zeros_like(x), "aten.add", Kind.POINTWISE, None),
        (lambda x: torch.zeros_like(x), "aten.zeros_like", Kind.SHAPE, None),
    ],
)
def test_kinds_and_channel_axes(
    function: Callable[..., Any], op: str, kind: Kind, axis: int | None
) -> None:
    node = seen(function, X, dynamic_shapes={"args": (LENGTH,)}).nodes[-1]
    assert (node.op, node.kind, node.channel_axis) == (op, kind, axis)


@pytest.mark.parametrize(
    ("function", "op", "kind"),
    [
        (lambda x: functional.conv2d(x, torch.ones(4, 4, 1, 1)), "aten.conv2d", Kind.OTHER),
        (lambda x: functional.batch_norm(x, V, V), "aten.batch_norm", Kind.NORM),
        (lambda x: functional.max_pool2d(x, 2), "aten.max_pool2d", Kind.OTHER),
        (lambda x: functional.adaptive_avg_pool2d(x, 1), "aten.adaptive_avg_pool2d", Kind.OTHER),
        (lambda x: nn.Upsample(scale_factor=2)(x), "aten.upsample_nearest2d", Kind.OTHER),
    ],
)
def test_feature_maps_have_their_channels_first(
    function: Callable[..., Any], op: str, kind: Kind
) -> None:
    node = last(function, MAPS)
    assert (node.op, node.kind, node.channel_axis) == (op, kind, 1)


def test_lengths_are_read_as_shapes() -> None:
    graph = seen(lambda x: x.shape[1] * 2 * x, X, dynamic_shapes={"args": (LENGTH,)})
    size = next(node for node in graph.nodes if node.op == "aten.sym_size")
    product = next(node for node in graph.nodes if node.op == "operator.mul")
    assert (size.kind, size.smooth, size.derivative) == (Kind.SHAPE, (), (False,))
    assert (product.kind, product.smooth) == (Kind.OTHER, ())
    assert graph.value(size.outputs[0]).dtype == "int64"
    assert graph.nodes[-1].derivative == (True, False)
    assert last(lambda x: x * x.max().item()).derivative == (True, True)
    assert not graph.input_dependent & {*size.outputs, *product.outputs}


@pytest.mark.parametrize(
    ("function", "args", "derivative"),
    [
        (torch.matmul, (X, W), (True, True)),
        (torch.where, (X > 0, X, X.exp()), (False, True, True)),
        (lambda x, i: x.index_select(0, i), (X, NUMBERS), (True, False)),
        (lambda x, i: x.gather(0, i), (X, X.long()), (True, False)),
        (lambda x, i: x[i], (X, NUMBERS), (True, False)),
        (lambda x, i: functional.embedding(i, x), (W, NUMBERS), (True, False)),
        (lambda x, i, y: x.index_add(0, i, y), (X, NUMBERS, X.exp()), (True, False, True)),
        (lambda x, i: x + i, (V, torch.ones(4, dtype=torch.int64)), (True, False)),
        (lambda x, m: x.masked_fill(m, 0), (X, X > 0), (True, False)),
        (lambda x: torch.zeros_like(x), (X,), (False,)),
        (lambda x: x.to(torch.int64), (X,), (False,)),
        (lambda x: x.to(torch.float16), (X,), (True,)),
        (lambda x: torch.bernoulli(x), (X,), (False,)),
        (lambda x: torch.fft.fft(x), (X,), (True,)),
        (lambda x: torch.fft.ifft(x).real, (torch.fft.fft(X),), (True,)),
        (lambda x, y: x.view_as(y), (X, torch.ones(6, 4)), (True, False)),
        (lambda x, y: x.expand_as(y), (V, W), (True, False)),
        (lambda x, y: x.type_as(y), (X, X.double()), (True, False)),
        (lambda x: x.new_ones(3), (X,), (False,)),
    ],
)
def test_where_a_derivative_passes(
    function: Callable[..., Any], args: tuple[torch.Tensor, ...], derivative: tuple[bool, ...]
) -> None:
    graph = seen(function, *args)
    reached = graph.descendants(graph.inputs)
    node = next(node for node in graph.nodes if node.inputs)
    assert node.derivative == derivative
    assert node.smooth or not any(derivative)
    assert (graph.outputs[0] in reached) == any(derivative)


@pytest.mark.parametrize("like", ["view_as", "expand_as", "reshape_as", "type_as", "new_ones"])
def test_what_lends_its_shape_or_dtype_alone_is_not_read(like: str) -> None:
    """A table of positions, cut to the length of the tokens, does not depend on the tokens."""

    def places(ids: torch.Tensor) -> torch.Tensor:
        at = torch.arange(4, dtype=torch.int32)
        made = ids.new_ones(4) if like == "new_ones" else getattr(at.double(), like)(ids)
        return functional.embedding(made.long(), W)

    graph = seen(places, torch.zeros(4, dtype=torch.int64))
    assert graph.input_dependent == {"args_0"}
    assert find_chains(graph) == ()


def test_what_flows_is_named_first_and_so_is_the_table_of_a_lookup() -> None:
    assert last(lambda x: torch.addmm(V, x, W), W).inputs[0] == "args_0"
    graph = seen(lambda i: functional.embedding(i, W).index_select(0, i), NUMBERS)
    table, rows = (node for node in graph.nodes if node.kind is Kind.LOOKUP)
    assert (table.op, table.inputs) == ("aten.embedding", ("c_lifted_tensor_0", "args_0"))
    assert (rows.op, rows.inputs) == ("aten.index_select", ("embedding", "args_0"))


def test_several_outputs_are_outputs_of_one_node() -> None:
    def halves(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        a, b = x.chunk(2, -1)
        best, index = b.topk(2)
        return a, best, index

    graph = seen(halves)
    chunk, topk = graph.nodes
    assert (chunk.op, chunk.outputs, chunk.smooth) == ("aten.chunk", *[chunk.outputs] * 2)
    assert (topk.outputs, topk.smooth) == (graph.outputs[1:], graph.outputs[1:2])
    assert graph.outputs[0] == chunk.outputs[0]
    assert graph.producer[graph.outputs[2]] is topk


# Writing in place


def test_later_readers_find_what_was_written() -> None:
    def written(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x.exp()
        before = y * 3
        return before, y.relu_() + 2

    program = capture(Call(written), (X,))
    *_, relu, add, _ = program.graph.nodes
    add.replace_input_with(relu, relu.args[0])  # whoever reads the old name, reads the new value
    mul_, relu_, add_ = view(program).nodes[1:]
    assert [mul_.inputs, relu_.inputs, add_.inputs] == [("exp",), ("exp",), ("relu_",)]
    assert (relu_.kind, relu_.outputs) == (Kind.POINTWISE, ("relu_",))


def test_writing_through_a_view_changes_what_it_is_a_view_of() -> None:
    def written(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = x.exp()
        other, same = y.transpose(0, 1), y.view(2, 3, 4)
        y[0].mul_(3)
        return y.sin(), other.cos() + same.transpose(0, 1)

    graph = seen(written)
    mul = graph.producer["exp@mul_"]
    assert (mul.op, mul.kind) == ("aten.mul_", Kind.OTHER)
    assert set(mul.inputs) == {"select", "exp", "transpose"}
    assert mul.derivative == (True,) * 3
    assert [node.name for node in graph.consumers["exp@mul_"]] == ["sin", "transpose_1"]
    assert [node.name for node in graph.consumers["transpose@mul_"]] == ["cos"]
    assert graph.value("exp@mul_").shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("copy", "found"),
    [
        (lambda x: x.clone(), "exp"),
        (lambda x: x.view(2, 3, 4), "exp@relu_"),
        (lambda x: functional.dropout(x, training=False), "exp@relu_"),  # it gives its input back
    ],
)
def test_writing_to_a_copy_changes_the_original_if_both_may_be_one(
    copy: Callable[[torch.Tensor], torch.Tensor], found: str
) -> None:
    def written(x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        copy(y).relu_()
        return y.sin()

    assert seen(written).nodes[-1].inputs == (found,)


def test_what_is_overwritten_whole_is_not_read() -> None:
    def filled(x: torch.Tensor) -> torch.Tensor:
        y = x.exp()
        y.copy_(x.sin())
        return y

    graph = seen(filled)
    assert graph.producer[graph.outputs[0]].inputs == ("", "sin")


def test_a_buffer_that_training_changes_is_a_constant() -> None:
    program = capture(nn.BatchNorm1d(4), (W,))
    graph = view(program)
    count = next(node for node in graph.nodes if node.op == "aten.add_")
    assert (count.inputs, graph.outputs) == (("b_num_batches_tracked",), ("batch_norm",))
    assert len(view(decomposed(program)).outputs) == 1


# Constants, inputs, scopes, other operators


def test_weights_are_constants_and_tied_ones_are_one() -> None:
    graph = from_torch("pre-norm")
    stored = [*Language(True).parameters()]
    assert len(graph.constants) == len(stored)
    assert graph.parameters_stored == sum(tensor.numel() for tensor in stored)
    assert sum(c.size_bytes for c in graph.constants.values()) == 4 * graph.parameters_stored
    head = next(node for node in graph.nodes if node.scope == ("head",))
    table = next(node for node in graph.nodes if node.scope == ("tokens",))
    assert head.inputs[1] == table.inputs[0]
    assert graph.constants[table.inputs[0]].shape == (11, 8)


def test_constants_of_every_type() -> None:
    half = nn.Linear(4, 4, dtype=torch.bfloat16)
    half.register_buffer("places", torch.arange(3), persistent=False)
    graph = view(capture(half, (torch.ones(2, 4, dtype=torch.bfloat16),)))
    weight, places = graph.constants["p_weight"], graph.constants["b_places"]
    assert (weight.dtype, weight.elements, weight.size_bytes) == ("bfloat16", 16, 32)
    assert (places.dtype, places.shape, places.size_bytes) == ("int64", (3,), 24)
    assert graph.value("linear").dtype == "bfloat16"


def test_shapes_keep_numbers_and_name_symbols() -> None:
    graph = from_torch("gated")
    batch, length, d = graph.value(graph.outputs[0]).shape or ()
    assert [type(dim) for dim in (batch, length, d)] == [str, str, int]
    assert batch != length


def test_literals_among_the_inputs_are_no_inputs() -> None:
    graph = seen(lambda x, twice, by, _: x * by + x if twice else x, X, True, 2.0, None)
    assert graph.inputs == ("args_0",)
    assert [node.op for node in graph.nodes] == ["aten.mul", "aten.add"]


def test_a_tensor_given_twice_is_two_inputs() -> None:
    graph = seen(lambda a, b: a.exp() + b, X, X)
    assert [node.inputs for node in graph.nodes] == [("args_0",), ("exp", "args_1")]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: torch.Tensor) -> Any:
        return self.inner(self.inner(x)) + x


def test_scopes_are_the_paths_of_modules() -> None:
    module = Twice()
    program = capture(module, (W,))
    scopes = [("inner.0",), ("inner.1",), ("inner.0",), ("inner.1",), ()]
    assert [node.scope for node in view(program).nodes] == scopes
    assert {scope[0] for scope in scopes[:-1]} < dict(module.named_modules()).keys()
    for node in program.graph.nodes:  # as other versions of torch write them
        stack = node.meta.get("nn_module_stack", {})
        for key, (path, kind) in stack.items():
            stack[key] = f"L['self'].{path}@1" if path else "L['self']", kind
    assert [node.scope for node in view(program).nodes] == scopes


def test_the_nodes_of_a_stretch_without_gradient_are_seen() -> None:
    def twice(x: torch.Tensor) -> torch.Tensor:
        z = x.exp()
        y = z.mT
        for _ in range(2):
            with torch.no_grad():
                z = z.relu_().sin()
        return y + z

    program = capture(Call(twice), (W,))
    calls = [node for node in program.graph.nodes if "set_grad" in str(node.target)]
    first, second = (call.name for call in calls)
    *start, relu, sin, add = view(program).nodes
    written = (f"{first}/relu_", f"m_t@{first}/relu_")
    assert [node.outputs for node in start] == [("exp",), ("m_t",), written, (f"{first}/sin",)]
    assert (relu.inputs, relu.outputs) == ((f"{first}/sin",), (f"{second}/relu__1",))
    assert (sin.outputs, add.inputs) == ((f"{second}/sin_1",), (written[1], f"{second}/sin_1"))
    calls[1].update_arg(1, calls[0].args[1])  # both may call one submodule
    assert view(program).nodes[-1].inputs == (written[1], f"{second}/sin")


def test_choices_are_opaque_nodes() -> None:
    def choice(x: torch.Tensor) -> Any:
        return torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t * 2, (x,)) * 3

    graph = seen(choice)
    cond = next(node for node in graph.nodes if node.op == "higher_order.cond")
    assert (cond.kind, cond.derivative) == (Kind.OTHER, (False, True))
    assert graph.outputs[0] in graph.descendants(["args_0"])


@torch.library.custom_op("blockfold_tests::mixed", mutates_args=("into",))
def mixed(x: torch.Tensor, into: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    into.add_(x * index.numel())
    return x * 2


@mixed.register_fake
def _(x: torch.Tensor, *_others: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_unknown_operators_pass_a_derivative_from_every_floating_input() -> None:
    def unknown(x: torch.Tensor, index: torch.Tensor) -> Any:
        into = x.exp()
        return mixed(x, into, index) + into

    node = seen(unknown, X, NUMBERS).nodes[1]
    assert (node.op, node.kind) == ("blockfold_tests.mixed", Kind.OTHER)
    assert node.inputs == ("args_0", "exp", "args_1", "exp")
    assert node.derivative == (True, True, False, True)
    assert node.outputs == ("mixed", "exp@mixed")


TURNS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], tuple[int, ...] | None]] = {
    "permute": (lambda x: x.permute(2, 0, 1), (2, 0, 1)),
    "from behind": (lambda x: x.permute(0, -1, -2), (0, 2, 1)),
    "transpose": (lambda x: x.transpose(0, -1), (2, 1, 0)),
    "view": (lambda x: x.reshape(2, 4, 3), None),
}


@pytest.mark.parametrize("name", TURNS)
def test_how_axes_are_turned(name: str) -> None:
    call, order = TURNS[name]
    assert [node.permutation for node in seen(lambda x: call(x).sin()).nodes] == [order, None]


def test_channels_are_found_through_a_transpose() -> None:
    """As in ONNX: the product works on the axis that was the second."""
    swapped = seen(lambda x: (x.sin().transpose(1, 2) @ torch.ones(3, 3)).cos())
    plain = seen(lambda x: (x.sin() @ torch.ones(4, 4)).cos())
    assert channel_axis(swapped, "sin", None) == 1
    assert channel_axis(plain, "sin", None) == -1
