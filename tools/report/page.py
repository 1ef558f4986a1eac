"""The page: a document as one HTML file that asks for nothing else, offline or on."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from ...ir.staging import staged, write_bytes
from .parts import Document


def render(document: Document) -> str:
    """The document as HTML. All text is escaped: names come from files that may be hostile."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plots = {
        figure.key: [view.plot for view in figure.views]
        for section in document.sections
        for figure in section.figures
    }
    page = environment.get_template("page.html.j2")
    return page.render(document=document, plots=plots, plotly=get_plotlyjs())


def write_page(document: Document, path: Path) -> Path:
    """Write the page: whole, or not at all. Raises BadInput where that cannot be."""
    with staged(path) as folder:
        write_bytes(folder / path.name, render(document).encode())
    return path
