"""How a model is trained by default. docs/LOG.md has the measurements."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# The weights follow t by a LoRA, each head has a mass and a temperature, and windows are short: half of the
# micro-batches are real windows of 2 L up to the train length, the others are rows of 2 L tokens whose positions skip.
SHORT: Mapping[str, Any] = MappingProxyType(
    {
        "head_scalars": True,
        "lora": "auto",
        "row_length": "auto",
        "long_share": 0.5,
        "least_factor": 4.0,
        "chunks": 8,
        "steps": 160,
    }
)
