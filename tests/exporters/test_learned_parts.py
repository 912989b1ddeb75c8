"""Exports of models whose weights follow t: learned exponents of log-n and an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import longwave
from longwave.extensions.adapter import LoRA

FACTOR = 4.0
PARTS: dict[str, dict[str, Any]] = {"heads": {"head_scalars": True}, "adapter": {"adapter": LoRA(4, 2.0)}}


def learned(model: PreTrainedModel, method: str = "ntk", *, equal: bool = False, **parts: Any) -> PreTrainedModel:
    """Extended, with parts that are far from their start, as training would leave them."""
    longwave.extend(model, method, max_factor=2 * FACTOR, **(parts or PARTS["heads"] | PARTS["adapter"]))
    handle = longwave.extension(model)
    with torch.no_grad():
        for parameter in handle.learned["adapter"]:
            parameter.normal_(std=0.2)
        for parameter in handle.learned["heads"]:
            parameter.fill_(1.5) if equal else parameter.uniform_(0.5, 3)
    return model.eval()


@pytest.mark.parametrize("part", PARTS)
def test_a_snapshot_refuses_what_it_cannot_hold(part: str, llama: LlamaForCausalLM) -> None:
    learned(llama, **PARTS[part])
    with pytest.raises(ValueError, match="no snapshot can express"):
        longwave.snapshot(llama, FACTOR)


@pytest.mark.parametrize("part", PARTS)
def test_an_export_refuses_what_it_does_not_know(
    part: str, llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    own = longwave.save(learned(llama, **PARTS[part]), tmp_path / "own", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="does not know"):
        longwave.export(own, tmp_path / "out", factor=FACTOR)
    with pytest.raises(ValueError, match="does not know"), longwave.frozen(llama, FACTOR):
        pass
