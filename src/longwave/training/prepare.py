"""The model before and after training: loaded, extended, and left as if no Trainer had touched it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longwave.checkpoints.folder import Kind, ModelFolder, resolve
from longwave.checkpoints.load import load
from longwave.checkpoints.quantized import Quantization, is_quantized_on_disk
from longwave.checkpoints.tokenizer import load_tokenizer
from longwave.checkpoints.trained import Trained, trained_of
from longwave.extensions.attach import extend, extend_again, restore, rope_of
from longwave.extensions.documents import forget_documents
from longwave.extensions.foreign import foreign_adapter, require_trainable, unwrapped
from longwave.extensions.handle import extension, find_extension
from longwave.extensions.sites import host_of
from longwave.extensions.spec import parse_spec
from longwave.extensions.steering import count_keys
from longwave.files import read_object
from longwave.layout import SETTINGS
from longwave.schedule import Static
from longwave.training.arguments import has_bf16
from longwave.training.config import TrainConfig
from longwave.training.draw import LengthSampler
from longwave.training.frozen import require_learnable_weights, unfreeze
from longwave.training.going_further import tell_what_is_left
from longwave.training.learned import PARTS, learned_parameters
from longwave.training.parts import Parts, require_learnable, require_long_enough
from longwave.trajectory import Trajectory

logger = logging.getLogger("longwave")


def load_with_tokenizer(
    model: str | Path | nn.Module, tokenizer: PreTrainedTokenizerBase | None, config: TrainConfig
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer, weights in float32. bf16 training is autocast: bf16 weights would lose small steps."""
    if isinstance(model, str | Path):
        found = resolve(model)
        quantized = quantization_for(found, config)
        return load(found, dtype=torch.float32, **quantized), tokenizer or load_tokenizer(found)
    if config.quantize is not None:
        raise ValueError("quantize is for a model that training reads itself. Give its path, or leave quantize out.")
    if tokenizer is None:
        raise ValueError("training a model that is not a path needs its tokenizer: pass tokenizer=...")
    return unwrapped(model, "train"), tokenizer


def quantization_for(found: ModelFolder, config: TrainConfig) -> dict[str, Any]:
    """Arguments of `load` that quantize the base of a new run; none for a folder that goes on as it was trained.

    Raises:
        ValueError: for another quantization than an adapter was trained on, and where bitsandbytes is missing.
    """
    asked, before = config.quantize, Quantization.read(found.path)
    if asked is None:
        return {}
    own = None if before is None else before.kind
    if found.kind is Kind.LONGWAVE and "adapter" in read_object(found.path / SETTINGS) and own != asked:
        on = "weights that are not quantized" if own is None else f"weights in {own}"
        raise ValueError(f"{found.name} has a LoRA that was trained on {on}, not in {asked}. Leave quantize out.")
    if is_quantized_on_disk(found):
        raise ValueError(f"the weights of {found.name} are quantized already. Leave quantize out.")
    if before is not None:
        return {}
    wide = config.precision == "bf16" or (config.precision == "auto" and has_bf16())
    return Quantization(asked, "bfloat16" if wide and asked == "4bit" else "float32").arguments()


def attach_method(model: PreTrainedModel, config: TrainConfig) -> LengthSampler:
    """Attach the method and make its sampler.

    A model that is already extended keeps its original length and its `beyond`. If the model follows the same method,
    it also keeps its learned weights, its options and its schedule. RoPE scaling of a checkpoint's config counts as
    such a method. For any other method the scaling is part of the plain model.
    """
    spec = parse_spec(config.method)
    method, schedule = spec.method, spec.schedule
    handle = find_extension(model)
    if handle is not None and handle.spec != spec.name:
        tell_what_is_left(handle, spec.name)
    if handle is not None and handle.unscaled and handle.spec != spec.name:
        restore(model)
        handle = None
    original_length = _original_length(model, config)
    require_long_enough(config, original_length)
    if spec.attention is not None:
        require_learnable(model, spec.name, spec.attention)
    sampler = LengthSampler(
        original_length=original_length,
        max_factor=config.largest_draw,
        positions=config.positions,
        factors=config.factors,
        chunks=config.chunks,
        short_share=config.short_share,
        long_share=config.long_share,
        train_length=config.train_length,
        least_factor=config.least_factor or 1.0,
        seed=config.seed,
    )
    sampler.check(config.batch_size, config.row_tokens(original_length))  # here, and not in the first batch
    _tell_of_shorter_windows(sampler, config, config.row_tokens(original_length))
    options, learned, beyond = config.method_options, None, "error"
    if handle is not None:
        options, learned = _carried_over(model, spec.name, options | {"original_length": original_length})
        before, beyond = handle.schedule, handle.dial.now.beyond
        outgrown = isinstance(before, Static) and before.factor < config.max_factor
        if handle.spec == spec.name and "@" not in config.method and not outgrown:
            schedule = before
    if learned is not None and handle is not None:
        attention = handle.attention
        learned.max_factor = config.max_factor if attention is None else attention.factor(config.max_factor)
    row = config.row_tokens(original_length)
    longest = max([1, *sampler.multiples(config.batch_size, row)] if config.long_share else [1]) * row
    same = handle if handle is not None and handle.spec == spec.name else None
    foreign = foreign_adapter(model)
    if foreign is not None:
        require_trainable(foreign)
    parts = Parts.of(same, config, max(1.0, longest / original_length), foreign)
    adapted = parts.lora is not None or foreign is not None or config.freeze_weights
    require_learnable_weights(model, adapted=adapted)
    (extend if handle is None else extend_again)(
        model,
        spec.name,
        max_factor=config.max_factor,
        schedule=schedule,
        trajectory=learned,
        beyond=beyond,
        head_scalars=parts.head_scalars,
        adapter=parts.lora,
        **options,
    )
    parts.fill(extension(model))
    if foreign is not None:  # PEFT has frozen all else, and the extension may have been there before
        unfreeze(model)
    count_keys(host_of(model), config.log_n_count == "keys")
    if config.freeze_weights:
        _freeze_weights(model, method.name)
    return sampler


