"""Capturing a torch module with torch.export, and reading what that gives into the dataflow view.

The user's module is not changed, and no number in it is read.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from . import aten_ops
from .errors import BadInput, Unsupported
from .graph import Constant, Graph, Kind, Node, Shape, Value

WEIGHTS = frozenset({InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR})
FLOWING = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)

ADVICE = (
    (
        "Cache'> in output",
        "call transformers.integrations.executorch.register_dynamic_cache_export_support() first, "
        "or switch the cache off (use_cache=False)",
    ),
    (
        "not a known type|Unsupported input type",
        "give and take tensors, tuples, lists and dicts, or register the type with "
        "torch.utils._pytree.register_pytree_node",
    ),
    (
        "(?s)data-dependent.*expert",
        'a mixture of experts must compute them together: set_experts_implementation("batched_mm")',
    ),
    (
        "data-dependent",
        "its steps must not depend on the numbers in a tensor: use torch.where or torch.cond",
    ),
    (
        "specialized",
        "leave that axis out of dynamic_shapes, mark it Dim.AUTO, or give sizes of 2 or more there",
    ),
)
"""What to do, by what torch.export says or the line of code that it stopped at."""


def capture(
    module: torch.nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: dict[str, Any] | tuple[Any, ...] | list[Any] | None = None,
) -> ExportedProgram:
    """What `module(*args, **kwargs)` computes; `dynamic_shapes` is as torch.export takes it.

    Raises BadInput where the module does not run on these inputs or `dynamic_shapes` does not fit
    them, and Unsupported where torch cannot capture what runs.
    """
    name = type(module).__name__
    if not isinstance(module, torch.nn.Module):
        raise BadInput(f"a torch.nn.Module is needed, not a {name}; give the module itself")
    if isinstance(module, torch.jit.ScriptModule):
        raise Unsupported(f"{name} is TorchScript; give the module that it was made from")
    if not isinstance(args, tuple):
        raise BadInput(f"args is a {type(args).__name__}; give a tuple of inputs, such as (x,)")
    if not isinstance(kwargs or {}, Mapping):
        raise BadInput(f"kwargs is a {type(kwargs).__name__}; give inputs by name")
    args, named = _told_apart((args, dict(kwargs or {})))
    try:
        with _quiet():
            return torch.export.export(
                module, args, named, dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:  # it runs the module's code, which may raise anything
        _must_run(module, args, named)
        said = _gist(error)
        if any(frame.name == "make_fake_inputs" for frame in _frames(error)):
            todo = _advice(error, "give dynamic_shapes for inputs and axes that are there")
            raise BadInput(f"inputs of {name}: {said}; {todo}") from error
        todo = _advice(error, "change that code, or export the module to ONNX and give the file")
        raise Unsupported(
            f"torch.export cannot capture {name}{_where(error)}: {said}; {todo}"
        ) from error


def _told_apart(inputs: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    """Inputs with a copy for a tensor that stands there again: torch.export takes both for one."""
    met: set[int] = set()

    def own(leaf: object) -> object:
        if isinstance(leaf, torch.Tensor) and id(leaf) in met:
            return leaf.detach().clone()
        met.add(id(leaf))
        return leaf

    return pytree.tree_map(own, inputs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from logging and printing at length what its exception says, too."""
    before, printed = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(printed):
            yield
        sys.stderr.write(printed.getvalue())
    finally:
        logging.disable(before)


