"""Every export target, by name. To add one: a folder or file here and a line in EXPORTERS.

An exporter sees a `Source` (files of the plain model) and a `Snapshot` (frequencies at one t), never a method.
"""

from __future__ import annotations

from longwave.exporters.base import Answer, EngineMissing, Exporter, Plan, Unsupported
from longwave.exporters.ctranslate2 import CTranslate2
from longwave.exporters.gguf import GGUF
from longwave.exporters.hf import HF
from longwave.names import look_up

__all__ = ["EXPORTERS", "Answer", "EngineMissing", "Exporter", "Plan", "Unsupported", "get_exporter"]

EXPORTERS: dict[str, Exporter] = {exporter.name: exporter for exporter in (HF(), GGUF(), CTranslate2())}


def get_exporter(name: str) -> Exporter:
    """Look a target up; an unknown name is a `ValueError` that offers the nearest one."""
    return look_up("export target", name, EXPORTERS)
