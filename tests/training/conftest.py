"""A text that a tiny model learns in a few steps, and runs on it that take a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import longwave

Train = Callable[..., Path]


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "book.txt"
    path.write_text("".join(f"{n} sheep and {n + 1} goats went up the hill. " for n in range(400)), "utf-8")
    return path


@pytest.fixture
def train(book: Path, tokenizer, tmp_path: Path) -> Train:
    """`longwave.train` on the book with small defaults; keyword arguments win."""

    def run(model, output: str = "out", **settings) -> Path:
        small = {
            "method": "clex",
            "train_length": 48,
            "max_factor": 8,
            "steps": 3,
            "batch_size": 4,
            "lr": 1e-3,
            "progress": False,
        }
        data = settings.pop("data", [book])
        return longwave.train(model, data, tmp_path / output, tokenizer=tokenizer, **(small | settings))

    return run
