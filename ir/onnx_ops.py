"""What the analysis knows of ONNX operators: their kind, and where a derivative can pass.

Standard operators and onnxruntime's fused ones (com.microsoft), by bare name: where both sets have
an operator of one name it means the same. Operators not named here, and all of other domains, are
taken as Kind.OTHER with every input differentiable: the safe reading, since a path too many can
only hide a cut, never invent one.
"""

from __future__ import annotations

from dataclasses import dataclass

from .graph import Kind

DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
"""Operator sets whose names the tables mean; what another domain calls Relu may be anything."""

BLOCKED_DOMAIN = "com.microsoft.nchwc"
"""Operators that keep feature maps in blocks of channels, until a ReorderOutput undoes it."""

VIEWS = frozenset("Reshape Flatten Squeeze Unsqueeze ExpandDims Pad".split())
POINTWISE = frozenset(
    "Cast CastLike Identity Dropout "
    "Relu LeakyRelu PRelu Elu Selu Celu Sigmoid HardSigmoid HardSwish Swish Tanh Softplus Softsign "
    "Mish Gelu FastGelu QuickGelu BiasGelu ScaledSiLU ThresholdedRelu Shrink Erf Exp Log Sqrt "
    "Reciprocal Neg Abs Pow Clip Sub Mul Div Mod Min Max Where Sin Cos Tan Asin Acos Atan Sinh "
    "Cosh Asinh Acosh Atanh Floor Ceil Round Sign QuantizeLinear DequantizeLinear QLinearMul "
    "QLinearSigmoid QLinearLeakyRelu QOrderedGelu".split()
)
NORMS = frozenset(
    "LayerNormalization SimplifiedLayerNormalization RMSNormalization BatchNormalization "
    "InstanceNormalization GroupNormalization GroupNorm LpNormalization LRN "
    "MeanVarianceNormalization QOrderedLayerNormalization".split()
)
RECTIFIERS = frozenset(
    "Relu LeakyRelu Elu Selu Celu HardSwish Swish Mish Gelu FastGelu QuickGelu BiasGelu".split()
)
"""Activations whose output is above 0 just where what enters them is."""

GATES = frozenset("Sigmoid HardSigmoid Erf Tanh".split())
"""What a value is multiplied by where such an activation is spelled out, as in x Sigmoid(x)."""

REDUCTIONS = frozenset(
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare "
    "ReduceLogSum ReduceLogSumExp".split()
)
SKIP_NORMS = frozenset({"SkipLayerNormalization", "SkipSimplifiedLayerNormalization"})
"""A residual sum and the norm of it: outputs are the norm, two statistics, and the sum."""

ADDITIONS = SKIP_NORMS | frozenset("Add Sum QLinearAdd BiasAdd BiasDropout SkipGroupNorm".split())
CHANNELS_LAST = frozenset(
    "MatMul Gemm FusedMatMul FusedMatMulActivation FusedGemm GemmFastGelu GemmFloat8 MatMulNBits "
    "MatMulBnb4 MatMulInteger MatMulIntegerToFloat DynamicQuantizeMatMul QLinearMatMul Attention "
    "QAttention PackedAttention MultiHeadAttention PackedMultiHeadAttention GroupQueryAttention "
    "PagedAttention SparseAttention DecoderMaskedSelfAttention DecoderMaskedMultiHeadAttention "
    "LongformerAttention LinearAttention MoE QMoE SkipLayerNormalization "
    "SkipSimplifiedLayerNormalization EmbedLayerNormalization LayerNormalization "
    "SimplifiedLayerNormalization RMSNormalization BiasGelu BiasSplitGelu BiasAdd LSTM GRU RNN "
    "NhwcConv NhwcFusedConv NhwcMaxPool GroupNorm SkipGroupNorm".split()
)
CHANNELS_FIRST = frozenset(
    "Conv ConvTranspose ConvInteger DeformConv QLinearConv FusedConv CausalConvWithState "
    "BatchNormalization MaxPool AveragePool LpPool GlobalMaxPool GlobalLpPool QLinearAveragePool "
    "QLinearGlobalAveragePool InstanceNormalization GroupNormalization Resize Upsample GridSample "
    "RoiAlign DepthToSpace SpaceToDepth LRN".split()
)
"""GlobalAveragePool is not among them: exporters write the mean over a last axis as one."""
LOOKUPS = frozenset(
    "Gather GatherND GatherElements GatherBlockQuantized TorchEmbedding EmbedLayerNormalization "
    "QEmbedLayerNormalization".split()
)
LOOKUP_INPUTS = dict.fromkeys(("EmbedLayerNormalization", "QEmbedLayerNormalization"), (2, 0))
"""Table and index of look-ups that do not begin with them."""

