"""Reading a torch module into the dataflow view, by way of torch.export.

Nothing of the module is changed, and no number of it is read.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from . import aten_ops
from .errors import BadInput, Unsupported
from .graph import Constant, Graph, Node, Shape, Value

WEIGHTS = frozenset({InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR})

ADVICE = (
    (
        r"Cache'> in output",
        "call transformers.integrations.executorch.register_dynamic_cache_export_support() first, "
        "or switch the cache off (use_cache=False)",
    ),
    (
        r"in (output|input).*not a known type",
        "give and take tensors, tuples, lists and dicts, or register the type with "
        "torch.utils._pytree.register_pytree_node",
    ),
    (
        r"expert",
        'a mixture of experts has to compute them together: set_experts_implementation("batched_mm")',
    ),
    (
        r"data-dependent",
        "what it computes must not depend on the numbers in a tensor: use torch.where or torch.cond",
    ),
    (
        r"specialized|Constraints violated|marked .* as dynamic",
        "leave that axis out of dynamic_shapes, or mark it Dim.AUTO",
    ),
    (r"ScriptModule", "give the eager module it was made from"),
)
"""What to do, by what the message of torch.export or the line of code it stopped at says."""


def capture(
    module: torch.nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Mapping[str, Any] | Sequence[Any] | None = None,
) -> ExportedProgram:
    """What `module(*args, **kwargs)` computes; `dynamic_shapes` is as torch.export takes it.

    Raises BadInput where the module does not run on these inputs, or where `dynamic_shapes` does
    not fit them, and Unsupported where torch cannot capture what runs.
    """
    if not isinstance(module, torch.nn.Module):
        raise BadInput(f"expected a torch.nn.Module, not {type(module).__name__}; give the module")
    if not isinstance(args, tuple):
        raise BadInput(f"args must be a tuple of inputs, not {type(args).__name__}; write (x,)")
    try:
        with _quiet():
            return torch.export.export(
                module, args, dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:  # torch.export raises whatever the code it runs does
        said = _first_line(error)
        if "dynamic_shapes" in said:
            raise BadInput(f"dynamic_shapes does not fit the inputs: {said}") from error
        _must_run(module, args, kwargs or {})
        raise Unsupported(_refusal(module, error, said)) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from logging and printing what the error raised says in one line."""
    before, printed = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(printed):
            yield
        sys.stderr.write(printed.getvalue())
    finally:
        logging.disable(before)


def _must_run(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    try:
        with torch.no_grad():
            module(*args, **kwargs)
    except Exception as error:
        name, said = type(module).__name__, _first_line(error)
        raise BadInput(
            f"{name} does not run on these inputs{_where(error)}: {said}; call it the same way "
            "until it runs"
        ) from error


def _refusal(module: torch.nn.Module, error: Exception, said: str) -> str:
    """One line: what torch could not capture, where it stopped, and what to do."""
    full = f"{error} {_user_code(error)}"
    advice = [text for pattern, text in ADVICE if re.search(pattern, full)]
    todo = advice[0] if advice else "change that code, or export to ONNX by other means"
    name = type(module).__name__
    return f"torch.export cannot capture {name}{_where(error)}: {said}; {todo}"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else type(error).__name__
    said = re.sub(r"[.!]? ?For more information.*|[.!]? If this type holds tensors.*", "", said)
    return said.rstrip(".") if len(said) <= 240 else f"{said[:240]}..."
