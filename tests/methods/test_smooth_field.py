"""The smooth field of CLEX: equal to its prior at the start, bounded, monotone, and alike for neighbouring pairs."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longwave.methods.clex import CLEX, PRIORS
from longwave.rope import Rope

FAR = 31.5  # what the far band of two-band asks for at 16 L
TIMES = torch.linspace(1, FAR, 50, dtype=torch.float64)


def rope(dim: int = 32) -> Rope:
    return Rope(1 / 10_000 ** (torch.arange(0, dim, 2).float() / dim), 2048, 10_000.0)


def smooth(prior: str = "linear", *, std: float = 0.0, seed: int = 0, dim: int = 32, **options: object) -> CLEX:
    """A trajectory whose field is moved off zero, with its parameters in float64."""
    torch.manual_seed(seed)
    trajectory = CLEX(rope(dim), FAR, prior=prior, field="smooth", **options)
    if std:
        torch.nn.init.normal_(trajectory.field.down_proj, std=std)
        torch.nn.init.normal_(trajectory.field.down_bias, std=std)
    for parameter in trajectory.parameters():
        parameter.data = parameter.data.double()
    return trajectory


def constant(push: float, **options: object) -> CLEX:
    """A field that pushes all pairs alike."""
    trajectory = smooth(**options)
    with torch.no_grad():
        trajectory.field.down_bias[0] = push
    return trajectory


@pytest.mark.parametrize("prior", PRIORS)
def test_a_new_one_is_its_prior_bit_for_bit_and_a_trained_one_is_at_t_1(prior):
    new, trained = smooth(prior), smooth(prior, std=1.0)
    assert torch.equal(new.log_freq(TIMES), new.prior.log_freq(TIMES))
    assert torch.equal(trained.log_freq(1.0), trained.log_freq_1)
    assert not torch.equal(trained.log_freq(2.0), trained.prior.log_freq(2.0))


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.01, 1e4), seed=st.integers(0, 100), prior=st.sampled_from(sorted(PRIORS)))
def test_stays_between_no_scaling_and_twice_the_way_of_its_prior(scale, seed, prior):
    """2·z_prior(t) - z(1) <= z(t) <= z(1) with any weights, to the error of the solver."""
    trajectory = smooth(prior, std=scale, seed=seed)
    found = trajectory.log_freq(TIMES)
    start, least = trajectory.log_freq_1, 2 * trajectory.prior.log_freq(TIMES) - trajectory.log_freq_1
    assert (found <= start + 1e-3).all() and (found >= least - 1e-3).all()
    found.sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in trajectory.parameters())


def test_reaches_below_interpolation_and_up_to_no_scaling():
    """Under Position Interpolation θ may go down to θ(1)/t², and up to θ(1): both are more than the bounded field."""
    t = 16.0
    for push, power in ((20.0, 2.0), (-20.0, 0.0), (math.atanh(0.5), 1.5)):
        moved = constant(push).log_freq(t) - rope().log_freq
        torch.testing.assert_close(moved, torch.full_like(moved, -power * math.log(t)), rtol=0, atol=1e-9)
    bounded = CLEX(rope(), FAR, prior="linear")
    torch.nn.init.constant_(bounded.field.down_bias, 100.0)
    assert (bounded.log_freq(t) - bounded.prior.log_freq(t)).abs().max() < 0.03  # the control


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("seed", range(3))
def test_theta_never_rises_with_t(prior, seed):
    for std in (0.1, 0.5):
        assert (smooth(prior, std=std, seed=seed).log_freq(TIMES).diff(dim=0) <= 1e-9).all()


def test_a_pair_that_the_prior_keeps_is_kept():
    trajectory = smooth("yarn", std=1.0)
    kept = trajectory.prior.ramp == 0
    assert kept.any() and not kept.all()
    assert torch.equal(trajectory.log_freq(8.0)[kept], trajectory.log_freq_1[kept])


def test_is_a_sum_of_few_cosines_over_the_pair_index():
    """What the field does to the pairs, with its tanh undone, is a sum of K cosines; the bounded field's is not."""
    t, pairs = torch.tensor([3.0], dtype=torch.float64), 16

    def beyond(trajectory: CLEX, push: Tensor) -> float:
        index = torch.arange(pairs, dtype=torch.float64) + 0.5
        every = torch.stack([(math.pi * k * index / pairs).cos() for k in range(pairs)], dim=1)
        shares = torch.linalg.solve(every, push)
        return float(shares[4:].abs().max() / shares.abs().max())

    trajectory = smooth(std=0.3)
    slope = trajectory.field(t, trajectory.log_freq(3.0))
    assert beyond(trajectory, slope.neg().atanh()) < 1e-9  # ρ = 1 under Position Interpolation
    torch.manual_seed(0)
    bounded = CLEX(rope(), FAR, prior="linear")
    torch.nn.init.normal_(bounded.field.down_proj, std=0.3)
    assert beyond(bounded, bounded.field(t, bounded.log_freq(3.0)).double()) > 0.1
    one = smooth(std=0.3, cosines=1)
    moved = one.log_freq(8.0) - one.prior.log_freq(8.0)
    torch.testing.assert_close(moved, moved[:1].expand(pairs), rtol=1e-12, atol=1e-12)


