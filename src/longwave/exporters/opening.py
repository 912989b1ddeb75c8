"""From the name of a model to a `Source`: its files are found and checked, its extension is put on."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from longwave.checkpoints.folder import Kind, require_parts, resolve, tokenizer_folder
from longwave.checkpoints.outline import Outline, read_outline
from longwave.checkpoints.scaled import follow_config, recognise
from longwave.checkpoints.tokenizer import damaged_tokenizer
from longwave.exporters.changes import Merge
from longwave.exporters.source import Source
from longwave.extensions.attach import extend, restore, rope_of
from longwave.extensions.handle import extension, find_extension
from longwave.extensions.on_the_spot import FACTOR
from longwave.extensions.spec import parse_spec
from longwave.methods import without_weights
from longwave.provenance import training_of
from longwave.schedule import Static, factor_of


def open_source(
    path: Path | str, *, method: str | None = None, factor: float | None = None, length: int | None = None
) -> Source:
    """Find the files of a model and put its extension, or `method` on a plain one, onto a model without weights.

    Arguments:
        path: a folder of `longwave.save`, an official CLEX checkpoint, a Hugging Face folder or hub name.
        method: `METHOD[@SCHEDULE]` for a plain model. RoPE scaling in its config stays a part of the model.
        factor, length: how far `method` is to reach, as a multiple of the trained length or in tokens; default 8 times.

    Raises:
        ValueError: naming the file that is missing or damaged, or the option that does not fit.
    """
    found = resolve(path).check().fetch()
    if found.kind is Kind.LONGWAVE:
        require_parts(found.path)
    tokenizer = _tokenizer(found.path, found.model)
    outline = read_outline(found)
    contents = outline.check()
    if method is None:
        model = _own_extension(outline)
    elif found.kind in (Kind.LONGWAVE, Kind.OFFICIAL):
        raise ValueError(f"{path} has its own extension. --method is for plain models: leave it out.")
    else:
        model = _extended(outline.plain, method, factor, length)
    if not extension(model).is_trained:
        raise ValueError(f"{path} has not been trained: its frequencies are those of the prior. Export that method.")
    return Source(
        str(path),
        found.model,
        tokenizer,
        outline.config,
        model.eval(),
        training=training_of(found.path) or {},
        dropped=outline.dropped,
        contents=contents,
        merge=_taken_off(model, found.path),
    )


def _taken_off(model: PreTrainedModel, folder: Path) -> Merge | None:
    """The adapter of the model, which then has the names of the plain model; None if it has none."""
    handle = extension(model)
    adapter = handle.adapter
    if adapter is None:
        return None
    adapter.take_off()
    handle.adapter = None
    return Merge.of(adapter, folder)


def _tokenizer(*folders: Path) -> Path:
    """The folder that holds the tokenizer; a `ValueError` if there is none, or if it cannot be read."""
    found = tokenizer_folder(*folders)
    if found is None:
        raise ValueError(f"{folders[0]} holds no tokenizer, and an export needs one. Copy the model's files there.")
    if damage := damaged_tokenizer(found):
        raise ValueError(damage)
    return found


def _own_extension(outline: Outline) -> PreTrainedModel:
    """The model under the extension of its folder, or the RoPE scaling of its config."""
    own = outline.folder.kind in (Kind.LONGWAVE, Kind.OFFICIAL)
    if not own and (reason := recognise(outline.plain)):
        raise ValueError(reason)  # and no advice to put a method on top
    model = outline.extended()
    if find_extension(model) is None:
        raise ValueError(
            f"{outline.folder.name} is a plain model. Say what to export it with, e.g. --method yarn, or export a "
            "trained folder."
        )
    return model


def _extended(model: PreTrainedModel, method: str, factor: float | None, length: int | None) -> PreTrainedModel:
    """A plain model under a method that needs no training."""
    restore(follow_config(model))
    spec = parse_spec(method)
    schedule = spec.schedule
    if spec.method.trained:
        raise without_weights(spec.method)
    if length is not None and factor is None:
        factor = factor_of(length, rope_of(model).original_length)
    reach = float(FACTOR) if factor is None else factor
    if isinstance(schedule, Static) and schedule.factor > reach:
        raise ValueError(
            f"{method} runs at t = {schedule.factor:g}, and t = {reach:g} is asked for. Leave out @static."
        )
    return extend(model, method, max_factor=reach)
