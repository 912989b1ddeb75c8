"""`longwave.train`: from a model and text to a result folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from longwave.adapter import load, save
from longwave.attach import extend, restore, rotaries, trajectories_of
from longwave.generation import rotaries_of
from longwave.io import command, prepare_output, read_json, versions, write_json
from longwave.methods import parse_method
from longwave.text import data_hashes, read_documents, token_stream
from longwave.training.checkpoints import checkpoint_step, checkpoints
from longwave.training.config import TrainConfig
from longwave.training.data import PackedRows, collate, pack
from longwave.training.metrics import MetricsLog, read_metrics
from longwave.training.positions import LengthSampler
from longwave.training.progress import ProgressCallback
from longwave.training.trainer import LengthTrainer

RECORD, METRICS, CHECKPOINTS = "training.json", "metrics.jsonl", "checkpoints"
RESULTS = ("longwave.json", "longwave.safetensors", RECORD, METRICS, CHECKPOINTS, "model", "adapter")


def train(
    model: str | Path | PreTrainedModel,
    data: Iterable[Path | str],
    output: Path | str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    callbacks: Sequence[TrainerCallback] = (),
    **settings: Any,
) -> Path:
    """Extend `model` and train it on `data`; write a folder that `longwave.load` reads.

    Arguments:
        model: a Hugging Face folder or hub id, a folder that an earlier run wrote (its frequencies are
            taken further if the method is the same), or a model, which is then extended in place.
        data: text, jsonl or parquet files, or folders of them.
        output: longwave.json and longwave.safetensors (the method), model/ (the weights), the tokenizer's
            files, training.json (settings, data hashes, versions, command) and metrics.jsonl (a row per
            step). While training, checkpoints/ holds the last two states.
        tokenizer: needed with a model that is not a path.
        resume: go on from the last checkpoint in `output`, or start if there is none. What follows is
            bitwise what the uninterrupted run would have done.
        overwrite: write into a folder that is not empty; an earlier run's result there is deleted.
        progress: show a progress bar on stderr.
        callbacks: transformers callbacks; `on_log` receives the rows of metrics.jsonl.
        **settings: the fields of `TrainConfig`. `train_length` and `max_factor` have no defaults.

    Returns:
        The output folder.

    Raises:
        ValueError: for settings, data or a folder that do not fit, and if the loss stops being finite
            (the last good checkpoint is kept).
    """
    for needed in ("train_length", "max_factor"):
        if settings.get(needed) is None:
            raise ValueError(f"training needs {needed.replace('_', ' ')}: pass {needed}=...")
    config, output, data = TrainConfig.create(**settings), Path(output), list(data)
    record = {
        "model": str(model) if isinstance(model, str | Path) else type(model).__name__,
        "config": config.as_dict(),
        "data": data_hashes(data),
        "versions": versions(),
        "seed": config.seed,
        "command": command(),
    }
    resume = resume and (output / RECORD).exists()
    if resume:
        earlier = read_json(output / RECORD)
        _require_same_run(config, record, earlier)
        if earlier["status"] == "finished":
            return output
    prepare_output(output, overwrite=resume or overwrite)

    set_seed(config.seed)
    network, vocabulary = _load(model, tokenizer)
    rows = pack(token_stream(read_documents(data), vocabulary, progress=progress), config.train_length)
    known = network.get_input_embeddings().num_embeddings
    if int(rows.max()) >= known:
        raise ValueError(f"the tokenizer's ids reach {int(rows.max())} but the model knows {known}: not its tokenizer.")
    sampler = _extend(network, config)

    # Up to here nothing in the folder has been touched.
    if not resume:
        _remove_results(output)
    states = checkpoints(output / CHECKPOINTS)
    metrics = MetricsLog(output / METRICS, checkpoint_step(states[-1]) if states else 0)
    write_json(output / RECORD, {"status": "running", **record})

    arguments = _arguments(config, output / CHECKPOINTS)
    consumed = config.steps * config.batch_size * config.accumulation * arguments.world_size
    bar = ProgressCallback()
    trainer = LengthTrainer(
        network,
        arguments,
        sampler=sampler,
        field_lr=config.field_lr,
        metrics=metrics,
        train_dataset=PackedRows(rows, consumed, config.seed),
        data_collator=collate,
        callbacks=[*callbacks, *([bar] if progress else [])],
    )
    cached = getattr(network.config, "use_cache", None)
    if config.gradient_checkpointing:
        _switch_checkpointing(network, on=True)
    try:
        trainer.train(resume_from_checkpoint=str(states[-1]) if states else None)
    finally:
        bar.close()
        _settle(trainer, config, use_cache=cached)
    if trainer.is_world_process_zero():
        save(network, output, tokenizer=vocabulary, overwrite=True)
        if not config.keep_checkpoints:
            shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
        write_json(output / RECORD, {"status": "finished", **record, "result": _summary(output / METRICS)})
    return output


def _load(
    model: str | Path | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Weights in float32: bf16 training is autocast, small steps would vanish in bf16 weights."""
    if isinstance(model, str | Path):
        return load(model, dtype=torch.float32), tokenizer or AutoTokenizer.from_pretrained(model)
    if tokenizer is None:
        raise ValueError("training a model that is not a path needs its tokenizer: pass tokenizer=...")
    return model, tokenizer