SHAPES = frozenset({"Shape", "Size"})

NO_DERIVATIVE = SHAPES | frozenset(
    "ArgMax ArgMin NonZero Equal Greater GreaterOrEqual Less LessOrEqual And Or Not Xor IsNaN "
    "IsInf IsAllFinite BitShift BitwiseAnd BitwiseOr BitwiseXor BitwiseNot NonMaxSuppression "
    "Multinomial Bernoulli RandomNormalLike RandomUniformLike EyeLike Range ConstantOfShape OneHot "
    "StringNormalizer Unique SequenceLength".split()
)
"""Operators whose outputs carry no derivative of any input."""

DATA_INPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        "Gather GatherND GatherElements Reshape Expand Tile Slice Pad Unsqueeze Squeeze Split TopK "
        "Resize Upsample Trilu CumSum CumProd Dropout CastLike Compress ReverseSequence GridSample "
        "AffineGrid CenterCropPad Col2Im DFT STFT ExpandDims TorchEmbedding".split(),
        (0,),
    ),
    **dict.fromkeys(REDUCTIONS, (0,)),
    "Where": (1, 2),
    "ScatterND": (0, 2),
    "ScatterElements": (0, 2),
    "Scatter": (0, 2),
    "TensorScatter": (0, 1),
    "MaxUnpool": (0,),
    "GatherBlockQuantized": (0, 2, 3),
    "EmbedLayerNormalization": (2, 3, 4),
    "QEmbedLayerNormalization": (2, 3, 4),
    "Attention": (0, 1, 2, 3, 4, 5),
    "MultiHeadAttention": (0, 1, 2, 3, 5, 6, 7),
    "GroupQueryAttention": (0, 1, 2, 3, 4, 7, 8, 10, 11, 12, 13, 14, 15),
}
"""Operators only some of whose inputs are data; the others are indices, shapes, axes, flags."""

SMOOTH_OUTPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        "TopK MaxPool NhwcMaxPool Dropout BiasDropout BitmaskDropout "
        "QEmbedLayerNormalization".split(),
        (0,),
    ),
    "EmbedLayerNormalization": (0, 2),
}
"""Operators only some of whose outputs carry a derivative; the rest are indices and masks."""

MOVING = VIEWS | frozenset(
    "Cast CastLike Identity Transpose Slice Split Gather GatherElements Expand Tile Concat "
    "ScatterND ScatterElements Scatter TensorScatter".split()
)
"""Operators whose outputs hold the numbers of their first input (Concat: of all), moved about."""

CACHE_SLOTS: dict[str, tuple[tuple[int, int], ...]] = {
    "Attention": ((4, 1), (5, 2)),
    "MultiHeadAttention": ((6, 1), (7, 2)),
    "GroupQueryAttention": ((3, 1), (4, 2)),
    "SparseAttention": ((3, 1), (4, 2)),
    "DecoderMaskedSelfAttention": ((4, 1),),
    "DecoderMaskedMultiHeadAttention": ((5, 1), (6, 2)),
}
"""Fused attentions: the inputs that hold keys and values of earlier tokens, and the outputs that
hold these and the new ones."""

INTEGER_TYPES = frozenset({2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 21, 22, 25, 26})
"""TensorProto.DataType codes of integers, strings and bool: a Cast to one stops a derivative."""


