"""`python -m blockfold`, and the command `blockfold`."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C is as quiet while it is still being imported."""
    try:
        from .tools.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