def _extend(model: PreTrainedModel, config: TrainConfig) -> LengthSampler:
    """Attach the method; a model that follows it already keeps what it learned."""
    method, schedule = parse_method(config.method)
    options, learned = config.method_options, None
    if rotaries_of(model):
        trajectories = trajectories_of(model)
        if trajectories[0].name == method.name and len(trajectories) == 1:
            learned = trajectories[0]
        restore(model)
    if learned is not None:
        learned.max_factor = max(learned.max_factor, config.max_factor)
        options = {name: value for name, value in options.items() if name in ("log_n", "original_length")}
    # Draws beyond max_factor are wanted where train_factor asks for them; the sampler keeps to its range.
    beyond = "clamp" if config.largest_draw > config.max_factor else "error"
    extend(
        model, method.name, max_factor=config.max_factor, schedule=schedule,
        trajectory=learned, beyond=beyond, **options,
    )  # fmt: skip
    if config.freeze_weights:
        learnable = {id(p) for trajectory in trajectories_of(model) for p in trajectory.parameters()}
        if not learnable:
            raise ValueError(f"freeze weights leaves nothing to train: {method.name} has no learned frequencies.")
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in learnable)
    sampler = LengthSampler(
        original_length=trajectories_of(model)[0].rope.original_length,
        max_factor=config.largest_draw,
        positions=config.positions,
        factors=config.factors,
        chunks=config.chunks,
        short_share=config.short_share,
        seed=config.seed,
    )
    sampler(1, config.train_length, step=0)  # a window that cannot fit is an error now, not after the first batch
    return sampler


def _arguments(config: TrainConfig, folder: Path) -> TrainingArguments:
    accelerated = torch.accelerator.is_available()
    wants_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.lr,
        lr_scheduler_type="cosine",
        warmup_steps=round(config.steps * config.warmup),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        bf16=config.precision == "bf16" or (config.precision == "auto" and wants_bf16),
        use_cpu=not accelerated,
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=accelerated,
        train_sampling_strategy="sequential",  # PackedRows has the order
        save_strategy="steps",
        save_steps=config.checkpoint_steps,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
    )


def _settle(trainer: LengthTrainer, config: TrainConfig, *, use_cache: bool | None) -> None:
    """Take off the model what training put on it."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    for rotary in rotaries(model):
        rotary.factor, rotary.beyond = None, "error"
    if use_cache is not None:
        model.config.use_cache = use_cache
    if config.gradient_checkpointing:
        _switch_checkpointing(model, on=False)
    if config.freeze_weights:
        model.requires_grad_(True)
    model.eval()


def _switch_checkpointing(model: PreTrainedModel, *, on: bool) -> None:
    """By whichever name this version of transformers has for it."""
    what = "activation_checkpointing" if hasattr(model, "activation_checkpointing_enable") else "gradient_checkpointing"
    if on:
        getattr(model, f"{what}_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{what}_disable")()


def _require_same_run(config: TrainConfig, record: dict[str, Any], earlier: dict[str, Any]) -> None:
    changed = config.differences(earlier["config"])
    changed += [f"{name} changed" for name in ("model", "data") if record[name] != earlier[name]]
    if changed:
        raise ValueError(f"--resume goes on with the same run, but {'; '.join(changed)}. Start another with a new --output.")


def _remove_results(output: Path) -> None:
    """What an earlier run left, so that an interrupted new one cannot pass for it."""
    for name in RESULTS:
        path = output / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _summary(metrics: Path) -> dict[str, Any]:
    rows = read_metrics(metrics)
    return {
        "steps": rows[-1]["step"],
        "tokens": rows[-1]["tokens"],
        "first_loss": rows[0]["loss"],
        "last_loss": sum(row["loss"] for row in rows[-10:]) / len(rows[-10:]),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
    }
