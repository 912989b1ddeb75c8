"""What one GGUF file will hold: layout, frequencies, tensors and vocabulary, found once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longwave.errors import install
from longwave.exporters.base import Plan
from longwave.exporters.gguf.frequencies import Frequencies, frequencies
from longwave.exporters.gguf.layout import Layout, check_window, layout_of
from longwave.exporters.gguf.metadata import add_metadata
from longwave.exporters.gguf.tensors import Stream, Tensor, find_tensors, stored_size
from longwave.exporters.gguf.tokenizer import read_vocabulary
from longwave.exporters.gguf.vocabulary import Vocabulary
from longwave.exporters.notes import ROUNDING, partial_heads, refuse_quantized, weight_notes
from longwave.exporters.source import Source
from longwave.trajectory import Snapshot

TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}  # those that round, and do not quantize


@dataclass(frozen=True, eq=False)
class FilePlan(Plan):
    """One file.

    Arguments:
        name: `general.name`.
        kind: a `gguf.GGMLQuantizationType`.
    """

    source: Source
    snapshot: Snapshot
    name: str
    kind: Any
    layout: Layout
    frequencies: Frequencies
    tensors: list[Tensor]
    vocabulary: Vocabulary

    def write(self, folder: Path) -> None:
        writer = gguf_package().GGUFWriter(folder / f"model-{self.kind.name}.gguf", self.layout.arch)
        try:
            self._add_keys(writer)
            self._write_data(writer)
        finally:
            writer.close()

    def _add_keys(self, writer: Any) -> None:
        gguf = gguf_package()
        add_metadata(writer, self.source, self.snapshot, self.frequencies)
        full = self.kind == gguf.GGMLQuantizationType.F32
        writer.add_file_type(gguf.LlamaFileType["ALL_F32" if full else f"MOSTLY_{self.kind.name}"])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_name(self.name)
        self.vocabulary.add_to(writer)

    def _write_data(self, writer: Any) -> None:
        found = self.frequencies.factors
        factors = {} if found is None else dict.fromkeys(self.layout.factors, found.float().numpy())
        for tensor, data in factors.items():
            writer.add_tensor_info(tensor, data.shape, data.dtype, data.nbytes)
        stream = Stream(writer, self.kind)
        for entry in self.tensors:
            stream.declare(entry)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for data in factors.values():
            stream.append([data])
        for entry in self.tensors:
            stream.write(entry)
        writer.flush()
        os.fsync(writer.fout[0].fileno())


def plan_file(source: Source, snapshot: Snapshot, quantize: str) -> FilePlan:
    """The file of a model.

    Raises:
        Unsupported: if llama.cpp does not run the model or its tokenizer as transformers does.
    """
    kind = gguf_package().GGMLQuantizationType[quantize.upper()]
    refuse_quantized(source, "gguf")
    layout = layout_of(source)
    check_window(source, snapshot)
    values = frequencies(source, snapshot, layout)
    changes = source.changes(snapshot)
    tensors = find_tensors(source, layout, changes)
    vocabulary = _vocabulary(source)
    own = Path(source.path).resolve().name
    name = vocabulary.file_name(own)
    notes = [*weight_notes(source, kept=False), *vocabulary.notes, *partial_heads(source, snapshot), *changes.notes()]
    if name != own:
        notes.append(
            f"general.name is {name!r}, not {own!r}: llama.cpp decides by phi-3, phi3 or modern-bert in the name how "
            "it reads special tokens."
        )
    return FilePlan(
        notes=notes,
        size=sum(stored_size(tensor, kind) for tensor in tensors),
        tolerance=ROUNDING.get(TYPES.get(quantize, "")),
        source=source,
        snapshot=snapshot,
        name=name,
        kind=kind,
        layout=layout,
        frequencies=values,
        tensors=tensors,
        vocabulary=vocabulary,
    )


def gguf_package() -> Any:
    """The package that knows the format."""
    try:
        import gguf
    except ImportError:
        raise ValueError(f"GGUF export needs the package gguf. Run: {install('gguf')}.") from None
    return gguf


def _vocabulary(source: Source) -> Vocabulary:
    ends = source.text_config.eos_token_id
    end = ends[0] if isinstance(ends, list) and ends else ends
    return read_vocabulary(source.tokenizer, source.text_config.vocab_size, end if isinstance(end, int) else None)
