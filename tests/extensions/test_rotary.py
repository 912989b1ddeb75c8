"""The rotary module alone: frequencies, positions and angles, and what may never go stale."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import tiny_model
from torch import Tensor, nn
from transformers import GPTNeoXForCausalLM, LlamaForCausalLM

import longwave
from longwave.extensions.rotary import ScaledRotary

L = 64


def rotary_of(model: nn.Module, method: str = "clex", **options: object) -> ScaledRotary:
    longwave.extend(model, method, max_factor=8, **options)
    (rotary,) = longwave.rotaries(model)
    return rotary


def random_field(rotary: ScaledRotary, std: float = 0.3) -> None:
    """A trajectory that has left its prior, as training would."""
    for parameter in rotary.trajectory.parameters():
        nn.init.normal_(parameter, std=std)


def at(rotary: ScaledRotary, factor: float | Tensor | None, positions: Tensor, dtype=torch.float32) -> tuple:
    rotary.factor = factor
    return rotary(torch.zeros(positions.shape[0], positions.shape[1], 8, dtype=dtype), positions)


@pytest.mark.parametrize("factor", [1.0, 2.0, 3.7])
@pytest.mark.parametrize("method", ["ntk", "yarn", "clex"])
def test_cos_and_sin_are_those_of_the_trajectory(llama: LlamaForCausalLM, method: str, factor: float) -> None:
    rotary = rotary_of(llama, method)
    random_field(rotary)
    positions = torch.arange(300)[None]
    with torch.no_grad():
        cos, sin = at(rotary, factor, positions)
    angle = positions[..., None].double() * rotary.trajectory.inv_freq(factor).detach()
    scaling = rotary.trajectory.attention_scaling(factor)
    torch.testing.assert_close(cos[..., :8].double(), angle.cos() * scaling, atol=3e-5, rtol=0)
    torch.testing.assert_close(sin[..., 8:].double(), angle.sin() * scaling, atol=3e-5, rtol=0)


@pytest.mark.parametrize("gradients", [True, False])
def test_t_1_is_bitwise_the_base(llama: LlamaForCausalLM, gradients: bool) -> None:
    rotary = rotary_of(llama)
    random_field(rotary)
    positions = torch.arange(L)[None]
    with torch.set_grad_enabled(gradients):
        ours, theirs = at(rotary, 1.0, positions), rotary.base(torch.zeros(1), positions)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_partial_rotation_is_the_bases_business(neox: GPTNeoXForCausalLM) -> None:
    rotary = rotary_of(neox, "ntk")
    cos, _ = at(rotary, 2.0, torch.arange(L)[None])
    assert cos.shape == (1, L, 8)


def test_schedule_gives_t_from_the_largest_position(llama: LlamaForCausalLM) -> None:
    rotary = rotary_of(llama, "linear")
    for length, factor in ((L, 1.0), (80, 1.25), (2 * L, 2.0), (8 * L, 8.0)):
        positions = torch.arange(length)[None]
        assert torch.equal(at(rotary, None, positions)[0], at(rotary, factor, positions)[0])


def test_local_layers_keep_their_rotation() -> None:
    model = tiny_model("gemma3_text")
    plain = copy.deepcopy(model.model.rotary_emb)
    longwave.set_policy(longwave.extend(model, "ntk", max_factor=8), "fixed", 4.0)
    x, positions = torch.zeros(1, 20, 64), torch.arange(20)[None]
    for layer_type, same in (("sliding_attention", True), ("full_attention", False)):
        ours, theirs = model.model.rotary_emb(x, positions, layer_type), plain(x, positions, layer_type)
        assert torch.equal(ours[0], theirs[0]) is same


def test_defect_length_beyond_the_maximum_without_message(llama: LlamaForCausalLM) -> None:
    rotary = rotary_of(llama, "ntk")
    at(rotary, None, torch.arange(8 * L)[None])
    for factor in (None, 8.0):
        with pytest.raises(ValueError, match=r"513 tokens is longer than 512 = max_factor 8 x 64"):
            at(rotary, factor, torch.arange(8 * L + 1)[None])
    rotary.beyond = "clamp"
    positions = torch.arange(8 * L + 9)[None]
    assert torch.equal(at(rotary, None, positions)[0], at(rotary, 8.0, positions)[0])


def test_defect_one_t_per_batch(llama: LlamaForCausalLM) -> None:
    """Officially one t for all rows, unsaid. Here: the longest row's, or one t per row where asked."""
    rotary = rotary_of(llama)
    random_field(rotary)
    positions = torch.arange(100)[None].expand(4, -1)
    factors = torch.tensor([3.0, 1.0, 3.0, 2.5])
    cos, _ = at(rotary, factors, positions)
    for row, factor in enumerate(factors.tolist()):
        assert torch.equal(cos[row], at(rotary, factor, positions[:1])[0][0])
    assert torch.equal(at(rotary, factors, positions[:1].expand(4, -1))[0], cos)
    with pytest.raises(ValueError, match=r"shape \(4,\) but the batch has 3 rows"):
        at(rotary, factors, positions[:3])


