"""An edited torch graph as plain data, so that a module pickles without being traced again."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch._ops import OpOverload

PARTS = ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set")


class Place(NamedTuple):
    """Stands for a node among the arguments of another."""

    name: str


class Record(NamedTuple):
    """A node: operators of torch by their names, other functions as pickle takes them."""

    op: str
    name: str
    target: object
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    is_operator: bool


def packed(module: fx.GraphModule) -> bytes:
    """The graph of a module and the modules and tensors it holds."""
    tree = nn.Module()
    for part in PARTS:
        setattr(tree, part, copy.copy(getattr(module, part)))
    tree.training = module.training
    records = [_record(node) for node in module.graph.nodes]
    return pickle.dumps((tree, records, module.graph._codegen))


def unpacked(content: bytes) -> fx.GraphModule:
    """The inverse of `packed`, the module holding all that was there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, of its own classes
        tree, records, codegen = pickle.loads(content)
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    for record in records:
        args, kwargs = _mapped((record.args, record.kwargs), made)
        target = _operator(record.target) if record.is_operator else record.target
        made[record.name] = graph.create_node(record.op, target, args, kwargs, record.name)
    graph.set_codegen(codegen)
    module = fx.GraphModule(tree, graph)
    for part in PARTS:
        setattr(module, part, getattr(tree, part))
    module.training = tree.training
    return module


def _record(node: fx.Node) -> Record:
    is_operator = isinstance(node.target, OpOverload)
    target = str(node.target) if is_operator else node.target
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda other: Place(other.name))
    return Record(node.op, node.name, target, args, kwargs, is_operator)


def _mapped(held: Any, made: dict[str, fx.Node]) -> Any:
    """The arguments with nodes in the place of their names."""
    if isinstance(held, Place):
        return made[held.name]
    if isinstance(held, dict):
        return {key: _mapped(value, made) for key, value in held.items()}
    if type(held) is slice:
        return slice(*(_mapped(part, made) for part in (held.start, held.stop, held.step)))
    if type(held) in (tuple, list, fx.immutable_collections.immutable_list):
        return tuple(held) if not held else type(held)(_mapped(value, made) for value in held)
    return held


def _operator(name: object) -> OpOverload[..., Any]:
    """torch.ops.aten.add.Tensor of "aten.add.Tensor"."""
    space, packet, overload = str(name).split(".")
    found = getattr(getattr(getattr(torch.ops, space), packet), overload)
    assert isinstance(found, OpOverload)
    return found
