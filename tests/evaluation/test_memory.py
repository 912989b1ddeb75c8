"""Long windows fit in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "perplexity_memory.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc to read the peak")
def test_32768_tokens_and_a_vocabulary_of_128000_in_less_than_a_gigabyte() -> None:
    """The hardest protocol, which scores every token; the logits as one tensor would take 17 GB."""
    command = [sys.executable, str(BENCHMARK), "--protocol", "overlap", "--log-n"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["peak_bytes"] < 1e9
