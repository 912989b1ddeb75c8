"""Read a model, whoever wrote it; or tell only its extension, without reading the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from longwave.checkpoints.extended import load_extended, read_settings, spec_of
from longwave.checkpoints.folder import Kind, ModelFolder, resolve
from longwave.checkpoints.hub import HUB
from longwave.checkpoints.official import extend_legacy, read_fields, read_legacy
from longwave.checkpoints.plain import build, from_pretrained, read_plain
from longwave.checkpoints.quantized import with_quantization
from longwave.checkpoints.scaled import follow_config, scaling_of, unrecognised
from longwave.extensions.handle import find_extension
from longwave.extensions.spec import parse_spec
from longwave.layout import CONFIG, SETTINGS
from longwave.names import unknown

SCALING = ("trajectory", "plain")
ELSEWHERE = {"gguf_file", "subfolder"}  # arguments of `from_pretrained` that say where in a folder the model is


def load(
    path: Path | str | ModelFolder, *, scaling: str = "trajectory", quantize: str | None = None, **arguments: Any
) -> PreTrainedModel:
    """Read a model: a folder of `save`, a CLEX checkpoint in the official format, or any Hugging Face model.

    Arguments:
        path: a folder, or a name on the Hugging Face hub.
        scaling: how to read RoPE scaling in the config of a Hugging Face model. `trajectory` reads it as a point of a
            trajectory where longwave has the method: z(1) is then the rope without the scaling. `plain` reads it as
            part of a plain model. An export of longwave holds z(1) and one z(t). Between the two its trajectory is
            interpolated: this is not the method that the export came from.
        quantize: `4bit` or `8bit`: hold the plain model's weights so, by bitsandbytes. None takes what a folder of
            `save` records: an adapter that was trained on a base in 4 bits gets such a base. `none` takes the
            weights as they are; an adapter is then on another base than it was trained on.
        arguments: for `from_pretrained`, e.g. `dtype`, `device_map`, `revision`.

    Raises:
        ValueError: naming the file that is missing, damaged, or does not belong to the model.
    """
    if scaling not in SCALING:
        raise ValueError(unknown("scaling", scaling, SCALING))
    if not isinstance(path, str | Path | ModelFolder):
        raise ValueError(f"load takes a folder or a name on the Hugging Face hub, got {type(path).__name__}.")
    found = resolve(path, **{name: arguments.pop(name) for name in HUB if name in arguments})
    if not arguments.keys() & ELSEWHERE:
        found.check()
    arguments = with_quantization(found, quantize, arguments)
    if found.kind is Kind.LONGWAVE:
        return load_extended(found, arguments)
    if found.kind is Kind.OFFICIAL:
        checkpoint = read_legacy(found.fetch().path)
        return extend_legacy(from_pretrained(found, arguments | {"config": checkpoint.config}), checkpoint)
    model = from_pretrained(found, arguments)
    return follow_config(model) if scaling == "trajectory" else model


def extension_of(path: Path | str | ModelFolder, **where: Any) -> tuple[str, float] | None:
    """Method (`yarn`, `yarn+dca`, `two-band`) and max_factor that `load` would give; None for a plain model.

    The weights are not read.
    If RoPE scaling in the config stays part of a plain model, the reason is logged, as in `load`.

    Arguments:
        path: a folder, or a name on the Hugging Face hub.
        where: for the hub, as in `resolve`.

    Raises:
        ValueError: naming the damaged file, or the impossible value of config.json.
    """
    found = resolve(path, **where)
    if found.kind is Kind.LONGWAVE:
        settings = read_settings(found.path / SETTINGS)
        try:
            return parse_spec(spec_of(settings)).name, settings["max_factor"]
        except ValueError as error:
            raise ValueError(f"{found.path / SETTINGS}: {error}") from None
    if found.kind is Kind.OFFICIAL:
        extension, _ = read_fields(found.path)
        return extension["method"], extension["max_factor"]
    if (found.path / CONFIG).is_file():
        file, config = read_plain(found.path)
        if scaling_of(config) is not None:
            handle = find_extension(follow_config(build(file, config)))
            if handle is not None:
                return handle.spec, handle.max_factor
    return None


def unrecognised_scaling(path: Path | str | ModelFolder, **where: Any) -> str | None:
    """Why RoPE scaling in a model's config stays part of a plain model; None if there is no such scaling."""
    found = resolve(path, **where)
    if found.kind in (Kind.LONGWAVE, Kind.OFFICIAL) or not (found.path / CONFIG).is_file():
        return None
    file, config = read_plain(found.path)
    return None if scaling_of(config) is None else unrecognised(build(file, config))
