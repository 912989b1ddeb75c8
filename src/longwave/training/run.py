"""`longwave.train`: from a model and text to a result folder."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed

from longwave.checkpoints.folder import resolve
from longwave.checkpoints.same_weights import base_named_by
from longwave.checkpoints.save import save
from longwave.checkpoints.trained import hold_trained, trained_of
from longwave.extensions.documents import prepare_documents
from longwave.extensions.foreign import foreign_adapter
from longwave.extensions.handle import extension
from longwave.extensions.sites import host_of
from longwave.training.arguments import refuse_data_parallel, training_arguments
from longwave.training.config import TrainConfig
from longwave.training.disk import told_when_full
from longwave.training.divergence import StopOnDivergence
from longwave.training.engines import prepare, require_readable
from longwave.training.folder import RunFolder, kept_settings, recorded_settings
from longwave.training.gathered import fill, outline
from longwave.training.going_further import with_own_method
from longwave.training.prepare import (
    Before,
    attach_method,
    clean_up,
    load_with_tokenizer,
    switch_checkpointing,
    trained_before,
)
from longwave.training.processes import on_first
from longwave.training.progress import ProgressCallback
from longwave.training.ranks import shards_asked
from longwave.training.stopping import StopOnSignal, Stopped
from longwave.training.texts import Asked
from longwave.training.trackers import check_tracker, trackers
from longwave.training.trainer import LengthTrainer
from longwave.training.ulysses import share_rows
from longwave.training.watching import HeldOut, MeasureHeldOut

logger = logging.getLogger("longwave")


def train(
    model: str | Path | PreTrainedModel | nn.Module,
    data: Path | str | Iterable[Path | str],
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
            frequencies are trained further); or a model, which is then extended in place; or a PeftModel around one,
            whose LoRA is trained as PEFT runs it, at all lengths.
        data: text, jsonl, json, csv, parquet or arrow files, folders of them, or `hub:NAME`, each with a share such
            as `books@0.3` if they are to be mixed; see docs/data.md.
        output: longwave.json and longwave.safetensors (the method), model/ (the weights), the tokenizer's
            files, training.json (settings, data hashes, versions, command) and metrics.jsonl (a row per
            step), with `eval_data` also eval.jsonl. While training, checkpoints/ holds the last states.
        tokenizer: needed with a model that is not a path.
        resume: go on from the last checkpoint in `output` that is not damaged, or start if there is none. The
            resumed run is bitwise equal to an uninterrupted run.
        overwrite: write into a folder that is not empty; an earlier run's result there is deleted. Nothing
            that this run reads may be part of the folder.
        progress: show a progress bar on stderr.
        callbacks: transformers callbacks; `on_log` receives the rows of metrics.jsonl.
        **settings: the fields of `TrainConfig`. `train_length`, the longest real window, and `max_factor` have no
            defaults.

    Returns:
        The output folder. If a callback has stopped the run before its last step, the folder holds a checkpoint and
        no model yet, and the status in training.json is `stopped`.

    Raises:
        ValueError: for settings, data or a folder that do not fit, and if the loss stops being finite
            (the last good checkpoint is kept). Also if the disk is full, or if every checkpoint is damaged.
        Diverged: a ValueError, if the loss stays far above its level; the status in training.json is `diverged`.
        Stopped: after SIGINT or SIGTERM, when the checkpoint is written. It is a KeyboardInterrupt.
    """
    given = with_own_method(model, settings, recorded_settings(output) if resume else None)
    config = TrainConfig.create(**(kept_settings(output) if resume else {}) | given)
    config = replace(config, sequence_parallel=shards_asked(config.sequence_parallel))
    named, asked = isinstance(model, str | Path), Asked.of(data, config)
    folder = RunFolder(
        Path(output), config, str(model) if named else type(model).__name__, asked.files, shares=asked.shares
    )
    below = resolve(model).base if isinstance(model, str | Path) else None  # what the model itself stands on
    folder.require_apart(
        [
            *([model] if isinstance(model, str | Path) else []),
            *asked.paths,
            *folder.files,
            *(path for path in (config.eval_data, config.deepspeed) if path is not None),
            *([below.path] if below else []),
        ]
    )
    first = int(os.environ.get("RANK", 0)) == 0  # of the processes of torchrun: the one that writes
    resume = resume and folder.exists
    if resume:
        folder = folder.going_on()
        if folder.is_finished:
            if first:
                logger.warning("the run in %s is finished already. Nothing was trained.", folder.path)
                folder.tidy()  # of a run that was killed between its result and this
            return folder.path
        if first:
            folder.tell_changes()
    if first:
        folder.require_room(resume=resume, overwrite=overwrite)
    check_tracker(config.report_to)

    full = partial(told_when_full, folder.path, folder.checkpoints)
    set_seed(config.seed)
    network, vocabulary = load_with_tokenizer(model, tokenizer, config)
    shown = progress and sys.stderr.isatty()
    vocabulary = asked.with_template(vocabulary)
    text = asked.text(vocabulary, progress=shown)
    text.check(network, vocabulary)
    before = Before.of(network)  # the Trainer switches the cache off for good
    bar, stop = ProgressCallback(), StopOnSignal()
    earlier = trained_before(network, config)
    sampler = attach_method(network, config)
    try:
        held = HeldOut.of(config, vocabulary, sampler.original_length)
        told = trackers(config.report_to, folder.path)
        adapted = extension(network).adapter is not None or foreign_adapter(network) is not None
        rate = config.rate(network.num_parameters(), lora=adapted)
        arguments = training_arguments(config, folder.checkpoints, rate, accumulation=folder.layout.accumulation)
        refuse_data_parallel(arguments)
        prepare(arguments, network)
        ulysses = share_rows(network, config, sampler.original_length)
        rows = text.rows(config, sampler, config.steps * config.batch_size * folder.layout.per_step)
        if rows.several:
            prepare_documents(host_of(network))

        state = on_first(folder.state) if resume else None
        if state is not None:
            require_readable(state, arguments)
        # Up to here nothing in the folder has been touched.
        metrics = folder.start(resume=resume, state=state) if first else None
        losses = folder.losses(state)
        bar.count(*losses)
        watching = [*told, StopOnDivergence(config, folder.diverged if first else None, losses)]
        if held is not None:
            evaluated = folder.evaluated(state) if first else None
            watching.append(MeasureHeldOut(network, held, config.eval_steps, evaluated, told))
        trainer = LengthTrainer(
            network,
            arguments,
            sampler=sampler,
            field_lr=config.field_lr,
            head_lr=config.head_lr,
            metrics=metrics,
            loss_blocks=config.loss_blocks,
            ulysses=ulysses,
            train_dataset=rows,
            keep=config.save_total_limit,
            callbacks=[*watching, *callbacks, *([bar] if progress else []), stop],
        )
        copied = outline(network) if first and trainer.engine.shards else None
        if config.gradient_checkpointing:
            switch_checkpointing(network, on=True)
        try:
            with stop.caught(), full():
                trainer.train(resume_from_checkpoint=None if state is None else str(state))
        finally:
            # accelerate put a forward in autocast on the network itself. This call takes it off.
            trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        if trainer.engine.shards:
            fill(copied, network)
    finally:
        bar.close()
        clean_up(network, config, before)
    if copied is not None:
        clean_up(copied, config, replace(before, forward=None))
    network.eval()
    if (step := trainer.state.global_step) < config.steps:
        if first:
            with full():
                folder.stop(step, stop.reason)
        trainer.accelerator.wait_for_everyone()
        if stop.number:
            raise Stopped(stop.number, step, config.steps)
        return folder.path
    untouched = config.freeze_weights or adapted
    result = network if copied is None else copied.eval()
    hold_trained(result, earlier.further(trainer.longest_window(), weights=not untouched))
    if first:
        base = base_named_by(model, result) if untouched else None
        with full():
            with folder.all_or_nothing():
                save(result, folder.path, tokenizer=vocabulary, base=base, overwrite=True)
            folder.finish(trained_of(result).length, text.used(trainer.used()))
    trainer.accelerator.wait_for_everyone()  # no process returns before the folder is complete
    return folder.path
