"""Python objects that a user names as `module:attribute`.

Importing runs code: only what the user typed comes here, never text out of a file.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import operator
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from ..ir.errors import BadInput
from .intake import blaming

SPEC = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")  # module:attribute


def attribute(spec: str) -> object:
    """The object at `module:attribute`. BadInput where there is none or the module fails."""
    module, _, name = spec.partition(":")
    importlib.invalidate_caches()
    with blaming(f"{spec}: importing module {module!r} failed"):
        found = importlib.import_module(module)
    try:
        return operator.attrgetter(name)(found)
    except AttributeError as error:
        near = difflib.get_close_matches(name, dir(found), 1)
        meant = f" (is it {near[0]!r}?)" if near else ""
        raise BadInput(f"{spec}: module {module!r} has no {name!r}{meant}") from error


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Meanwhile the folder stands first on the import path, as under `python -m`."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
