"""What a Hugging Face folder will hold. Its config is tried on a model without weights."""

from __future__ import annotations

import inspect
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from longwave.checkpoints.plain import skeleton
from longwave.checkpoints.rewriting import copy_weights
from longwave.exporters.base import Plan, Unsupported
from longwave.exporters.changes import Changes
from longwave.exporters.companions import code_notes, copy_beside
from longwave.exporters.hf.config import hf_config, unknown_key
from longwave.exporters.notes import ROUNDING, partial_heads, refuse_quantized, stored_type, weight_notes
from longwave.exporters.source import Source
from longwave.extensions.sites import find_sites
from longwave.extensions.standin import frequency_name
from longwave.files import write_json
from longwave.layout import CONFIG
from longwave.trajectory import Snapshot


@dataclass(frozen=True, eq=False)
class FolderPlan(Plan):
    """The files of the source, and a config in the place of its own; `wide` for weights in float32."""

    source: Source
    snapshot: Snapshot
    config: dict[str, Any]
    changes: Changes
    wide: bool

    def write(self, folder: Path) -> None:
        copy_weights(self.source.model, folder, self.source.dropped, self.changes.of, wide=self.wide)
        copy_beside(self.source, self.snapshot, folder)
        write_json(folder / CONFIG, self.config)


def plan_folder(source: Source, snapshot: Snapshot, *, wide: bool = False) -> FolderPlan:
    """The files of a model. A plain model is built from the config: some families do not read `longrope` as others do.

    Raises:
        Unsupported: if the model does not get these frequencies from a config.
    """
    if wide:
        refuse_quantized(source, "float32")
    reason = unknown_key(source)
    config = {} if reason else hf_config(source, snapshot, wide=wide)
    reason = reason or _misread(config, source, snapshot)
    if reason:
        raise Unsupported(f"{source.model_type} cannot express these frequencies in a transformers config: {reason}")
    changes = source.changes(snapshot)
    # for another build or other numbers of threads, that is: here the difference of weights that are copied is 0
    stored = stored_type(source)
    rounding = ROUNDING.get("float32" if wide else stored, 1.0)
    return FolderPlan(
        notes=[*_notes(source, snapshot), *changes.notes(), *_rounded(changes, stored, wide)],
        size=sum(path.stat().st_size for path in source.shards) * (2 if wide and stored != "float32" else 1),
        tolerance=rounding if changes.names else rounding / 100,
        source=source,
        snapshot=snapshot,
        config=config,
        changes=changes,
        wide=wide,
    )


def _rounded(changes: Changes, stored: str, wide: bool) -> list[str]:
    """That weights which change are rounded to the type of the file."""
    if wide or not changes.names or stored == "float32":
        return []
    return [f"The changed weights are rounded to {stored}, the type of the others. --quantize float32 keeps them."]


def _notes(source: Source, snapshot: Snapshot) -> list[str]:
    notes = [*weight_notes(source, kept=True), *code_notes(source), *partial_heads(source, snapshot)]
    if source.layer_type is not None:
        notes.append(
            f"{source.model_type} has one rope for each layer type: transformers reads that, vLLM and SGLang may not."
        )
    if is_interleaved(source):
        notes.append(
            f"{source.model_type} rotates neighbouring dimensions (interleaved): vLLM and SGLang refuse longrope "
            "for such models, transformers runs it."
        )
    return notes


def is_interleaved(source: Source) -> bool:
    """Whether the model's `rotate_half` takes dimensions (2i, 2i+1) for a pair, and not (i, i + d/2)."""
    module = sys.modules[type(source.rotary_module).__module__]
    rotate = getattr(module, "rotate_half", None)
    return rotate is None or bool(re.search(r"\[\.\.\., *(0|1)?::2\]", inspect.getsource(rotate)))


def _misread(config: dict[str, Any], source: Source, snapshot: Snapshot) -> str | None:
    """What is wrong with a plain model that is built from the config; None if nothing is."""
    with tempfile.TemporaryDirectory() as scratch:
        write_json(Path(scratch) / CONFIG, config)
        try:
            model = skeleton(Path(scratch))
            sites = find_sites(model)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    wanted, scaling = 1.0 / (snapshot.factors * source.rope.powers), snapshot.attention_scaling
    for site in sites:
        found = getattr(site.module, frequency_name(site.layer_type))
        if not torch.equal(found, wanted):
            return "its rotary module computes others from the factors."
        if getattr(site.module, frequency_name(site.layer_type, "attention_scaling"), 1.0) != scaling:
            return f"its rotary module takes no attention scaling of {scaling:.4f}."
    return None
