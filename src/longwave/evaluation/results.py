"""What users read, group and compare: records, their curves and grids, and paired comparisons."""

from __future__ import annotations

from longwave.evaluation.curves import Curve, Grid, curves, grids
from longwave.evaluation.kinds import compare
from longwave.evaluation.records import TASKS, Record, quantity_of, read, record, write
from longwave.evaluation.statistics import Interval

PERPLEXITY, LONGPPL = "longwave.perplexity/1", "longwave.longppl/1"
PASSKEY, NEEDLE = "longwave.passkey/1", "longwave.needle/1"

__all__ = [
    "LONGPPL",
    "NEEDLE",
    "PASSKEY",
    "PERPLEXITY",
    "TASKS",
    "Curve",
    "Grid",
    "Interval",
    "Record",
    "compare",
    "curves",
    "grids",
    "quantity_of",
    "read",
    "record",
    "write",
]
