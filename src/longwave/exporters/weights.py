"""Weights on disk: found, checked, and copied without being held in memory."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from longwave.io import read_json, write_json

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
BLOCK = 1 << 24  # bytes copied at a time


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would load from the folder."""
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        names = index.get("weight_map", {}).values() if isinstance(index, dict) else ()
        return [folder / name for name in sorted(set(names))]
    return [folder / SINGLE]


def check_weights(folder: Path) -> None:
    """Every shard is there, whole, and holds what the index says.

    Raises:
        ValueError: naming the file.
    """
    if not (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
        other = sorted(path.name for path in folder.glob("*.bin"))
        hint = f"{other[0]} is pickled: convert it to safetensors first." if other else "Save the model again."
        raise ValueError(f"{folder} has neither {SINGLE} nor {INDEX}. {hint}")
    expected = read_json(folder / INDEX)["weight_map"] if (folder / INDEX).is_file() else {}
    for path in weight_files(folder):
        if not path.is_file():
            raise ValueError(f"{path} is missing, {INDEX} lists it. Restore it or save the model again.")
        held = set(tensor_names(path))
        lacking = [name for name, file in expected.items() if file == path.name and name not in held]
        if lacking:
            raise ValueError(f"{path} lacks {lacking[0]}, which {INDEX} says it has. Restore the file.")


def tensor_names(path: Path) -> list[str]:
    """Names in one file; its header is checked against the file's size."""
    try:
        with safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}). Restore it or download it again.") from None


def copy_weights(folder: Path, output: Path, dropped: tuple[str, ...] = ()) -> None:
    """Copy the shards and their index, byte for byte, without the tensors whose names end in one of `dropped`."""
    for path in weight_files(folder):
        if any(name.endswith(dropped) for name in tensor_names(path)) if dropped else False:
            _copy_without(path, output / path.name, dropped)
        else:
            shutil.copyfile(path, output / path.name)
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        if dropped:
            kept = {name: file for name, file in index["weight_map"].items() if not name.endswith(dropped)}
            index["weight_map"] = kept
        write_json(output / INDEX, index)


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
