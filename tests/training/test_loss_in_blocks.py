"""The loss in blocks is the plain one: its value and every gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_config, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from longwave.extensions.sites import host_of
from longwave.training import loss as module
from longwave.training.loss import BlockwiseLoss, loss_in_blocks


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.BLOCK, "cpu", 128 * 7)  # 7 tokens: 80 are 11 blocks and a shorter one


def gradients(model: nn.Module, way: str, scale: float = 1.0, **given: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a batch; some labels are left out."""
    model.zero_grad()
    ids = torch.randint(1, 128, (2, 40), generator=torch.Generator().manual_seed(0))
    labels = torch.where(ids % 5 == 0, -100, ids)
    with loss_in_blocks(host_of(model), way):
        output = model(input_ids=ids, labels=labels, use_cache=False, **given)
    assert (output.logits is None) == (way == "on")
    (output.loss * scale).backward()
    return float(output.loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def alike(model: nn.Module, tolerance: float = 1e-6, **given: Any) -> None:
    plain, expected = gradients(model, "off", **given)
    expected = {name: gradient.clone() for name, gradient in expected.items()}
    blocks, found = gradients(model, "on", **given)
    assert blocks == pytest.approx(plain, rel=tolerance)
    assert found.keys() == expected.keys() and found
    for name, gradient in found.items():
        largest = float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name], atol=tolerance * max(1.0, largest), rtol=tolerance)


def tied(family: str) -> PreTrainedModel:
    config = tiny_config(family)
    config.tie_word_embeddings = True
    return AutoModelForCausalLM.from_config(config).float()


@pytest.mark.parametrize("items", [None, torch.tensor(500)])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "cohere", "granite"])
def test_value_and_gradients(family: str, items: torch.Tensor | None) -> None:
    """Among them soft-capped and scaled logits."""
    given = {} if items is None else {"num_items_in_batch": items}
    alike(tiny_model(family), **given)


def test_tied_embeddings_and_a_scaled_loss() -> None:
    alike(tied("llama"), scale=512.0)


@pytest.mark.parametrize("head", [False, True])
def test_a_lora_on_the_head_or_a_frozen_head(head: bool) -> None:
    targets = ["q_proj", "v_proj", *(["lm_head"] if head else [])]
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=4, target_modules=targets, init_lora_weights=False))
    alike(model)


def test_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        alike(tiny_model("llama"), tolerance=1e-2)  # bfloat16 rounds another sum


def test_sharded_heads_are_called_again_for_their_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeRO and FSDP put a head's weight together for each call of it."""
    monkeypatch.setattr(BlockwiseLoss, "_gathers", lambda self: True)
    alike(tiny_model("gemma2"))
    alike(tied("llama"))


def test_gradients_within_a_checkpointed_model() -> None:
    model = tiny_model("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    alike(model)


def test_auto_leaves_few_logits_and_evaluation_alone() -> None:
    model = tiny_model("llama")
    ids = torch.ones(1, 20, dtype=torch.long)
    with loss_in_blocks(model, "auto"):
        assert model(ids, labels=ids).logits is not None
    with loss_in_blocks(model, "on"), torch.no_grad():
        assert model(ids, labels=ids).logits is not None
    assert "forward" not in vars(model)


def test_a_head_that_needs_more_than_hidden_states_is_run_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    original = type(model).forward

    def forward(self: Any, input_ids: torch.Tensor, logits_to_keep: int = 0, **inputs: Any) -> Any:
        output = original(self, input_ids=input_ids, logits_to_keep=logits_to_keep, **inputs)
        output.logits = output.logits + input_ids.float().mean()
        return output

    monkeypatch.setattr(type(model), "forward", forward)
    ids = torch.full((1, 20), 3)
    with loss_in_blocks(model, "on"), pytest.warns(UserWarning, match="cannot run its head on hidden states alone"):
        assert model(input_ids=ids, labels=ids).logits is not None


@pytest.mark.slow
def test_a_run_with_blocks_is_a_run_without(llama, train) -> None:
    from longwave.training.metrics import read_metrics

    losses = []
    for way in ("off", "on"):
        folder = train(copy.deepcopy(llama), way, loss_blocks=way, accumulation=2)
        losses.append([row["loss"] for row in read_metrics(folder / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
