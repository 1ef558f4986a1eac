"""Options that several verbs share, and how their values are written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from ..calibration.quality import METRICS
from ..calibration.runtime import PROVIDERS
from ..calibration.splits import Fractions, parse_fractions

Command = TypeVar("Command", bound=Callable[..., Any])

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


Context = click.Context
Parameter = click.Parameter


def share(_ctx: Context, _param: Parameter, value: str | None) -> float | None:
    """1% or 0.01 as 0.01."""
    if value is None:
        return None
    match = re.fullmatch(r"([0-9.eE+-]+)\s*(%?)", value.strip())
    try:
        number = float(match.group(1)) if match else float("nan")
    except ValueError:
        number = float("nan")
    if match and match.group(2):
        number /= 100
    if not 0 < number < 1:
        raise click.BadParameter(f"{value!r} is not between 0 and 1; write 1% or 0.01")
    return number


def size(_ctx: Context, _param: Parameter, value: str | None) -> int | None:
    """1500000, 1.5MB or 300KiB as bytes."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d+\.?\d*)\s*([kmg]i?)?b?", value.strip().lower())
    if not match:
        raise click.BadParameter(f"{value!r} is no size; write 1500000, 1.5MB or 300KiB")
    return int(float(match.group(1)) * UNITS[match.group(2) or ""])


def assignments(_ctx: Context, _param: Parameter, values: Sequence[str]) -> dict[str, str]:
    """key=value[,key=value...], repeated, as one dict; later ones win."""
    found = {}
    for value in values:
        for part in value.split(","):
            key, mark, text = part.partition("=")
            if not key.strip() or not mark:
                raise click.BadParameter(f"{value!r} is not of the form key=value")
            found[key.strip()] = text.strip()
    return found


def lengths(ctx: Context, param: Parameter, values: Sequence[str]) -> dict[str, int]:
    """As `assignments`, with whole numbers."""
    found = {}
    for key, text in assignments(ctx, param, values).items():
        if not text.isdigit() or int(text) < 1:
            raise click.BadParameter(f"{key}={text}: not a positive whole number")
        found[key] = int(text)
    return found


def shard(_ctx: Context, _param: Parameter, value: str) -> tuple[int, int]:
    """2/4, the second of four parts."""
    match = re.fullmatch(r"(\d+)/(\d+)", value.strip())
    if not match:
        raise click.BadParameter(f"{value!r} is no part; write 2/4 for the second of four")
    return int(match.group(1)), int(match.group(2))


def _fractions(_ctx: Context, _param: Parameter, value: str) -> Fractions:
    return parse_fractions(value)


def _stack(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


FILE = click.Path()
"""Completes names of files; whether they are there, the jobs say better."""


def _starting(words: Iterable[str]) -> Callable[[Context, Parameter, str], list[str]]:
    """Completes one of the words; others may be given all the same."""
    known = tuple(words)
    return lambda _ctx, _param, begun: [word for word in known if word.startswith(begun)]


statistics = click.argument("statistics", nargs=-1, type=FILE, metavar="[STATISTICS]...")
"""Files that `survey` wrote."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")

verbose = click.option(
    "-v", "--verbose", is_flag=True, help="Tell of every block that cannot be replaced, and why."
)

target = click.option(
    "-o", "--out", "target", type=FILE, required=True, metavar="OUT.onnx", help="File to write."
)

report = click.option(
    "--report/--no-report",
    default=True,
    show_default=True,
    help="Write OUT.report.html, a page to look at, too.",
)

running = _stack(
    click.option(
        "--provider",
        metavar="NAME",
        shell_complete=_starting((*PROVIDERS, *PROVIDERS.values())),
        help="cpu, cuda or any onnxruntime provider.  [default: cuda if it works, else cpu]",
    ),
    click.option(
        "--threads", type=click.IntRange(0), default=0, help="Threads; 0: onnxruntime's choice."
    ),
    click.option(
        "--provider-option",
        "provider_options",
        metavar="KEY=VALUE",
        callback=assignments,
        multiple=True,
        help="Option of the provider.",
    ),
    click.option(
        "--custom-ops", type=FILE, multiple=True, metavar="LIB", help="Library of custom operators."
    ),
)
"""How models are run."""

data = _stack(
    click.option(
        "--data",
        type=FILE,
        metavar="DATA",
        help="An .npz with arrays named after the inputs, a folder, or module:attribute.",
    ),
    click.option(
        "--random-data",
        "random_samples",
        type=click.IntRange(1),
        metavar="N",
        help="N made-up samples instead; the result is stamped.",
    ),
    click.option(
        "--mask", metavar="INPUT", help="Input that marks padding.  [default: found by name]"
    ),
    click.option(
        "--batch",
        type=click.IntRange(1),
        default=32,
        show_default=True,
        help="Samples per run while calibrating.",
    ),
    click.option(
        "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the split."
    ),
    click.option(
        "--split",
        "fractions",
        metavar="FIT/SELECT/CERTIFY",
        default="25/25/50",
        show_default=True,
        callback=_fractions,
        help="Per cent of the samples to fit on, select on, certify on.",
    ),
)
"""What models are calibrated and judged on."""

judging = _stack(
    click.option(
        "--metric",
        metavar="METRIC",
        shell_complete=_starting(METRICS),
        help=f"Quality: {', '.join(METRICS)}, or module:attribute, a function of (outputs, labels)."
        "  [default: accuracy with labels, else agreement or cosine]",
    ),
    click.option(
        "--output", metavar="NAME", help="Output to judge by.  [default: the first floating one]"
    ),
)
"""How quality is measured."""

drop_cache = click.option(
    "--drop-cache",
    is_flag=True,
    help="Let a decoder's caches (past and present keys and values) go with its blocks.",
)

profile_option = click.option(
    "--profile",
    callback=lengths,
    multiple=True,
    metavar="batch=1,seq=128",
    help="Shapes to time at.  [default: batch 1, median lengths of the data]",
)

budget = _stack(
    click.option(
        "--max-drop",
        metavar="SHARE",
        callback=share,
        help="Quality that may be lost: 1% or 0.01.  [default, without other budget: 1%]",
    ),
    click.option("--speedup", type=float, metavar="RATIO", help="Latency ratio to reach, as 1.3."),
    click.option("--remove", type=float, metavar="N", help="Blocks to replace."),
    click.option(
        "--max-size",
        "max_size_bytes",
        metavar="SIZE",
        callback=size,
        help="Size to get below, as 1.5MB.",
    ),
)
"""How much may go, or must."""
