"""Hooks on blocks of a torch module: what each takes and gives in a forward pass, kept for later.

Blocks are found by name, or as the items of the longest list of modules of one class, and through
the wrappers of DataParallel and DistributedDataParallel.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec

import torch
from torch import nn

from ..ir.errors import BadInput

P = ParamSpec("P")

WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@dataclass(frozen=True)
class Call:
    """What one block took and gave in one call, and the versions these tensors had then."""

    x: torch.Tensor
    y: torch.Tensor
    versions: tuple[int | None, int | None]


Entered = dict[int, tuple[torch.Tensor | None, int | None]]
"""By thread, as DataParallel has one per replica: a block's input and its version on entering."""


class Tap:
    """Hooks on named blocks of a model, and their calls in the last forward pass of the model."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        blocks = _named(model, names)
        calls: dict[str, list[Call]] = {name: [] for name in blocks}
        self._calls = calls
        # Functions, not methods: a deep copy of the model would copy what a method belongs to
        self._handles = [model.register_forward_pre_hook(_clear(model, calls))]
        for name, block in blocks.items():
            entered: Entered = {}
            self._handles += [
                block.register_forward_pre_hook(_enter(block, entered), with_kwargs=True),
                block.register_forward_hook(
                    _leave(block, name, entered, calls[name]), with_kwargs=True
                ),
            ]

    def close(self) -> None:
        """Take every hook off and let go of all tensors; closing twice does nothing."""
        while self._handles:
            self._handles.pop().remove()
        for calls in self._calls.values():
            calls.clear()

    def calls(self) -> dict[str, list[Call]]:
        """By block, in the order of names. A block that the pass went by has none."""
        if not self._handles:
            raise BadInput("the penalty is closed: make another to go on training with it")
        if not any(self._calls.values()):
            raise BadInput(
                "no forward pass to take a penalty of: call the model before penalty(), and where "
                "blocks are checkpointed, with use_reentrant=False"
            )
        for name, calls in self._calls.items():
            for call in calls:
                if call.versions != (_version(call.x), _version(call.y)):
                    raise BadInput(
                        f"what block '{name}' takes or gives was changed in place afterwards: "
                        "set inplace=False on the activation that does it"
                    )
        return self._calls


def find_blocks(model: nn.Module) -> list[str]:
    """Names of the items of the longest ModuleList or Sequential with items of one class.

    The first of equally long ones; at least 2 items that have parameters. Raises BadInput where
    there is none.
    """
    best: list[str] = []
    for name, module in _inner(model).named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > max(1, len(best)):
            one_class = len({type(item) for item in module}) == 1
            if one_class and all(any(True for _ in item.parameters()) for item in module):
                best = [f"{name}.{child}".lstrip(".") for child, _ in module.named_children()]
    if not best:
        raise BadInput(
            f"{type(_inner(model)).__name__} holds no ModuleList or Sequential of modules of one "
            "class: name the blocks yourself, as in model.named_modules()"
        )
    return best


def _inner(model: nn.Module) -> nn.Module:
    """The model itself, out of its wrappers."""
    while isinstance(model, WRAPPERS):
        model = model.module
    return model


def _named(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Blocks by name, in the order of names; a name may keep the `module.` of a wrapper."""
    if isinstance(names, str):
        raise BadInput(f"blocks are a sequence of names: give ['{names}'], not '{names}'")
    if not names:
        raise BadInput("no blocks: name at least one")
    modules = dict(_inner(model).named_modules())
    prefix = "module." if isinstance(model, WRAPPERS) else ""
    found = {}
    for name in names:
        plain = name if name in modules else name.removeprefix(prefix)
        if plain not in modules or not plain:
            leaf = name.rsplit(".", 1)[-1]
            near = [known for known in modules if known and known.rsplit(".", 1)[-1] == leaf]
            shown = ", ".join((near or [known for known in modules if known])[:5])
            raise BadInput(f"no module is named '{name}': names are {shown}, ...")
        if name in found:
            raise BadInput(f"block '{name}' is named twice: name it once")
        found[name] = modules[plain]
    return found


def _eager(hook: Callable[P, None]) -> Callable[P, None]:
    """A hook that torch.compile runs as it is: keeping tensors for later cannot be traced."""
    kept: Callable[P, None] = torch.compiler.disable(hook)  # type: ignore[no-untyped-call]
    return kept


def _is(module: nn.Module, block: nn.Module) -> bool:
    """The block or a replica that DataParallel made of it, but no copy that has its hooks too."""
    return module is block or getattr(module, "_is_replica", False)


def _clear(model: nn.Module, calls: Mapping[str, list[Call]]) -> Callable[..., None]:
    """A hook before the model's forward: it forgets the pass before."""

    @_eager
    def hook(module: nn.Module, _args: Any) -> None:
        if _is(module, model):
            for each in calls.values():
                each.clear()

    return hook


def _enter(block: nn.Module, entered: Entered) -> Callable[..., None]:
    """A hook before a block's forward, where its input has not been changed in place yet."""

    @_eager
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        if _is(module, block):
            x = _first((args, kwargs))
            entered[threading.get_ident()] = x, None if x is None else _version(x)

    return hook


def _leave(block: nn.Module, name: str, entered: Entered, calls: list[Call]) -> Callable[..., None]:
    """A hook after a block's forward, which notes the call."""

    @_eager
    def hook(module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        if not _is(module, block):
            return
        (x, version), y = entered.pop(threading.get_ident()), _first(output)
        if x is None or y is None:
            side = "takes" if x is None else "gives"
            raise BadInput(f"block '{name}' {side} no tensor of numbers: name another block")
        calls.append(Call(x, y, (version, _version(y))))

    return hook


def _first(value: Any) -> torch.Tensor | None:
    """The first floating tensor in nested tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return next((found for found in map(_first, value) if found is not None), None)
    return None


def _version(tensor: torch.Tensor) -> int | None:
    """Changed by each change in place; tensors of inference mode have none."""
    return None if tensor.is_inference() else tensor._version
