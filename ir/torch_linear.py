"""Linear operations that feed a sum: `value = residual + linear(u)`, as a captured graph spells it.

The torch counterpart of `onnx_linear`: linear, addmm, mm and matmul with a weight, convolutions of
one group; between them and the sum views, dropout, a bias, a scale per channel or a BatchNorm that
is not training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from . import aten_ops

OPERATIONS = frozenset("linear addmm mm matmul conv1d conv2d conv3d convolution".split())
TRANSPOSED = frozenset({"linear"})
SUMS = frozenset({"add"})
SCALES = frozenset({"mul", "multiply", "batch_norm"})
KEPT = frozenset(
    "view _unsafe_view reshape flatten unflatten squeeze unsqueeze transpose permute contiguous "
    "clone alias detach to _to_copy dropout feature_dropout alpha_dropout".split()
)
"""What is made again between the operation and the sum; scales and biases become part of it."""


@dataclass(frozen=True)
class TorchLinear:
    """`total = residual + linear(u)`; `after` are the nodes in between, in order."""

    total: fx.Node
    residual: fx.Node
    u: fx.Node
    operation: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    after: tuple[fx.Node, ...]

    @property
    def kept(self) -> list[fx.Node]:
        """The nodes in between that are made again."""
        return [node for node in self.after if aten_ops.table_name(node)[0] in KEPT]

    @property
    def is_exclusive(self) -> bool:
        """Whether the sum alone reads what the operation makes."""
        return all(len(node.users) == 1 for node in (self.operation, *self.after))

    def as_weight(self, W: torch.Tensor) -> torch.Tensor:
        """W (inputs, outputs), a kernel's as ((in k ...), out), in the layout of the weight."""
        name, _ = aten_ops.table_name(self.operation)
        if name in TRANSPOSED or self.is_convolution:
            W = W.T
        return W.reshape(self.weight.meta["val"].shape).contiguous()

    @property
    def is_convolution(self) -> bool:
        return aten_ops.table_name(self.operation)[0].startswith("conv")


def linear_into(total: fx.Node) -> TorchLinear | None:
    """The linear operation that feeds a sum, the later one where both terms end in one."""
    plain = aten_ops.table_name(total)[0] in SUMS and len(total.args) == 2 and not total.kwargs
    if not plain or not all(isinstance(term, fx.Node) for term in total.args):
        return None
    one, other = (term for term in total.args if isinstance(term, fx.Node))
    found = [_trace(total, other, one), _trace(total, one, other)]
    places = {node: at for at, node in enumerate(total.graph.nodes)}
    return max((f for f in found if f), key=lambda f: places[f.operation], default=None)


def _trace(total: fx.Node, residual: fx.Node, term: fx.Node) -> TorchLinear | None:
    """Walk from a term of the sum back to its linear operation."""
    after: list[fx.Node] = []
    node: object = term
    while isinstance(node, fx.Node) and node.op == "call_function":
        name, _ = aten_ops.table_name(node)
        if name in OPERATIONS:
            return _read(total, residual, node, tuple(reversed(after)))
        reads = [n for n in aten_ops.reads(node) if aten_ops.is_tensor(n)]
        flowing = [n for n in reads if n.op != "get_attr"]
        if name not in KEPT and (not _scales_or_shifts(node, name) or len(flowing) != 1):
            return None
        after.append(node)
        node = flowing[0] if flowing else None
    return None


def _scales_or_shifts(node: fx.Node, name: str) -> bool:
    if name == "batch_norm":
        return not aten_ops.named_arguments(node)["training"]
    return name in SUMS | SCALES


def _read(
    total: fx.Node, residual: fx.Node, operation: fx.Node, after: tuple[fx.Node, ...]
) -> TorchLinear | None:
    name, _ = aten_ops.table_name(operation)
    given = aten_ops.named_arguments(operation)
    u, weight, bias = (
        (given.get("mat1"), given.get("mat2"), given.get("self"))
        if name == "addmm"
        else (
            next(iter(given.values())),
            given.get("weight") or given.get("mat2") or given.get("other"),
            given.get("bias"),
        )
    )
    if not isinstance(u, fx.Node) or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    is_plain = given.get("groups", 1) == 1 and given.get("alpha", 1) == given.get("beta", 1) == 1
    is_matrix = name in TRANSPOSED or name.startswith("conv") or weight.meta["val"].ndim == 2
    if not is_plain or not is_matrix or given.get("transposed", False):
        return None
    own = bias if isinstance(bias, fx.Node) and bias.op == "get_attr" else None
    if bias is not None and own is None:
        return None
    return TorchLinear(total, residual, u, operation, weight, own, after)
