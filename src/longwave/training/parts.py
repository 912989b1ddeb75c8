"""The parts of an extension that a run trains beside the frequencies: new ones, or those of an earlier run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longwave.extensions.adapter import FULL, Adapter, LoRA
from longwave.extensions.gate import CAPPED
from longwave.extensions.handle import Extension
from longwave.training.config import AUTO, TrainConfig


@dataclass(frozen=True, eq=False)
class Parts:
    """What `extend` is asked for, and what an earlier run has learned.

    Arguments:
        head_scalars: whether each head has a mass and a temperature.
        lora: of the weights; None for none.
        heads: of the earlier run.
        weights: A and B of the earlier run's LoRA, in the order of the model.
    """

    head_scalars: bool
    lora: LoRA | None
    heads: dict[str, Tensor] | None = None
    weights: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, before: Extension | None, config: TrainConfig, trained_factor: float) -> Parts:
        """The parts of a run.

        Arguments:
            before: the extension that is trained further; None for a new one.
            trained_factor: the longest real window that a micro-batch can have, as a length factor.

        Raises:
            ValueError: for a LoRA of another rank or gate than the one that is trained further.
        """
        adapter = None if before is None else before.adapter
        heads = None if before is None or before.heads is None else dict(before.heads.state_dict())
        scalars = config.head_scalars or heads is not None
        if adapter is None:
            lora = None if config.rank is None else LoRA(config.rank, trained_factor, gate=config.gate or CAPPED)
            return cls(scalars, lora, heads)
        _require_same(adapter, config)
        longest = max(trained_factor, adapter.gate.trained_factor)
        lora = LoRA(adapter.config.r, longest, gate=adapter.gate.shape, config=adapter.config)
        return cls(scalars, lora, heads, tuple(parameter.detach().clone() for parameter in adapter.parameters()))

    @torch.no_grad()
    def fill(self, handle: Extension) -> None:
        """Give a new extension what the earlier run has learned."""
        if self.heads is not None and handle.heads is not None:
            handle.heads.load_state_dict(self.heads)
        if self.weights and handle.adapter is not None:
            for parameter, weight in zip(handle.adapter.parameters(), self.weights, strict=True):
                parameter.copy_(weight)


def require_long_enough(config: TrainConfig, original_length: int) -> None:
    """A `ValueError` for a LoRA without windows longer than L."""
    if config.rank is not None and config.longest_window <= original_length:
        raise ValueError(
            f"a LoRA is off within the original length, {original_length} tokens, and learns nothing from a train "
            f"length of {config.longest_window}. Raise the train length, best to {4 * original_length}, or set lora "
            "rank to none."
        )


def _require_same(adapter: Adapter, config: TrainConfig) -> None:
    """A `ValueError` for settings that ask for another LoRA than the model has."""
    rank = FULL if adapter.config.rank_pattern else adapter.config.r
    asked_rank = None if config.lora_rank == AUTO else config.rank or config.lora_rank
    for name, asked, own in (("lora rank", asked_rank, rank), ("gate", config.gate, adapter.gate.shape)):
        if asked not in (None, own):
            raise ValueError(
                f"the model has a LoRA with {name} {own}, not {asked}. Leave {name} out to train it further, or start "
                "from the base model."
            )
