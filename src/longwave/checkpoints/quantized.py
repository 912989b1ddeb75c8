"""Bases whose weights are quantized when they are read, by bitsandbytes: 4 bits (nf4, quantized twice) or 8."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from longwave.checkpoints.folder import ModelFolder
from longwave.files import read_json, read_object
from longwave.layout import CONFIG, SETTINGS
from longwave.names import unknown

KINDS, NONE = ("4bit", "8bit"), "none"
COMPUTE = ("float32", "bfloat16", "float16")
CONFIGURED = "quantization_config"  # of config.json, and of `from_pretrained`
RECORDED = "quantized"  # in longwave.json


@dataclass(frozen=True)
class Quantization:
    """How the weights of a base are quantized.

    Arguments:
        kind: `4bit` or `8bit`.
        compute: type of the products.
    """

    kind: str
    compute: str = "float32"

    @classmethod
    def of(cls, model: PreTrainedModel) -> Quantization | None:
        """Of a model in memory; None for one that is not quantized.

        Raises:
            ValueError: for a model that another library has quantized, or in another way than longwave does.
        """
        config: Any = getattr(model.config, CONFIGURED, None)
        if config is None or not getattr(model, "is_quantized", True):
            return None
        four, eight = getattr(config, "load_in_4bit", False), getattr(config, "load_in_8bit", False)
        if not (four or eight):
            raise ValueError(
                "the model's weights are quantized, and not by bitsandbytes. longwave.save cannot name a base that was "
                "quantized while it was read. Save the quantized model, and train from its folder."
            )
        ours = not four or (config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant)
        if not ours:
            raise ValueError(
                "the model's weights are in 4 bits, and not in nf4 quantized twice, as longwave reads them. Read it by "
                "longwave.load(base, quantize='4bit')."
            )
        compute = str(config.bnb_4bit_compute_dtype).removeprefix("torch.") if four else "float32"
        return cls("4bit" if four else "8bit", compute)

    @classmethod
    def read(cls, folder: Path) -> Quantization | None:
        """As the folder of an extension records it for its base; None where there is no such record."""
        path = folder / SETTINGS
        settings = read_json(path) if path.is_file() else None
        found = settings.get(RECORDED) if isinstance(settings, dict) else None  # the reader of the folder tells more
        if found is None:
            return None
        known = isinstance(found, dict) and found.get("bits") in KINDS and found.get("compute") in COMPUTE
        if not known:
            raise ValueError(
                f"{path}: {RECORDED} is {found!r}, it must have bits ({', '.join(KINDS)}) and compute "
                f"({', '.join(COMPUTE)}). Restore the file."
            )
        return cls(found["bits"], found["compute"])

    def to_json(self) -> dict[str, str]:
        """The entry of longwave.json."""
        return {"bits": self.kind, "compute": self.compute}

    def arguments(self) -> dict[str, Any]:
        """For `from_pretrained`.

        Raises:
            ValueError: if bitsandbytes is missing.
        """
        require_bitsandbytes(self.kind)
        from transformers import BitsAndBytesConfig

        own = int(os.environ.get("LOCAL_RANK", 0))  # of torchrun: each process has a device of its own
        where = {"": own if torch.accelerator.is_available() else "cpu"}
        if self.kind == "8bit":
            return {CONFIGURED: BitsAndBytesConfig(load_in_8bit=True), "device_map": where}
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, self.compute),
        )
        return {CONFIGURED: config, "device_map": where}


def require_bitsandbytes(kind: str) -> None:
    """A `ValueError` where the library that quantizes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ValueError(f"weights in {kind} need bitsandbytes, which is not installed: pip install 'longwave[qlora]'.")


def with_quantization(found: ModelFolder, asked: str | None, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `from_pretrained`, with the quantization that is asked for, or that the folder records.

    Arguments:
        asked: `4bit`, `8bit`, `none`, or None for what the folder records.

    Raises:
        ValueError: for another word, for a base that is quantized on disk, and where bitsandbytes is missing.
    """
    if asked not in (None, NONE, *KINDS):
        raise ValueError(unknown("quantization", str(asked), (*KINDS, NONE)))
    recorded = Quantization.read(found.path)
    if asked == NONE or arguments.get(CONFIGURED) is not None or (asked is None and recorded is None):
        return arguments
    if asked is not None and (recorded is None or recorded.kind != asked):
        if is_quantized_on_disk(found):
            raise ValueError(f"the weights of {found.model} are quantized already. Leave {asked} out.")
        dtype = arguments.get("dtype")
        compute = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else COMPUTE[0]
        recorded = Quantization(asked, compute)
    assert recorded is not None
    chosen = recorded.arguments()
    if "device_map" in arguments:
        del chosen["device_map"]
    return arguments | chosen


def is_quantized_on_disk(found: ModelFolder) -> bool:
    """Whether the config.json of the plain model says so."""
    path = found.model / CONFIG
    return path.is_file() and read_object(path).get(CONFIGURED) is not None
