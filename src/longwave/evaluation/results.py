"""The names that a user of records needs: records, their curves and grids, and paired comparisons."""

from __future__ import annotations

from longwave.evaluation.curves import Curve, Grid, curves, grids
from longwave.evaluation.kinds import compare
from longwave.evaluation.longppl import LongPPLEvaluation
from longwave.evaluation.needle import NeedleEvaluation
from longwave.evaluation.passkey import PasskeyEvaluation
from longwave.evaluation.perplexity import PerplexityEvaluation
from longwave.evaluation.records import TASKS, Record, quantity_of, read, record, write
from longwave.evaluation.statistics import Interval

PERPLEXITY, LONGPPL = PerplexityEvaluation.schema, LongPPLEvaluation.schema
PASSKEY, NEEDLE = PasskeyEvaluation.schema, NeedleEvaluation.schema

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
