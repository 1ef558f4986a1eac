"""The command line: parse, call the jobs, show tables or print one JSON document.

Exit codes: 0 done; 1 the promise or budget cannot be met; 2 bad usage or input; 3 unsupported
model; 4 a bug of ours; 130 interrupted.
"""

from __future__ import annotations

import shlex
import sys
import traceback
import warnings
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ..ir.errors import BlockfoldError
from ..ir.onnx_limits import CONTROL
from ..passes.methods import METHODS
from ..passes.rating import METRICS
from . import api, comparing, options, surveying
from .demo import bundle
from .documents import inspection_document, print_json
from .junit import reported
from .progress import bars
from .results import Result
from .tables import (
    show_inspection,
    show_latency,
    show_random,
    show_ranking,
    show_result,
    show_verdict,
)

BUG = 4
INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("blockfold"), prog_name="blockfold")
def cli() -> None:
    """Fold a trained network's near-affine blocks into single matrices, and certify the result.

    Try `blockfold demo` first, then `blockfold optimize --help`.
    """


@cli.command()
@click.argument("model", type=options.FILE)
@options.statistics
@options.drop_cache
@options.data
@click.option(
    "--report", type=options.FILE, metavar="FILE.html", help="Write it as a page with plots, too."
)
@options.running
@options.verbose
@options.json_option
def inspect(model: str, report: str | None, verbose: bool, as_json: bool, **given: Any) -> None:
    """Show blocks and spans of MODEL, and with data how redundant they are.

    Statistics that `survey` gathered stand for the data.

    \b
    blockfold inspect model.onnx --data samples.npz
    blockfold inspect model.onnx part*.safetensors
    """
    found = api.inspect(model, given.pop("data"), stage=bars, **given)
    if report is not None:
        found.report(report, _command())
    if as_json:
        print_json(inspection_document(found))
    else:
        show_inspection(Console(), found, verbose)


@cli.command()
@click.argument("model", type=options.FILE)
@options.statistics
@click.option(
    "-o", "--out", "target", required=True, metavar="OUT.safetensors", help="File to write."
)
@click.option(
    "--shard",
    metavar="K/N",
    callback=options.shard,
    default="1/1",
    show_default=True,
    help="Part of the samples to run.",
)
@click.option(
    "--every",
    type=click.IntRange(1),
    metavar="N",
    help="Write what there is every N samples.  [default: at the end]",
)
@click.option("--resume", is_flag=True, help="Go on from OUT.safetensors where it is there.")
@options.drop_cache
@options.data
@options.running
@options.json_option
def survey(model: str, target: str, as_json: bool, **given: Any) -> None:
    """Gather statistics of MODEL on data for `inspect`, or a part of them, and add up parts.

    Under torchrun the processes share the samples.

    \b
    blockfold survey model.onnx --data samples.npz --shard 2/4 -o part2.safetensors
    blockfold survey model.onnx part*.safetensors -o all.safetensors
    torchrun --nproc-per-node 4 -m blockfold survey model.onnx \\
        --data samples.npz -o all.safetensors
    """
    data = given.pop("data")
    found = surveying.survey_to(target, model, data, stage=bars, **given)
    if not found.written:
        return
    if as_json:
        print_json({"written": found.written, "held": found.held, "due": found.due})
        return
    Console().print(f"statistics of {found.held:,} of {found.due:,} samples")
    _show_written(Console(), found.written)


@cli.command()
@click.argument("model", type=options.FILE)
@options.target
@options.budget
@click.option(
    "--costs",
    type=options.FILE,
    metavar="PLAN.json",
    help="Reuse the latencies measured for this plan.",
)
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="blockfold",
    show_default=True,
    help="A published method instead, to compare with.",
)
@click.option(
    "--rank-by",
    type=click.Choice(METRICS),
    metavar="METRIC",
    help=f"Metric that shortlists spans: {', '.join(METRICS)}.  "
    "[default: the damage foretold of them]",
)
@click.option("--skip", multiple=True, metavar="PASS", help="Leave out a pass: cleanup.")
@options.drop_cache
@options.report
@options.judging
@options.data
@options.profile_option
@options.running
@options.verbose
@options.json_option
def optimize(model: str, target: str, verbose: bool, as_json: bool, **given: Any) -> None:
    """Replace blocks of MODEL within a budget, certify the result and write it.

    \b
    blockfold optimize model.onnx --data samples.npz --max-drop 1% -o small.onnx

    Beside OUT.onnx stand OUT.plan.json and OUT.plan.safetensors, from which `apply` makes the same
    file again, and OUT.report.html, a page to look at. Where the promise cannot be kept only the
    report is written, and the exit code is 1.
    """
    given |= {"stage": bars, "command": _command()}
    result, written = api.optimize_to(target, model, given.pop("data"), **given)
    _show_optimized(result, written, verbose, as_json)


@cli.command()
@click.argument("model", type=options.FILE)
@click.argument("plan", type=options.FILE, metavar="PLAN.json")
@options.target
@click.option(
    "--max-drop", metavar="SHARE", callback=options.share, help="Certify the result for this drop."
)
@options.judging
@options.data
@options.running
@options.json_option
def apply(model: str, plan: str, target: str, as_json: bool, **given: Any) -> None:
    """Make the model of a plan again: exactly, or, where the plan was edited, solved anew on data.

    \b
    blockfold apply model.onnx small.plan.json -o small.onnx
    """
    data = given.pop("data")
    applied, written = api.apply_to(target, model, plan, data, stage=bars, **given)
    if as_json:
        sha256 = applied.plan.sha256
        document = {"written": written, "plan_sha256": sha256, "verdict": applied.verdict}
        print_json(document | {"level_is_void": applied.reused})
        return
    console = Console()
    _show_written(console, written)
    if applied.verdict is None:
        console.print("made exactly as planned")
    else:
        show_verdict(console, applied.verdict)
        if applied.reused:
            console.print("these samples have judged another plan before: the level is void")


