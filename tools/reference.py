"""The API reference: what users call, made from signatures and docstrings.

python -m blockfold.tools.reference > docs/api.md
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from types import FunctionType
from typing import Any

import click

from ..calibration.quality import Outputs
from ..ir.errors import BadInput, BlockfoldError, NotMet, Unsupported
from ..passes.condition import CKASR, LaCoOT
from ..passes.ranking import Candidate
from ..passes.verify import Verdict
from .api import apply, optimize
from .api import inspect as inspect_job
from .comparing import bench, rank, verify
from .modules import ModuleResult, Replayed
from .opening import Settings
from .results import Applied, Inspection, NotKept, Result, Verified
from .surveying import Surveyed, survey

INTRODUCTION = """\
# API reference

Made from the sources by `python -m blockfold.tools.reference`. `Model` is a path, an
`onnx.ModelProto`, a `torch.nn.Module` or an `ExportedProgram`; `data` is anything that `--data`
takes, or arrays by name, an iterable of dicts, a reader. Further keywords of every job are the
fields of `Settings`.
"""

Public = Callable[..., Any]
"""A function or a class."""

CHAPTERS: dict[str, Sequence[Public]] = {
    "Jobs": (optimize, inspect_job, survey, apply, verify, bench, rank),
    "Settings": (Settings, Outputs),
    "Results": (
        Result,
        ModuleResult,
        Verdict,
        Inspection,
        Surveyed,
        Applied,
        Replayed,
        Verified,
        Candidate,
    ),
    "Penalties while training": (LaCoOT, CKASR),
    "Errors": (BlockfoldError, NotMet, NotKept, BadInput, Unsupported),
}


def reference() -> str:
    """The whole page, Markdown."""
    chapters = [INTRODUCTION]
    for title, members in CHAPTERS.items():
        chapters.append(f"## {title}\n")
        chapters += [section for member in members for section in _sections(member)]
    return "\n".join(chapters)


def _sections(member: Public) -> Iterator[str]:
    yield f"### {member.__name__}\n"
    yield f"```python\n{_signature(member)}\n```\n"
    yield f"{inspect.getdoc(member)}\n"
    if isinstance(member, type):
        stored = {f.name for f in fields(member)} if is_dataclass(member) else set()
        for name, method in vars(member).items():
            hidden = name.startswith("_") or name in stored
            documented = None if hidden else inspect.getdoc(method)
            if isinstance(method, FunctionType | property) and documented:
                call = "" if isinstance(method, property) else _parameters(method)
                yield f"- `.{name}{call}`: {' '.join(documented.split())}\n"


def _signature(member: Public) -> str:
    """As it would be written, a line for each parameter; a dataclass as its fields."""
    if isinstance(member, type) and is_dataclass(member):
        lines = [f"    {f.name}: {f.type}{_default(f)}" for f in fields(member)]
        return "\n".join([f"class {member.__name__}:", *lines])
    if isinstance(member, type) and issubclass(member, Exception):
        return f"class {member.__name__}({member.__bases__[0].__name__}): ..."
    signature = inspect.signature(member)
    lines = [f"    {_parameter(p)}," for p in signature.parameters.values()]
    named = [p.kind is inspect.Parameter.KEYWORD_ONLY for p in signature.parameters.values()]
    if any(named):
        lines.insert(named.index(True), "    *,")
    if not isinstance(member, type):
        end = f") -> {signature.return_annotation}: ..."
        return "\n".join([f"def {member.__name__}(", *lines, end])
    inner = ["def __init__(", "    self,", *lines, "): ..."]
    return "\n".join([f"class {member.__name__}:", *(f"    {line}" for line in inner)])


def _parameters(method: Public) -> str:
    names = [_parameter(p) for p in inspect.signature(method).parameters.values()]
    return f"({', '.join(name for name in names if name != 'self')})"


def _parameter(parameter: inspect.Parameter) -> str:
    """Annotations are text in our sources; inspect would put quotes about them."""
    text = "**" * (parameter.kind is inspect.Parameter.VAR_KEYWORD) + parameter.name
    if parameter.annotation is not inspect.Parameter.empty:
        text += f": {parameter.annotation}"
    if parameter.default is not inspect.Parameter.empty:
        text += f" = {_shown(parameter.default)}"
    return text


def _default(field: Any) -> str:
    return "" if field.default is MISSING else f" = {_shown(field.default)}"


def _shown(value: object) -> str:
    if isinstance(value, FunctionType):
        return str(value.__name__)
    return f'"{value}"' if isinstance(value, str) else repr(value)


if __name__ == "__main__":
    click.echo(reference(), nl=False)
