"""What the analysis knows of ATen operators, which torch.export writes its graphs in.

Where a derivative passes is mostly told by dtypes, and what shares memory by an operator's schema;
the tables name the rest. Names are those of `torch.ops.aten` without the trailing underscore of an
in-place form; "name.overload" goes before the bare name. Operators not named here are taken as
Kind.OTHER with every floating input differentiable: a path too many can only hide a cut, never
invent one.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload

from .graph import Kind

VIEWS = frozenset(
    "view _unsafe_view reshape _reshape_alias view_as reshape_as permute transpose t numpy_T mT "
    "matrix_H adjoint movedim moveaxis swapaxes swapdims flatten unflatten squeeze unsqueeze to "
    "_to_copy type_as view_as_real view_as_complex pad constant_pad_nd".split()
)
POINTWISE = frozenset(
    "relu relu6 leaky_relu prelu _prelu_kernel rrelu elu selu celu sigmoid hardsigmoid hardswish "
    "hardtanh silu mish gelu tanh tanhshrink softshrink hardshrink softplus threshold log_sigmoid "
    "erf erfc exp exp2 expm1 log log1p log2 log10 sqrt rsqrt reciprocal square pow float_power neg "
    "negative abs absolute clamp clamp_min clamp_max clip sub subtract rsub mul multiply div "
    "divide true_divide floor_divide fmod remainder minimum maximum fmin fmax max.other min.other "
    "where masked_fill addcmul addcdiv lerp sin cos tan asin acos atan atan2 sinh cosh asinh acosh "
    "atanh sinc logit floor ceil round trunc frac fix sign sgn nan_to_num dropout feature_dropout "
    "alpha_dropout feature_alpha_dropout native_dropout fake_quantize_per_tensor_affine "
    "fake_quantize_per_channel_affine".split()
)
NORMS = frozenset(
    "layer_norm native_layer_norm rms_norm _fused_rms_norm batch_norm native_batch_norm "
    "_native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update "
    "cudnn_batch_norm instance_norm group_norm native_group_norm".split()
)
REDUCTIONS = frozenset(
    "mean sum nansum nanmean prod max min amax amin aminmax var std var_mean std_mean logsumexp "
    "norm linalg_norm linalg_vector_norm".split()
)
ADDITIONS = frozenset({"add"})
LOOKUPS = frozenset(
    "embedding embedding_bag index_select gather take take_along_dim index _unsafe_index".split()
)
SHAPES = frozenset(
    "sym_size sym_numel sym_stride sym_storage_offset _shape_as_tensor zeros_like ones_like "
    "full_like empty_like rand_like randn_like randint_like".split()
)
CHANNELS_LAST = frozenset(
    "linear matmul mm bmm addmm baddbmm _int_mm _scaled_mm _weight_int4pack_mm _weight_int8pack_mm "
    "scaled_dot_product_attention _scaled_dot_product_attention_math "
    "_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
    "_native_multi_head_attention _transformer_encoder_layer_fwd "
    "layer_norm native_layer_norm rms_norm _fused_rms_norm".split()
)
CHANNELS_FIRST = NORMS - CHANNELS_LAST | frozenset(
    "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution "
    "_convolution mkldnn_convolution cudnn_convolution max_pool1d max_pool2d max_pool3d "
    "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices avg_pool1d "
    "avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
    "upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d "
    "_upsample_bilinear2d_aa _upsample_bicubic2d_aa pixel_shuffle pixel_unshuffle "
    "channel_shuffle".split()
)

NO_DERIVATIVE = SHAPES | frozenset(
    "bernoulli poisson heaviside histc unique_dim unique_consecutive _unique _unique2".split()
)
"""Operators whose outputs carry no derivative of any input, though they may be floating."""

UNREAD = {
    **dict.fromkeys("new_ones new_zeros new_full new_empty new_empty_strided".split(), 0),
    **dict.fromkeys("fill zero copy uniform exponential random set".split(), 0),
    **dict.fromkeys("to type_as view_as reshape_as expand_as".split(), 1),
}
"""Which tensor input lends its dtype, device or dimensions alone: its numbers are not read.