def _must_run(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise BadInput where plain torch cannot run the module either."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        with torch.no_grad():  # and on copies of the buffers: in training it changes them
            torch.func.functional_call(module, buffers, args, kwargs)
    except Exception as error:
        raise BadInput(
            f"{type(module).__name__} does not run on the inputs given{_where(error)}: "
            f"{_gist(error)}; give them as you call the module"
        ) from error


def _gist(error: Exception) -> str:
    """The first line of a message that says something, without torch's pointers to its manual."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and (lines[0].endswith(":") or lines[0].startswith("Constraints violated")):
        del lines[0]
    said = re.split(r"[.!]?\s+(?:For more|If (?:this|you))", lines[0] if lines else "")[0]
    return (said if len(said) <= 240 else f"{said[:240]} ...").rstrip(".") or type(error).__name__


def _frames(error: Exception) -> traceback.StackSummary:
    return traceback.extract_tb(error.__traceback__)


def _user_frame(error: Exception) -> traceback.FrameSummary | None:
    """The innermost line that is neither torch's nor ours nor made up on the fly."""
    inside = ("<", *(str(Path(path).parent) for path in (torch.__file__, __file__)))
    return next((f for f in reversed(_frames(error)) if not f.filename.startswith(inside)), None)


def _where(error: Exception) -> str:
    frame = _user_frame(error)
    return f" at {Path(frame.filename).name}:{frame.lineno}" if frame else ""


def _advice(error: Exception, otherwise: str) -> str:
    frame = _user_frame(error)
    text = f"{error} {frame.line if frame else ''}"
    found = (todo for pattern, todo in ADVICE if re.search(pattern, text))
    return next(found, otherwise)


def view(program: ExportedProgram) -> Graph:
    """The dataflow view of a captured module; values are named as its fx nodes are.

    Nodes that copy a value (dropout in evaluation, a view that changes no shape) are left out, and
    their names stand for the value they copy. Two kinds of names have a mark that no fx name has:
    "call/x" is node x of the submodule that node `call` runs, "x@write" is what value x has become
    once node `write` has changed its memory. Weights that are one tensor are one Constant.
    """
    walk = _Walk()
    inputs = []
    places = [node for node in program.graph.nodes if node.op == "placeholder"]
    for node, spec in zip(places, program.graph_signature.input_specs, strict=True):
        if spec.kind in WEIGHTS:
            walk.add_weight(node, _tensor(program, str(spec.target)))
        elif isinstance(node.meta.get("val"), FLOWING):
            inputs.append(walk.add_value(node, node.name))
    walk.run(program.graph)
    ends = zip(_results(program.graph), program.graph_signature.output_specs, strict=True)
    return Graph(
        nodes=tuple(walk.nodes),
        values=walk.values,
        inputs=tuple(inputs),
        outputs=tuple(
            walk.holds[node]
            for node, spec in ends
            if spec.kind is OutputKind.USER_OUTPUT and isinstance(node, fx.Node)
        ),
        constants=walk.constants,
    )


class _Walk:
    """One pass over fx nodes in order, and what it has found so far.

    `holds` is the value that a reader of an fx node finds there now: its own, the one it copies, or
    what a later in-place operation has put there. `sharing` groups the fx nodes that may lie in
    one piece of memory.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.values: dict[str, Value] = {}
        self.constants: dict[str, Constant] = {}
        self.weights: dict[object, fx.Node] = {}
        self.holds: dict[fx.Node, str] = {}
        self.sharing: dict[fx.Node, tuple[fx.Node, ...]] = {}
        self.done: set[fx.Node] = set()

    def add_value(self, node: fx.Node, name: str) -> str:
        self.values[name] = _value(name, node.meta.get("val"))
        self.holds[node] = name
        return name

    def add_name(self, node: fx.Node, name: str, original: fx.Node, shared: bool = True) -> None:
        """One more name of what `original` holds now, in the same memory if `shared`."""
        self.holds[node] = self.holds[original]
        self.values[name] = self.values[self.holds[original]]
        if shared:
            self.share(node, original)

    def add_weight(self, node: fx.Node, tensor: torch.Tensor) -> None:
        """A constant, or another name of one that is the same tensor."""
        memory = tensor.untyped_storage()._cdata, tensor.storage_offset()
        first = self.weights.setdefault((memory, tensor.shape, tensor.stride()), node)
        if first is not node:
            self.add_name(node, node.name, first)
            return
        known, elements = _value(node.name, tensor), tensor.numel()
        weight = Constant(
            known.name, known.dtype, known.shape, elements, elements * tensor.itemsize
        )
        self.constants[node.name] = self.values[node.name] = weight
        self.holds[node] = node.name

    def share(self, node: fx.Node, other: fx.Node) -> None:
        group = dict.fromkeys((*self.group(other), *self.group(node)))
        self.sharing.update(dict.fromkeys(group, tuple(group)))

    def group(self, node: fx.Node) -> tuple[fx.Node, ...]:
        return self.sharing.get(node, (node,))

    def run(self, graph: fx.Graph, prefix: str = "") -> None:
        for node in graph.nodes:
            if node.op == "call_function" and node not in self.holds:
                self.add_call(node, prefix)
            self.done.add(node)

    def add_call(self, call: fx.Node, prefix: str) -> None:
        body, original = aten_ops.body(call), aten_ops.copied(call)
        if body is not None:
            self.inline(call, body, prefix)
        elif original is not None:
            shared = aten_ops.table_name(call)[0] not in aten_ops.OWN_MEMORY
            self.add_name(call, prefix + call.name, original, shared)
        else:
            self.add_node(call, prefix)

    def inline(self, call: fx.Node, body: fx.GraphModule, prefix: str) -> None:
        """Take the nodes of a submodule as the caller's own, anew for every call of it."""
        inner, inside = list(body.graph.nodes), f"{prefix}{call.name}/"
        self.done.add(call)
        self.done.difference_update(inner)
        for node in inner:
            self.holds.pop(node, None)
            self.sharing.pop(node, None)
        places = [node for node in inner if node.op == "placeholder"]
        for place, operand in zip(places, call.args[-len(places) :], strict=False):
            if isinstance(operand, fx.Node):
                self.add_name(place, inside + place.name, operand)
        self.run(body.graph, inside)
        results = _results(body.graph)
        for pick in aten_ops.picks(call):
            result = results[aten_ops.index(pick)]
            if isinstance(result, fx.Node):
                self.add_name(pick, prefix + pick.name, result)

    def add_node(self, call: fx.Node, prefix: str) -> None:
        """A node of the view, the values it makes, and those that it writes over."""
        name, _ = aten_ops.table_name(call)
        behind = self.behind(call, prefix)
        inputs = self.inputs(call, name)
        inputs += [(self.holds[node], aten_ops.carries(node)) for node in behind.values()]
        made = {prefix + part.name: part for part in aten_ops.parts(call)} | behind
        if not made:
            return
        passes = name not in aten_ops.NO_DERIVATIVE or bool(behind)
        smooth = tuple(value for value, part in made.items() if passes and aten_ops.carries(part))
        self.nodes.append(
            Node(
                index=len(self.nodes),
                name=prefix + call.name,
                op=aten_ops.full_name(call),
                kind=Kind.OTHER if behind else aten_ops.kind(call),
                inputs=tuple(value for value, _ in inputs),
                outputs=tuple(made),
                derivative=tuple(bool(smooth) and carries for _, carries in inputs),
                smooth=smooth,
                channel_axis=None if behind else aten_ops.CHANNEL_AXIS.get(name),
                permutation=aten_ops.permutation(call),
                scope=_scope(call),
            )
        )
        self.bind(call, prefix)
        self.rebind(behind)

    def inputs(self, call: fx.Node, name: str) -> list[tuple[str, bool]]:
        """The values that a call reads, and whether a derivative can come from each."""
        found = [
            (self.holds[node], aten_ops.carries(node))
            for node in aten_ops.reads(call)
            if node in self.holds
        ]
        unread = aten_ops.UNREAD.get(name, len(found))
        if unread < len(found):
            found[unread] = "", False
        return found[1:] + found[:1] if name in aten_ops.DATA_SECOND else found

    def bind(self, call: fx.Node, prefix: str) -> None:
        """Let readers of the call, of its parts and of the input it gives back find its values."""
        parts = {aten_ops.index(part): part for part in aten_ops.parts(call)}
        for part in parts.values():
            self.add_value(part, prefix + part.name)
            for source in aten_ops.viewed(call):
                self.share(part, source)
        for pick in aten_ops.picks(call):
            if pick not in self.holds:  # a second one of the same part
                self.add_name(pick, prefix + pick.name, parts[aten_ops.index(pick)])
        if aten_ops.gives_back(call):
            for target in aten_ops.written(call):
                self.holds[target] = self.holds[call]

    def behind(self, call: fx.Node, prefix: str) -> dict[str, fx.Node]:
        """What a call changes behind the backs of readers to come: what it writes to and does not
        give back, and what may lie in the same memory.

        From the name of the new value to the fx node that will hold it.
        """
        targets = aten_ops.written(call)
        affected = dict.fromkeys(node for target in targets for node in self.group(target))
        returned = targets if aten_ops.gives_back(call) else []
        return {
            f"{self.holds[node]}@{prefix}{call.name}": node
            for node in affected
            if node in self.holds
            and node not in returned
            and any(user is not call and user not in self.done for user in node.users)
        }

    def rebind(self, behind: Mapping[str, fx.Node]) -> None:
        for value, node in behind.items():
            old = self.holds[node]
            self.add_value(node, value)
            for other in self.group(node):
                if self.holds.get(other) == old:
                    self.holds[other] = value


def _tensor(program: ExportedProgram, target: str) -> torch.Tensor:
    found = program.state_dict.get(target)
    return found if isinstance(found, torch.Tensor) else program.constants[target]


def _results(graph: fx.Graph) -> Sequence[object]:
    """What a graph gives back: its nodes and literals."""
    (results,) = graph.output_node().args
    return results if isinstance(results, list | tuple) else (results,)


def _value(name: str, held: object) -> Value:
    if isinstance(held, torch.Tensor):
        shape: Shape = tuple(dim if isinstance(dim, int) else str(dim) for dim in held.shape)
        return Value(name, str(held.dtype).removeprefix("torch."), shape)
    scalars = {torch.SymInt: "int64", torch.SymFloat: "float64", torch.SymBool: "bool"}
    return Value(name, scalars[type(held)], ()) if type(held) in scalars else Value(name)


def _scope(call: fx.Node) -> tuple[str, ...]:
    """The path of the module that makes the call, as `named_modules` gives it; () at the root."""
    stack = list(call.meta.get("nn_module_stack", {}).values())
    path = re.sub(r"^L\['self'\]\.?|@\d+$", "", str(stack[-1][0])) if stack else ""
    return (path,) if path else ()
