"""docs/api.md is what the sources say, and leaves no public name out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import blockfold

pytest.importorskip("torch", reason="the penalties are of torch")
PAGE = Path(__file__).parents[2] / "docs/api.md"


def test_the_page_is_up_to_date() -> None:
    from blockfold.tools.reference import reference

    assert PAGE.read_text() == reference(), "run python -m blockfold.tools.reference > docs/api.md"


def test_every_public_name_has_a_section_with_its_own_words() -> None:
    page = PAGE.read_text()
    titles = re.findall(r"^### (\w+)$", page, re.MULTILINE)
    assert set(blockfold.__all__) <= set(titles)
    assert len(titles) == len(set(titles))
    for title in titles:
        text = page.split(f"### {title}\n", 1)[1].split("\n### ", 1)[0].split("```", 2)[2]
        assert len(text.split()) > 3, f"{title} has no docstring"


def test_signatures_are_python_and_keep_what_is_keyword_only() -> None:
    page = PAGE.read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    for block in blocks:
        compile(block, "docs/api.md", "exec")
    (optimize,) = (block for block in blocks if block.startswith("def optimize("))
    assert optimize.index("    *,\n") < optimize.index("    max_drop:")
