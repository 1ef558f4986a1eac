"""The one door through which a captured torch graph is changed.

What is edited is a copy: the module that was captured shares no tensor with it. Tensors keep the
names that they have in the user's module; those that nothing reads any more are removed.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.export import ExportedProgram

from . import aten_ops
from .errors import Unsupported
from .torch_linear import TorchLinear
from .torch_module import CompressedModule, as_compressed

OWN = "blockfold"
"""Submodule that holds what is put in."""


class TorchDoor:
    """Edits a copy of a captured module; `close` hands it back. `inputs` are in order."""

    def __init__(self, program: ExportedProgram) -> None:
        """Raises Unsupported where an operation writes into memory that others look at."""
        captured = program.module(check_guards=False)
        captured.graph._tracer_cls = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, of its own classes
            module = copy.deepcopy(captured)
        assert isinstance(module, fx.GraphModule)
        for name in _missing(module):
            with module.graph.inserting_before(next(iter(module.graph.nodes))):
                module.graph.get_attr(name)
        self._module = fx.GraphModule(module, module.graph)  # without guards and without stubs
        self.graph = self._module.graph
        self.inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
        names = map(str, program.graph_signature.user_inputs)
        self._named: dict[str, fx.Node] = {node.name: node for node in self.graph.nodes}
        self._named |= zip(names, self.inputs, strict=True)
        self._replaced: dict[fx.Node, fx.Node] = {}
        _make_functional(self.graph)
        self._read = self._tensors_read()
        self._passing = set(program.graph_signature.non_persistent_buffers)

    def has(self, name: str) -> bool:
        """Whether a value of the view is the value of an fx node, too."""
        return name in self._named

    def node(self, name: str) -> fx.Node:
        """The fx node of a value of the view, or what has been put in its place."""
        found = self._named.get(name)
        if found is None:
            raise Unsupported(
                f"the captured module has no value {name!r} of its own: an operation inside a mode "
                "or an in-place write makes it; export the module to ONNX and give the file"
            )
        return self._replaced.get(found, found)

    def put(
        self, exit_: fx.Node, name: str, make: nn.Module | None, given: Sequence[fx.Node]
    ) -> None:
        """Let readers of `exit_` read a module's output of given values; None: the first itself."""
        if make is None:
            self._replace(exit_, given[0])
            return
        self._replace(exit_, self.call(exit_, name, make, given))

    def call(
        self, before: fx.Node, name: str, make: nn.Module, given: Sequence[fx.Node]
    ) -> fx.Node:
        """A new submodule, called on given values just before a node."""
        path = self._free_name(name)
        self._module.add_submodule(path, make)
        with self.graph.inserting_before(before):
            made = self.graph.call_module(path, tuple(given))
        made.meta["val"] = before.meta.get("val")
        return made

    def some_parameter(self) -> torch.Tensor:
        """A floating tensor of the module: what is put in has its type and place."""
        tensors = (*self._module.parameters(), *self._module.buffers())
        return next((t for t in tensors if t.is_floating_point()), torch.zeros(1))

    def values(
        self, wanted: Collection[fx.Node], feeds: Mapping[fx.Node, np.ndarray]
    ) -> dict[fx.Node, np.ndarray]:
        """The numbers that nodes hold when the module runs on inputs given by their nodes."""
        self._module.recompile()
        found = self.tensors(wanted, feeds)
        return {node: made.to("cpu", torch.float64).numpy() for node, made in found.items()}

    def tensors(
        self, wanted: Collection[fx.Node], feeds: Mapping[fx.Node, np.ndarray]
    ) -> dict[fx.Node, torch.Tensor]:
        """As `values`, where the module lies."""
        device = self.some_parameter().device
        reader = _Reader(self._module, wanted)
        given = [
            torch.from_numpy(np.array(feeds[node])).to(device) if node in feeds else None
            for node in self.inputs
        ]
        with torch.no_grad():
            reader.run(*given, enable_io_processing=False)
        return reader.found

    def put_linear(
        self,
        exit_: fx.Node,
        linear: TorchLinear,
        weight: torch.Tensor,
        bias: torch.Tensor,
        residual: fx.Node,
    ) -> None:
        """Let readers of `exit_` read residual + linear(u) with a new weight and bias.

        Tensors that nothing else reads keep their names and get new numbers.
        """
        reader = linear.operation if linear.is_exclusive else None
        weight_name = self._tensor(linear.weight, reader, weight)
        beside = f"{weight_name.rpartition('.')[0]}.bias".lstrip(".")
        if linear.bias is not None:
            bias_name = self._tensor(linear.bias, reader, bias)
        else:
            bias_name = self._new_tensor(beside, bias)
        with self.graph.inserting_before(exit_):
            given = [self.graph.get_attr(name) for name in (weight_name, bias_name)]
            for node, like in zip(given, (linear.weight, linear.weight), strict=True):
                node.meta["val"] = like.meta.get("val")
            term = self._same_operation(linear, *given)
            for view in linear.kept:
                term = self._copied(view, term)
            made = self.graph.call_function(torch.ops.aten.add.Tensor, (residual, term))
        made.meta = {
            key: exit_.meta[key] for key in ("val", "nn_module_stack") if key in exit_.meta
        }
        self._replace(exit_, made)

    def _copied(self, view: fx.Node, source: fx.Node) -> fx.Node:
        """A node again, on another first input."""
        first = view.all_input_nodes[0]
        return self.graph.node_copy(view, lambda node: source if node is first else node)

    def _same_operation(self, linear: TorchLinear, weight: fx.Node, bias: fx.Node) -> fx.Node:
        """The operation again on its own input; a product without a bias becomes one with it."""
        name, _ = aten_ops.table_name(linear.operation)
        graph, aten = self.graph, torch.ops.aten
        if linear.is_convolution:
            given = (linear.u, weight, bias, *linear.operation.args[3:])
            made = graph.call_function(_operator(linear.operation), given)
        elif name == "linear":
            made = graph.call_function(aten.linear.default, (linear.u, weight, bias))
        elif name == "addmm":
            made = graph.call_function(aten.addmm.default, (bias, linear.u, weight))
        else:
            product = graph.call_function(aten.matmul.default, (linear.u, weight))
            made = graph.call_function(aten.add.Tensor, (product, bias))
        made.meta = dict(linear.operation.meta)
        return made

    def _tensor(self, node: fx.Node, reader: fx.Node | None, values: torch.Tensor) -> str:
        """Name of a tensor with new values: its own where `reader` alone reads it."""
        name = str(node.target)
        sharing = [
            other
            for other in self.graph.nodes
            if other.op == "get_attr"
            and _held(self._module, str(other.target)) is _held(self._module, name)
        ]
        readers = {user for other in sharing for user in other.users}
        if readers - {reader}:
            return self._new_tensor(name, values)
        old = _held(self._module, name)
        owner, _, leaf = name.rpartition(".")
        setattr(self._module.get_submodule(owner), leaf, nn.Parameter(_like(values, old)))
        return name

    def _new_tensor(self, name: str, values: torch.Tensor) -> str:
        """A parameter beside the tensors of the module it belongs to, under a free name."""
        owner, _, leaf = name.rpartition(".")
        module, number, taken = self._module.get_submodule(owner), 1, leaf
        while hasattr(module, taken):
            if getattr(module, taken) is None:
                break
            number += 1
            taken = f"{leaf}_{number}"
        like = next(iter(self._module.parameters()), values)
        module.register_parameter(taken, nn.Parameter(_like(values, like)))
        return f"{owner}.{taken}".lstrip(".")

    def _free_name(self, name: str) -> str:
        path, number = f"{OWN}.{name}", 1
        known = dict(self._module.named_modules())
        while path in known:
            number += 1
            path = f"{OWN}.{name}_{number}"
        return path

    def _replace(self, old: fx.Node, new: fx.Node) -> None:
        old.replace_all_uses_with(new)
        self._replaced[old] = new
        for before, after in self._replaced.items():
            if after is old:
                self._replaced[before] = new

    def close(self) -> CompressedModule:
        """The edited module, nothing in it that no output needs."""
        needed = _needed(self.graph)
        now = {str(node.target) for node in needed if node.op == "get_attr"}
        gone = self._unread(now)
        for node in reversed(list(self.graph.nodes)):
            is_kept = node.op == "get_attr" and str(node.target) not in gone
            if node not in needed and node.op != "placeholder" and not is_kept:
                self.graph.erase_node(node)
        for name in gone:
            owner, _, leaf = name.rpartition(".")
            delattr(self._module.get_submodule(owner), leaf)
        _remove_empty(self._module)
        self.graph.lint()
        self._module.recompile()
        self._module.eval()
        return as_compressed(self._module, self._passing)

    def _tensors_read(self) -> set[str]:
        return {str(n.target) for n in _needed(self.graph) if n.op == "get_attr"}

    def _unread(self, now: Collection[str]) -> set[str]:
        """Names of tensors that were read and are not `now`, and of what stands beside them alone.

        Another name of a tensor that is still read stays.
        """
        held = _tensors(self._module)
        living = {id(held[name]) for name in now if name in held}
        gone = {name for name in self._read - set(now) if id(held[name]) not in living}
        owners = {name.rpartition(".")[0] for name in gone}
        kept = {name.rpartition(".")[0] for name in self._read & set(now)}
        for name, tensor in held.items():
            is_alone = name.rpartition(".")[0] in owners - kept
            if is_alone and name not in now and id(tensor) not in living:
                gone.add(name)
        return gone


class _Reader(fx.Interpreter):
    """Runs a module and keeps what some of its nodes hold."""

    def __init__(self, module: fx.GraphModule, wanted: Collection[fx.Node]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.found: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        if n in self.wanted:
            self.found[n] = made.detach()
        return made


def _needed(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that an output needs, or that change an input or a tensor of the module."""
    waiting = [graph.output_node()]
    waiting += [
        node
        for node in graph.nodes
        if node.op == "call_function"
        and any(target.op in ("get_attr", "placeholder") for target in aten_ops.written(node))
    ]
    found: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _make_functional(graph: fx.Graph) -> None:
    """Let operations that write to their input give a new value instead."""
    places = {node: at for at, node in enumerate(graph.nodes)}
    for call in list(graph.nodes):
        targets = aten_ops.written(call) if call.op == "call_function" else []
        if not targets or any(target.op in ("get_attr", "placeholder") for target in targets):
            continue
        function = _functional(call)
        (target, *more) = targets
        looking = [
            node
            for node in (*aten_ops.viewed(target), *target.users)
            if node is not call
            and _shares(node, target)
            and any(places[user] > places[call] for user in node.users)
        ]
        if function is None or more or looking:
            raise Unsupported(
                f"{call.name} ({aten_ops.full_name(call)}) writes into memory that is read under "
                "another name; write the code without it, or export to ONNX and give the file"
            )
        call.target = function
        for user in list(target.users):
            if places[user] > places[call]:
                user.replace_input_with(target, call)


def _shares(node: fx.Node, target: fx.Node) -> bool:
    """Whether one of the two is a view of the other."""
    if node.op != "call_function":
        return node in aten_ops.viewed(target)
    return node in aten_ops.viewed(target) or target in aten_ops.viewed(node)


def _functional(call: fx.Node) -> Callable[..., Any] | None:
    """The operator that computes the same and writes nowhere."""
    if not aten_ops.gives_back(call):
        return None
    name, overload = aten_ops.table_name(call)
    packet = getattr(torch.ops.aten, name, None)
    return getattr(packet, overload or "default", None)


def _missing(module: fx.GraphModule) -> list[str]:
    """Names of tensors that no node of the graph speaks of, such as second names."""
    named = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    calls = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    inside = tuple(f"{name}." for name in calls)
    return [n for n in _tensors(module) if n not in named and not n.startswith(inside)]


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def _operator(call: fx.Node) -> Callable[..., Any]:
    assert callable(call.target)
    return call.target


def _held(module: nn.Module, name: str) -> Any:
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def _like(values: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    return values.detach().to(old.device, old.dtype)


def _remove_empty(module: nn.Module) -> None:
    """Remove submodules that hold nothing, innermost first."""
    for name, child in list(module.named_children()):
        _remove_empty(child)
        is_bare = type(child) is nn.Module and not child._modules
        if is_bare and not child._parameters and not child._buffers:
            delattr(module, name)
