"""README.md and docs/*.md as the tests read them: fenced blocks, commands, files."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
SHELL = ("sh", "console")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"`([\w.-]+)`:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks in these languages, in order."""
    return [body for language, body in FENCE.findall(text) if language in languages]


def commands(text: str) -> list[list[str]]:
    """Every line of the shell blocks as words, without prompts and comments."""
    lines = [line for block in blocks(text, *SHELL) for line in block.splitlines()]
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [found for found in words if found]


def files(text: str) -> dict[str, str]:
    """Blocks that are the text of a file, which the line before names: "Here is `x.py`:"."""
    return dict(NAMED.findall(text))


def shell(words: list[str], folder: Path) -> str:
    """What a command of another tool prints; it must end well. `>` redirects."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    line = " ".join(word if word == ">" else shlex.quote(word) for word in words)
    environment = {**os.environ, "PATH": path, "OLIVE_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        line, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{line}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr
