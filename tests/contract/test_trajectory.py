"""What every method promises, checked on every method in METHODS."""

import copy

import pytest
import torch
from torchdiffeq import odeint

from longwave.methods import METHODS
from longwave.rope import Rope
from longwave.trajectory import Trajectory

DIM, LENGTH, MAX_FACTOR = 32, 2048, 16.0
CLOSED = [name for name, method in METHODS.items() if not method.trained]
TRAINED = [name for name, method in METHODS.items() if method.trained]


def rope(base: float = 10_000.0) -> Rope:
    return Rope(1 / base ** (torch.arange(0, DIM, 2).float() / DIM), LENGTH, base)


def build(name: str, *, moved: bool = True, **options: object) -> Trajectory:
    """The method on a common rope; a learned field is moved off zero so that it has something to show."""
    options |= {"long_factor": torch.linspace(1, 20, DIM // 2).tolist()} if name == "longrope" else {}
    torch.manual_seed(0)
    trajectory = METHODS[name].build(rope(), MAX_FACTOR, **options)
    if moved and METHODS[name].trained:
        torch.nn.init.normal_(trajectory.field.down_proj, std=0.003 if name == "clex-paper" else 0.3)
    for parameter in trajectory.parameters():  # float32 noise would drown the finite differences
        parameter.data = parameter.data.double()
    return trajectory


@pytest.mark.parametrize("name", METHODS)
def test_t_1_is_the_pretrained_frequency_bit_for_bit(name):
    assert torch.equal(build(name).inv_freq(1.0).float(), rope().inv_freq.float())
    assert build(name).attention_scaling(1.0) == 1.0


@pytest.mark.parametrize("name", METHODS)
def test_frequencies_are_positive_and_finite(name):
    inv_freq = build(name).inv_freq(torch.linspace(1, MAX_FACTOR, 50))
    assert inv_freq.shape == (50, DIM // 2)
    assert torch.isfinite(inv_freq).all()
    assert (inv_freq > 0).all()


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_never_speed_up_with_t(name):
    log_freq = build(name).log_freq(torch.linspace(1, MAX_FACTOR, 200, dtype=torch.float64))
    assert (log_freq.diff(dim=0) <= 1e-12).all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("t", [1.0, 1.7, 5.0, 16.0])
def test_rate_is_the_derivative_of_log_freq(name, t):
    # From YaRN: where NTK's rate passes 1, the clip of the field has kinks, and no step size differentiates a kink.
    trajectory = build(name, **({"prior": "yarn"} if name == "clex" else {}))
    at = torch.tensor(t, dtype=torch.float64)
    autodiff = torch.autograd.functional.jacobian(trajectory.log_freq, at)
    step = 1e-5
    finite = (trajectory.log_freq(t + 2 * step) - trajectory.log_freq(t)) / (2 * step)
    torch.testing.assert_close(trajectory.rate(t), autodiff, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(trajectory.rate(t + step), finite.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_factors_is_the_factors_one_by_one(name):
    trajectory = build(name)
    factors = [1.0, 2.5, 16.0]
    together = trajectory.log_freq(torch.tensor(factors, dtype=torch.float64))
    torch.testing.assert_close(together, torch.stack([trajectory.log_freq(t) for t in factors]), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", METHODS)
def test_options_rebuild_the_same_trajectory(name):
    trajectory = build(name)
    again = METHODS[name].build(rope(), MAX_FACTOR, **trajectory.options())
    again.load_state_dict(trajectory.state_dict(), assign=True)
    assert torch.equal(again.inv_freq(6.5), trajectory.inv_freq(6.5))
    assert again.name == name


@pytest.mark.parametrize("name", METHODS)
def test_snapshot_is_the_trajectory_frozen(name):
    trajectory = build(name)
    snapshot = trajectory.at(8)
    torch.testing.assert_close(rope().inv_freq / snapshot.stretch, trajectory.inv_freq(8.0).detach())
    assert (snapshot.factor, snapshot.rotary_dim, snapshot.original_length) == (8.0, DIM, LENGTH)
    assert not snapshot.inv_freq.requires_grad


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("cast", ["bfloat16", "half", "autocast"])
def test_precision_survives_casts(name, cast):
    trajectory = build(name)
    before = trajectory.inv_freq(7.3).detach()
    if cast == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            after = trajectory.inv_freq(7.3)
    else:
        after = getattr(copy.deepcopy(trajectory), cast)().inv_freq(7.3)
    assert torch.equal(after, before)


@pytest.mark.parametrize("name", METHODS)
def test_survives_meta_and_to_empty(name):
    trajectory = build(name).to("meta").to_empty(device="cpu")
    assert {tensor.dtype for tensor in trajectory.buffers()} == {torch.float64}


@pytest.mark.parametrize("t", [0.5, 0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", METHODS)
def test_factor_below_1_is_refused(name, t):
    with pytest.raises(ValueError, match="length factor t"):
        build(name).inv_freq(t)
    with pytest.raises(ValueError, match="max_factor"):
        METHODS[name].build(rope(), t)


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_integrating_a_closed_forms_rate_converges_with_the_solvers_order(name, solver, order):
    """A closed form is an initial value problem whose exact solution is known: dz/dt = rate(t)."""
    trajectory = build(name)
    exact = trajectory.log_freq(4.0)
    ends = torch.tensor([1.0, 4.0], dtype=torch.float64)

    def error(steps: int) -> float:
        solved = odeint(
            lambda t, z: trajectory.rate(t), trajectory.log_freq(1.0), ends, method=solver,
            options={"grid_constructor": lambda f, y, t: torch.linspace(1, 4, steps + 1, dtype=torch.float64)},
        )  # fmt: skip
        return float((solved[-1] - exact).abs().max())

    coarse, fine = error(32), error(64)
    if coarse > 1e-13:  # `none` has nothing to integrate
        assert torch.tensor(coarse / fine).log2() == pytest.approx(order, abs=0.35)
    else:
        assert name == "none"


@pytest.mark.parametrize("name", TRAINED)
def test_an_untrained_field_is_its_prior_exactly(name):
    trajectory = build(name, moved=False)
    factors = torch.linspace(1, MAX_FACTOR, 31, dtype=torch.float64)
    assert torch.equal(trajectory.log_freq(factors), trajectory.prior.log_freq(factors))


@pytest.mark.parametrize("name", TRAINED)
def test_gradcheck(name):
    """Gradients of θ(t) to every parameter, in float64 against finite differences."""
    small = Rope(1 / 100 ** (torch.arange(0, 6, 2).double() / 6), 64, 100.0)
    torch.manual_seed(1)
    trajectory = METHODS[name].build(small, 8, steps=3)
    torch.nn.init.normal_(trajectory.field.down_proj, std=0.1)
    names, values = zip(*trajectory.named_parameters(), strict=True)

    def inv_freq(*parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(trajectory, dict(zip(names, parameters, strict=True)), (5.0,))

    trajectory.forward = trajectory.inv_freq
    assert torch.autograd.gradcheck(inv_freq, tuple(value.detach().double().requires_grad_() for value in values))


@pytest.mark.parametrize("name", TRAINED)
def test_defect_no_gradient_at_t_1(name):
    """Officially t = 1 skipped the ODE, and distributed training stopped at its unused parameters."""
    trajectory = build(name)
    trajectory.inv_freq(1.0).sum().backward()
    for parameter in trajectory.parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
