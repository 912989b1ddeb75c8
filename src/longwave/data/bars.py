"""The progress bars of `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import datasets


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Show or hide the bars of `datasets` within a block: the switch of `datasets` is global."""
    hidden_before = datasets.are_progress_bars_disabled()
    (datasets.enable_progress_bars if shown else datasets.disable_progress_bars)()
    try:
        yield
    finally:
        (datasets.disable_progress_bars if hidden_before else datasets.enable_progress_bars)()
