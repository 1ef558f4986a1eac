"""Account is kept of all errors; whether any was left out is asked last."""

from __future__ import annotations

import pytest

from blockfold.tests.raised import keep_account

LAST = "test_every_error.py"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-error", action="store_true", help="fail where no test raises one")


def pytest_configure() -> None:
    keep_account()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name == LAST)
