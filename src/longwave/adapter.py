"""Save an extended model so that it can be read back, and read what others wrote.

A folder of ours holds `longwave.json` (the extension), `longwave.safetensors` (its weights and the
frequencies it starts from), tokenizer files, and `model/`, the plain model as transformers writes it.
There is no config.json at its root: transformers would load it without the extension and not say so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from transformers.utils.hub import cached_file

from longwave.architectures import host_of
from longwave.attach import extend, extend_again, rotaries, suspended, trajectories_of
from longwave.configs import UNREADABLE, ConfigFile, open_config
from longwave.generation import rotaries_of
from longwave.io import EXPORT_RECORD, check_model, prepare_output, read_json, write_json
from longwave.legacy import extend_legacy, is_legacy, read_legacy
from longwave.logn import log_n_of
from longwave.methods import get_method
from longwave.recognition import follow_config, scaling_of, unrecognised

SETTINGS, WEIGHTS, MODEL = "longwave.json", "longwave.safetensors", "model"
FORMAT = 2  # 1 had the bounded field start from the prior's rate at t instead of its mean
SCALING = ("trajectory", "plain")
HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")  # where to get a model, and which
REQUIRED = ("format", "method", "options", "max_factor", "schedule", "beyond", "log_n", "original_length")


def save(
    model: PreTrainedModel,
    folder: Path | str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an extended model to `folder`; `load` reads it back exactly.

    Arguments:
        model: extended; what t it is steered to at the moment is not part of the result.
        folder: created; must be empty or absent unless `overwrite`.
        tokenizer: written beside it, so that the folder is all that is needed.

    Raises:
        ValueError: if the model is not extended or is wrapped, or the folder is not empty.
    """
    own = trajectories_of(model)
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"save takes the transformers model, got {type(model).__name__}. Merge or unwrap it first.")
    folder = prepare_output(folder, overwrite=overwrite)
    for name in (SETTINGS, WEIGHTS):  # a folder that is only half overwritten must not load
        (folder / name).unlink(missing_ok=True)
    with suspended(model):
        model.save_pretrained(folder / MODEL)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    tensors: dict[str, Tensor] = {}
    for index, trajectory in enumerate(own):
        tensors[f"{index}.rope"] = trajectory.rope.inv_freq
        for name, tensor in trajectory.state_dict().items():
            tensors[f"{index}.{name}"] = tensor.detach().cpu().contiguous()
    partial = folder / f".{WEIGHTS}"
    save_file(tensors, partial)
    os.replace(partial, folder / WEIGHTS)
    write_json(folder / SETTINGS, _settings(model))  # last: a folder that has it is complete
    return folder


def load(path: Path | str, *, scaling: str = "trajectory", **arguments: Any) -> PreTrainedModel:
    """Read a model: a folder of `save`, a CLEX checkpoint in the official format, or any Hugging Face model.

    Arguments:
        path: a folder, or a name on the Hugging Face hub.
        scaling: what RoPE scaling in the config of a Hugging Face model is: the `trajectory` that it is a point
            of, so that z(1) is the rope without it, where we have the method; or part of a `plain` model. An export
            of ours holds z(1) and one z(t): between them it is interpolated, and not the method that it came from.
        arguments: for `from_pretrained`, e.g. `dtype`, `device_map`.

    Raises:
        ValueError: naming the file that is missing, damaged, or does not belong to the model.
    """
    if scaling not in SCALING:
        raise ValueError(f"unknown scaling {scaling!r}. Available: {', '.join(SCALING)}.")
    if not isinstance(path, str | Path):
        raise ValueError(f"load takes a folder or a name on the Hugging Face hub, got {type(path).__name__}.")
    check_model(path)
    folder = _local_folder(path, arguments)
    if (folder / SETTINGS).is_file():
        return _load_extended(folder, arguments)
    if (folder / WEIGHTS).exists() or (folder / MODEL).is_dir():
        raise ValueError(f"{folder / SETTINGS} is missing: the folder is incomplete. Save the model again.")
    if is_legacy(folder):
        checkpoint = read_legacy(folder)
        return extend_legacy(_from_pretrained(folder, arguments | {"config": checkpoint.config}), checkpoint)
    target = read_json(folder / EXPORT_RECORD).get("target") if (folder / EXPORT_RECORD).is_file() else None
    if target not in (None, "hf"):
        raise ValueError(f"{folder} is an export for {target}, which longwave does not read. Load its source instead.")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model: neither {SETTINGS} nor config.json is there.")
    model = _from_pretrained(path, arguments)
    return follow_config(model) if scaling == "trajectory" else model


