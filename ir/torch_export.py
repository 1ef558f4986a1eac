"""A captured torch module as an ONNX model."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram

from .errors import BlockfoldError, Unsupported
from .onnx_file import OnnxModel, read
from .scratch import Scratch, storing

LARGEST_IN_MEMORY = 1_500_000_000
"""Bytes of weights up to which a model is one protobuf message; those end at 2 GB."""


def to_onnx(program: ExportedProgram) -> tuple[OnnxModel, Scratch | None]:
    """The ONNX model of a captured module, and what holds its weights where they are large.

    Raises Unsupported where torch has no ONNX operators for what the module does.
    """
    try:
        with _quietly():
            exported: Any = torch.onnx.export(program, dynamo=True)
            if exported is None:
                raise RuntimeError("it gives no program")
            if _bytes(program) > LARGEST_IN_MEMORY:
                scratch = Scratch()
                path = scratch.path / "exported.onnx"
                with storing():
                    exported.save(path, external_data=True)
                return read(path), scratch
            return read(exported.model_proto), None
    except BlockfoldError:
        raise
    except Exception as error:  # whatever a translation of any operator may raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = lines[-1] if lines else repr(error)
        raise Unsupported(
            f"torch.onnx.export cannot translate the module: {why}; export it by other means and "
            "give the ONNX file"
        ) from error


def _bytes(program: ExportedProgram) -> int:
    return sum(tensor.nbytes for tensor in program.state_dict.values())


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep torch's exporter from printing its progress, logging and warning of its own code."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
