"""Errors, sorted by whose turn it is to act. Each carries the exit code the command line ends with.

Every message is one line for a person: what was wrong, where, and what to do.
"""

from __future__ import annotations

from typing import ClassVar


class BlockfoldError(Exception):
    """Base of every error blockfold raises on purpose; anything else is a bug of ours (exit 4)."""

    exit_code: ClassVar[int]


class NotMet(BlockfoldError):
    """The promise or the budget cannot be met with this model and data; nothing was written."""

    exit_code = 1


class BadInput(BlockfoldError):
    """The caller gave something unusable: a file, an option, data, too few samples."""

    exit_code = 2


class Unsupported(BlockfoldError):
    """The model is sound but blockfold cannot work on it; the message names reason and node."""

    exit_code = 3
