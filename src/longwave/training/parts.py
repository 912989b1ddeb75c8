"""The parts of an extension that a run trains beside the frequencies: new ones, or those of an earlier run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from longwave.attention.bands import Attention
from longwave.extensions.adapter import FULL, Adapter, LoRA
from longwave.extensions.gate import CAPPED, NONE
from longwave.extensions.handle import Extension
from longwave.extensions.steering import text_model
from longwave.training.config import TrainConfig
from longwave.training.lora import AUTO, RANK, LoraSettings

OTHER = "Leave lora out to train it further, or start from the base model."


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
    def of(
        cls, before: Extension | None, config: TrainConfig, trained_factor: float, foreign: Adapter | None = None
    ) -> Parts:
        """The parts of a run.

        Arguments:
            before: the extension that is trained further; None for a new one.
            trained_factor: the longest real window that a micro-batch can have, as a length factor.
            foreign: a LoRA that PEFT has put on the model; it is trained as it is.

        Raises:
            ValueError: for another LoRA than the one that is trained further.
        """
        adapter = None if before is None else before.adapter
        heads = None if before is None or before.heads is None else dict(before.heads.state_dict())
        scalars = config.head_scalars or heads is not None
        if foreign is not None:
            _require_same(foreign, config)
            return cls(scalars, None, heads)
        if adapter is None:
            asked = config.lora_settings
            return cls(scalars, None if asked is None else _new(asked, trained_factor), heads)
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
    """A `ValueError` for a LoRA that is off within L, without windows longer than L."""
    asked = config.lora_settings
    if asked is not None and asked.gate != NONE and config.train_length <= original_length:
        raise ValueError(
            f"a LoRA is off within the original length, {original_length} tokens, and learns nothing from a train "
            f"length of {config.train_length}. Raise the train length, best to {4 * original_length}, or set lora "
            "to none, or its gate."
        )


def require_learnable(model: PreTrainedModel, method: str, attention: type[Attention]) -> None:
    """A `ValueError` for an attention method without gradients, and for dropout that it would do within L alone."""
    if attention.remembers:
        raise ValueError(f"{method} chooses keys as it goes, and has no gradient. Train another method, or none.")
    dropout = getattr(text_model(model).config, "attention_dropout", None)
    if dropout:
        raise ValueError(
            f"{method} drops no attention weights, and config.json of the model says attention_dropout {dropout!r}. "
            "Set it to 0 there, or train a scaling method alone."
        )


def _new(asked: LoraSettings, trained_factor: float) -> LoRA:
    return LoRA(
        RANK if asked.rank == AUTO else asked.rank,
        trained_factor,
        targets=asked.targets,
        gate=asked.gate or CAPPED,
        alpha=asked.alpha,
        dropout=asked.dropout or 0.0,
    )


def _require_same(adapter: Adapter, config: TrainConfig) -> None:
    """A `ValueError` for settings that ask for another LoRA than the model has."""
    own = _as_asked(adapter)
    if config.lora is not None and config.lora_settings is None:
        raise ValueError(f"the model has a LoRA with {own}, and lora none is asked for. {OTHER}")
    asked = {} if config.lora_settings is None else dict(config.lora_settings.given())
    for key, value in asked.items():
        has = dict(own.given()).get(key)
        if (key, value) != ("r", AUTO) and (set(value) != set(has or ()) if key == "targets" else value != has):
            raise ValueError(f"the model has a LoRA with {own}, and {key} {_text(value)} is asked for. {OTHER}")


def _as_asked(adapter: Adapter) -> LoraSettings:
    """The settings of an adapter, as `--lora` has them."""
    config = adapter.config
    full, targets = bool(config.rank_pattern), config.target_modules
    return LoraSettings(
        rank=FULL if full else config.r,
        alpha=None if full else float(config.lora_alpha),
        dropout=float(config.lora_dropout),
        targets=tuple(sorted(targets)) if targets and not isinstance(targets, str) else None,
        gate=adapter.gate.shape,
    )


def _text(value: object) -> str:
    return "+".join(value) if isinstance(value, tuple) else str(value)
