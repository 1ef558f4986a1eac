"""The module that an edited torch graph becomes: it trains, moves, copies and pickles."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import fx, nn

from . import aten_ops

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
        lasting = self.state_dict().keys()
        passing = [name for name, _ in self.named_buffers() if name not in lasting]
        names: dict[int, str] = {}
        ties = {
            name: names[id(tensor)]
            for name, tensor in self.named_parameters(remove_duplicate=False)
            if names.setdefault(id(tensor), name) != name
        }
        return _revived, (*super().__reduce__(), passing, ties, self.training)


def _revived(
    make: Callable[..., fx.GraphModule],
    arguments: tuple[Any, ...],
    passing: Collection[str],
    ties: Mapping[str, str],
    training: bool,
) -> CompressedModule:
    made = as_compressed(make(*arguments), passing)
    made.training = training
    for name, same in ties.items():
        owner, _, leaf = name.rpartition(".")
        holder: nn.Module = made
        for part in owner.split(".") if owner else ():
            if not hasattr(holder, part):
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        holder.register_parameter(leaf, made.get_parameter(same))
    return made


def as_compressed(module: fx.GraphModule, passing: Collection[str]) -> CompressedModule:
    """The same graph and tensors; buffers that are `passing` have no place in its state_dict."""
    module.graph._tracer_cls = None  # the one of torch.export cannot read a pickle again
    made = CompressedModule(module, module.graph)
    made.training = False
    held = dict(made.named_buffers(remove_duplicate=False))
    for name in passing:
        if name in held:
            owner, _, leaf = name.rpartition(".")
            made.get_submodule(owner)._non_persistent_buffers_set.add(leaf)
    return made


def _is_call(node: fx.Node) -> bool:
    return node.op == "call_function"
