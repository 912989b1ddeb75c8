"""`longwave` and `python -m longwave`: the command line, which may also be interrupted while it is imported."""

from __future__ import annotations

import sys


def run() -> int:
    """Run the command line of this process; returns the exit code."""
    try:
        from longwave.cli.main import main

        return main()
    except KeyboardInterrupt:  # outside of a command, where typer catches it
        return 130


if __name__ == "__main__":
    sys.exit(run())