def trained_before(model: PreTrainedModel, config: TrainConfig) -> Trained:
    """The longest windows that the model was trained on so far. A new extension starts from those of the weights."""
    handle, known = find_extension(model), trained_of(model)
    if handle is None and config.original_length is not None:
        return Trained(config.original_length, config.original_length)
    if handle is not None and handle.spec == parse_spec(config.method).name:
        return known
    return Trained(known.weights, known.weights)


def require_long_windows(rows: torch.Tensor, sampler: LengthSampler, config: TrainConfig) -> None:
    """The data must hold the longest window that the sampler may ask for."""
    row = rows.shape[1]
    longest = max([1, *sampler.multiples(config.batch_size, row)]) * row
    if config.long_share and rows.numel() < longest:
        raise ValueError(
            f"long share cuts windows of {longest} tokens, the data holds {rows.numel()}. Pass more --data."
        )


def _tell_of_shorter_windows(sampler: LengthSampler, config: TrainConfig, row: int) -> None:
    """Warn where real windows stay shorter than the train length because m rows of a window have to divide a batch."""
    if not config.long_share:
        return
    longest = row * max(sampler.multiples(config.batch_size, row))
    if longest + row <= config.train_length:
        logger.warning(
            "the longest real window has %d tokens and not the train length of %d: a window is m rows of %d tokens, "
            "and m divides the batch size, %d. Raise the batch size or the row length.",
            longest, config.train_length, row, config.batch_size,
        )  # fmt: skip


def _original_length(model: PreTrainedModel, config: TrainConfig) -> int:
    """L as given; else L of the model's extension; else L of its config."""
    handle = find_extension(model)
    if config.original_length is None and handle is not None:
        return handle.original_length
    return config.original_length or rope_of(model).original_length


def _carried_over(
    model: PreTrainedModel, method: str, options: dict[str, Any]
) -> tuple[dict[str, Any], Trajectory | None]:
    """The options of an extended model, which stay in force unless new ones are given, and its learned weights."""
    handle = extension(model)
    current = handle.trajectories
    if handle.spec != method:
        return options, None
    options = {"log_n": handle.log_n, **({} if handle.attention is None else handle.attention.options()), **options}
    if not list(current[0].parameters()):
        return {**current[0].options(), **options}, None
    if len(current) > 1:
        raise ValueError(f"the model learned {len(current)} trajectories; only one can be taken further. Start afresh.")
    learned_with = {**current[0].options(), "original_length": current[0].rope.original_length}
    of_method, of_attention = parse_spec(method).split(options)
    for name, value in of_method.items():
        if name != "log_n" and learned_with.get(name) != value:
            raise ValueError(
                f"the model learned its frequencies with {name} {learned_with.get(name)!r}, not {value!r}. "
                "Leave the option out, or train the plain model (its folder model/) into another output."
            )
    return {name: options[name] for name in ("log_n", "original_length")} | of_attention, current[0]


def _freeze_weights(model: PreTrainedModel, method: str) -> None:
    learnable = {id(parameter) for parameter in learned_parameters(model, *PARTS).values()}
    if not learnable:
        restore(model)
        raise ValueError(
            f"freeze weights leaves nothing to train: {method} has no learned frequencies. Train scalars of heads "
            "(head scalars), or the weights."
        )
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in learnable)


@dataclass(frozen=True)
class Before:
    """How a model was before training, as far as training changes it for a while."""

    use_cache: bool
    checkpointing: bool
    training: bool
    forward: Any  # of the model itself, None where its class has the forward

    @classmethod
    def of(cls, model: PreTrainedModel) -> Before:
        checkpointing = bool(getattr(model, f"is_{_checkpointing_of(model)}"))
        return cls(model.config.use_cache, checkpointing, model.training, vars(model).get("forward"))


def clean_up(model: PreTrainedModel, config: TrainConfig, before: Before) -> None:
    """Take off the model what training put on it; the extension stays.

    All weights count as trainable again, apart from those under a LoRA: they are frozen as long as it is on.
    """
    count_keys(host_of(model), False)
    forget_documents(host_of(model))
    model.config.use_cache = before.use_cache
    if config.gradient_checkpointing and not before.checkpointing:
        switch_checkpointing(model, on=False)
    if config.freeze_weights:
        model.requires_grad_(True)
        handle = find_extension(model)
        adapter = foreign_adapter(model) if handle is None else handle.adapter or foreign_adapter(model)
        if adapter is not None:
            adapter.freeze()
    model.train(before.training)
    vars(model).pop("forward", None)  # accelerate leaves one there, without the decorators of the class
    if before.forward is not None:
        model.forward = before.forward


def _checkpointing_of(model: PreTrainedModel) -> str:
    """The name that this version of transformers has for gradient checkpointing."""
    return "activation_checkpointing" if hasattr(model, "activation_checkpointing_enable") else "gradient_checkpointing"


def switch_checkpointing(model: PreTrainedModel, *, on: bool) -> None:
    """Switch gradient checkpointing, by the name that this version of transformers has for it."""
    what = _checkpointing_of(model)
    if on:
        getattr(model, f"{what}_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{what}_disable")()
