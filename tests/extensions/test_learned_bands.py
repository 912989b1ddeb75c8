"""A learned trajectory below an attention method: how it starts, which t it sees, and where its gradients come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

import longwave
from longwave.attention import ATTENTIONS
from longwave.attention.two_band import TwoBand
from longwave.extensions.steering import steering_of

L = 64  # of the model in tests/conftest.py


def text(columns: int, rows: int = 1) -> Tensor:
    return torch.randint(1, 97, (rows, columns))


def options_of(model: LlamaForCausalLM) -> dict[str, Any]:
    return longwave.extension(model).trajectory.options()


def move(model: LlamaForCausalLM) -> None:
    """Push the field off its start."""
    torch.nn.init.normal_(longwave.extension(model).trajectory.field.down_proj, std=0.1)


def test_it_starts_as_the_attention_method_alone_bit_for_bit(llama: LlamaForCausalLM) -> None:
    texts = [text(columns) for columns in (L, L + 1, 2 * L, 300, 16 * L)]
    with torch.no_grad():
        with longwave.extended(llama, "two-band", max_factor=16):
            alone = [llama(ids).logits for ids in texts]
        longwave.extend(llama, "clex+two-band", max_factor=16)
        assert all(torch.equal(llama(ids).logits, logits) for ids, logits in zip(texts, alone, strict=True))
        assert longwave.extension(llama).log_n == 0.0
        move(llama)
        assert torch.equal(llama(texts[0]).logits, alone[0])
        assert not any(torch.equal(llama(ids).logits, logits) for ids, logits in zip(texts[1:], alone[1:], strict=True))


def test_options_come_before_what_the_attention_method_says(llama: LlamaForCausalLM) -> None:
    expected: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("clex", {}, {"prior": "ntk", "field": "bounded"}),
        ("clex+two-band", {}, {"prior": "linear", "field": "smooth", "cosines": 4}),
        ("clex+two-band", {"prior": "yarn"}, {"prior": "yarn", "field": "smooth"}),
        ("clex+two-band", {"field": "bounded"}, {"prior": "linear", "field": "bounded"}),
        ("clex+two-band", {"cosines": 2, "mass": 0.5}, {"cosines": 2}),
        ("clex+self-extend", {}, {"prior": "ntk", "field": "bounded"}),
        ("clex-paper+two-band", {}, {"prior": "ntk", "field": "additive"}),  # stays the published one
        ("yarn+two-band", {}, {"beta_fast": 32.0}),
    ]
    for spec, given, found in expected:
        with longwave.extended(llama, spec, max_factor=16, **given):
            assert options_of(llama) | found == options_of(llama), (spec, given)


def test_a_new_attention_method_says_what_is_below_it(llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Toy(TwoBand):
        name: ClassVar[str] = "toy-band"
        below: ClassVar[Any] = MappingProxyType({"prior": "yarn", "amplification": 0.5})

    monkeypatch.setitem(ATTENTIONS, "toy-band", Toy)
    longwave.extend(llama, "clex+toy-band", max_factor=4)
    assert options_of(llama) | {"prior": "yarn", "amplification": 0.5, "field": "bounded"} == options_of(llama)


@torch.no_grad()
def far_frequencies(model: LlamaForCausalLM, positions: Tensor) -> Tensor:
    """θ of the far band as the layers get it."""
    steering = steering_of(model)
    assert steering is not None
    (group,) = steering.bands.planner.plan(positions).groups
    theta: Tensor = group.spectrum.theta
    return theta


def test_training_and_evaluation_ask_the_trajectory_for_the_same_t(llama: LlamaForCausalLM) -> None:
    """f = (n - w)/(ρL - w): from 1.5 just beyond L to 31.5 at 16 L, whether n is a text's length or a drawn t·L."""
    longwave.extend(llama, "clex+two-band", max_factor=16)
    move(llama)
    handle = longwave.extension(llama)
    assert handle.attention is not None
    assert handle.trajectory.max_factor == handle.attention.factor(16.0) == 31.5
    sparse = torch.arange(L)[None]
    for t, f in ((1 + 1 / L, 1.53125), (4.0, 7.5), (16.0, 31.5), (32.0, 63.5)):
        with handle.dial.held() as dial:
            dial.set(factor=t, beyond="clamp")  # as training does; it may draw a t over max_factor
            drawn = far_frequencies(llama, sparse)
        assert torch.equal(drawn, handle.rotaries[0].frequencies.known(f).double())
        if t <= 16:
            assert torch.equal(drawn, far_frequencies(llama, torch.arange(int(t * L))[None]))


@pytest.mark.parametrize("t", [1.0, 1.5, 16.0])
def test_the_field_alone_has_a_gradient_at_every_t(llama: LlamaForCausalLM, t: float) -> None:
    """At t = 1 the plain model runs. The gradient is 0 there, and a backward pass needs one."""
    llama.requires_grad_(False).train()
    ids = text(L, 2)
    plain = llama(ids).logits
    longwave.extend(llama, "clex+two-band", max_factor=16)
    trajectory = longwave.extension(llama).trajectory
    longwave.set_policy(llama, "fixed", t)
    out = llama(ids, labels=ids)
    out.loss.backward()
    assert torch.equal(out.logits, plain) == (t == 1)
    assert all(parameter.grad is not None for parameter in trajectory.parameters())
    assert (float(trajectory.field.down_proj.grad.abs().max()) == 0) == (t == 1)


def test_gradients_through_the_bands_are_finite_differences(llama: LlamaForCausalLM) -> None:
    longwave.extend(llama.double(), "clex+two-band", max_factor=16)
    longwave.set_policy(llama, "fixed", 6.0)
    move(llama)
    field, ids = longwave.extension(llama).trajectory.field, text(150)
    for parameter in field.parameters():
        parameter.data = parameter.data.double()

    weights = torch.randn(1, 150, 256, dtype=torch.float64)

    def measured() -> Tensor:  # not the loss, which transformers computes in float32
        return (llama(ids).logits * weights).sum()

    measured().backward()
    bias, step, found = field.down_bias, 1e-3, []
    with torch.no_grad():
        for index in range(len(bias)):
            ends = []
            for sign in (1, -2):
                bias[index] += sign * step
                ends.append(float(measured()))
            bias[index] += step
            found.append((ends[0] - ends[1]) / (2 * step))
    most = float(bias.grad.abs().max())
    assert most > 0
    torch.testing.assert_close(bias.grad, torch.tensor(found, dtype=bias.dtype), rtol=0.05, atol=0.05 * most)


def test_saved_and_loaded(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    longwave.extend(llama, "clex+two-band", max_factor=16, cosines=3)
    move(llama)
    ids = text(200)
    longwave.save(llama, tmp_path / "out")
    again = longwave.load(tmp_path / "out")
    assert longwave.extension(again).spec == "clex+two-band"
    assert options_of(again) == options_of(llama)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, llama(ids).logits)
