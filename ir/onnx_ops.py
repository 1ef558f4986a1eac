"""What the analysis knows of ONNX operators: their kind, and where a derivative can pass.

Operators not named here are taken as Kind.OTHER with every input differentiable: the safe reading,
since a path too many can only hide a cut, never invent one.
"""

from __future__ import annotations

from .graph import Kind

VIEWS = frozenset("Cast CastLike Reshape Flatten Squeeze Unsqueeze Identity Dropout".split())
POINTWISE = frozenset(
    "Relu LeakyRelu PRelu Elu Selu Celu Sigmoid HardSigmoid HardSwish Swish Tanh Softplus Softsign "
    "Mish Gelu FastGelu QuickGelu BiasGelu ThresholdedRelu Erf Exp Log Sqrt Reciprocal Neg Abs Pow "
    "Clip Sub Mul Div Min Max Where Sin Cos Floor Ceil Round Sign "
    "QuantizeLinear DequantizeLinear".split()
)
NORMS = frozenset(
    "LayerNormalization SimplifiedLayerNormalization RMSNormalization BatchNormalization "
    "InstanceNormalization GroupNormalization GroupNorm LpNormalization LRN "
    "MeanVarianceNormalization".split()
)
REDUCTIONS = frozenset(
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare "
    "ReduceLogSum ReduceLogSumExp".split()
)
ADDITIONS = frozenset({"Add", "Sum"})
CHANNELS_LAST = frozenset(
    "MatMul Gemm FusedMatMul MatMulNBits Attention MultiHeadAttention GroupQueryAttention "
    "SkipLayerNormalization SkipSimplifiedLayerNormalization EmbedLayerNormalization "
    "LayerNormalization SimplifiedLayerNormalization RMSNormalization BiasGelu".split()
)
CHANNELS_FIRST = frozenset(
    "Conv ConvTranspose ConvInteger QLinearConv FusedConv BatchNormalization MaxPool AveragePool "
    "GlobalAveragePool GlobalMaxPool LpPool GlobalLpPool InstanceNormalization GroupNormalization "
    "GroupNorm Resize Upsample DepthToSpace SpaceToDepth LRN".split()
)
LOOKUPS = frozenset({"Gather", "GatherND", "GatherElements"})
SHAPES = frozenset({"Shape", "Size"})

NO_DERIVATIVE = SHAPES | frozenset(
    "ArgMax ArgMin NonZero Equal Greater GreaterOrEqual Less LessOrEqual And Or Not Xor IsNaN "
    "IsInf BitShift BitwiseAnd BitwiseOr BitwiseXor BitwiseNot NonMaxSuppression Multinomial "
    "Bernoulli RandomNormalLike RandomUniformLike EyeLike Range ConstantOfShape OneHot "
    "StringNormalizer Unique".split()
)
"""Operators whose outputs carry no derivative of any input."""

DATA_INPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(
        "Gather GatherND GatherElements Reshape Expand Tile Slice Pad Unsqueeze Squeeze Split TopK "
        "Resize Upsample Trilu CumSum Dropout CastLike Compress ReverseSequence GridSample "
        "AffineGrid CenterCropPad Col2Im DFT STFT".split(),
        (0,),
    ),
    **dict.fromkeys(REDUCTIONS, (0,)),
    "Where": (1, 2),
    "ScatterND": (0, 2),
    "ScatterElements": (0, 2),
    "Scatter": (0, 2),
    "MaxUnpool": (0,),
    "EmbedLayerNormalization": (2, 3, 4),
}
"""Operators only some of whose inputs are data; the others are indices, shapes, axes, flags."""

SMOOTH_OUTPUTS = {"TopK": 1, "MaxPool": 1, "Dropout": 1}
"""Operators only whose first so many outputs carry a derivative (the rest are indices, masks)."""

INTEGER_TYPES = frozenset({2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 21, 22})
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
"""The axis on which an operator expects the channels of its first input."""
