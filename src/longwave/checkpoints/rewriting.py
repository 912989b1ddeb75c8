"""Copy the weights of a folder, changed or not, without holding them in memory."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from longwave.checkpoints.weights import tensor_shapes, weight_files, weight_map
from longwave.files import read_json, write_json
from longwave.layout import INDEX, SINGLE

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 24  # bytes copied at a time
WIDE = {"BF16": "F32", "F16": "F32"}  # types of safetensors


def copy_weights(
    folder: Path,
    output: Path,
    dropped: tuple[str, ...] = (),
    change: Callable[[str], Callable[[Tensor], Tensor] | None] = lambda _: None,
    *,
    wide: bool = False,
) -> None:
    """Copy the shards and their index, byte for byte, without the tensors whose names end in one of `dropped`.

    Arguments:
        change: name of a tensor -> what it becomes, of the same shape; None for a tensor that is copied as it is.
        wide: write tensors of 16-bit floats as float32.
    """
    changes = _widening(change) if wide else change
    files = weight_files(folder)
    for path in files:
        names = list(tensor_shapes(path))
        if (dropped and any(name.endswith(dropped) for name in names)) or any(map(changes, names)):
            _rewrite(path, output / path.name, dropped, changes, WIDE if wide else {})
        else:
            shutil.copyfile(path, output / path.name)
    if files != [folder / SINGLE]:
        kept = {name: file for name, file in weight_map(folder).items() if not (dropped and name.endswith(dropped))}
        write_json(output / INDEX, {**read_json(folder / INDEX), "weight_map": kept})


def _widening(
    change: Callable[[str], Callable[[Tensor], Tensor] | None],
) -> Callable[[str], Callable[[Tensor], Tensor]]:
    """The changes, and for every other tensor itself: its type may become another."""
    return lambda name: change(name) or (lambda tensor: tensor)


def _rewrite(
    path: Path,
    output: Path,
    dropped: tuple[str, ...],
    change: Callable[[str], Callable[[Tensor], Tensor] | None],
    types: Mapping[str, str],
) -> None:
    """Rewrite one safetensors file with a new header; the data of the tensors that stay are copied.

    Arguments:
        types: type of a tensor in the file -> the type that it gets.
    """
    with open(path, "rb") as source, open(output, "wb") as target:
        (size,) = struct.unpack("<Q", source.read(8))
        header: dict[str, Any] = json.loads(source.read(size))
        start, end, ranges = 8 + size, 0, []
        kept = {name: entry for name, entry in header.items() if not (dropped and name.endswith(dropped))}
        tensors = sorted((name for name in kept if name != "__metadata__"), key=lambda n: kept[n]["data_offsets"])
        for name in tensors:
            first, last = kept[name]["data_offsets"]
            ranges.append((name, start + first, last - first))
            size = (last - first) * (2 if kept[name]["dtype"] in types else 1)
            kind = types.get(kept[name]["dtype"], kept[name]["dtype"])
            kept[name] = {**kept[name], "dtype": kind, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(kept, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # data begins at a multiple of 8 bytes
        target.write(struct.pack("<Q", len(text)) + text)
        for name, offset, length in ranges:
            if (become := change(name)) is not None:
                target.write(_changed(path, name, become, wide=bool(types)))
                continue
            source.seek(offset)
            for block in _blocks(source, length):
                target.write(block)
        target.flush()
        os.fsync(target.fileno())


def _changed(path: Path, name: str, become: Callable[[Tensor], Tensor], *, wide: bool) -> bytes:
    """The data of one tensor, changed, in the type that it has, or `wide`."""
    import torch

    with safe_open(path, framework="pt") as file:
        before = file.get_tensor(name)
    kind = torch.float32 if wide and before.dtype in (torch.bfloat16, torch.float16) else before.dtype
    after = become(before).to(kind).contiguous()
    if not bool(after.isfinite().all()):
        raise ValueError(f"{path}: {name} is not finite after the change. Are the weights damaged?")
    return after.view(-1).view(torch.uint8).numpy().tobytes()


def _blocks(source: Any, length: int) -> Iterator[bytes]:
    while length:
        block = source.read(min(BLOCK, length))
        if not block:
            raise ValueError(f"{source.name} ended too early: something else writes to it. Copy it again.")
        length -= len(block)
        yield block
