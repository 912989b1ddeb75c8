"""What CTranslate2's folder will hold, checked before the converter loads the model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from longwave.exporters.base import Plan, Unsupported
from longwave.exporters.changes import Changes
from longwave.exporters.companions import code_notes, copy_beside
from longwave.exporters.ctranslate2.convert import converted
from longwave.exporters.ctranslate2.families import check_family
from longwave.exporters.ctranslate2.rope import Su, lengths_for
from longwave.exporters.notes import (
    ROUNDING,
    partial_heads,
    quantization_of,
    refuse_quantized,
    stored_type,
    weight_notes,
)
from longwave.exporters.source import Source, head_dim
from longwave.trajectory import Snapshot

KEEP = "keep"  # the type that the weights have


@dataclass(frozen=True, eq=False)
class ConversionPlan(Plan):
    """A conversion by the library.

    Arguments:
        rope: of every layer.
        quantize: None to keep the type of the weights.
    """

    source: Source
    snapshot: Snapshot
    rope: Su
    quantize: str | None
    changes: Changes

    def write(self, folder: Path) -> None:
        """Convert the weights, put the factors in, copy the tokenizer.

        Raises:
            Unsupported: if the library's loader does not take the model.
        """
        spec = converted(self.source, self.rope, self.quantize, self.changes)
        copy_beside(self.source, self.snapshot, folder)
        spec.save(str(folder))


def plan_conversion(source: Source, snapshot: Snapshot, quantize: str) -> ConversionPlan:
    """The conversion of a model.

    Raises:
        Unsupported: for a family, a window or an attention scaling that the engine does not have.
    """
    refuse_quantized(source, "ctranslate2")
    if method := quantization_of(source):
        raise Unsupported(
            f"config.json of {source.model_type} asks for quantization ({method}), and ctranslate2 export loads the "
            "plain model. Remove quantization_config from config.json."
        )
    check_family(source, snapshot)
    base = source.rope.base
    assert base is not None
    rope = Su(
        snapshot.factors.float().numpy(), base, head_dim(source.text_config), lengths_for(snapshot.attention_scaling)
    )
    keep = quantize == KEEP
    changes = source.changes(snapshot)
    return ConversionPlan(
        notes=[
            *weight_notes(source, kept=False),
            *code_notes(source),
            *partial_heads(source, snapshot),
            *changes.notes(),
        ],
        size=sum(path.stat().st_size for path in source.shards) if keep else _size(source, quantize),
        tolerance=ROUNDING.get(stored_type(source) if keep else quantize),
        source=source,
        snapshot=snapshot,
        rope=rope,
        quantize=None if keep else quantize,
        changes=changes,
    )


def _size(source: Source, quantize: str) -> int:
    bits = int(re.findall(r"\d+", quantize)[0])
    return sum(parameter.numel() for parameter in source.skeleton.parameters()) * bits // 8