def test_has_few_parameters():
    def size(**options: object) -> int:
        return sum(parameter.numel() for parameter in CLEX(rope(128), 16, **options).parameters())

    assert size(field="smooth") < size() / 10
    assert size(field="smooth", cosines=2) < size(field="smooth")


@pytest.mark.parametrize("prior", PRIORS)
def test_default_steps_follow_a_trained_field(prior):
    """Fields that move ln θ by 1 to 2, as far as trained ones do, are solved to 5e-5."""
    for std in (0.1, 0.3):
        trajectory = smooth(prior, std=std)
        exact = CLEX(rope(), FAR, prior=prior, field="smooth", solver="dopri5")
        exact.load_state_dict(trajectory.state_dict(), assign=True)
        torch.testing.assert_close(trajectory.log_freq(FAR), exact.log_freq(FAR), rtol=0, atol=5e-5)
    assert (exact.log_freq(FAR) - exact.prior.log_freq(FAR)).abs().max() > 1


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_solver_converges_with_its_order(solver, order):
    trained = smooth("ntk", std=0.3)

    def solved(**options: object) -> Tensor:
        other = CLEX(rope(), FAR, prior="ntk", field="smooth", **options)
        other.load_state_dict(trained.state_dict(), assign=True)
        return other.log_freq(16.0).detach()

    exact = solved(solver="rk4", steps=512)
    coarse, fine = ((solved(solver=solver, steps=n) - exact).abs().max().item() for n in (16, 32))
    assert math.log2(coarse / fine) > order - 0.4


@pytest.mark.parametrize("prior", PRIORS)
def test_gradcheck(prior):
    small = Rope(1 / 100 ** (torch.arange(0, 10, 2).double() / 10), 64, 100.0)
    torch.manual_seed(1)
    trajectory = CLEX(small, 8, prior=prior, field="smooth", steps=3)
    torch.nn.init.normal_(trajectory.field.down_proj, std=0.1)
    names, values = zip(*trajectory.named_parameters(), strict=True)

    def inv_freq(*parameters: Tensor) -> Tensor:
        return torch.func.functional_call(trajectory, dict(zip(names, parameters, strict=True)), (5.0,))

    trajectory.forward = trajectory.inv_freq
    assert torch.autograd.gradcheck(inv_freq, tuple(value.detach().double().requires_grad_() for value in values))


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("t", [1.0, 1.7, 16.0])
def test_rate_is_the_derivative_of_log_freq(prior, t):
    trajectory = smooth(prior, std=0.1)
    autodiff = torch.autograd.functional.jacobian(trajectory.log_freq, torch.tensor(t, dtype=torch.float64))
    torch.testing.assert_close(trajectory.rate(t), autodiff, rtol=1e-4, atol=1e-6)  # the solver's error


def test_options_rebuild_it_and_the_parameters_have_a_gradient_of_zero_at_t_1():
    trajectory = smooth("ntk", std=0.3, cosines=6)
    again = CLEX(rope(), FAR, **trajectory.options())
    assert not torch.equal(again.inv_freq(6.5), trajectory.inv_freq(6.5))
    again.load_state_dict(trajectory.state_dict(), assign=True)
    assert torch.equal(again.inv_freq(6.5), trajectory.inv_freq(6.5))
    assert smooth().options()["cosines"] == 4 and "cosines" not in CLEX(rope(), FAR).options()
    trajectory.inv_freq(1.0).sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in trajectory.parameters())


@pytest.mark.parametrize("cast", ["bfloat16", "autocast", "meta"])
def test_precision_survives_casts(cast):
    trajectory = smooth(std=0.3)
    before = trajectory.inv_freq(7.3).detach()
    if cast == "meta":
        assert {each.dtype for each in trajectory.to("meta").to_empty(device="cpu").buffers()} == {torch.float64}
    elif cast == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(trajectory.inv_freq(7.3), before)
    else:
        assert torch.equal(trajectory.bfloat16().inv_freq(7.3), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"field": "smooth", "cosines": 0}, "between 1 and the 16 pairs, got 0"),
        ({"field": "smooth", "cosines": 17}, "got 17"),
        ({"field": "smooth", "cosines": 2.5}, "whole number"),
        ({"field": "smooth", "cosines": True}, "got True"),
        ({"cosines": 4}, "got field 'bounded'. Leave cosines out"),
        ({"field": "smoth"}, "Did you mean"),
    ],
)
def test_bad_options_name_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        CLEX(rope(), 16, **options)


def test_fewer_pairs_than_cosines():
    assert smooth(dim=6).options()["cosines"] == 3
