"""Save an extended model so that it can be read back.

The folder holds `longwave.json` (the extension), `longwave.safetensors` (its weights and the frequencies it starts
from), tokenizer files, and `model/`, the plain model as transformers writes it. The folder has no config.json at its
root, because transformers would then load the model without the extension and without a warning.
"""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longwave.checkpoints.adapters import save_adapter
from longwave.checkpoints.base import Base, fingerprint
from longwave.checkpoints.extended import FORMAT, HEADS, WITH_ATTENTION, WITH_PARTS, WITH_QUANTIZED
from longwave.checkpoints.folder import Kind, ModelFolder, resolve
from longwave.checkpoints.quantized import RECORDED, Quantization, is_quantized_on_disk
from longwave.checkpoints.same_weights import require_same_weights
from longwave.checkpoints.trained import trained_of
from longwave.extensions.adapter import Adapter
from longwave.extensions.attach import suspended
from longwave.extensions.foreign import foreign_adapter, unwrapped
from longwave.extensions.handle import Extension, extension
from longwave.files import prepare_output, read_object, share, write_json
from longwave.layout import (
    ADAPTER_WEIGHTS,
    ADAPTERS,
    INDEX,
    MODEL,
    SETTINGS,
    SINGLE,
    TOKENIZER_CONFIG,
    TOKENIZER_FILES,
    WEIGHTS,
)
from longwave.schedule import Schedule


def save(
    model: PreTrainedModel,
    folder: Path | str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    base: Path | str | ModelFolder | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an extended model to `folder`; `load` reads it back exactly.

    Arguments:
        model: an extended model, also one in a PeftModel, whose LoRA is then saved, too. Its present policy and t are
            not saved.
        folder: created; must be empty or absent unless `overwrite`.
        tokenizer: written into the folder, so that the folder is complete.
        base: where the model's own weights come from, a folder or a name on the hub, if they are to be named and not
            copied. They must be as they are there: an extension, learned scalars and an adapter change none of them.

    Raises:
        ValueError: if the model is not extended, is wrapped or is frozen, or the folder is not empty.
    """
    handle = extension(model)
    model = unwrapped(model, "save")
    foreign = None if handle.adapter is not None else foreign_adapter(model)
    adapter = handle.adapter or foreign
    if handle.dial.now.constant_scaling is not None:
        raise ValueError("the model is frozen, and its log-n is off. Leave the block of longwave.frozen, then save.")
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise ValueError(f"tokenizer must be a tokenizer of transformers, got {type(tokenizer).__name__}.")
    named = None if base is None else _base_of(base, model, Path(folder))
    folder = prepare_output(folder, overwrite=overwrite)
    for name in (SETTINGS, WEIGHTS):  # a folder that is only half overwritten must not load
        (folder / name).unlink(missing_ok=True)
    for name in (SINGLE, INDEX):  # of an earlier save in another number of files: both would be there
        (folder / MODEL / name).unlink(missing_ok=True)
    if adapter is None:  # what an earlier save has left is no part of this one
        shutil.rmtree(folder / ADAPTERS, ignore_errors=True)
    if named is not None:
        shutil.rmtree(folder / MODEL, ignore_errors=True)
    if named is None:
        _save_plain(model, foreign, folder / MODEL)
    if adapter is not None:
        save_adapter(adapter, folder / ADAPTERS, str(folder / MODEL) if named is None else named.model)
    if tokenizer is not None:
        _save_tokenizer(tokenizer, folder, handle.dial.max_length)
    _save_tensors(handle, folder)
    share([folder / WEIGHTS, folder / ADAPTERS / ADAPTER_WEIGHTS])
    if named is None:
        share((folder / MODEL).glob("*.safetensors"))
    write_json(folder / SETTINGS, _settings(handle, adapter, named))  # last: a folder that has it is complete
    return folder


def save_extension(handle: Extension, folder: Path, *, schedule: Schedule, adapter: Adapter | None = None) -> None:
    """Write an extension into a folder of the plain model that it is of. The model's weights are there already.

    Arguments:
        folder: is made.
        schedule: in the place of the extension's own.
        adapter: whose files the caller writes.
    """
    folder.mkdir()
    _save_tensors(handle, folder)
    around = Named(Base("..", fingerprint(folder.parent), ".."), None)
    write_json(folder / SETTINGS, {**_settings(handle, adapter, around), "schedule": schedule.spec})


def _save_tensors(handle: Extension, folder: Path) -> None:
    tensors: dict[str, Tensor] = {}
    for index, trajectory in enumerate(handle.trajectories):
        tensors[f"{index}.rope"] = trajectory.rope.inv_freq
        for name, tensor in trajectory.state_dict().items():
            tensors[f"{index}.{name}"] = tensor.detach().cpu().contiguous()
    for name, tensor in ({} if handle.heads is None else handle.heads.state_dict()).items():
        tensors[f"{HEADS}.{name}"] = tensor.detach().cpu().contiguous()
    partial = folder / f".{WEIGHTS}"
    save_file(tensors, partial)
    os.replace(partial, folder / WEIGHTS)


def _save_plain(model: PreTrainedModel, foreign: Adapter | None, folder: Path) -> None:
    """The model's own weights, without the extension and without any adapter, as transformers writes them."""
    with suspended(model), nullcontext() if foreign is None else foreign.set_aside():
        model.save_pretrained(folder)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, length: int) -> None:
    """Write the tokenizer, and delete what another one has left there: a chat template, say, would be read again.

    Its own length would warn of texts that the model now reads, and `truncation=True` would cut them.

    Deleted afterwards: a tokenizer may copy files that it was loaded from.
    """
    written = {Path(name).resolve() for name in tokenizer.save_pretrained(folder)}
    for pattern in TOKENIZER_FILES:
        for path in folder.glob(pattern):
            if path.resolve() not in written:
                path.unlink()
    settings = read_object(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    if isinstance(own := settings.get("model_max_length"), int) and own < length:
        write_json(folder / TOKENIZER_CONFIG, {**settings, "model_max_length": length})


@dataclass(frozen=True)
class Named:
    """A base that is named, and how it is quantized while it is read; None where it is as it lies there."""

    base: Base
    quantization: Quantization | None

    @property
    def model(self) -> str:
        return self.base.model


def _base_of(base: Path | str | ModelFolder, model: PreTrainedModel, folder: Path) -> Named:
    """The base by its name; a `ValueError` if it lies in the output, or has other weights than the model."""
    found = _plain_of(base)
    if not found.where and found.model.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"the base {found.model} lies in the output {folder}, which is written anew. Save elsewhere.")
    require_same_weights(found.model, model)
    quantization = None if is_quantized_on_disk(found) else Quantization.of(model)
    return Named(Base.of(found, folder), quantization)


