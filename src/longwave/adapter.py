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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers import __version__ as transformers_version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging
from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

from longwave.checkpoints.folder import (
    CONFIG,
    HUB,
    MODEL,
    SETTINGS,
    WEIGHTS,
    Kind,
    ModelFolder,
    missing_part,
    read_object,
    resolve,
    tokenizer_folder,
)
from longwave.configs import UNREADABLE, ConfigFile, open_config
from longwave.extensions.attach import extend, extend_again, suspended
from longwave.extensions.handle import extension, find_extension, rotaries
from longwave.extensions.log_n import log_n_of
from longwave.extensions.sites import host_of
from longwave.io import prepare_output, read_json, write_json
from longwave.legacy import extend_legacy, read_fields, read_legacy
from longwave.methods import get_method
from longwave.recognition import follow_config, scaling_of, unrecognised

FORMAT = 2  # 1 had the bounded field start from the prior's rate at t instead of its mean
SCALING = ("trajectory", "plain")
SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
ELSEWHERE = {"gguf_file", "subfolder"}  # arguments of `from_pretrained` that say where in a folder the model is
TOKENIZER_JSON = (
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
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
    own = extension(model).trajectories
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


def load(path: Path | str | ModelFolder, *, scaling: str = "trajectory", **arguments: Any) -> PreTrainedModel:
    """Read a model: a folder of `save`, a CLEX checkpoint in the official format, or any Hugging Face model.

    Arguments:
        path: a folder, or a name on the Hugging Face hub.
        scaling: what RoPE scaling in the config of a Hugging Face model is: the `trajectory` that it is a point
            of, so that z(1) is the rope without it, where we have the method; or part of a `plain` model. An export
            of ours holds z(1) and one z(t): between them it is interpolated, and not the method that it came from.
        arguments: for `from_pretrained`, e.g. `dtype`, `device_map`, `revision`.

    Raises:
        ValueError: naming the file that is missing, damaged, or does not belong to the model.
    """
    if scaling not in SCALING:
        raise ValueError(f"unknown scaling {scaling!r}. Available: {', '.join(SCALING)}.")
    if not isinstance(path, str | Path | ModelFolder):
        raise ValueError(f"load takes a folder or a name on the Hugging Face hub, got {type(path).__name__}.")
    found = resolve(path, **{name: arguments.pop(name) for name in HUB if name in arguments})
    if not arguments.keys() & ELSEWHERE:
        found.check()
    if found.kind is Kind.LONGWAVE:
        return _load_extended(found.fetch(), arguments)
    if found.kind is Kind.OFFICIAL:
        checkpoint = read_legacy(found.fetch().path)
        return extend_legacy(_from_pretrained(found, arguments | {"config": checkpoint.config}), checkpoint)
    model = _from_pretrained(found, arguments)
    return follow_config(model) if scaling == "trajectory" else model


def load_tokenizer(path: Path | str | ModelFolder, **where: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of whatever `load` reads.

    Arguments:
        path: a folder, or a name on the Hugging Face hub.
        where: for the hub, as in `resolve`.

    Raises:
        ValueError: naming the file that is missing or damaged, or the package that is missing.
    """
    found = resolve(path, **where)
    place: Path | str = found.name
    where = dict(found.where)
    if found.kind is Kind.LONGWAVE:
        found.fetch(weights=False)
        place, where = tokenizer_folder(found.path, found.model) or found.path, {}
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False, **where)
    except Exception as error:  # tokenizers raises the bare Exception, transformers whatever its readers do
        raise ValueError(_tokenizer_fault(found, error)) from None


def extension_of(path: Path | str | ModelFolder, **where: Any) -> tuple[str, float] | None:
    """Method and max_factor that `load` would give, read without the weights; None for a plain model.

    Why RoPE scaling in its config stays part of a plain model is logged, as `load` does.

    Arguments:
        path: a folder, or a name on the Hugging Face hub.
        where: for the hub, as in `resolve`.

    Raises:
        ValueError: naming the file that is damaged, or the value of config.json that cannot be.
    """
    found = resolve(path, **where)
    if found.kind is Kind.LONGWAVE:
        settings = _read_settings(found.path / SETTINGS)
        return settings["method"], settings["max_factor"]
    if found.kind is Kind.OFFICIAL:
        extension, _ = read_fields(found.path)
        return extension["method"], extension["max_factor"]
    if (found.path / CONFIG).is_file():
        with _quiet():
            config = (file := open_config(found.path)).build()
        if scaling_of(config) is not None:
            handle = find_extension(follow_config(_build(file, config)))
            if handle is not None:
                return handle.method, handle.max_factor
    return None


def unrecognised_scaling(path: Path | str | ModelFolder, **where: Any) -> str | None:
    """Why RoPE scaling in the config of a model stays part of a plain model; None where there is none."""
    found = resolve(path, **where)
    if found.kind in (Kind.LONGWAVE, Kind.OFFICIAL) or not (found.path / CONFIG).is_file():
        return None
    with _quiet():
        config = (file := open_config(found.path)).build()
    return None if scaling_of(config) is None else unrecognised(_build(file, config))


def skeleton(folder: Path, config: Any = None) -> PreTrainedModel:
    """The plain model with its shapes and real buffers, but no weights: parameters are on the meta device.

    Arguments:
        folder: with config.json.
        config: in its place, if it is not to be read.

    Raises:
        ValueError: if a value of the config cannot be, or transformers cannot build the model.
    """
    if config is None:
        _refuse_foreign_code(folder / CONFIG)
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
        for trajectory in extension(model).trajectories
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
        "unscaled": extension(model).unscaled,
        "trained": is_trained(model),
    }


def _load_extended(found: ModelFolder, arguments: dict[str, Any]) -> PreTrainedModel:
    _read_settings(found.path / SETTINGS)  # before the weights are read, which may take long
    if missing := missing_part(found.path):
        raise ValueError(f"{missing} is missing: the folder is incomplete. Save the model again.")
    return extend_as_saved(_from_pretrained(found, arguments), found.path)


def extend_as_saved(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Put the extension in a folder of `save` onto the plain model of that folder."""
    settings = _read_settings(folder / SETTINGS)
    tensors = _read_tensors(folder / WEIGHTS)
    if unscaled := settings.get("unscaled", False):
        follow_config(model)
        if find_extension(model) is None:
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
    own = extension(model).trajectories
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


def _from_pretrained(found: ModelFolder, arguments: dict[str, Any]) -> PreTrainedModel:
    """A plain model with all its weights: transformers would fill missing ones at random and go on."""
    place: Path | str = found.model
    if found.where and found.kind not in (Kind.LONGWAVE, Kind.OFFICIAL):
        place, arguments = found.name, {**arguments, **found.where}  # transformers knows which weights it needs
    if "config" not in arguments and not arguments.get("trust_remote_code"):
        _refuse_foreign_code(found.model / CONFIG)
    with _quiet():
        file = ConfigFile(place, {}) if "gguf_file" in arguments else _open_config(place, arguments)
        if not {"config", "gguf_file"} & set(arguments):
            file.build()  # a value that cannot be is told before the weights are read, which may take long
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place, output_loading_info=True, ignore_mismatched_sizes=True,
                **{"trust_remote_code": False} | arguments,
            )  # fmt: skip
        except (torch.OutOfMemoryError, MemoryError):  # no fault of the files
            raise
        except ImportError as error:
            raise ValueError(_missing_library(found.model / CONFIG, error)) from None
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(f"cannot load a model from {place}: {_first_line(error)}") from None
        except UNREADABLE as error:  # a type of rope, say
            raise ValueError(f"cannot load a model from {place}: {file.complaint(error)}") from None
        except Exception as error:  # transformers and the readers of its files raise all kinds
            raise ValueError(f"cannot load a model from {place}: {_first_line(error)}") from None
    model, report = loaded
    lacking = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if lacking:
        raise ValueError(
            f"{place} lacks {len(lacking)} weights of its model, or has them in other shapes: {lacking[0]}."
        )
    return model


def _open_config(place: Path | str, arguments: dict[str, Any]) -> ConfigFile:
    try:
        return open_config(place, arguments)
    except OSError as error:
        raise ValueError(f"cannot load a model from {place}: {_first_line(error)}") from None


def _refuse_foreign_code(path: Path) -> None:
    """Whether transformers itself has the model of this config.json: longwave runs no code of a checkpoint."""
    config = read_object(path) if path.is_file() else {}
    model_type, classes = config.get("model_type"), config.get("auto_map")
    if model_type in CONFIG_MAPPING or not (model_type or classes):
        return
    if classes:
        name = classes.get("AutoModelForCausalLM") or next(iter(classes.values()))
        raise ValueError(
            f"{path} asks for the class {name}, which is code of the checkpoint, and longwave does not run remote "
            "code. Take a checkpoint whose model_type transformers has."
        )
    raise ValueError(
        f"{path} has model_type {model_type!r}, which transformers {transformers_version} does not know. "
        "Correct it, or update transformers."
    )


def _missing_library(path: Path, error: ImportError) -> str:
    config = read_object(path) if path.is_file() else {}
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict):
        method = quantization.get("quant_method", "of an unnamed kind")
        return (
            f"{path} says that the weights are quantized ({method}), and a library for it is missing: "
            f"{_first_line(error)}. Install it, or load the model that was quantized."
        )
    return f"{path} needs a package that is missing: {_first_line(error)}. Install it."


