"""Every causal-LM type of the installed transformers, built tiny, extended, differentiated, restored."""

from __future__ import annotations

import pytest
from tiny import model_types
from zoo import examine

# What docs/architectures.md lists; other versions of transformers have other types, so this is a floor.
FLOOR = 95
BANDS = 72


@pytest.mark.slow
def test_every_model_type_is_extended_exactly_or_refused_clearly() -> None:
    findings = [examine(model_type) for model_type in model_types()]
    attached = [finding for finding in findings if finding.attached]
    assert [f for f in attached if not (f.exact and f.scaled and f.gradient)] == []
    assert len(attached) >= FLOOR
    assert sum(finding.log_n for finding in attached) >= FLOOR
    refused = [finding.reason for finding in findings if finding.built and not finding.attached]
    assert [reason for reason in refused if "has no rotary module to extend: it has" not in reason] == []
    without_log_n = [finding.reason for finding in attached if not finding.log_n]
    assert [reason for reason in without_log_n if not reason.endswith("Pass log_n=False.")] == []
    assert sum(finding.bands for finding in attached) >= BANDS
    without_bands = [finding.without_bands for finding in attached if not finding.bands]
    assert [reason for reason in without_bands if "cannot have an attention method: " not in reason] == []


@pytest.mark.parametrize("model_type", ["gemma3_text", "phimoe", "deepseek_v4", "moshi", "granite_swa", "lfm3"])
def test_rotary_modules_of_every_kind(model_type: str) -> None:
    """Per layer type, recomputed in forward, two rope labels, one module per layer, a list of modules, zero pairs."""
    finding = examine(model_type)
    assert (finding.attached, finding.exact, finding.scaled, finding.gradient) == (True,) * 4, finding.reason
