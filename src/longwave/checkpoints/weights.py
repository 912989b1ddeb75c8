"""Weights on disk: found and checked. `rewriting.py` copies them."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from longwave.files import read_json
from longwave.layout import INDEX, SINGLE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK = 1 << 24  # bytes compared at a time


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads from the folder: a single file before the files of an index."""
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return [folder / SINGLE]
    return [folder / name for name in sorted(set(weight_map(folder).values()))]


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> file, as the index says; the files lie in the folder itself."""
    index = read_json(folder / INDEX)
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise ValueError(
            f"{folder / INDEX} has no weight_map from tensors to files. Restore it or save the model again."
        )
    for name in found.values():
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise ValueError(f"{folder / INDEX} names {name!r}, which is no safetensors file of its own folder.")
    return found


def check_weights(folder: Path) -> None:
    """Check that every shard is there, whole, and holds the tensors that the index names.

    Raises:
        ValueError: naming the file.
    """
    single = (folder / SINGLE).is_file()
    if not single and not (folder / INDEX).is_file():
        other = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"{other[0]} is pickled: convert it to safetensors first." if other else "Save the model again."
        raise ValueError(f"{folder} has neither {SINGLE} nor {INDEX}. {hint}")
    expected = {} if single else weight_map(folder)
    for path in weight_files(folder):
        if not path.is_file():
            raise ValueError(f"{path} is missing, {INDEX} lists it. Restore it or save the model again.")
        held = set(tensor_shapes(path))
        lacking = [name for name, file in expected.items() if file == path.name and name not in held]
        if lacking:
            raise ValueError(f"{path} lacks {lacking[0]}, which {INDEX} says it has. Restore the file.")


@dataclass(frozen=True)
class Contents:
    """How transformers uses the tensors in a folder.

    Arguments:
        unused: names of tensors that the model of config.json does not have, such as a value head or further layers.
        untied: parameters that config.json ties to another parameter, but that have values of their own in the folder.
            transformers then leaves them untied.
        quantized: config.json quantizes the model, and the tensors are not those of a plain model. They are not
            checked.
    """

    unused: tuple[str, ...] = ()
    untied: tuple[str, ...] = ()
    quantized: bool = False


def check_parameters(folder: Path, model: PreTrainedModel, dropped: tuple[str, ...] = ()) -> Contents:
    """Check that a folder has all weights of its model: transformers would fill missing weights at random, and go on.

    transformers itself is asked, with tensors that have a shape and no data. It knows which names it converts.

    Arguments:
        model: the plain model, on the meta device.
        dropped: endings of tensor names that are no part of the plain model.

    Raises:
        ValueError: naming the tensor that is missing or has another shape.
    """
    held: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        found = {name: shape for name, shape in tensor_shapes(path).items() if not name.endswith(dropped)}
        held |= dict.fromkeys(found, path)
        shapes |= found
    missing, misshapen, unused = _compare(model, shapes)
    if (missing or misshapen or unused) and getattr(model.config, "quantization_config", None):
        return Contents(quantized=True)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"{folder} holds no weights for {missing[0]}{more}, which the model has. Save the model again."
        )
    if misshapen:
        name, shape, wanted = misshapen[0]
        place = held.get(name, folder)
        raise ValueError(f"{place}: {name} has shape {list(shape)}, by config.json it is {list(wanted)}.")
    ties = (getattr(model, "all_tied_weights_keys", None) or {}).items()
    both = [(target, source) for target, source in ties if target in held and source in held]
    untied = tuple(
        target for target, source in both if not _same_values((held[target], target), (held[source], source))
    )
    return Contents(unused, untied)


def _compare(
    model: PreTrainedModel, shapes: dict[str, tuple[int, ...]]
) -> tuple[list[str], list[tuple[str, tuple[int, ...], tuple[int, ...]]], tuple[str, ...]]:
    """Missing parameters, parameters of another shape (found and wanted), and unused tensors."""
    import torch
    from transformers import utils

    logging: Any = utils.logging
    config = copy.deepcopy(model.config)
    if getattr(config, "quantization_config", None):
        del config.quantization_config
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    loader: Any = type(model).from_pretrained
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # transformers' report of unexpected tensors: the caller reports them
    logging.disable_progress_bar()
    try:
        _, report = loader(
            None, config=config, state_dict=tensors, dtype=torch.float32, device_map={"": "meta"},
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    misshapen = [(name, tuple(found), tuple(wanted)) for name, found, wanted in report["mismatched_keys"]]
    unused = sorted(report["unexpected_keys"], key=_natural)
    missing = [name for name in model.state_dict() if name in report["missing_keys"]]
    return missing, sorted(misshapen), tuple(unused)


def _natural(name: str) -> list[tuple[int, str]]:
    """A sort key for names that puts layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _same_values(first: tuple[Path, str], second: tuple[Path, str]) -> bool:
    """Whether two tensors of safetensors files are equal; a few megabytes of each are in memory at a time."""
    import torch

    with safe_open(first[0], framework="pt") as one, safe_open(second[0], framework="pt") as other:
        a, b = one.get_slice(first[1]), other.get_slice(second[1])
        shape = a.get_shape()
        if shape != b.get_shape():
            return False
        rows = max(1, BLOCK // (4 * max(1, math.prod(shape[1:]))))
        return all(
            torch.equal(a[start : start + rows].float(), b[start : start + rows].float())
            for start in range(0, shape[0], rows)
        )


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in one file; its header is checked against the file's size."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except PermissionError as error:
        raise PermissionError(f"{path} cannot be read ({error}). Allow this user to read it.") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}). Restore it or download it again.") from None
