"""`longwave.train`: from a model and text to a result folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed

from longwave.checkpoints.folder import resolve
from longwave.checkpoints.save import save
from longwave.checkpoints.trained import hold_trained, trained_of
from longwave.data.documents import read_documents
from longwave.data.hashes import data_hashes
from longwave.data.prompts import check_ids
from longwave.data.tokens import token_stream
from longwave.extensions.handle import extension
from longwave.training.arguments import refuse_data_parallel, training_arguments
from longwave.training.batches import PackedRows, pack
from longwave.training.config import TrainConfig
from longwave.training.engines import prepare, require_readable
from longwave.training.folder import RunFolder
from longwave.training.gathered import fill, outline
from longwave.training.prepare import (
    Before,
    attach_method,
    clean_up,
    load_with_tokenizer,
    require_long_windows,
    switch_checkpointing,
    trained_before,
)
from longwave.training.progress import ProgressCallback
from longwave.training.trainer import LengthTrainer


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
        **settings: the fields of `TrainConfig`. `train_length`, the longest real window, and `max_factor` have no
            defaults.

    Returns:
        The output folder.

    Raises:
        ValueError: for settings, data or a folder that do not fit, and if the loss stops being finite
            (the last good checkpoint is kept).
    """
    config, data = TrainConfig.create(**settings), list(data)
    named = isinstance(model, str | Path)
    folder = RunFolder(Path(output), config, str(model) if named else type(model).__name__, data_hashes(data))
    below = resolve(model).base if isinstance(model, str | Path) else None  # what the model itself stands on
    folder.require_apart(
        [*([model] if isinstance(model, str | Path) else []), *data, *folder.files, *([below.path] if below else [])]
    )
    first = int(os.environ.get("RANK", 0)) == 0  # of the processes of torchrun: the one that writes
    resume = resume and folder.exists
    if resume:
        folder = folder.going_on()
        if folder.is_finished:
            if first:
                folder.tidy()  # of a run that was killed between its result and this
            return folder.path
    if first:
        folder.require_room(resume=resume, overwrite=overwrite)

    set_seed(config.seed)
    network, vocabulary = load_with_tokenizer(model, tokenizer)
    shown = progress and sys.stderr.isatty()
    stream = token_stream(read_documents(data, folder.files), vocabulary, progress=shown)
    check_ids(stream, network, vocabulary)
    before, bar = Before.of(network), ProgressCallback()  # the Trainer switches the cache off for good
    earlier = trained_before(network, config)
    sampler = attach_method(network, config)
    try:
        rows = pack(stream, config.row_tokens(sampler.original_length))
        require_long_windows(rows, sampler, config)
        rate = config.rate(network.num_parameters(), lora=extension(network).adapter is not None)
        arguments = training_arguments(config, folder.checkpoints, rate, accumulation=folder.layout.accumulation)
        refuse_data_parallel(arguments)
        prepare(arguments, network)

        states = folder.states() if resume else []
        if states:
            require_readable(states[-1], arguments)
        # Up to here nothing in the folder has been touched.
        metrics = folder.start(resume=resume) if first else None
        consumed = config.steps * config.batch_size * folder.layout.per_step
        trainer = LengthTrainer(
            network,
            arguments,
            sampler=sampler,
            field_lr=config.field_lr,
            head_lr=config.head_lr,
            metrics=metrics,
            train_dataset=PackedRows(rows, consumed, config.seed),
            callbacks=[*callbacks, *([bar] if progress else [])],
        )
        copied = outline(network) if first and trainer.engine.shards else None
        if config.gradient_checkpointing:
            switch_checkpointing(network, on=True)
        try:
            trainer.train(resume_from_checkpoint=str(states[-1]) if states else None)
        finally:
            # accelerate put a forward in autocast on the network itself. This call takes it off.
            trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        if trainer.engine.shards:
            fill(copied, network)
    finally:
        bar.close()
        clean_up(network, config, before)
    network.eval()
    untouched = config.freeze_weights or extension(network).adapter is not None
    result = network if copied is None else copied.eval()
    hold_trained(result, earlier.further(trainer.longest_window(), weights=not untouched))
    if first:
        base = model if untouched and isinstance(model, str | Path) else None
        save(result, folder.path, tokenizer=vocabulary, base=base, overwrite=True)
        folder.finish(trained_of(result).length)
    trainer.accelerator.wait_for_everyone()  # no process returns before the folder is complete
    return folder.path