@cli.command()
@click.argument("model", type=options.FILE)
@click.argument("new", type=options.FILE, metavar="OUT.onnx")
@click.option(
    "--max-drop",
    metavar="SHARE",
    callback=options.share,
    help="Exit 1 unless at most this is lost.",
)
@click.option(
    "--plan",
    type=options.FILE,
    metavar="PLAN.json",
    help="Plan of OUT.onnx.  [default: the one beside it]",
)
@click.option(
    "--junit",
    type=options.FILE,
    metavar="FILE.xml",
    help="Also write what held as a JUnit file, for CI.",
)
@options.judging
@options.data
@options.running
@options.json_option
def verify(model: str, new: str, as_json: bool, junit: str | None, **given: Any) -> None:
    """Judge OUT.onnx against its original MODEL on data.

    On the data it was made with, only the samples held back then are used.

    \b
    blockfold verify model.onnx small.onnx --data fresh.npz --max-drop 1%
    """
    judge = partial(comparing.verify, model, new, given.pop("data"), stage=bars, **given)
    found = judge() if junit is None else reported(Path(junit), judge)
    if as_json:
        document = {"verdict": found.verdict, "held_back": found.held_back}
        print_json(document | {"kept": found.verdict.kept, "random": found.random})
    else:
        console = Console()
        if found.held_back:
            console.print("on the samples held back when the model was made")
        show_verdict(console, found.verdict)
        show_random(console, found.random)
    if not found.verdict.kept:
        sys.exit(1)


@cli.command()
@click.argument("model", type=options.FILE)
@click.argument("new", type=options.FILE, metavar="OUT.onnx")
@options.data
@options.profile_option
@options.running
@options.json_option
def bench(model: str, new: str, as_json: bool, **given: Any) -> None:
    """Latency of MODEL and OUT.onnx side by side, in turns.

    \b
    blockfold bench model.onnx small.onnx --profile batch=8
    """
    latency = comparing.bench(model, new, given.pop("data"), stage=bars, **given)
    if as_json:
        print_json({"latency": latency})
    else:
        show_latency(Console(), latency)


@cli.command()
@click.argument("models", type=options.FILE, nargs=-1, required=True, metavar="MODEL...")
@options.judging
@options.data
@options.profile_option
@options.running
@options.json_option
def rank(models: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Rank candidate models by quality, how alike their layers are, and latency.

    \b
    blockfold rank small.onnx deep.onnx wide.onnx --data samples.npz
    """
    found = comparing.rank(models, given.pop("data"), stage=bars, **given)
    if as_json:
        print_json({"candidates": list(found)})
    else:
        show_ranking(Console(), found)


@cli.command()
@click.option(
    "-o",
    "--out",
    "target",
    type=options.FILE,
    default="blockfold-demo.onnx",
    show_default=True,
    metavar="OUT.onnx",
    help="File to write.",
)
@click.option(
    "--max-drop",
    metavar="SHARE",
    callback=options.share,
    default="2%",
    show_default=True,
    help="Quality that may be lost.",
)
@options.report
@options.running
@options.verbose
@options.json_option
def demo(target: str, verbose: bool, as_json: bool, **given: Any) -> None:
    """Run the main job on a bundled vision transformer and handwritten digits it never saw.

    \b
    blockfold demo -o blockfold-demo.onnx
    """
    given |= {"metric": "accuracy", "stage": bars, "command": _command()}
    result, written = api.optimize_to(target, bundle.MODEL, bundle.DATA, **given)
    if not as_json:
        Console().print(bundle.STORY, markup=False)
    _show_optimized(result, written, verbose, as_json)
    if not as_json:
        Console().print(
            bundle.NEXT.format(model=bundle.MODEL, out=target), markup=False, soft_wrap=True
        )


def _command() -> str:
    """This command as a shell would take it."""
    return shlex.join(["blockfold", *sys.argv[1:]])


def _show_optimized(
    result: Result, written: tuple[Path, ...], verbose: bool, as_json: bool
) -> None:
    if as_json:
        print_json(
            {
                "written": written,
                "plan": result.plan,
                "before": result.before,
                "after": result.after,
                "changes": result.optimized.changes,
            }
        )
        return
    console = Console()
    show_result(console, result, verbose)
    _show_written(console, written)


def _show_written(console: Console, written: tuple[Path, ...]) -> None:
    names = ", ".join(str(path) for path in written)
    console.print(f"wrote {names}", markup=False, soft_wrap=True)


def main() -> None:
    """Run the command line and exit with the code that says how it went."""
    as_json = "--json" in sys.argv
    warnings.showwarning = _warn
    try:
        code = cli.main(standalone_mode=False) or 0
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        code = _fail(error.format_message(), error.exit_code, as_json)
    except BlockfoldError as error:
        code = _fail(str(error), error.exit_code, as_json)
    except (KeyboardInterrupt, click.Abort):
        code = _fail("interrupted; no file is half-written", INTERRUPTED, as_json)
    except Exception as error:
        traceback.print_exc()
        code = _fail(
            f"a bug in blockfold: {error!r}; please report it with the lines above", BUG, as_json
        )
    sys.exit(code)


def _warn(message: Warning | str, *_where: object, **_more: object) -> None:
    """In place of warnings.showwarning: one line, no place in the code."""
    click.echo(f"blockfold: warning: {message}", err=True)


def _fail(message: str, code: int, as_json: bool) -> int:
    line = " ".join(CONTROL.sub("?", message).split())
    click.echo(f"blockfold: {line}", err=True)
    if as_json:
        print_json({"error": line, "exit_code": code})
    return code