def _local_folder(path: Path | str, arguments: dict[str, Any]) -> Path:
    """The snapshot of a legacy checkpoint that `path` names on the hub; anything else stays as it is."""
    where = {name: arguments[name] for name in HUB if name in arguments}
    try:
        config = None if Path(path).exists() else cached_file(path, "config.json", **where)
        if config is not None and is_legacy(Path(config).parent):
            return Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors"], **where))
    except OSError:  # `from_pretrained` will say what is wrong
        pass
    return Path(path)


def extension_of(path: Path | str) -> tuple[str, float] | None:
    """Method and max_factor that `load` would give a local folder, read without its weights; None for a plain model.

    Why RoPE scaling in its config stays part of a plain model is logged, as `load` does.

    Raises:
        ValueError: naming the file that is damaged, or the value of config.json that cannot be.
    """
    folder = Path(path)
    if (folder / SETTINGS).is_file():
        settings = _read_settings(folder / SETTINGS)
        return settings["method"], settings["max_factor"]
    if is_legacy(folder):
        extension = read_legacy(folder).extension
        return extension["method"], extension["max_factor"]
    if (folder / "config.json").is_file():
        with _quiet():
            config = (file := open_config(folder)).build()
        if scaling_of(config) is not None and rotaries_of(model := follow_config(_build(file, config))):
            trajectory = trajectories_of(model)[0]
            return trajectory.name, trajectory.max_factor
    return None


def unrecognised_scaling(path: Path | str) -> str | None:
    """Why RoPE scaling in the config of a local folder stays part of a plain model; None where there is none."""
    folder = Path(path)
    if (folder / SETTINGS).is_file() or is_legacy(folder) or not (folder / "config.json").is_file():
        return None
    with _quiet():
        config = (file := open_config(folder)).build()
    return None if scaling_of(config) is None else unrecognised(_build(file, config))


def skeleton(folder: Path, config: Any = None) -> PreTrainedModel:
    """The plain model with its shapes and real buffers, but no weights: parameters are on the meta device.

    Arguments:
        folder: with config.json.
        config: in its place, if it is not to be read.

    Raises:
        ValueError: if a value of the config cannot be, or transformers cannot build the model.
    """
    file = open_config(folder)
    with _quiet():
        config = file.build() if config is None else config
    return _build(file, config)


def _build(file: ConfigFile, config: Any) -> PreTrainedModel:
    with _quiet(), file.explained(), init_empty_weights(include_buffers=False), torch.no_grad():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' remarks on keys of a config and on unexpected tensors: a legacy CLEX layer is one."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def is_trained(model: nn.Module) -> bool:
    """Whether the extension can be evaluated: closed forms always, learned ones once they left their start.

    A learned trajectory starts as its closed-form prior. It counts as trained when its frequencies at
    max_factor are no longer those of a newly built one.
    """
    return all(
        not (method := get_method(trajectory.name)).trained
        or not torch.equal(
            trajectory.at(trajectory.max_factor).inv_freq,
            method.build(trajectory.rope, trajectory.max_factor, **trajectory.options())
            .at(trajectory.max_factor)
            .inv_freq,
        )
        for trajectory in trajectories_of(model)
    )


