"""`python -m blockfold`."""

from .tools.cli import main

main()
