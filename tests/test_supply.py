"""What is installed is what was pinned, by its hash; licences of all of it are listed."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def hashes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as a module."""
    spec = importlib.util.spec_from_file_location("hashes", ROOT / ".ci" / "hashes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "hashes", module)
    spec.loader.exec_module(module)
    return module


def test_every_pin_has_hashes(hashes: ModuleType) -> None:
    assert list(hashes.stale()) == [], hashes.REMAKE
    assert all(hashes.listed().values())


def test_planted_changes_make_the_hashes_stale(
    hashes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = hashes.HASHES.read_text().replace("numpy==", "numpy==9.", 1)
    monkeypatch.setattr(hashes, "HASHES", tmp_path / "hashes.txt")
    hashes.HASHES.write_text(text + "more==1 \\\n    --hash=sha256:0\n")
    version = hashes.pins()["numpy"]
    assert sorted(hashes.stale()) == [
        "more==1 is no longer pinned",
        f"numpy=={version} has no hash",
        f"numpy==9.{version} is no longer pinned",
    ]
    with pytest.raises(SystemExit, match="make hashes"):
        hashes.main(["--check"])


def test_what_is_installed_without_a_hash_is_told(
    hashes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = hashes.HASHES.read_text().replace("numpy==", "numpy==9.", 1)
    monkeypatch.setattr(hashes, "HASHES", tmp_path / "hashes.txt")
    hashes.HASHES.write_text(text)
    assert f"numpy=={hashes.pins()['numpy']} was installed" in " ".join(hashes.unhashed())


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("a-1.2-py3-none-any.whl", True),
        ("a-1.2+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", True),
        ("a-1.2-cp39-abi3-manylinux_2_17_aarch64.manylinux2014_aarch64.whl", True),
        ("a-1.2-cp312-cp312-macosx_11_0_arm64.whl", True),
        ("a-1.2-cp310-cp310-manylinux_2_28_x86_64.whl", False),
        ("a-1.2-cp313-cp313t-manylinux_2_28_x86_64.whl", False),
        ("a-1.2-cp311-cp311-win_amd64.whl", False),
        ("a-1.2-cp311-cp311-musllinux_1_2_x86_64.whl", False),
        ("a-1.3-py3-none-any.whl", False),
        ("a-1.2.tar.gz", False),
    ],
)
def test_files_that_ci_may_install(name: str, used: bool, hashes: ModuleType) -> None:
    assert hashes.is_used(name, "1.2") is used


def test_packages_of_some_platforms_only_are_marked(hashes: ModuleType) -> None:
    assert set(hashes.markers()) == {"onnxruntime", "onnxruntime-gpu"}
    for name, marker in hashes.markers().items():
        assert f"{name}=={hashes.pins()[name]} ; {marker} " in hashes.HASHES.read_text()


def test_licences_of_every_pin_are_listed(hashes: ModuleType) -> None:
    lines = (ROOT / "docs" / "licences.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    listed = {name: version for name, version, licence, use in rows[2:] if licence and use}
    assert listed == hashes.pins(), "run `make licences` and commit docs/licences.md"


def test_a_file_of_another_hash_is_told(
    hashes: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.whl").write_bytes(b"another")
    assert list(hashes.strangers(tmp_path)) == [
        "torch.whl is not one of the files whose hashes are listed"
    ]
    other = hashlib.sha256(b"another").hexdigest()
    monkeypatch.setattr(hashes, "listed", lambda: {"torch==1": {other}})
    assert list(hashes.strangers(tmp_path)) == []
