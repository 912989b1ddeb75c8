"""`longwave` and `python -m longwave`: the command line, which may also be interrupted while it is imported."""

from __future__ import annotations

import sys


def run() -> int:
    """Run the command line of this process; returns the exit code."""
    try:
        from longwave.cli.main import main
    except KeyboardInterrupt:
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(run())
