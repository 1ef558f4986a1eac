"""blockfold as a pass of an Olive workflow: an ONNX model goes in, a smaller one comes out.

    python -m blockfold.tools.olive_pass > package.json
    olive run --config workflow.json --package-config package.json

The package file is Olive's own list of passes with `Blockfold` added; docs/olive.md has a workflow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from olive.data.config import DataConfig
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from ..ir.errors import BadInput, BlockfoldError
from . import api
from .opening import Settings

BUDGET: Mapping[str, type] = {
    "max_drop": float,
    "speedup": float,
    "remove": float,
    "max_size_bytes": int,
}
SETTINGS: Mapping[str, type] = {
    "metric": str,
    "output": str,
    "mask": str,
    "provider": str,
    "threads": int,
    "batch": int,
    "seed": int,
}
"""Fields of Settings that a workflow may set; what it leaves out keeps its default."""

DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in fields(Settings)}


class Blockfold(Pass):  # type: ignore[misc]
    """Replaces near-affine blocks by matrices within a budget, and certifies the result."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        config = {
            "data": PassConfigParam(
                type_=str, default_value=None, description="Samples, as of blockfold's --data."
            ),
            "data_config": PassConfigParam(
                type_=DataConfig | dict | str,
                default_value=None,
                description="Samples by a data config of Olive's, instead of `data`. Labels that it"
                " gives are used.",
            ),
        }
        for name, kind in BUDGET.items():
            config[name] = PassConfigParam(
                type_=kind, default_value=None, description=f"Budget, as {name} of optimize."
            )
        for name, kind in SETTINGS.items():
            default = DEFAULTS[name]
            if name == "provider":
                default = accelerator_spec.execution_provider
            config[name] = PassConfigParam(
                type_=kind, default_value=default, description=f"As {name} of optimize."
            )
        return config

    @staticmethod
    def is_accelerator_agnostic(accelerator_spec: AcceleratorSpec) -> bool:
        """False: latencies are measured on the provider that will serve."""
        return False

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        """Raises ValueError where a promise or budget cannot be met, or the input is unfit.

        Of all errors Olive passes only a few on. Had this one its own class for failed passes, the
        workflow would end well, without a model.
        """
        if not isinstance(model, ONNXModelHandler):
            raise ValueError(f"blockfold: takes ONNX models, not {type(model).__name__}")
        given = config.model_dump()
        path = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        options = {name: given[name] for name in (*BUDGET, *SETTINGS)}
        try:
            _, written = api.optimize_to(path, model.model_path, _data(model, config), **options)
        except BlockfoldError as error:
            raise ValueError(f"blockfold: {error}") from error
        beside = [str(file) for file in written if file.suffix in (".json", ".safetensors")]
        return ONNXModelHandler(
            model_path=str(path.parent),
            onnx_file_name=path.name,
            model_attributes={"additional_files": beside},
        )


def _data(model: ONNXModelHandler, config: Any) -> object:
    """What `--data` would name, or the batches of Olive's data config."""
    if (config.data is None) == (config.data_config is None):
        raise BadInput("give samples by `data` or by `data_config`, one of them")
    if config.data is not None:
        return config.data
    described = DataConfig.model_validate(config.data_config)
    loader = described.to_data_container().create_dataloader()
    return _batches(loader, model.io_config["input_names"])


def _batches(loader: Any, names: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Batches of the model's inputs, with `labels` where the loader gives pairs."""
    for batch in loader:
        feeds, labels = batch if isinstance(batch, list | tuple) else (batch, None)
        found = {name: feeds[name] for name in names if name in feeds}
        yield found if labels is None else found | {"labels": labels}


def package_config() -> dict[str, Any]:
    """Olive's own package config, as JSON has it, with this pass added."""
    own = Path(OlivePackageConfig.get_default_config_path())
    config: dict[str, Any] = json.loads(own.read_text())
    config["passes"]["Blockfold"] = {
        "module_path": "blockfold.tools.olive_pass.Blockfold",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
        "dataset": "dataset_required",
        "module_dependencies": ["blockfold"],
    }
    return config


if __name__ == "__main__":
    click.echo(json.dumps(package_config(), indent=1))
