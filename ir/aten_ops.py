"""What the analysis knows of ATen operators, which torch.export writes its graphs in.

Where a derivative passes is mostly told by dtypes; the tables name what dtypes do not tell. Names
are those of `torch.ops.aten` without the trailing underscore of an in-place form; "name.overload"
goes before the bare name. Operators not named here are taken as Kind.OTHER with every floating
input differentiable: a path too many can only hide a cut, never invent one.
"""

from __future__ import annotations

from .graph import Kind

VIEWS = frozenset(
    "view _unsafe_view reshape _reshape_alias view_as reshape_as permute transpose t numpy_T mT "
    "matrix_H adjoint movedim moveaxis swapaxes swapdims flatten unflatten squeeze unsqueeze to "
    "_to_copy type_as view_as_real view_as_complex".split()
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
CHANNELS_FIRST = (
    NORMS
    - CHANNELS_LAST
    | frozenset(
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
)

NO_DERIVATIVE = SHAPES | frozenset(
    "bernoulli poisson heaviside histc unique_dim unique_consecutive _unique _unique2".split()
)
"""Operators whose outputs carry no derivative of any input, though they may be floating."""

UNREAD = {
    **dict.fromkeys("new_ones new_zeros new_full new_empty new_empty_strided".split(), 0),
    **dict.fromkeys("fill zero copy normal uniform exponential random set".split(), 0),
    **dict.fromkeys("to type_as view_as reshape_as expand_as".split(), 1),
}
"""Which tensor input lends its dtype, device or dimensions alone: its numbers are not read.

Like a length that a file states, this is no path, not even for `Graph.input_dependent`.
"""

DATA_SECOND = frozenset("addmm baddbmm addbmm addmv addr".split())
"""Operators that take the summand first; their product's first factor is what flows."""

CHECKS = ("_assert_", "_functional_assert_", "sym_constrain_range", "_functional_sym_constrain")
"""How the names of operators begin that check and compute nothing."""

COPIES = frozenset(
    "alias clone contiguous detach lift lift_fresh lift_fresh_copy positive resolve_conj "
    "resolve_neg".split()
)
"""Operators whose output holds the very numbers of their input, always."""

DROPOUTS = frozenset(
    "dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout".split()
)
"""Copies outside of training."""

CASTS = frozenset("to _to_copy type_as".split())
"""Copies where the dtype stays."""

RESHAPES = frozenset(
    "view _unsafe_view reshape _reshape_alias view_as reshape_as flatten unflatten squeeze expand "
    "expand_as broadcast_to repeat tile slice narrow".split()
)
"""Copies where the shape stays: they keep the order of what they keep."""

PADS = frozenset({"pad", "constant_pad_nd"})
"""Copies where they add nothing on any side."""

OWN_MEMORY = frozenset("clone lift_fresh_copy _to_copy repeat tile".split())
"""Copies that share no memory with their input: writing to one does not change the other."""

INLINED = frozenset({"wrap_with_set_grad_enabled", "wrap_with_autocast"})
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


def kind(name: str, overload: str, tensors: int) -> Kind:
    """The kind of `name` in the form `overload` when it reads so many tensors."""
    found = KINDS.get(f"{name}.{overload}") or KINDS.get(name, Kind.OTHER)
    # x + 1 sums no two values of the graph
    return Kind.POINTWISE if found is Kind.ADD and tensors < 2 else found
