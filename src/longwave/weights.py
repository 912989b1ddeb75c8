"""Weights on disk: found, checked, and copied without being held in memory."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from longwave.io import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
BLOCK = 1 << 24  # bytes copied at a time


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers loads from the folder: a single one before those of an index."""
    if (folder / SINGLE).is_file() or not (folder / INDEX).is_file():
        return [folder / SINGLE]
    return [folder / name for name in sorted(set(_weight_map(folder).values()))]


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor name -> file, as the index says it; files lie in the folder itself."""
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
    """Every shard is there, whole, and holds what the index says.

    Raises:
        ValueError: naming the file.
    """
    single = (folder / SINGLE).is_file()
    if not single and not (folder / INDEX).is_file():
        other = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"{other[0]} is pickled: convert it to safetensors first." if other else "Save the model again."
        raise ValueError(f"{folder} has neither {SINGLE} nor {INDEX}. {hint}")
    expected = {} if single else _weight_map(folder)
    for path in weight_files(folder):
        if not path.is_file():
            raise ValueError(f"{path} is missing, {INDEX} lists it. Restore it or save the model again.")
        held = set(tensor_shapes(path))
        lacking = [name for name, file in expected.items() if file == path.name and name not in held]
        if lacking:
            raise ValueError(f"{path} lacks {lacking[0]}, which {INDEX} says it has. Restore the file.")


def check_parameters(folder: Path, model: PreTrainedModel, dropped: tuple[str, ...] = ()) -> None:
    """The weights are those of the model: transformers would fill what is missing at random, and go on.

    Checkpoints that name their tensors otherwise than the model does (transformers converts some as it loads) are
    not judged.

    Raises:
        ValueError: naming the tensor that is missing or has another shape.
    """
    held: dict[str, tuple[Path, tuple[int, ...]]] = {}
    for path in weight_files(folder):
        held |= {name: (path, shape) for name, shape in tensor_shapes(path).items()}
    held = {name: entry for name, entry in held.items() if not name.endswith((*dropped, "rotary_emb.inv_freq"))}
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if not held.keys() <= own.keys():
        return
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for name, shape in own.items():
        if name not in held:
            if name not in tied:
                raise ValueError(f"{folder} holds no weights for {name}, which the model has. Save the model again.")
        elif held[name][1] != shape:
            path, found = held[name]
            raise ValueError(f"{path}: {name} has shape {list(found)}, by config.json it is {list(shape)}.")


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in one file; its header is checked against the file's size."""
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}). Restore it or download it again.") from None


def copy_weights(folder: Path, output: Path, dropped: tuple[str, ...] = ()) -> None:
    """Copy the shards and their index, byte for byte, without the tensors whose names end in one of `dropped`."""
    files = weight_files(folder)
    for path in files:
        if dropped and any(name.endswith(dropped) for name in tensor_shapes(path)):
            _copy_without(path, output / path.name, dropped)
        else:
            shutil.copyfile(path, output / path.name)
    if files != [folder / SINGLE]:
        kept = {name: file for name, file in _weight_map(folder).items() if not (dropped and name.endswith(dropped))}
        write_json(output / INDEX, {**read_json(folder / INDEX), "weight_map": kept})


def _copy_without(path: Path, output: Path, dropped: tuple[str, ...]) -> None:
    """Rewrite one safetensors file: the header anew, the data of what stays as it is."""
    with open(path, "rb") as source, open(output, "wb") as target:
        (size,) = struct.unpack("<Q", source.read(8))
        header: dict[str, Any] = json.loads(source.read(size))
        start, end, ranges = 8 + size, 0, []
        kept = {name: entry for name, entry in header.items() if not name.endswith(dropped)}
        tensors = sorted((name for name in kept if name != "__metadata__"), key=lambda n: kept[n]["data_offsets"])
        for name in tensors:
            first, last = kept[name]["data_offsets"]
            ranges.append((start + first, last - first))
            kept[name] = {**kept[name], "data_offsets": [end, end + last - first]}
            end += last - first
        text = json.dumps(kept, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # data begins at a multiple of 8 bytes
        target.write(struct.pack("<Q", len(text)) + text)
        for offset, length in ranges:
            source.seek(offset)
            for block in _blocks(source, length):
                target.write(block)
        target.flush()
        os.fsync(target.fileno())


def _blocks(source: Any, length: int) -> Iterator[bytes]:
    while length:
        block = source.read(min(BLOCK, length))
        length -= len(block)
        yield block
