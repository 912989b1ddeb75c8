"""Merge the LoRA of a folder into its base: a folder with all weights, and without an adapter."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from longwave.checkpoints.adapters import read_delta
from longwave.checkpoints.folder import Kind, ModelFolder, resolve
from longwave.checkpoints.load import load
from longwave.checkpoints.quantized import NONE, Quantization, is_quantized_on_disk
from longwave.checkpoints.save import save
from longwave.checkpoints.tokenizer import load_tokenizer
from longwave.checkpoints.trained import Trained, hold_trained, trained_of
from longwave.extensions.handle import extension
from longwave.files import check_output
from longwave.layout import ADAPTER_WEIGHTS, ADAPTERS


def merge(path: Path | str, output: Path | str, *, quantize: str | None = None, overwrite: bool = False) -> Path:
    """Write a trained folder anew, W + ΔW in the place of W. The extension stays as it is.

    Arguments:
        path: a folder with a LoRA without a gate.
        output: the folder to write; `load` reads it.
        quantize: `none` to merge a LoRA that was trained on a quantized base into the weights as they are.
        overwrite: write into a folder that is not empty.

    Raises:
        ValueError: for a folder without a LoRA, one whose LoRA follows t, and one on a quantized base.
    """
    if quantize not in (None, NONE):
        raise ValueError(f"quantize must be none for merge, got {quantize!r}. Merged weights are not quantized.")
    found = resolve(path).check()
    check_output(output, overwrite=overwrite)
    _require_exact(found, quantize)
    model = load(found, quantize=NONE, dtype="auto")
    handle = extension(model)
    adapter = handle.adapter
    if adapter is None:
        raise ValueError(f"{path} has no LoRA. There is nothing to merge.")
    if adapter.is_gated:
        raise ValueError(
            f"the LoRA of {path} follows t: within the original length it is off, so no one set of weights is it. "
            + (
                f"Write the weights at one t: longwave export {path} --factor T --output DIR."
                if handle.attention is None
                else f"No weights are {handle.spec}. Run it with longwave, or in vLLM by longwave export --profiles."
            )
        )
    known = trained_of(model)
    _add(model, found.path / ADAPTERS / ADAPTER_WEIGHTS)
    adapter.take_off()
    handle.adapter = None
    hold_trained(model, Trained(known.length, known.length))
    return save(model, output, tokenizer=load_tokenizer(found), overwrite=overwrite)


@torch.no_grad()
def _add(model: PreTrainedModel, file: Path) -> None:
    """W + ΔW, added in float32, whatever the type of the weights is."""
    adapter = extension(model).adapter
    assert adapter is not None
    names = {id(module): name for name, module in model.named_modules()}
    for place, (_, _, layer) in enumerate(adapter.places):
        weight = layer.get_base_layer().weight
        delta = read_delta(adapter, place, 1.0, file, names[id(layer)])
        weight.copy_(weight.float() + delta.to(weight.device))


def _require_exact(found: ModelFolder, quantize: str | None) -> None:
    """A `ValueError` where the merged weights would not be those that were trained."""
    if found.kind is not Kind.LONGWAVE:
        raise ValueError(f"{found.name} is {found.kind.value}. merge takes a folder of `longwave train`.")
    if is_quantized_on_disk(found):
        raise ValueError(
            f"the base {found.model} is quantized: W + ΔW cannot be written in its bits. Use the LoRA beside it, or "
            "train on the base that was quantized."
        )
    quantization = Quantization.read(found.path)
    if quantization is not None and quantize != NONE:
        raise ValueError(
            f"the LoRA of {found.name} was trained on its base in {quantization.kind}, and W + ΔW cannot be written in "
            "so few bits. To merge it into the base as it is, which changes the model a little, add --quantize none "
            "(quantize='none' in Python)."
        )
