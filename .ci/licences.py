"""docs/licences.md: under what licence everything is that blockfold needs, made from metadata.

python .ci/licences.py    # in the .venv in which tests run
"""

from __future__ import annotations

import importlib.metadata as metadata
import re

from hashes import HERE, canonical, pins, setup
from packaging.requirements import Requirement

PAGE = HERE.parent / "docs" / "licences.md"
HEAD = """# Licences

Made by `make licences` from the metadata of what constraints.txt pins. *Runtime*: installed with
blockfold. *torch*: with `blockfold[torch]`, and so on. *dev*: for tests and benchmarks alone. None
of it is in blockfold's own files; blockfold is Apache-2.0, its bundled images are CC BY 4.0.

| package | version | licence | for |
| --- | --- | --- | --- |
"""
ELSEWHERE = "not installed on the machine that made this page"
LONGEST_NAME = 60
"""Some packages have the licence's whole text where its name belongs."""


def licence(found: metadata.Distribution) -> str:
    """The licence's name: its SPDX expression, the classifiers, or what else is stated."""
    stated = found.metadata.get("License-Expression")
    if stated:
        return stated
    classifiers = found.metadata.get_all("Classifier") or []
    names = [line.split(" :: ")[-1] for line in classifiers if line.startswith("License ::")]
    if names:
        return ", ".join(names)
    lines = (found.metadata.get("License") or "").strip().splitlines()
    if lines and len(lines[0]) <= LONGEST_NAME:
        return lines[0]
    return "see its files: " + ", ".join(
        sorted(found.metadata.get_all("License-File") or ["not stated"])
    )


def asked(extra: str) -> set[str]:
    """Names that setup.cfg asks for, on any platform."""
    lines = setup()["options.extras_require" if extra else "options"][extra or "install_requires"]
    return {canonical(Requirement(line).name) for line in lines.split("\n") if line}


def needed(extra: str) -> set[str]:
    """What setup.cfg asks for, and what these need in turn."""
    found = asked(extra)
    waiting = [(name, frozenset[str]()) for name in found]
    while waiting:
        name, extras = waiting.pop()
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in extras | {""}):
                wanted = canonical(requirement.name)
                if wanted not in found:
                    found.add(wanted)
                    waiting.append((wanted, frozenset(requirement.extras)))
    return found


def rows() -> list[str]:
    groups = {"runtime": needed("")} | {e: needed(e) for e in setup()["options.extras_require"]}
    found = []
    for name, version in sorted(pins().items()):
        try:
            said = licence(metadata.distribution(name))
        except metadata.PackageNotFoundError:
            said = ELSEWHERE
        use = next((group for group, names in groups.items() if name in names), "dev")
        found.append(f"| {name} | {version} | {re.sub(r'[|]', '/', said)} | {use} |")
    return found


if __name__ == "__main__":
    PAGE.write_text(HEAD + "\n".join(rows()) + "\n")
