"""Which models are torch modules, and where a module is found that a command line names."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

from ..calibration.imports import SPEC, attribute, importable
from ..ir.errors import BadInput

if TYPE_CHECKING:
    import torch


class Loaded(NamedTuple):
    """A module and, where its maker gives them, example inputs."""

    module: torch.nn.Module | torch.export.ExportedProgram
    inputs: object = None


def find_module(model: object) -> Loaded | None:
    """The torch module that `model` is or names, None where it is a matter of ONNX.

    A name is `module:attribute`, of a module, a pair (module, example inputs) or a function without
    parameters that gives one of these; or the folder of a Hugging Face model. Raises BadInput where
    such a name leads to nothing of the kind, or torch is not installed.
    """
    if is_module(model):
        return Loaded(model)
    if not isinstance(model, str | os.PathLike):
        return None
    path = Path(model)
    if (path / "config.json").is_file():
        _require_torch()
        return Loaded(_pretrained(path))
    if path.exists() or not SPEC.fullmatch(str(model)):
        return None
    _require_torch()
    with importable(Path.cwd()):
        found = attribute(str(model))
    if callable(found) and not is_module(found):
        found = found()
    module, inputs = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if not is_module(module):
        raise BadInput(
            f"{model}: gives a {type(module).__name__}; let it be a torch.nn.Module, a pair of one "
            "and its example inputs, or a function that gives these"
        )
    return Loaded(module, inputs)


def is_module(model: object) -> TypeGuard[torch.nn.Module | torch.export.ExportedProgram]:
    """Whether it is a module or a program of torch; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    programs = getattr(sys.modules.get("torch.export"), "ExportedProgram", ())
    return isinstance(model, torch.nn.Module) or (bool(programs) and isinstance(model, programs))


def _require_torch() -> None:
    try:
        import onnxscript  # noqa: F401  # torch's exporter needs it
        import torch
        import torch.export  # noqa: F401
    except ImportError as error:
        raise BadInput(
            f"torch modules need the package {error.name}: pip install 'blockfold[torch]', or give "
            "an ONNX file"
        ) from error


def _pretrained(folder: Path) -> Any:
    """The model of a local Hugging Face folder, of the class that its configuration names.

    Code that lies in the folder is never run, and weights are read from safetensors alone.
    """
    try:
        import transformers
    except ImportError as error:
        raise BadInput(
            f"{folder}: a Hugging Face folder needs transformers: pip install transformers"
        ) from error
    try:
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        config = transformers.AutoConfig.from_pretrained(folder, **local)
        names = getattr(config, "architectures", None) or ["AutoModel"]
        if hasattr(config, "use_cache"):
            config.use_cache = False
        kind = getattr(transformers, names[0], None)
        if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
            kind = transformers.AutoModel
        return kind.from_pretrained(folder, config=config, use_safetensors=True, **local)
    except Exception as error:  # whatever a model's own code may raise
        line = str(error).strip().splitlines() or [type(error).__name__]
        raise BadInput(f"{folder}: cannot load the model: {line[0]}") from error
