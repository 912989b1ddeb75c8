"""The model before and after training: loaded, extended, and left as if no Trainer had touched it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, Trainer

from longwave.adapter import load
from longwave.architectures import host_of
from longwave.attach import extend, extend_again, restore, rope_of, rotaries, trajectories_of
from longwave.generation import rotaries_of
from longwave.logn import count_keys, log_n_of
from longwave.methods import parse_method
from longwave.schedule import Static
from longwave.training.config import TrainConfig
from longwave.training.positions import LengthSampler
from longwave.trajectory import Trajectory


def load_with_tokenizer(
    model: str | Path | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights in float32: bf16 training is autocast, small steps would vanish in bf16 weights."""
    if isinstance(model, str | Path):
        return load(model, dtype=torch.float32), tokenizer or AutoTokenizer.from_pretrained(model)
    if tokenizer is None:
        raise ValueError("training a model that is not a path needs its tokenizer: pass tokenizer=...")
    return model, tokenizer


def attach_method(model: PreTrainedModel, config: TrainConfig) -> LengthSampler:
    """Attach the method and make its sampler.

    A model that is extended already keeps its original length and what it does beyond max_factor; one that follows
    the method keeps what it learned, its options and its schedule, too. RoPE scaling of a checkpoint's config is a
    method to go on with; to any other it is part of the plain model.
    """
    method, schedule = parse_method(config.method)
    if any(rotary.loaded is not None for rotary in rotaries_of(model)) and _name(model) != method.name:
        restore(model)
    original_length = _original_length(model, config)
    sampler = LengthSampler(
        original_length=original_length,
        max_factor=config.largest_draw,
        positions=config.positions,
        factors=config.factors,
        chunks=config.chunks,
        short_share=config.short_share,
        long_share=config.long_share,
        seed=config.seed,
    )
    sampler(
        config.batch_size, config.train_length, step=0
    )  # a window that cannot fit is an error here, not in the first batch
    options, learned, beyond = config.method_options, None, "error"
    if rotaries_of(model):
        options, learned = _carried_over(model, method.name, options | {"original_length": original_length})
        before, beyond = rotaries(model)[0].schedule, rotaries(model)[0].beyond
        outgrown = isinstance(before, Static) and before.factor < config.max_factor
        if _name(model) == method.name and "@" not in config.method and not outgrown:
            schedule = before
    if learned is not None:
        learned.max_factor = config.max_factor
    (extend_again if rotaries_of(model) else extend)(
        model,
        method.name,
        max_factor=config.max_factor,
        schedule=schedule,
        trajectory=learned,
        beyond=beyond,
        **options,
    )
    count_keys(host_of(model), config.log_n_count == "keys")
    if config.freeze_weights:
        _freeze_weights(model, method.name)
    return sampler


def _name(model: PreTrainedModel) -> str:
    return trajectories_of(model)[0].name


def _original_length(model: PreTrainedModel, config: TrainConfig) -> int:
    """L as given, or else as the model was extended with, or else as its config says it."""
    if config.original_length is None and rotaries_of(model):
        return trajectories_of(model)[0].rope.original_length
    return config.original_length or rope_of(model).original_length


def _carried_over(
    model: PreTrainedModel, method: str, options: dict[str, Any]
) -> tuple[dict[str, Any], Trajectory | None]:
    """Of an extended model: the options that stay in force unless they are given, and what it learned."""
    current = trajectories_of(model)
    if current[0].name != method:
        return options, None
    options = {"log_n": log_n_of(model), **options}
    if not list(current[0].parameters()):
        return {**current[0].options(), **options}, None
    if len(current) > 1:
        raise ValueError(f"the model learned {len(current)} trajectories; only one can be taken further. Start afresh.")
    learned_with = {**current[0].options(), "original_length": current[0].rope.original_length}
    for name, value in options.items():
        if name != "log_n" and learned_with.get(name) != value:
            raise ValueError(
                f"the model learned its frequencies with {name} {learned_with.get(name)!r}, not {value!r}. "
                "Leave the option out, or train the plain model (its folder model/) into another output."
            )
    return {name: options[name] for name in ("log_n", "original_length")}, current[0]


def _freeze_weights(model: PreTrainedModel, method: str) -> None:
    learnable = {id(parameter) for trajectory in trajectories_of(model) for parameter in trajectory.parameters()}
    if not learnable:
        restore(model)
        raise ValueError(f"freeze weights leaves nothing to train: {method} has no learned frequencies.")
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in learnable)


def settle(trainer: Trainer, config: TrainConfig, *, use_cache: bool) -> None:
    """Take off the model what training put on it."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    for rotary in rotaries(model):
        rotary.factor = None
    count_keys(host_of(model), False)
    model.config.use_cache = use_cache
    if config.gradient_checkpointing:
        switch_checkpointing(model, on=False)
    if config.freeze_weights:
        model.requires_grad_(True)
    model.eval()


def switch_checkpointing(model: PreTrainedModel, *, on: bool) -> None:
    """By whichever name this version of transformers has for it."""
    what = "activation_checkpointing" if hasattr(model, "activation_checkpointing_enable") else "gradient_checkpointing"
    if on:
        getattr(model, f"{what}_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{what}_disable")()
