"""The two exporters of torch: `dynamo` (torch.export) and `torchscript` (tracing)."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .subject import Inputs, Subject, WithCache

Exporter = Callable[[Subject, nn.Module, Path], None]


class ByOrder(nn.Module):
    """A module called by position, as tracing wants it, that calls `model` by keyword."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.model(**dict(zip(self.names, tensors, strict=True)))


def call(module: nn.Module, inputs: Inputs) -> list[torch.Tensor]:
    """All tensors the module gives, in the order of the exported outputs."""
    with torch.no_grad():
        by_order = isinstance(module, WithCache)
        made = module(*inputs.values()) if by_order else module(**inputs)
    leaves = torch.utils._pytree.tree_leaves(made)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def dynamic_shapes(subject: Subject) -> dict[str, Any] | tuple[Any, ...]:
    """The subject's dynamic axes in the form that torch.export asks for."""
    dims = {
        name: dict.fromkeys(axes, torch.export.Dim.DYNAMIC)
        for name, axes in subject.dynamic.items()
    }
    if not subject.has_cache:
        return dims
    first, second, *past = dims.values()
    return first, second, tuple(past)


def dynamo(subject: Subject, module: nn.Module, path: Path) -> None:
    inputs = subject.inputs(*subject.sizes[0])
    by_order = tuple(inputs.values()) if subject.has_cache else ()
    torch.onnx.export(
        module,
        by_order,
        path,
        kwargs=None if subject.has_cache else inputs,
        input_names=list(inputs),
        dynamic_shapes=dynamic_shapes(subject),
        external_data=False,
        verbose=False,
        dynamo=True,
    )


def torchscript(subject: Subject, module: nn.Module, path: Path) -> None:
    inputs = subject.inputs(*subject.sizes[0])
    traced = module if subject.has_cache else ByOrder(module, tuple(inputs)).eval()
    torch.onnx.export(
        traced,
        tuple(inputs.values()),
        path,
        input_names=list(inputs),
        dynamic_axes={name: dict(axes) for name, axes in subject.dynamic.items()},
        opset_version=17,
        dynamo=False,
    )


EXPORTERS: Mapping[str, Exporter] = {"dynamo": dynamo, "torchscript": torchscript}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters and model code warn about their own future; that is not our subject."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
