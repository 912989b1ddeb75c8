"""Weights from safetensors into a GGUF file, a few megabytes at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longwave.exporters.base import Unsupported
from longwave.exporters.changes import Changes
from longwave.exporters.gguf.layout import Layout
from longwave.exporters.queries import Change
from longwave.exporters.source import Source

BLOCK = 1 << 18  # numbers in memory at a time
DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class Tensor:
    """One tensor of the source, and what becomes of it.

    Arguments:
        name: in GGUF.
        origin: its name in `path`, with `offset` as the first byte of its data.
        dtype: there, `F32`, `F16` or `BF16`.
        heads: rows are these heads' halves, to be interleaved; 0 to leave them in place.
        change: what becomes of the values before that; None where they stay.
    """

    name: str
    origin: str
    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]
    heads: int = 0
    change: Change | None = None

    @property
    def plain(self) -> bool:
        """Norms and biases, which llama.cpp keeps in float32."""
        return len(self.shape) == 1

    def blocks(self) -> Iterator[np.ndarray]:
        """Rows in float32, in GGUF's order."""
        rows, columns = self.shape[0], int(np.prod(self.shape[1:], dtype=np.int64))
        unit = rows // self.heads if self.heads else 1
        count = unit * max(1, BLOCK // max(1, columns * unit))
        changed = None if self.change is None else self._changed(self.change)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            for start in range(0, rows, count):
                size = min(count, rows - start)
                if changed is not None:
                    values = changed[start : start + size]
                else:
                    raw = np.fromfile(file, DTYPES[self.dtype], size * columns)
                    values = _float32(raw, self.dtype).reshape(size, *self.shape[1:])
                if self.heads:
                    halves = values.reshape(size // unit, 2, unit // 2, *self.shape[1:])
                    values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
                yield values

    def _changed(self, change: Change) -> np.ndarray:
        """All of the tensor, float32."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            raw = np.fromfile(file, DTYPES[self.dtype], int(np.prod(self.shape, dtype=np.int64)))
        found: np.ndarray = change(torch.from_numpy(_float32(raw, self.dtype).reshape(self.shape))).numpy()
        return found


def _float32(raw: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32, copy=False)


def find_tensors(source: Source, layout: Layout, changes: Changes) -> list[Tensor]:
    """All tensors of the plain model with their GGUF names, in the order of the files.

    Raises:
        ValueError: naming a tensor that llama.cpp has no place for, or of another type. That none is missing was
            checked when the source was opened.
    """
    import gguf

    config = source.text_config
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == layout.arch)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
    }
    held = {entry[0] for path in source.shards for entry in _entries(path)}
    parameters = set(source.skeleton.state_dict())
    found: dict[str, Tensor] = {}
    for path in source.shards:
        for origin, dtype, shape, offset in _entries(path):
            if origin in source.contents.unused or origin.endswith((*source.dropped, "rotary_emb.inv_freq")):
                continue  # what the model does not have is in the notes of the export
            parameter = _parameter(source, origin, parameters, held)
            if parameter is None:
                continue
            name = names.get_name(parameter, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise Unsupported(f"{path} has {origin}, which llama.cpp's {layout.arch} has no place for.")
            if dtype not in DTYPES:
                raise Unsupported(f"{path}: {origin} is {dtype}, and GGUF export reads {', '.join(DTYPES)} only.")
            turned = heads.get(origin.split(".")[-2], 0) if layout.interleaved else 0
            found[origin] = Tensor(name, origin, path, offset, dtype, shape, turned, changes.of(origin))
    return list(found.values())


def _parameter(source: Source, origin: str, parameters: set[str], held: set[str]) -> str | None:
    """The parameter that llama.cpp is to read a tensor as; None where it has the values of another tensor.

    Arguments:
        parameters: names in the model. held: names in the files.

    Raises:
        ValueError: if the tensor is named otherwise than the model's parameters are.
    """
    prefixed = f"{source.skeleton.base_model_prefix}.{origin}"  # a file of the model without its head has no prefix
    name = origin if origin in parameters else prefixed
    if name not in parameters:
        raise Unsupported(
            f"{source.model} names a tensor {origin}, and its model has no parameter of that name. Load the model with "
            "transformers, save it again, and export that."
        )
    embedding = (source.skeleton.all_tied_weights_keys or {}).get(name)
    if embedding is None or name in source.contents.untied:
        return name
    # llama.cpp takes the embedding where there is no output; a file may hold the tied weights as the output only
    without_prefix = embedding.removeprefix(f"{source.skeleton.base_model_prefix}.")
    return None if held & {embedding, without_prefix} else embedding


def _entries(path: Path) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    """Name, type, shape and first byte of each tensor of a safetensors file, in the order of the data."""
    with open(path, "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(size))
    header.pop("__metadata__", None)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        yield name, entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0]


def stored_as(tensor: Tensor, quantization: Any) -> Any:
    """The type of a tensor in the file; float16 where its rows are no whole number of blocks, as llama.cpp does."""
    import gguf

    if tensor.plain:
        return gguf.GGMLQuantizationType.F32
    whole = tensor.shape[-1] % gguf.GGML_QUANT_SIZES[quantization][0] == 0
    return quantization if whole else gguf.GGMLQuantizationType.F16


def stored_size(tensor: Tensor, quantization: Any) -> int:
    """Its bytes there."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[stored_as(tensor, quantization)]
    return int(np.prod(tensor.shape, dtype=np.int64)) // block * int(size)


class Stream:
    """Tensor data behind the header that a `gguf.GGUFWriter` wrote; declare all tensors first, then write them."""

    def __init__(self, writer: Any, quantization: Any) -> None:
        self.writer = writer
        self.quantization = quantization

    def declare(self, tensor: Tensor) -> None:
        kind, size = stored_as(tensor, self.quantization), stored_size(tensor, self.quantization)
        self.writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size, kind)

    def write(self, tensor: Tensor) -> None:
        """Convert and append one tensor.

        Raises:
            ValueError: if it is not finite, at the source or in float16.
        """
        self.append(_converted(tensor, stored_as(tensor, self.quantization)))

    def append(self, blocks: Iterable[np.ndarray]) -> None:
        """Write the data of the next tensor as it is; not by `tofile`, whose errors do not say that a disk is full."""
        file, size = self.writer.fout[0], 0
        self.writer.write_padding(file, file.tell())
        for data in blocks:
            file.write(np.ascontiguousarray(data).data)
            size += data.nbytes
        self.writer.write_padding(file, size)


def _converted(tensor: Tensor, kind: Any) -> Iterator[np.ndarray]:
    import gguf

    for values in tensor.blocks():
        limit = np.abs(values).max(initial=0.0)
        if not np.isfinite(limit):
            raise ValueError(f"{tensor.path}: {tensor.origin} holds numbers that are not finite.")
        if kind == gguf.GGMLQuantizationType.F16 and limit >= 65520:  # what rounds to infinity
            raise ValueError(f"{tensor.origin} reaches {limit:g}, beyond float16. Use --quantize bf16 or f32.")
        yield gguf.quantize(values, kind)
