"""The parts of an extension that a run trains beside the frequencies: new ones, or those of an earlier run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longwave.extensions.adapter import LoRA
from longwave.extensions.handle import Extension
from longwave.training.config import TrainConfig


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
    def of(cls, before: Extension | None, config: TrainConfig, original_length: int) -> Parts:
        """The parts of a run.

        Arguments:
            before: the extension that is trained further; None for a new one.

        Raises:
            ValueError: for a LoRA of another rank or gate than the one that is trained further, and for a LoRA without
                windows longer than L.
        """
        trained_factor = config.longest_window / original_length
        adapter = None if before is None else before.adapter
        if config.rank is not None and trained_factor <= 1:
            raise ValueError(
                f"a LoRA that is off within {original_length} tokens learns nothing from windows of "
                f"{config.longest_window}. Raise the train length, or set lora rank to none."
            )
        heads = None if before is None or before.heads is None else dict(before.heads.state_dict())
        scalars = config.head_scalars or heads is not None
        if adapter is None:
            lora = None if config.rank is None else LoRA(config.rank, trained_factor, gate=config.gate)
            return cls(scalars, lora, heads)
        if config.rank not in (None, adapter.config.r) and not adapter.config.rank_pattern:
            raise ValueError(
                f"the model has a LoRA of rank {adapter.config.r}, not {config.rank}. Leave lora rank out to train it "
                "further, or start from the base model."
            )
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
