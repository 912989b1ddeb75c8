"""The gate of an adapter: how much of ΔW counts at t."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from longwave.extensions.dial import Dial
from longwave.names import unknown

CAPPED, NONE = "capped", "none"
SHAPES = (CAPPED, "ramp", "hard", NONE)


class Gate:
    """g(t): weights W + g(t)·ΔW follow t as frequencies do. g is 0 for t <= 1; beyond, by its shape,

        capped  min(ln t, ln T)/ln T: beyond T it stays 1, because ΔW has seen no longer text
        ramp    ln t/ln T
        hard    1
        none    1, and within L, too: no gate. The layers are PEFT's own, and do not ask for g

    T is the longest real window of the training, as a length factor.

    Arguments:
        dial: decides t.
        trained_factor: T.
        shape: `capped`, `ramp`, `hard` or `none`.

    Raises:
        ValueError: for T that is no number over 1, and for another shape.
    """

    def __init__(self, dial: Dial, trained_factor: float, shape: str = CAPPED) -> None:
        if shape not in SHAPES:
            raise ValueError(unknown("gate", shape, SHAPES))
        if shape != NONE and not (math.isfinite(trained_factor) and trained_factor > 1):
            raise ValueError(
                f"the gate of an adapter needs a trained factor over 1, got {trained_factor}. An adapter is off within "
                "the original length: train on windows that are longer."
            )
        self.dial, self.trained_factor, self.shape = dial, float(trained_factor), shape
        self.beside: Tensor | None = None  # a weight of the adapter: where compiled steps want g
        self._known: tuple[Any, Any, Any] | None = None
        self._number = 1.0, float(shape == NONE)  # t and g(t), of the last t that was a number: each layer asks for it
        self._steady: Tensor | None = None  # for compiled steps: another t compiles none of them again
        self._settled = False

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_known": None, "_steady": None, "_settled": False}

    def at(self, t: float) -> float:
        """g(t)."""
        known, value = self._number
        if known != t:
            value = float(self._values(torch.tensor(t, dtype=torch.float64)))
            self._number = t, value
        return value

    def of(self, x: Tensor) -> float | Tensor | None:
        """g for the input of a layer: a number, a tensor that fits x [batch, n, d], or None where all of it is 0.

        Raises:
            ValueError: where rows have several t and x does not show its rows.
        """
        if not torch.compiler.is_compiling():
            return self._of_factor(x)
        if self._settled and self._steady is not None:
            return _shaped(self._steady, x, None)
        return self._outside(x)

    @torch.compiler.disable
    def _outside(self, x: Tensor) -> float | Tensor | None:
        return self._of_factor(x)

    def _of_factor(self, x: Tensor) -> float | Tensor | None:
        factor, positions = self.dial.decided
        if not isinstance(factor, Tensor):
            return None if factor <= 1 else self.at(factor)
        known = self._known
        if known is None or known[0] is not factor or known[1] != x.device:
            values = self._values(factor)
            gate = values.to(x.device, torch.float32) if bool(values.any()) else None
            known = self._known = factor, x.device, gate
        return None if known[2] is None else _shaped(known[2], x, None if positions is None else positions.shape[-1])

    def _values(self, factor: Tensor) -> Tensor:
        if self.shape == NONE:
            return torch.ones_like(factor, device="cpu", dtype=torch.float64)
        ramp = factor.to("cpu", torch.float64).clamp(min=1.0).log() / math.log(self.trained_factor)
        if self.shape == "hard":
            return (ramp > 0).to(ramp.dtype)
        return ramp if self.shape == "ramp" else ramp.clamp(max=1.0)

    def settle(self) -> None:
        """Write g of the setting in force where compiled steps read it."""
        factor = self.dial.now.factor
        self._settled = factor is not None
        if factor is None:
            return
        values = self._values(torch.as_tensor(factor, dtype=torch.float64)).float()
        device = torch.device("cpu") if self.beside is None else self.beside.device
        if self._steady is None or self._steady.shape != values.shape or self._steady.device != device:
            with torch.inference_mode(False):
                self._steady = torch.empty(values.shape, device=device)
        self._steady.copy_(values)


def _shaped(gate: Tensor, x: Tensor, columns: int | None = None) -> Tensor:
    """g, float32, as [batch, 1 or n, 1] for x [batch, n, d], as [tokens, 1] for x [tokens, d] with all tokens."""
    if gate.ndim == 0:
        return gate
    rows = gate.shape[0]
    if x.ndim == 3 and x.shape[0] == rows and (gate.ndim == 1 or gate.shape[1] == x.shape[1]):
        return gate.reshape(rows, -1, 1)
    if x.ndim == 2 and columns is not None and x.shape[0] == rows * columns:
        return (gate if gate.ndim == 2 else gate[:, None].expand(rows, columns)).reshape(-1, 1)
    raise ValueError(
        f"the {rows} rows of the batch have several length factors, and a layer with an adapter gets an input of shape "
        f"{tuple(x.shape)}, which does not show the rows. Run rows of one length factor together."
    )