def _plain_of(base: Path | str | ModelFolder) -> ModelFolder:
    """The plain model below what is named."""
    found = resolve(base).check()
    if found.kind is Kind.LONGWAVE:
        return found.base or resolve(found.model)
    return found


def _settings(handle: Extension, adapter: Adapter | None, base: Named | None) -> dict[str, Any]:
    attention, version = handle.attention, FORMAT
    own: dict[str, Any] = {}
    if attention is not None:
        own["attention"], version = {"name": attention.name, "options": attention.options()}, WITH_ATTENTION
    if handle.heads is not None:
        own["head_scalars"], version = True, WITH_PARTS
    if adapter is not None:
        own["adapter"], version = (
            {"trained_factor": adapter.gate.trained_factor, "gate": adapter.gate.shape},
            WITH_PARTS,
        )
    if base is not None:
        own["base"], version = base.base.to_json(), WITH_PARTS
        if base.quantization is not None:
            own[RECORDED], version = base.quantization.to_json(), WITH_QUANTIZED
    return {
        "format": version,
        "method": handle.method,
        "options": handle.trajectories[0].options(),
        "max_factor": handle.max_factor,
        "schedule": handle.schedule.spec,
        "beyond": handle.dial.now.beyond,
        "log_n": handle.log_n,
        "original_length": handle.original_length,
        "unscaled": handle.unscaled,
        "trained": handle.is_trained,
        **trained_of(handle.host).to_json(),
        **own,
    }