Like a length that a file states, this is no path, not even for `Graph.input_dependent`.
"""

DATA_SECOND = frozenset("addmm baddbmm addbmm addmv addr".split())
"""Operators that take the summand first; their product's first factor is what flows."""

COPIES = frozenset(
    "alias clone contiguous detach lift lift_fresh lift_fresh_copy positive resolve_conj "
    "resolve_neg "
    "to _to_copy type_as "
    "view _unsafe_view reshape _reshape_alias view_as reshape_as flatten unflatten squeeze expand "
    "expand_as broadcast_to repeat tile slice narrow".split()
)
"""Operators whose output holds the very numbers of their input if its dtype and shape are equal."""

DROPOUTS = frozenset("dropout feature_dropout alpha_dropout feature_alpha_dropout".split())
PADS = frozenset({"pad", "constant_pad_nd"})
SWAPS = frozenset({"transpose", "swapaxes", "swapdims"})

OWN_MEMORY = frozenset("clone lift_fresh_copy _to_copy repeat tile pad constant_pad_nd".split())
"""Copies that share no memory with their input: writing to one does not change the other."""

INLINED = frozenset({"higher_order.wrap_with_set_grad_enabled", "higher_order.wrap_with_autocast"})
"""Calls of a submodule that only set a mode around it: its nodes are nodes of the graph."""

KINDS: dict[str, Kind] = {
    **dict.fromkeys(VIEWS, Kind.VIEW),
    **dict.fromkeys(POINTWISE, Kind.POINTWISE),
    **dict.fromkeys(NORMS, Kind.NORM),
    **dict.fromkeys(REDUCTIONS, Kind.REDUCE),
    **dict.fromkeys(ADDITIONS, Kind.ADD),
    **dict.fromkeys(LOOKUPS, Kind.LOOKUP),
    **dict.fromkeys(SHAPES, Kind.SHAPE),
    "view.dtype": Kind.OTHER,  # the same bits read as other numbers
}

CHANNEL_AXIS: dict[str, int] = {
    **dict.fromkeys(CHANNELS_LAST, -1),
    **dict.fromkeys(CHANNELS_FIRST, 1),
}
"""The axis on which an operator expects the channels of its first input."""


def kind(call: fx.Node) -> Kind:
    name, overload = table_name(call)
    found = KINDS.get(f"{name}.{overload}") or KINDS.get(name, Kind.OTHER)
    if found is Kind.ADD and sum(map(is_tensor, reads(call))) < 2:
        return Kind.POINTWISE  # x + 1 sums no two values
    return found


def table_name(call: fx.Node) -> tuple[str, str]:
    """Name and overload of the operator called, as the tables have them."""
    target = call.target
    if not isinstance(target, OpOverload):
        return full_name(call), ""
    space, _, name = target._schema.name.partition("::")
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name if space == "aten" else f"{space}.{name}", target._overloadname


def full_name(call: fx.Node) -> str:
    """The operator's name for people: "aten.relu_", "higher_order.cond", "operator.mul"."""
    target = call.target
    if isinstance(target, OpOverload):
        return str(target._schema.name).replace("::", ".")
    if isinstance(target, HigherOrderOperator):
        return f"higher_order.{target._name}"
    return f"{getattr(target, '__module__', '').lstrip('_')}.{getattr(target, '__name__', target)}"


def is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


def reads(call: fx.Node) -> list[fx.Node]:
    """The fx nodes among the arguments, in order, one for each place that they stand in."""
    return _nodes((call.args, call.kwargs))


def copied(call: fx.Node) -> fx.Node | None:
    """The input whose very numbers the call gives; None where it computes others."""
    given = named_arguments(call)
    source = next(iter(given.values()), None)
    if not isinstance(source, fx.Node) or not _look_alike(source, call):
        return None
    name, _ = table_name(call)
    rank = max(call.meta["val"].ndim, 1)
    if name in DROPOUTS:
        same = not given["train"] or given["p"] == 0
    elif name in PADS:
        same = all(side == 0 for side in given["pad"])
    elif name == "permute":
        same = [axis % rank for axis in given["dims"]] == list(range(len(given["dims"])))
    elif name in SWAPS:
        _, one, other = given.values()
        same = one % rank == other % rank
    else:
        same = name in COPIES
    return source if same else None


