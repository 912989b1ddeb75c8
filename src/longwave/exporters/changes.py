"""What t makes of the weights of the plain model: W + g(t)·ΔW, and queries c_h times as long. One tensor at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from longwave.checkpoints.adapters import read_delta
from longwave.checkpoints.quantized import Quantization
from longwave.exporters.base import Unsupported
from longwave.exporters.queries import Change, query_changes
from longwave.extensions.adapter import Adapter
from longwave.layout import ADAPTER_WEIGHTS, ADAPTERS
from longwave.trajectory import Snapshot


@dataclass(frozen=True, eq=False)
class Merge:
    """The adapter of a model on disk.

    Arguments:
        adapter: of the model without weights.
        file: with the adapter's weights.
        places: parameter of the plain model -> its place in the adapter.
        trained_on: how the base was quantized while the adapter was trained; None where it was not.
    """

    adapter: Adapter
    file: Path
    places: dict[str, int]
    trained_on: str | None = None

    @classmethod
    def of(cls, adapter: Adapter, folder: Path) -> Merge:
        """The adapter of an extended model, which lies in `folder`."""
        names = {id(module): name for name, module in adapter.host.named_modules()}
        places = {}
        for place, (parent, name, _) in enumerate(adapter.places):
            places[".".join(part for part in (names[id(parent)], name, "weight") if part)] = place
        quantization = Quantization.read(folder)
        trained_on = None if quantization is None else quantization.kind
        return cls(adapter, folder / ADAPTERS / ADAPTER_WEIGHTS, places, trained_on)

    def delta(self, name: str, t: float) -> Tensor:
        """g(t)·ΔW of a parameter, float32."""
        return read_delta(self.adapter, self.places[name], t, self.file, name.removesuffix(".weight"))


@dataclass(frozen=True, eq=False)
class Changes:
    """The parameters of the plain model that are others at t.

    Arguments:
        t: the length factor.
        merge: the adapter; None where there is none, or where it is off at t.
        queries: parameter -> the constant temperature of its heads.
        prefix: what tensors of a file may lack that parameters of the model begin with.
    """

    t: float = 1.0
    merge: Merge | None = None
    queries: dict[str, Change] = field(default_factory=dict)
    prefix: str = ""

    @classmethod
    def at(cls, model: nn.Module, snapshot: Snapshot, merge: Merge | None) -> Changes:
        """The changes of a plain model at the t of a snapshot.

        Raises:
            Unsupported: see `query_changes`.
        """
        off = merge is None or merge.adapter.gate.at(snapshot.factor) == 0
        queries = query_changes(model, snapshot.query_scaling)
        return cls(snapshot.factor, None if off else merge, queries, str(getattr(model, "base_model_prefix", "")))

    @property
    def names(self) -> set[str]:
        """The parameters that change."""
        return {*self.queries, *(() if self.merge is None else self.merge.places)}

    def parameter(self, origin: str) -> str | None:
        """The parameter that changes, by the name of its tensor in a file; None for a tensor that stays."""
        return next((name for name in (origin, f"{self.prefix}.{origin}") if name in self.names), None)

    def of(self, origin: str) -> Change | None:
        """What becomes of a tensor of a file, in float32; None where it stays."""
        name = self.parameter(origin)
        if name is None:
            return None

        def change(tensor: Tensor) -> Tensor:
            wide = tensor.to(torch.float32)
            if self.merge is not None and name in self.merge.places:
                wide = wide + self.merge.delta(name, self.t).to(wide.device)
            return self.queries[name](wide) if name in self.queries else wide

        return change

    def check(self, folder: Path, held: Iterable[str]) -> None:
        """Every parameter that changes must be one tensor of the files.

        Raises:
            Unsupported: naming the parameter that is not.
        """
        lacking = sorted(self.names - {self.parameter(origin) for origin in held})
        if lacking:
            raise Unsupported(
                f"{folder} holds no tensor {lacking[0]}, which changes with t. Load the model with transformers, save "
                "it again, and export that."
            )

    def notes(self) -> list[str]:
        """What the user should know."""
        found = []
        if self.merge is not None:
            gate = self.merge.adapter.gate.at(self.t)
            found.append(f"The weights are W + g·ΔW with g = {gate:.4g}, the adapter's gate at t = {self.t:g}.")
        if self.merge is not None and self.merge.trained_on is not None:
            found.append(
                f"The adapter was trained on its base in {self.merge.trained_on}. The export has the base as it is, "
                "and differs from the trained model by what that changed."
            )
        if self.queries:
            found.append(
                "The learned exponents of log-n are constants here, each head's for the last query, and part of the "
                "weights that make queries."
            )
        return found
