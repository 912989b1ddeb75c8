"""`clex+two-band` through `longwave.train`: the far band's frequencies are learned, and come back."""

from __future__ import annotations

import pytest
import torch

import longwave
from longwave.training.metrics import read_metrics

# The field alone, without what the recipe adds.
FIELD = {
    "method": "clex+two-band", "head_scalars": False, "lora": "none", "long_share": 0.0, "least_factor": 1.0,
    "chunks": 4,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("freeze_weights", [False, True])
def test_a_few_steps_change_the_frequencies_and_they_come_back(llama, train, freeze_weights):
    weights = {name: tensor.clone() for name, tensor in llama.state_dict().items()}
    folder = train(llama, max_factor=16, freeze_weights=freeze_weights, **FIELD)
    trained, ids = longwave.extension(llama), torch.randint(0, 256, (1, 300))
    found = trained.trajectory
    assert found.options() | {"prior": "linear", "field": "smooth"} == found.options()
    assert trained.log_n == 0.0 and trained.is_trained
    assert not torch.equal(found.inv_freq(31.5), found.prior.inv_freq(31.5))
    same = [torch.equal(llama.state_dict()[name], tensor) for name, tensor in weights.items()]
    assert all(same) if freeze_weights else not any(same)
    assert all(row["field_grad_norm"] > 0 for row in read_metrics(folder / "metrics.jsonl"))
    again = longwave.load(folder)
    assert longwave.extension(again).spec == "clex+two-band"
    with torch.no_grad():
        assert torch.equal(longwave.extension(again).trajectory.inv_freq(31.5), found.inv_freq(31.5))
        assert torch.equal(again(ids).logits, llama(ids).logits)


def test_frozen_weights_and_windows_within_l(llama, train):
    """A micro-batch at t = 1 runs the plain model: it has nothing to teach the field, and stops no training."""
    start = longwave.extend(llama, "clex+two-band", max_factor=8)
    before = longwave.extension(start).trajectory.inv_freq(8.0).detach()
    folder = train(llama, freeze_weights=True, short_share=1.0, **FIELD)
    assert all(row["field_grad_norm"] == 0 for row in read_metrics(folder / "metrics.jsonl"))
    assert torch.equal(longwave.extension(llama).trajectory.inv_freq(8.0), before)


@pytest.mark.slow
def test_taken_further_with_what_it_has_learned(llama, train):
    settings = {**FIELD, "freeze_weights": True, "options": {"cosines": 2}}
    first = train(llama, "first", **settings)
    learned = longwave.extension(llama).trajectory.inv_freq(15.5).detach()
    second = train(first, "second", **settings | {"field_lr": 0.0})
    trajectory = longwave.extension(longwave.load(second)).trajectory
    assert trajectory.options()["cosines"] == 2
    assert torch.equal(trajectory.inv_freq(15.5).detach(), learned)
    with pytest.raises(ValueError, match="learned its frequencies with cosines 2, not 3"):
        train(first, "third", **settings | {"options": {"cosines": 3}})
