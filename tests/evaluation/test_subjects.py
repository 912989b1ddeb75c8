"""Which method a row is about, and that the model comes back as it was."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

import longwave
from longwave.evaluation.subjects import under
from longwave.extensions.handle import find_extension, rotaries
from longwave.methods import get_method, without_weights


@pytest.fixture
def trained(llama: LlamaForCausalLM) -> LlamaForCausalLM:
    """A `clex` whose field has left its start."""
    longwave.extend(llama, "clex", max_factor=4)
    for parameter in rotaries(llama)[0].trajectory.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return llama


def logits(model: LlamaForCausalLM, length: int = 200) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(length)[None] % 256).logits


def test_a_plain_model_is_extended_for_a_while(llama: LlamaForCausalLM) -> None:
    before = logits(llama)
    with under(llama, "ntk@static=8", [64, 256]) as subject:
        assert (subject.label, subject.max_factor, subject.own) == ("ntk@static=8", 8.0, False)
        assert rotaries(llama)[0].factor_for(64) == 8.0
    assert find_extension(llama) is None
    assert torch.equal(logits(llama), before)


def test_max_factor_has_room_for_every_length(llama: LlamaForCausalLM) -> None:
    for length in range(65, 400):
        with under(llama, "ntk", [length]) as subject:
            assert rotaries(llama)[0].max_length >= length
            assert subject.max_factor == pytest.approx(length / 64)
    with under(llama, "ntk@ceiling", [100]):
        assert rotaries(llama)[0].factor_for(100) == 2.0


def test_an_extended_model_keeps_its_own_trajectory(trained: LlamaForCausalLM) -> None:
    before, trajectory = logits(trained), rotaries(trained)[0].trajectory
    with under(trained, "clex", [256]) as subject:
        assert (subject.own, subject.label, subject.max_factor, subject.log_n) == (True, "clex", 4.0, 1.0)
        assert rotaries(trained)[0].trajectory is trajectory
    with under(trained, "clex@ceiling", [256]) as subject:
        assert subject.label == "clex@ceiling"
        assert rotaries(trained)[0].factor_for(65) == 2.0
    assert torch.equal(logits(trained), before)


def test_another_method_replaces_the_frequencies_only(trained: LlamaForCausalLM) -> None:
    before, trajectory = logits(trained), rotaries(trained)[0].trajectory
    with under(trained, "yarn", [512]) as subject:
        assert (subject.own, subject.method, subject.max_factor, subject.log_n) == (False, "yarn", 8.0, 1.0)
        assert not torch.equal(logits(trained), before)
    assert rotaries(trained)[0].trajectory is trajectory
    assert torch.equal(logits(trained), before)


def test_a_method_that_an_error_advises_works(llama: LlamaForCausalLM) -> None:
    advised = str(without_weights(get_method("clex"))).rpartition("choose among ")[2].rstrip(".").split(", ")
    assert {"ntk", "yarn"} <= set(advised)
    before = logits(llama)
    for method in advised:
        with longwave.extended(llama, method, max_factor=4):
            assert not torch.equal(logits(llama), before), method


def test_untrained_clex_is_refused(llama: LlamaForCausalLM) -> None:
    with (
        pytest.raises(ValueError, match="clex needs trained weights, and this model has none"),
        under(llama, "clex", [64]),
    ):
        pass
    longwave.extend(llama, "clex", max_factor=4)
    with pytest.raises(ValueError, match="clex needs trained weights"), under(llama, "clex", [64]):
        pass


def test_the_model_comes_back_after_an_error(trained: LlamaForCausalLM) -> None:
    before = logits(trained)
    with pytest.raises(RuntimeError), under(trained, "ntk", [64]):
        raise RuntimeError
    with pytest.raises(RuntimeError), under(trained, "clex@ceiling", [64]):
        raise RuntimeError
    assert torch.equal(logits(trained), before)
    assert rotaries(trained)[0].schedule.spec == "continuous"