def _settings(model: PreTrainedModel) -> dict[str, Any]:
    rotary = rotaries(model)[0]
    trajectory = rotary.trajectory
    return {
        "format": FORMAT,
        "method": trajectory.name,
        "options": trajectory.options(),
        "max_factor": trajectory.max_factor,
        "schedule": rotary.schedule.spec,
        "beyond": rotary.beyond,
        "log_n": log_n_of(host_of(model)),
        "original_length": trajectory.rope.original_length,
        "unscaled": rotary.loaded is not None,
        "trained": is_trained(model),
    }


def _load_extended(folder: Path, arguments: dict[str, Any]) -> PreTrainedModel:
    _read_settings(folder / SETTINGS)  # before the weights are read, which may take long
    return extend_as_saved(_from_pretrained(folder / MODEL, arguments), folder)


def extend_as_saved(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Put the extension in a folder of `save` onto the plain model of that folder."""
    settings = _read_settings(folder / SETTINGS)
    tensors = _read_tensors(folder / WEIGHTS)
    if unscaled := settings.get("unscaled", False):
        follow_config(model)
        if not rotaries_of(model):
            raise ValueError(f"{folder / MODEL / 'config.json'} lacks the RoPE scaling that {SETTINGS} speaks of.")
    try:
        (extend_again if unscaled else extend)(
            model,
            settings["method"],
            max_factor=settings["max_factor"],
            schedule=settings["schedule"],
            log_n=settings["log_n"],
            beyond=settings["beyond"],
            original_length=settings["original_length"],
            **settings["options"],
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / SETTINGS}: {error}") from None
    _fill(model, tensors, folder / WEIGHTS)
    return model


def _read_settings(path: Path) -> dict[str, Any]:
    settings = read_json(path)
    missing = [key for key in REQUIRED if not isinstance(settings, dict) or key not in settings]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: not written by longwave.save, or damaged.")
    if settings["format"] != FORMAT:
        what = "Train again" if settings["format"] == 1 else "Update longwave"
        raise ValueError(f"{path} has format {settings['format']}, this version reads {FORMAT}. {what}.")
    return settings


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: the folder is incomplete. Save the model again.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}). Restore it or save the model again.") from None


def _fill(model: PreTrainedModel, tensors: dict[str, Tensor], path: Path) -> None:
    """Put the weights in their places, all of them and nothing else."""
    own = trajectories_of(model)
    expected = {f"{index}.rope": trajectory.rope.inv_freq for index, trajectory in enumerate(own)}
    for index, trajectory in enumerate(own):
        expected |= {f"{index}.{name}": tensor for name, tensor in trajectory.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
        raise ValueError(f"{path} holds other tensors than {SETTINGS} describes. Was it copied from another folder?")
    for index, trajectory in enumerate(own):
        if not torch.allclose(tensors[f"{index}.rope"], trajectory.rope.inv_freq, rtol=1e-6, atol=0):
            raise ValueError(f"{path} was made for other rotary frequencies than those of {path.parent / MODEL}.")
        prefix = f"{index}."
        state = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
        del state["rope"]
        trajectory.load_state_dict(state)


def _from_pretrained(path: Path | str, arguments: dict[str, Any]) -> PreTrainedModel:
    """A plain model with all its weights: transformers would fill missing ones at random and go on."""
    with _quiet():
        try:
            file = ConfigFile(path, {}) if "gguf_file" in arguments else open_config(path, arguments)
        except OSError as error:
            raise ValueError(f"cannot load a model from {path}: {str(error).splitlines()[0]}") from None
        if not {"config", "gguf_file"} & set(arguments):
            file.build()  # a value that cannot be is told before the weights are read, which may take long
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path, output_loading_info=True, ignore_mismatched_sizes=True, **arguments
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(f"cannot load a model from {path}: {str(error).splitlines()[0]}") from None
        except UNREADABLE as error:  # a type of rope, say
            raise ValueError(f"cannot load a model from {path}: {file.complaint(error)}") from None
    model, report = loaded
    lacking = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if lacking:
        raise ValueError(
            f"{path} lacks {len(lacking)} weights of its model, or has them in other shapes: {lacking[0]}."
        )
    return model
