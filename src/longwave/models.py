"""Open a model: what every command starts with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from longwave.checkpoints.folder import ModelFolder, resolve
from longwave.checkpoints.load import load
from longwave.checkpoints.tokenizer import load_tokenizer
from longwave.errors import first_line
from longwave.provenance import training_of


@dataclass(frozen=True, eq=False)
class Opened:
    """A model that is ready to be used.

    Arguments:
        model: on its device.
        tokenizer: its tokenizer.
        about: the `model` entry of its records.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    about: dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a model goes, and in which type.

    Arguments:
        device: as given, or the accelerator, if there is any.
        dtype: `auto` for float32 on CPU, and elsewhere for the type that the weights are stored in.
    """

    device: str
    dtype: str

    @property
    def kind(self) -> str:
        """The kind of device: `cpu`, `cuda`."""
        return self.device.partition(":")[0]

    @property
    def wanted(self) -> str:
        """The type of the weights, or `stored`."""
        return self.dtype if self.dtype != "auto" else "float32" if self.kind == "cpu" else "stored"

    def setup(self) -> dict[str, str]:
        """What numbers depend on."""
        return {"device": self.kind, "dtype": self.wanted}


def place(dtype: str, device: str | None) -> Place:
    """Where a model would go; a `ValueError` for a device that cannot be used here."""
    if device is None:
        device = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        reason = first_line(error)
        raise ValueError(
            f"device {device!r} cannot be used here ({reason}). Write for example cpu or cuda:0."
        ) from None
    return Place(device, dtype)


def open_model(
    path: str | ModelFolder, dtype: str = "auto", device: str | None = None, *, scaling: str = "trajectory"
) -> Opened:
    """Read a model of any kind and its tokenizer, and put it on its device.

    Arguments:
        path: a folder, or a name on the Hugging Face hub.
        dtype, device: see `Place`.
        scaling: as in `longwave.load`.

    Raises:
        ValueError: naming the file that is missing or damaged, or the device that cannot be used.
    """
    logging.disable_progress_bar()
    where = place(dtype, device)
    found = resolve(path)
    model = load(found, dtype="auto" if where.wanted == "stored" else getattr(torch, where.wanted), scaling=scaling)
    tokenizer = load_tokenizer(found)
    about = {
        "path": found.name,
        "type": model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": where.device,
    }
    if found.commit is not None:
        about["commit"] = found.commit
    if (record := training_of(found.path)) is not None:
        about["training_seed"] = record.get("seed")
    if not getattr(model, "is_quantized", False):  # such a model was put on its device while it was read
        model.to(where.device)  # type: ignore[arg-type]
    return Opened(model, tokenizer, about)