KINDS: dict[str, Kind] = {
    **dict.fromkeys(VIEWS, Kind.VIEW),
    "Transpose": Kind.PERMUTE,
    **dict.fromkeys(POINTWISE, Kind.POINTWISE),
    **dict.fromkeys(NORMS, Kind.NORM),
    **dict.fromkeys(REDUCTIONS, Kind.REDUCE),
    **dict.fromkeys(ADDITIONS, Kind.ADD),
    **dict.fromkeys(LOOKUPS, Kind.LOOKUP),
    **dict.fromkeys(SHAPES, Kind.SHAPE),
}

CHANNEL_AXIS: dict[str, int] = {
    **dict.fromkeys(CHANNELS_LAST, -1),
    **dict.fromkeys(CHANNELS_FIRST, 1),
}
"""The axis on which an operator expects the channels of its first input, where no attribute
`channels_last` says otherwise."""


@dataclass(frozen=True)
class StandIn:
    """A standard operator, on some of the inputs, whose output has the type of some `outputs`.

    "Expand" stands for any operator that keeps the dtype: nothing is said of the shape.
    """

    op: str
    inputs: tuple[int, ...] = (0,)
    outputs: tuple[int, ...] = (0,)


def _typed(names: str, like: int, *outputs: int) -> dict[str, StandIn]:
    return dict.fromkeys(names.split(), StandIn("Expand", (like,), outputs or (0,)))


STAND_INS: dict[str, StandIn] = {
    **dict.fromkeys(
        "Gelu FastGelu QuickGelu ScaledSiLU LayerNormalization SimplifiedLayerNormalization "
        "RMSNormalization GroupNorm BiasSoftmax RotaryEmbedding QLinearSigmoid QLinearLeakyRelu "
        "QLinearSoftmax BiasAdd BiasDropout".split(),
        StandIn("Identity"),
    ),
    **dict.fromkeys(SKIP_NORMS, StandIn("Identity", (0,), (0, 3))),
    "SkipGroupNorm": StandIn("Identity", (0,), (0, 1)),
    "BiasGelu": StandIn("Add", (0, 1)),
    "FusedConv": StandIn("Conv", (0, 1, 2)),
    "FusedGemm": StandIn("Gemm", (0, 1, 2)),
    "GemmFastGelu": StandIn("MatMul", (0, 1)),
    "EmbedLayerNormalization": StandIn("Gather", (2, 0), (0, 2)),
    "TorchEmbedding": StandIn("Gather", (0, 1)),
    **_typed(
        "FusedMatMul FusedMatMulActivation GemmFloat8 MatMulNBits MatMulBnb4 MatMulFpQ4 "
        "DynamicQuantizeMatMul MoE QMoE NhwcConv NhwcFusedConv NhwcMaxPool BiasSplitGelu "
        "QLinearAdd QLinearMul QLinearAveragePool QLinearGlobalAveragePool QLinearReduceMean "
        "QLinearConv QGemm RelativePositionBias GatedRelativePositionBias RestorePadding",
        0,
    ),
    **_typed("Attention LongformerAttention PackedAttention DecoderMaskedSelfAttention", 0, 0, 1),
    **_typed("MultiHeadAttention GroupQueryAttention DecoderMaskedMultiHeadAttention", 0, 0, 1, 2),
    **_typed("PackedMultiHeadAttention SparseAttention LinearAttention", 0),
    **_typed("MatMulIntegerToFloat GatherBlockQuantized", 2),
    **_typed("QAttention", 3),
    **_typed("QLinearConcat DequantizeLinear", 1),
    **_typed("QuantizeLinear QLinearWhere", 2),
    **{
        f"{BLOCKED_DOMAIN}.{name}": StandIn("Expand")
        for name in "Conv MaxPool AveragePool GlobalMaxPool GlobalAveragePool Upsample "
        "ReorderInput ReorderOutput".split()
    },
}
"""Operators that ONNX's inference of types and shapes does not know."""