def permutation(call: fx.Node) -> tuple[int, ...] | None:
    """Which input axis each output axis is, of a call that only orders axes anew."""
    name, _ = table_name(call)
    if name != "permute" and name not in SWAPS:
        return None
    rank = call.meta["val"].ndim
    _, *given = named_arguments(call).values()
    if name == "permute":
        return tuple(axis % rank for axis in given[0])
    order = list(range(rank))
    one, other = given
    order[one], order[other] = order[other], order[one]
    return tuple(order)


def written(call: fx.Node) -> list[fx.Node]:
    """The arguments whose memory the call changes."""
    changed = [value for argument, value in _arguments(call) if _is_written(argument)]
    return _nodes(changed)


def gives_back(call: fx.Node) -> bool:
    """Whether the call returns the one argument it has changed, as in-place operators do."""
    returns = call.target._schema.returns if isinstance(call.target, OpOverload) else []
    return len(returns) == 1 and _is_written(returns[0])


def viewed(call: fx.Node) -> list[fx.Node]:
    """The arguments in whose memory the outputs may lie."""
    if not isinstance(call.target, OpOverload):
        return []
    if all(output.alias_info is None for output in call.target._schema.returns):
        return []
    return _nodes(
        [value for argument, value in _arguments(call) if argument.alias_info is not None]
    )


def _is_written(argument: torch.Argument) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _nodes(given: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(given, found.append)
    return found


def body(call: fx.Node) -> fx.GraphModule | None:
    """The submodule of a call that only sets a mode around it."""
    if table_name(call)[0] not in INLINED:
        return None
    owner, submodule = call.graph.owning_module, reads(call)[0]
    found = owner.get_submodule(str(submodule.target)) if owner is not None else None
    return found if isinstance(found, fx.GraphModule) else None


def picks(call: fx.Node) -> list[fx.Node]:
    """The nodes that pick one of a call's several outputs."""
    return [user for user in call.users if user.target is operator.getitem]


def index(node: fx.Node) -> int:
    """Which output a pick takes; -1 for a node that is none."""
    place = node.args[1] if node.target is operator.getitem else -1
    return place if isinstance(place, int) else -1


def parts(call: fx.Node) -> list[fx.Node]:
    """The nodes that stand for the outputs of a call: the first pick of each, else the call.

    Operators that only check or write have no outputs.
    """
    if isinstance(call.target, OpOverload) and not call.target._schema.returns:
        return []
    first = {index(pick): pick for pick in reversed(picks(call))}
    is_read_whole = not first or len(picks(call)) < len(call.users)
    return [first[place] for place in sorted(first)] + [call] * is_read_whole


def carries(node: fx.Node) -> bool:
    """Whether a derivative can pass the value: floating or complex, or of unknown type."""
    held = node.meta.get("val", node)
    return held is node or any(map(_is_smooth, held if isinstance(held, list | tuple) else [held]))


def _is_smooth(held: object) -> bool:
    if isinstance(held, torch.Tensor):
        return held.is_floating_point() or held.is_complex()
    return isinstance(held, torch.SymFloat)


def named_arguments(call: fx.Node) -> dict[str, Any]:
    """What is given for each argument of the operator's schema, by the argument's name."""
    return {argument.name: value for argument, value in _arguments(call)}


def _arguments(call: fx.Node) -> list[tuple[torch.Argument, Any]]:
    """What is given for each argument of the operator's schema; nothing for other callables."""
    if not isinstance(call.target, OpOverload):
        return []
    schema = call.target._schema.arguments
    named = {a.name: a for a in schema}
    return [
        *zip(schema, call.args, strict=False),
        *((named[key], value) for key, value in call.kwargs.items()),
    ]


def _look_alike(a: fx.Node, b: fx.Node) -> bool:
    """Whether dtype and shape are the same, symbols by name."""
    one, other = a.meta.get("val"), b.meta.get("val")
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return False
    shapes = [[str(dim) for dim in tensor.shape] for tensor in (one, other)]
    return one.dtype == other.dtype and shapes[0] == shapes[1]
