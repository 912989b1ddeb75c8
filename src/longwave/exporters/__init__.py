"""Every export target, by name. To add one: a file here and a line in EXPORTERS.

An exporter sees a `Source` (files of the plain model) and a `Snapshot` (frequencies at one t), never a method.
"""

from __future__ import annotations

import difflib

from longwave.exporters.base import Answer, EngineMissing, Exporter
from longwave.exporters.ctranslate2 import CTranslate2
from longwave.exporters.gguf import GGUF
from longwave.exporters.hf import HF

__all__ = ["EXPORTERS", "Answer", "EngineMissing", "Exporter", "get_exporter"]

EXPORTERS: dict[str, Exporter] = {exporter.name: exporter for exporter in (HF(), GGUF(), CTranslate2())}


def get_exporter(name: str) -> Exporter:
    """Look a target up; an unknown name is a `ValueError` that offers the nearest one."""
    if name in EXPORTERS:
        return EXPORTERS[name]
    near = difflib.get_close_matches(name.lower(), EXPORTERS, n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown export target {name!r}. {hint}Available: {', '.join(EXPORTERS)}.")
