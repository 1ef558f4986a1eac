"""The module that an edited torch graph becomes: it trains, moves, copies and pickles."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx, nn

from . import aten_ops
from .torch_pickle import packed, unpacked

TRAINING_FLAG = {
    "dropout": 2,
    "feature_dropout": 2,
    "alpha_dropout": 2,
    "feature_alpha_dropout": 2,
    "batch_norm": 5,
}
"""Which argument of an operator tells it that the module is training."""


class CompressedModule(fx.GraphModule):
    """A captured and edited module.

    `train()` and `eval()` reach its dropouts and BatchNorms, `to(device)` the devices its graph
    names. A capture does not keep hooks, Python's control flow, and dropout inside a fused
    attention; it keeps the dtype it was made in.
    """

    def train(self, mode: bool = True) -> CompressedModule:
        """As of nn.Module; the graph is written again where a flag changes."""
        super().train(mode)
        changed = False
        for node in self.graph.nodes:
            at = TRAINING_FLAG.get(aten_ops.table_name(node)[0]) if _is_call(node) else None
            if at is not None and len(node.args) > at and node.args[at] is not mode:
                node.args = (*node.args[:at], mode, *node.args[at + 1 :])
                changed = True
        if changed:
            self.recompile()
        return self

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> CompressedModule:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        tensors = [*self.parameters(), *self.buffers()]
        if tensors:
            self._name_device(tensors[0].device)
        return self

    def _name_device(self, device: torch.device) -> None:
        """Let tensors that the graph makes be made where the weights are."""
        changed = False
        for node in self.graph.nodes:
            args = tuple(device if isinstance(arg, torch.device) else arg for arg in node.args)
            named = {
                key: device if isinstance(value, torch.device) else value
                for key, value in node.kwargs.items()
            }
            if args != node.args or named != node.kwargs:
                node.args, node.kwargs, changed = args, named, True
        if changed:
            self.recompile()

    def __reduce__(self) -> tuple[Any, ...]:
        return _revived, (packed(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompressedModule:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, of its own classes
            made = super().__deepcopy__(memo)
        assert isinstance(made, CompressedModule)
        _leave_out(made, passing(self))
        return made


def _revived(content: bytes) -> CompressedModule:
    module = unpacked(content)
    return as_compressed(module, passing(module))


def as_compressed(module: fx.GraphModule, passing: Collection[str]) -> CompressedModule:
    """The same graph and tensors; buffers that are `passing` have no place in its state_dict."""
    module.graph._tracer_cls = None
    made = CompressedModule(module, module.graph)
    made.training = module.training
    _leave_out(made, passing)
    return made


def passing(module: nn.Module) -> list[str]:
    """Names of the buffers that a state_dict leaves out."""
    lasting = module.state_dict().keys()
    return [n for n, _ in module.named_buffers(remove_duplicate=False) if n not in lasting]


def _leave_out(module: nn.Module, names: Collection[str]) -> None:
    held = dict(module.named_buffers(remove_duplicate=False))
    for name in names:
        if name in held:
            owner, _, leaf = name.rpartition(".")
            module.get_submodule(owner)._non_persistent_buffers_set.add(leaf)


def _is_call(node: fx.Node) -> bool:
    return node.op == "call_function"
