"""How the transformers Trainer is to run, and which of its ways would lose the gradient of the frequencies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from longwave.training.config import TrainConfig


def training_arguments(config: TrainConfig, folder: Path, rate: float) -> TrainingArguments:
    """The Trainer's settings.

    Arguments:
        folder: for its checkpoints.
        rate: the learning rate of the weights.
    """
    accelerated = torch.accelerator.is_available()
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=rate,
        **learning_rates(config),
        adam_beta2=config.beta2,
        warmup_steps=round(config.steps * config.warmup),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=config.precision == "bf16" or (config.precision == "auto" and has_bf16()),
        use_cpu=not accelerated,
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=accelerated,
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )


def has_bf16() -> bool:
    """Whether there is a GPU with bfloat16, which training then uses unless it is told otherwise."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def learning_rates(config: TrainConfig) -> dict[str, Any]:
    """The Trainer's names for the fall of the learning rates."""
    if config.lr_schedule == "constant":
        return {"lr_scheduler_type": "constant_with_warmup"}
    if config.least_lr:
        return {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": config.least_lr}}
    return {"lr_scheduler_type": config.lr_schedule}


def refuse_data_parallel(args: TrainingArguments) -> None:
    """The Trainer would wrap the model in `nn.DataParallel`, whose replicas have no parameters to learn with."""
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs in one process: the frequencies would not be trained. "
            f"Start one process each (torchrun --nproc-per-node {args.n_gpu}), or set CUDA_VISIBLE_DEVICES=0."
        )


def refuse_reentrant(model: nn.Module, args: TrainingArguments) -> None:
    """Reentrant checkpointing re-runs a layer without the graph that leads to the frequencies."""
    asked = [getattr(args, f"{name}_checkpointing_kwargs", None) or {} for name in ("gradient", "activation")]
    enabled = (getattr(module, "_gradient_checkpointing_func", None) for module in model.modules())
    asked += [getattr(function, "keywords", None) or {} for function in enabled if function is not None]
    if any(options.get("use_reentrant") for options in asked):
        raise ValueError(
            "gradient checkpointing with use_reentrant=True loses the gradient of the frequencies. "
            "Use use_reentrant=False, the default of transformers 5."
        )
