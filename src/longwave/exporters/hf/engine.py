"""transformers in a process of its own, which knows no longwave."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longwave.exporters.base import Answer
from longwave.files import write_json

RUNNER = Path(__file__).with_name("run_transformers.py")


def run_transformers(folder: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Answer]:
    """Greedy continuations by transformers in another process of this Python."""
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch) / "prompts.json", Path(scratch) / "answers.npz"
        write_json(asked, [list(prompt) for prompt in prompts])
        done = subprocess.run(
            [sys.executable, str(RUNNER), str(folder), str(asked), str(answered), str(new_tokens)],
            capture_output=True,
            text=True,
            cwd=scratch,
            env=os.environ | {"PYTHONSAFEPATH": "1"},  # the script's own folder is no place to import from
        )
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[-1]
            raise ValueError(f"transformers could not run {folder}: {last}")
        with np.load(answered) as found:
            return [
                Answer(found[f"tokens{index}"].tolist(), found[f"log_probs{index}"]) for index in range(len(prompts))
            ]