def test_per_row_t_with_shared_position_ids(llama: LlamaForCausalLM) -> None:
    rotary = rotary_of(llama, "ntk")
    rotary.factor = torch.tensor([1.0, 2.0])
    cos, _ = rotary(torch.zeros(2, 10, 8), torch.arange(10)[None])
    assert cos.shape == (2, 10, 16) and not torch.equal(cos[0], cos[1])


@pytest.mark.parametrize("write", ["optimizer", "load_state_dict", "data"])
def test_defect_stale_cache_after_a_weight_update(llama: LlamaForCausalLM, write: str) -> None:
    rotary = rotary_of(llama)
    positions = torch.arange(200)[None]
    with torch.no_grad():
        before = at(rotary, 3.0, positions)[0]
    if write == "optimizer":
        for parameter in rotary.trajectory.parameters():
            parameter.grad = torch.ones_like(parameter)
        torch.optim.SGD(rotary.trajectory.parameters(), lr=0.1).step()
    elif write == "load_state_dict":
        random_state = {name: torch.randn_like(value) for name, value in rotary.trajectory.state_dict().items()}
        rotary.trajectory.load_state_dict(random_state)
    else:
        for parameter in rotary.trajectory.parameters():
            parameter.data.copy_(torch.randn_like(parameter))
    with torch.no_grad():
        after = at(rotary, 3.0, positions)[0]
    angle = positions[..., None].double() * rotary.trajectory.inv_freq(3.0).detach()
    expected = angle.cos() * rotary.trajectory.attention_scaling(3.0)
    torch.testing.assert_close(after[..., :8].double(), expected, atol=3e-5, rtol=0)
    assert not torch.equal(before, after)


def test_frequencies_are_solved_once_per_t(llama: LlamaForCausalLM) -> None:
    rotary = rotary_of(llama)
    with torch.no_grad():
        first = rotary.frequencies.at(2.0)
        assert rotary.frequencies.at(2.0) is first
        assert rotary.frequencies.at(3.0) is not first


def test_defect_inv_freq_rounded_by_bfloat16(llama: LlamaForCausalLM) -> None:
    rotary = rotary_of(llama)
    random_field(rotary)
    positions = torch.arange(500)[None]
    with torch.no_grad():
        exact = [at(rotary, factor, positions)[0] for factor in (1.0, 4.0)]
        llama.to(torch.bfloat16)
        for factor, cos in zip((1.0, 4.0), exact, strict=True):
            assert torch.equal(at(rotary, factor, positions)[0], cos)
            assert torch.equal(at(rotary, factor, positions, torch.bfloat16)[0], cos.bfloat16())
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(at(rotary, factor, positions)[0], cos)
    assert rotary.inv_freq.dtype == torch.float32


def test_autocast_leaves_the_gradient_exact(llama: LlamaForCausalLM) -> None:
    rotary = rotary_of(llama)
    random_field(rotary)
    parameter = next(rotary.trajectory.parameters())
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            cos, _ = at(rotary, 4.0, torch.arange(100)[None])
        (gradient,) = torch.autograd.grad(cos.sum(), parameter)
        gradients.append(gradient)
    assert torch.equal(*gradients)


def test_defect_no_gradient_at_t_1(llama: LlamaForCausalLM) -> None:
    """Every parameter is in the graph, so that data-parallel training finds none unused; the gradient is zero."""
    rotary = rotary_of(llama)
    random_field(rotary)
    cos, _ = at(rotary, 1.0, torch.arange(L)[None])
    cos.sum().backward()
    for parameter in rotary.trajectory.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


def test_attributes_of_the_base_stay_reachable(llama: LlamaForCausalLM) -> None:
    rotary = rotary_of(llama, "ntk")
    assert rotary.config is llama.config and rotary.attention_scaling == 1.0
    with pytest.raises(AttributeError, match="no_such_thing"):
        rotary.no_such_thing  # noqa: B018


@pytest.mark.parametrize("method", ["yarn", "clex"])
def test_compiles_in_one_graph_at_a_fixed_t(llama: LlamaForCausalLM, method: str) -> None:
    rotary = rotary_of(llama, method)
    longwave.set_policy(llama, "fixed", 2.0)
    ids = torch.randint(256, (1, 100))
    compiled = torch.compile(llama, backend="eager", fullgraph=True)
    with torch.no_grad():
        for _ in range(2):  # again with other weights
            assert torch.equal(compiled(ids, use_cache=False).logits, llama(ids, use_cache=False).logits)
            random_field(rotary)
            llama.eval()  # which solves for them
    torch._dynamo.reset()


def test_extending_a_model_on_another_device_solves_there(llama: LlamaForCausalLM) -> None:
    """The constants of the solution were left on the CPU, where a model on a GPU could not use them."""
    rotary = rotary_of(llama, "ntk")
    rotary.base.inv_freq = rotary.base.inv_freq.to("meta")
    rotary.frequencies.follow()
    assert rotary.frequencies.solve(2.0).device.type == "meta"
