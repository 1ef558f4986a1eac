"""The house: imports run downward, importing is cheap and quiet, and rooms stay small."""

from __future__ import annotations

import ast
import configparser
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import blockfold

ROOT = Path(__file__).parents[1]
FLOORS = ("ir", "calibration", "passes", "tools")
"""From the ground up. The root, `__init__` and `__main__`, is on top."""

LONGEST_LINES, LONGEST_TEST_LINES = 400, 800
HEAVY = (
    *("torch", "onnxruntime", "onnx", "onnx_graphsurgeon", "scipy", "pydantic"),
    *("click", "rich", "plotly", "jinja2"),
)
JOBS = ("apply", "bench", "inspect", "optimize", "rank", "survey", "verify")

Module = tuple[str, ...]
"""A module by its path inside the package: ("tools", "api")."""


def package_files() -> list[Path]:
    """Every .py file of the package, tests aside."""
    inside = (path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
    return sorted([*ROOT.glob("*.py"), *inside])


def module_of(path: Path) -> Module:
    """The module a file holds; a package keeps its `__init__`, so that its folder is one up."""
    return path.relative_to(ROOT).with_suffix("").parts


def floor(module: Module) -> int:
    """How high a module stands; the root highest."""
    return FLOORS.index(module[0]) if module and module[0] in FLOORS else len(FLOORS)


def imported(source: str, module: Module) -> Iterator[tuple[int, Module]]:
    """Lines and modules of this package that `source`, the text of `module`, imports anywhere."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [tuple(alias.name.split(".")) for alias in node.names]
            yield from ((node.lineno, parts[1:]) for parts in found if parts[0] == "blockfold")
        elif isinstance(node, ast.ImportFrom):
            base = tuple((node.module or "").split(".")) if node.module else ()
            if node.level:
                base = (*module[: len(module) - node.level], *base)
            elif base[0] == "blockfold":
                base = base[1:]
            else:
                continue
            # `from .. import tools` names the floor only after the word import
            for alias in node.names:
                yield node.lineno, base or (alias.name,)


def upward(source: str, module: Module) -> list[str]:
    """What is wrong with the imports of a module: those that run up, one line each."""
    return [
        f"{'/'.join(module)}.py:{line} imports {'.'.join(target)}"
        for line, target in imported(source, module)
        if floor(target) > floor(module)
    ]


@pytest.mark.parametrize("path", package_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_downward(path: Path) -> None:
    assert upward(path.read_text(), module_of(path)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("passes/plan", "from ..tools.api import inspect"),
        ("passes/plan", "from ..tools import api"),
        ("passes/plan", "from .. import tools"),
        ("passes/plan", "from .. import BadInput"),
        ("passes/__init__", "from ..tools import api"),
        ("calibration/metrics/cosine", "from ...passes import plan"),
        ("calibration/data", "import blockfold.passes.plan"),
        ("ir/graph", "from blockfold.calibration import data"),
        ("ir/graph", "from blockfold import tools"),
        ("ir/graph", "import blockfold"),
        ("ir/graph", "def f():\n    from ..passes import plan"),
        ("ir/graph", "if TYPE_CHECKING:\n    from ..passes import plan"),
        ("ir/graph", "from .cuts import Cut\nfrom ..calibration.data import (\n    Dataset,\n)"),
    ],
)
def test_planted_upward_imports_are_reported(module: str, source: str) -> None:
    (line,) = upward(source, tuple(module.split("/")))
    assert line.startswith(f"{module}.py:")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("__main__", "from .tools.cli import main"),
        ("__init__", "from .ir.errors import BadInput"),
        ("tools/api", "from . import cli\nfrom .demo import bundle\nfrom .. import ir"),
        ("tools/demo/train", "from ..api import inspect\nfrom ...ir import graph"),
        ("passes/plan", "from ..calibration.data import Dataset\nfrom ..ir import graph"),
        ("ir/graph", "import numpy\nfrom toolshed import tools\nfrom .cuts import Cut"),
    ],
)
def test_downward_imports_are_not_reported(module: str, source: str) -> None:
    assert upward(source, tuple(module.split("/"))) == []


def test_the_walk_sees_the_whole_package() -> None:
    modules = {module_of(path) for path in package_files()}
    assert {("__init__",), ("tools", "cli"), ("calibration", "metrics", "cosine")} <= modules
    met = {
        floor(target)
        for p in package_files()
        for _, target in imported(p.read_text(), module_of(p))
    }
    assert met == {0, 1, 2, 3}


def test_every_folder_is_packaged() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    folders = {path.parent.relative_to(ROOT).parts for path in package_files()}
    assert listed == {".".join(("blockfold", *folder)) for folder in folders}
    assert all((ROOT.joinpath(*folder) / "__init__.py").is_file() for folder in folders)


def test_no_file_is_longer_than_a_room() -> None:
    tests = sorted((ROOT / "tests").rglob("*.py"))
    limits = [(path, LONGEST_LINES) for path in package_files()]
    limits += [(path, LONGEST_TEST_LINES) for path in tests]
    lengths = [(path, len(path.read_text().splitlines()), limit) for path, limit in limits]
    assert [f"{path}: {lines} lines" for path, lines, limit in lengths if lines > limit] == []


def python(code: str, warnings: str = "error") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", warnings, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_importing_blockfold_is_cheap() -> None:
    done = python(
        "import json, sys, blockfold\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == []


def test_the_check_for_cheapness_can_fail() -> None:
    done = python(
        "import json, sys, blockfold, click\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    assert json.loads(done.stdout) == ["click"]


@pytest.mark.parametrize("job", JOBS)
def test_jobs_are_reachable_from_the_top(job: str) -> None:
    from blockfold.tools import api, comparing, surveying

    rooms = (api, comparing, surveying)
    assert getattr(blockfold, job) in [getattr(room, job, None) for room in rooms]
    assert job in blockfold.__all__


def test_all_public_names_exist_and_no_other() -> None:
    assert all(getattr(blockfold, name) for name in blockfold.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'optimise'"):
        blockfold.optimise  # noqa: B018


IMPORT_ALL = """
import importlib, os, pkgutil, sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind"):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(9)

sys.addaudithook(watch)
import blockfold
names = [m.name for m in pkgutil.walk_packages(blockfold.__path__, "blockfold.")]
alone = ("__main__", "olive_pass")  # Olive itself imports the latter, and is neither quiet nor ours
names = [name for name in names if not name.endswith(alone)]
for name in names:
    importlib.import_module(name)
"""


def test_every_module_imports_quietly_and_offline() -> None:
    others_may_warn = "ignore"  # torch does on some machines
    done = python(f"{IMPORT_ALL}\nassert len(names) > 40, names", others_may_warn)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_watch_on_the_network_works() -> None:
    call = "import socket\nsocket.create_connection(('127.0.0.1', 9), 0.1)"
    done = python(IMPORT_ALL.replace("import blockfold\n", f"import blockfold\n{call}\n"), "ignore")
    assert done.returncode == 9
    assert done.stderr.startswith("socket.")
