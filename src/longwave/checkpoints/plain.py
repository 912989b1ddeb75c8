"""The plain model of a folder, with all its weights or without weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from longwave.checkpoints.complaints import UNREADABLE
from longwave.checkpoints.config import ConfigFile, open_config
from longwave.checkpoints.folder import Kind, ModelFolder
from longwave.checkpoints.rope_section import shown
from longwave.errors import first_line, is_out_of_memory
from longwave.files import read_object
from longwave.layout import CONFIG


def from_pretrained(found: ModelFolder, arguments: dict[str, Any]) -> PreTrainedModel:
    """A plain model with all its weights. transformers alone would fill missing weights at random and go on."""
    place: Path | str = found.model
    if found.where and found.kind not in (Kind.LONGWAVE, Kind.OFFICIAL):
        place, arguments = found.name, {**arguments, **found.where}  # transformers knows which weights it needs
    path = found.model / (arguments.get("subfolder") or "") / CONFIG
    if "config" not in arguments and not arguments.get("trust_remote_code"):
        _refuse_foreign_code(path)
    config = arguments.get("config")
    with quiet():
        file = ConfigFile(place, {}) if "gguf_file" in arguments else _open_config(place, arguments)
        if not {"config", "gguf_file"} & set(arguments):
            config = _build_config(file)  # an impossible value is told now: reading the weights may take long
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place, output_loading_info=True, ignore_mismatched_sizes=True,
                **{"trust_remote_code": False} | arguments,
            )  # fmt: skip
        except ImportError as error:
            raise ValueError(_missing_library(path, error)) from None
        except Exception as error:  # transformers and the readers of its files raise all kinds
            if is_out_of_memory(error):  # not a fault of the files
                raise
            if isinstance(error, UNREADABLE) and not isinstance(error, ValueError) and _is_own(file, config):
                try:
                    build(file, config)  # it fails, too, where a value of config.json is at fault: a type of rope, say
                except ValueError as fault:
                    raise ValueError(f"cannot load a model from {place}: {fault}") from None
            raise ValueError(f"cannot load a model from {place}: {first_line(error)}") from None
    model, report = loaded
    lacking = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if lacking:
        raise ValueError(
            f"{place} lacks {len(lacking)} weights of its model, or has them in other shapes: {lacking[0]}."
        )
    return model


def skeleton(folder: Path, config: Any = None) -> PreTrainedModel:
    """The plain model with its shapes and real buffers, but no weights: parameters are on the meta device.

    Arguments:
        folder: with config.json.
        config: used instead of the folder's config.json.

    Raises:
        ValueError: if a value of the config is impossible, or transformers cannot build the model.
    """
    if config is not None:
        return build(open_config(folder), config)
    return build(*read_plain(folder))


def read_plain(folder: Path) -> tuple[ConfigFile, Any]:
    """config.json of a folder as it is written, and as transformers reads it.

    Raises:
        ValueError: if a value cannot be, or transformers itself does not have the model.
    """
    _refuse_foreign_code(folder / CONFIG)
    file = open_config(folder)
    with quiet():
        return file, _build_config(file)


def _build_config(file: ConfigFile) -> PreTrainedConfig:
    """The config of a causal language model; a `ValueError` for any other."""
    config = file.build()
    if not file.where.get("trust_remote_code") and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"{file.name} has model_type {config.model_type!r}, which is no causal language model. "
            "Take a model that transformers' AutoModelForCausalLM loads."
        )
    return config


def _is_own(file: ConfigFile, config: Any) -> bool:
    """Whether transformers itself has the model, so that it can be built without the checkpoint's code."""
    return config is not None and not file.where.get("trust_remote_code")


def build(file: ConfigFile, config: Any) -> PreTrainedModel:
    with quiet(), file.explained(), init_empty_weights(include_buffers=False), torch.no_grad():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' remarks on config keys and unexpected tensors, such as those of a legacy CLEX layer."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _open_config(place: Path | str, arguments: dict[str, Any]) -> ConfigFile:
    try:
        return open_config(place, arguments)
    except OSError as error:
        raise ValueError(f"cannot load a model from {place}: {first_line(error)}") from None


def _refuse_foreign_code(path: Path) -> None:
    """Refuse a model that transformers itself does not have: longwave runs no code of a checkpoint."""
    config = read_object(path) if path.is_file() else {}
    model_type, classes = config.get("model_type"), config.get("auto_map")
    if (isinstance(model_type, str) and model_type in CONFIG_MAPPING) or not (model_type or classes):
        return
    if classes:
        named = isinstance(classes, dict)
        name = (classes.get("AutoModelForCausalLM") or next(iter(classes.values()))) if named else shown(classes)
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
            f"{first_line(error)}. Install it, or load the model that was quantized."
        )
    return f"{path} needs a package that is missing: {first_line(error)}. Install it."