def damaged_tokenizer(folder: Path) -> str | None:
    """What is wrong with the JSON files of a tokenizer, if anything is."""
    for path in (folder / name for name in TOKENIZER_JSON):
        try:
            if path.is_file():
                read_object(path)
        except ValueError as damage:
            return str(damage)
    return None


def _tokenizer_fault(found: ModelFolder, error: Exception) -> str:
    """What is wrong with a tokenizer that does not load: the library's words often name no file."""
    folder = found.path
    if damage := damaged_tokenizer(folder):
        return damage
    settings = folder / TOKENIZER_JSON[0]
    content = read_object(settings) if settings.is_file() else {}
    if "auto_map" in content:
        return (
            f"{settings} asks for the class {content.get('tokenizer_class')}, which is code of the checkpoint, and "
            "longwave does not run remote code. Save the tokenizer as a tokenizer.json first."
        )
    if tokenizer_folder(folder) is None:
        return f"{found.name} holds no tokenizer. Copy the model's there, or pass tokenizer= to longwave.save."
    sentencepiece = next((folder / name for name in SENTENCEPIECE if (folder / name).is_file()), None)
    if sentencepiece is not None and not (folder / TOKENIZER_JSON[1]).is_file():
        have = {"sentencepiece": is_sentencepiece_available(), "protobuf": is_protobuf_available()}
        if lacking := [name for name, there in have.items() if not there]:
            return (
                f"{sentencepiece} cannot be read without {' and '.join(lacking)}. Put the model's tokenizer.json "
                f"beside it, or pip install {' '.join(lacking)}."
            )
    return f"cannot load a tokenizer from {found.name}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    """What a library says, without its second paragraph and the full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
