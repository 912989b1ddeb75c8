"""`longwave.train`: from a model and text to a result folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from longwave.checkpoints.folder import MODEL, SETTINGS, WEIGHTS
from longwave.checkpoints.save import save
from longwave.data.documents import read_documents
from longwave.data.hashes import data_hashes
from longwave.data.prompts import check_ids
from longwave.data.tokens import token_stream
from longwave.files import check_output, command, read_json, versions, write_json
from longwave.training.checkpoints import checkpoint_step, checkpoints, discard
from longwave.training.config import TrainConfig
from longwave.training.data import PackedRows, pack
from longwave.training.metrics import MetricsLog, read_metrics
from longwave.training.prepare import attach_method, load_with_tokenizer, settle, switch_checkpointing
from longwave.training.progress import ProgressCallback
from longwave.training.trainer import LengthTrainer, refuse_data_parallel

RECORD, METRICS, CHECKPOINTS = "training.json", "metrics.jsonl", "checkpoints"
# Deleted in this order. Without the first file a folder is incomplete; the last file shows that the folder is a run's.
RESULTS = (SETTINGS, WEIGHTS, METRICS, CHECKPOINTS, MODEL, RECORD)


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
        model: a Hugging Face folder or hub id; a folder that an earlier run wrote (with the same method its
            frequencies are trained further); or a model, which is then extended in place.
        data: text, jsonl, json, csv, parquet or arrow files, or folders of them; see docs/data.md.
        output: longwave.json and longwave.safetensors (the method), model/ (the weights), the tokenizer's
            files, training.json (settings, data hashes, versions, command) and metrics.jsonl (a row per
            step). While training, checkpoints/ holds the last two states.
        tokenizer: needed with a model that is not a path.
        resume: go on from the last checkpoint in `output`, or start if there is none. The resumed run is
            bitwise equal to an uninterrupted run.
        overwrite: write into a folder that is not empty; an earlier run's result there is deleted. Nothing
            that this run reads may be part of the folder.
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
    files = data_hashes(data)
    record = {
        "model": str(model) if isinstance(model, str | Path) else type(model).__name__,
        "config": config.as_dict(),
        "data": files,
        "versions": versions(),
        "seed": config.seed,
        "world_size": int(os.environ.get("WORLD_SIZE", 1)),  # processes of torchrun: each draws its own batches
        "command": command(),
    }
    _require_apart([*([model] if isinstance(model, str | Path) else []), *data, *files], output)
    first = int(os.environ.get("RANK", 0)) == 0  # among the processes of torchrun this one writes
    resume = resume and (output / RECORD).exists()
    if resume:
        earlier = read_json(output / RECORD)
        _require_same_run(config, record, earlier)
        if earlier["status"] == "finished" and (output / SETTINGS).exists():
            if first and not config.keep_checkpoints:
                discard(output / CHECKPOINTS)  # checkpoints of a run that was killed after its result, before this line
            return output
    if first:
        if (output / RECORD).exists() and not (resume or overwrite):
            raise ValueError(
                f"output folder {output} is not empty: it holds a training run. Pass --resume to go on, or --overwrite."
            )
        check_output(output, overwrite=resume or overwrite)
        _require_ours(output)

    set_seed(config.seed)
    shown = progress and sys.stderr.isatty()
    network, vocabulary = load_with_tokenizer(model, tokenizer)
    rows = pack(token_stream(read_documents(data), vocabulary, progress=shown), config.train_length)
    check_ids(rows, network, vocabulary)
    sampler = attach_method(network, config)
    longest = max([1, *sampler.multiples(config.batch_size, config.train_length)]) * config.train_length
    if config.long_share and rows.numel() < longest:
        raise ValueError(
            f"long share cuts windows of {longest} tokens, the data holds {rows.numel()}. Pass more --data."
        )

    arguments = _arguments(config, output / CHECKPOINTS)
    refuse_data_parallel(arguments)

    # Up to here nothing in the folder has been touched.
    states = checkpoints(output / CHECKPOINTS) if resume else []
    metrics = None
    if first:
        output.mkdir(parents=True, exist_ok=True)
        if not resume:
            _remove_results(output)
        write_json(output / RECORD, {"status": "running", **record})
        metrics = MetricsLog(output / METRICS, checkpoint_step(states[-1]) if states else 0)

    consumed = config.steps * config.batch_size * config.accumulation * arguments.world_size
    bar, cached = ProgressCallback(), network.config.use_cache  # the Trainer switches the cache off for good
    trainer = LengthTrainer(
        network,
        arguments,
        sampler=sampler,
        field_lr=config.field_lr,
        metrics=metrics,
        train_dataset=PackedRows(rows, consumed, config.seed),
        callbacks=[*callbacks, *([bar] if progress else [])],
    )
    if config.gradient_checkpointing:
        switch_checkpointing(network, on=True)
    try:
        trainer.train(resume_from_checkpoint=str(states[-1]) if states else None)
    finally:
        bar.close()
        settle(trainer, config, use_cache=cached)
    if first:
        save(network, output, tokenizer=vocabulary, overwrite=True)
        write_json(output / RECORD, {"status": "finished", **record, "result": _summary(output / METRICS)})
        if not config.keep_checkpoints:
            discard(output / CHECKPOINTS)
    trainer.accelerator.wait_for_everyone()  # no process returns before the folder is complete
    return output


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


def _require_same_run(config: TrainConfig, record: dict[str, Any], earlier: dict[str, Any]) -> None:
    changed = config.differences(earlier["config"])
    if record["model"] != earlier["model"]:
        changed.append(f"model {earlier['model']} -> {record['model']}")
    if list(record["data"].values()) != list(earlier["data"].values()):
        changed.append("the data are not the same")
    if record["world_size"] != earlier.get("world_size", 1):
        changed.append(f"processes {earlier.get('world_size', 1)} -> {record['world_size']}")
    if changed:
        raise ValueError(
            f"--resume goes on with the same run, but {'; '.join(changed)}. Start another with a new --output."
        )


def _require_apart(inputs: Iterable[Path | str], output: Path) -> None:
    """The run must not delete or replace a file that it reads."""
    results = [(output / name).resolve() for name in RESULTS]
    for path in inputs:
        place = Path(path).resolve()
        if place == output.resolve() or any(place.is_relative_to(result) for result in results):
            raise ValueError(f"{path} is read by this run and part of its output {output}. Write to another folder.")


def _require_ours(output: Path) -> None:
    """Only a record shows that a folder `model` comes from an earlier run and is not somebody's model."""
    found = [name for name in RESULTS if (output / name).exists()]
    if found and not (_has(output / RECORD, "status") or _has(output / SETTINGS, "format")):
        raise ValueError(
            f"{output / found[0]} was not written by longwave: {RECORD} is missing. Write to another folder."
        )


def _has(record: Path, key: str) -> bool:
    return record.is_file() and key in read_json(record)


def _remove_results(output: Path) -> None:
    """Remove the results of an earlier run, so that an interrupted new run cannot pass for the earlier run."""
    for name in RESULTS:
        path = output / name
        if path.is_dir():
            discard(path)
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
