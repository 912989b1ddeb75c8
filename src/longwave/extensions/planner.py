"""Plan a forward under an attention method: at which t its rows run, and in which bands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longwave.attention.bands import Attention
from longwave.attention.documents import Documents
from longwave.attention.spectrum import Spectrum
from longwave.extensions.plan import Group, Plan
from longwave.extensions.rotary import ScaledRotary


class Planner:
    """Plans forwards, and keeps the last plan: the layers of a forward share it.

    Arguments:
        attention: the method.
        rotary: the scaled rotary module whose trajectory and dial it follows.
    """

    def __init__(self, attention: Attention, rotary: ScaledRotary) -> None:
        self.attention, self.rotary = attention, rotary
        self._last: _Last | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_last": None}

    def plan(self, position_ids: Tensor, documents: Documents | None = None) -> Plan:
        """The plan of a forward; its layers all get the same position ids.

        Arguments:
            documents: of rows that hold several.

        Raises:
            ValueError: for packed rows without `documents`, and positions on several axes.
        """
        setting = self.rotary.dial.now
        if (last := self._last) is not None and last.serves(position_ids, setting, documents):
            parameters = list(self.rotary.trajectory.parameters())
            kept = not torch.is_grad_enabled() and self.rotary.frequencies.solutions.are_of(parameters)
            if kept or not parameters:
                return last.plan
        plan = self._planned(position_ids, documents)
        plan.prompts = getattr(setting.call, "lengths", ())
        self._last = _Last(position_ids, _state_of(position_ids), setting, plan)
        return plan

    def _planned(self, position_ids: Tensor, documents: Documents | None) -> Plan:
        if position_ids.ndim != 2:
            raise ValueError(
                f"{self.attention.name} needs positions on one axis, got position ids of shape "
                f"{tuple(position_ids.shape)}. Use a scaling method without an attention method here."
            )
        factor = self.rotary.dial.read(position_ids)
        if documents is not None:
            return self._of_documents(position_ids, factor, documents)
        if bool((torch.as_tensor(factor) > 1).any()) and bool((position_ids.diff(dim=1) < 0).any()):
            raise ValueError(
                f"{self.attention.name} takes one sequence in each row, and rows were packed with several. "
                "Give each its own row, or use a scaling method alone."
            )
        if isinstance(factor, Tensor) and factor.ndim == 2:
            factor = factor.amax(1)  # padding in front of a row counts as sequences of one token
        if not isinstance(factor, Tensor):
            return Plan(position_ids, [self._group(float(factor), None)])
        factors = factor.tolist()
        position_ids = position_ids.expand(len(factors), -1)
        rows = {t: [row for row, own in enumerate(factors) if own == t] for t in sorted(set(factors))}
        if len(rows) == 1:
            return Plan(position_ids, [self._group(factors[0], None)])
        return Plan(position_ids, [self._group(t, torch.tensor(own)) for t, own in rows.items()])

    def _of_documents(self, position_ids: Tensor, factor: float | Tensor, documents: Documents) -> Plan:
        """The plan of rows that hold several documents. They have one t, as training draws it."""
        if self.attention.remembers:
            raise ValueError(
                f"{self.attention.name} remembers one text for each row, and rows hold several documents. Give each "
                "document its own row."
            )
        factors = set(torch.as_tensor(factor).reshape(-1).tolist())
        if len(factors) > 1:
            raise ValueError(
                f"{self.attention.name} takes rows of several documents at one t, got {len(factors)} of them. Fix t: "
                'set_policy(model, "fixed", t).'
            )
        return Plan(position_ids, [self._group(float(factors.pop()), None)], documents)

    def _group(self, t: float, rows: Tensor | None) -> Group:
        if t <= 1:
            return Group(rows, t)
        attention, rotary = self.attention, self.rotary
        bands = attention.bands(t)
        wide = torch.float32 if rotary.frequencies.own.device.type == "mps" else torch.float64
        at = attention.factor(t)  # training may draw a t over max_factor: the far keys follow it
        spectrum = Spectrum(
            rotary.frequencies.own.to(wide),
            rotary.frequencies.at(at).to(wide),
            rotary.trajectory.attention_scaling(at) * attention.scaling,
        )
        stored = None if attention.stored is None else bands[attention.stored]
        return Group(rows, t, bands, spectrum, stored)


@dataclass(frozen=True)
class _Last:
    """The plan of the last forward, and what it was made from."""

    position_ids: Tensor
    state: int | Tensor
    setting: Any
    plan: Plan

    def serves(self, position_ids: Tensor, setting: Any, documents: Documents | None) -> bool:
        """Whether it is the plan of these position ids. The values are compared only where nothing else tells."""
        if self.position_ids is not position_ids or self.setting is not setting or self.plan.documents is not documents:
            return False
        if isinstance(self.state, Tensor):
            return torch.equal(self.state, position_ids)  # a GPU waits for this
        return self.state == position_ids._version


def _state_of(position_ids: Tensor) -> int | Tensor:
    """What changes with the values: autograd's count of changes in place, or a copy where it does not count."""
    return position_ids.clone() if position_ids.is_inference() else position_ids._version
