"""Every evaluation, by name. To add one: a file with its class, and a line in EVALUATIONS."""

from __future__ import annotations

from typing import Any

from longwave.evaluation.base import Evaluation
from longwave.evaluation.longppl import LongPPLEvaluation
from longwave.evaluation.needle import NeedleEvaluation
from longwave.evaluation.passkey import PasskeyEvaluation
from longwave.evaluation.perplexity import PerplexityEvaluation

EVALUATIONS: dict[str, Evaluation[Any]] = {
    evaluation.name: evaluation
    for evaluation in (
        PerplexityEvaluation(),
        PasskeyEvaluation(),
        NeedleEvaluation(),
        LongPPLEvaluation(),
    )
}
