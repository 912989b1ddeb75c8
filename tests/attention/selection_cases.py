"""The golden values of attention methods, as they come: an independent dense program made them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longwave.attention.layout import Layout
from longwave.attention.rows import Row, RowWise
from longwave.attention.spectrum import Spectrum

TYPES = {torch.float64: 1e-10, torch.float32: 2e-5}  # how near outputs must be
OF_THE_PROGRAM = ("prefill", "pool")  # parameters of a case that are no options of ours; pool is 0 in all


@dataclass(frozen=True)
class Case:
    """One of the cases; `arrays` beside q, k, v, inv_freq and output are those of its method."""

    about: dict[str, Any]
    arrays: dict[str, np.ndarray]

    @property
    def parameters(self) -> dict[str, Any]:
        return self.about["parameters"]

    @property
    def options(self) -> dict[str, Any]:
        return {name: value for name, value in self.parameters.items() if name not in OF_THE_PROGRAM}

    @property
    def prefill(self) -> int:
        """Tokens of the prompt; the others are decoded."""
        return self.parameters.get("prefill", self.about["tokens"])

    def tensor(self, name: str, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.from_numpy(np.array(self.arrays[name])).to(dtype)

    def row(self, first: int, stop: int, dtype: torch.dtype) -> Row:
        """The forward of the tokens first <= p < stop."""
        q, k, v = (self.tensor(name, dtype)[None] for name in ("q", "k", "v"))
        theta = self.tensor("inv_freq")
        spectrum = Spectrum(theta, theta, self.about["rope_scaling"])
        scale = q.shape[-1] ** -0.5
        decoding = first > 0 and stop == first + 1
        return Row(q[:, :, first:stop], k[:, :, :stop], v[:, :, :stop], Layout(), spectrum, scale, decoding)


@cache
def _arrays(folder: Path) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    with np.load(folder / "attention.npz") as file:
        return json.loads((folder / "attention.json").read_text())["cases"], dict(file)


def golden_case(shared: Path, name: str) -> Case:
    cases, arrays = _arrays(shared / "golden")
    about = next(about for about in cases if about["case"] == name)
    return Case(about, {key.split("/")[1]: value for key, value in arrays.items() if key.startswith(f"{name}/")})


def run_rows(method: RowWise, case: Case, dtype: torch.dtype, part: int | None = None) -> Tensor:
    """The prompt in one forward, or in parts, then token by token: [H, n, D]."""
    parts = range(0, case.prefill, part or case.prefill)
    steps = [(first, min(first + (part or case.prefill), case.prefill)) for first in parts]
    steps += [(p, p + 1) for p in range(case.prefill, case.about["tokens"])]
    found, memory = [], None
    for first, stop in steps:
        row = case.row(first, stop, dtype)
        if method.stored is not None:  # at true positions
            keys = torch.arange(stop)
            row = Row(
                row.turn(row.q, row.positions), row.turn(row.k, keys), row.v, row.layout, row.spectrum, row.scale,
                row.decoding,
            )  # fmt: skip
        output, memory = method.attend(row, memory)
        found.append(output[0])
    return torch.cat(found, 1)
