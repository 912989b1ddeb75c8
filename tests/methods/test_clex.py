"""The learned trajectory: the official layer's own numbers, and the bounds that it lacks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longwave.methods import METHODS
from longwave.methods.clex import CLEX, clex_paper
from longwave.rope import Rope

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "clex_official.json").read_text())


def official(case: str) -> tuple[CLEX, torch.Tensor]:
    """`clex-paper` with the official layer's weights, and the inverse frequencies that layer wrote."""
    meta = CASES[case]
    arrays = np.load(GOLDEN / "clex_official.npz")
    dim = meta["rotary_dim"]
    rope = Rope(1 / meta["base"] ** (torch.arange(0, dim, 2).float() / dim), meta["original_length"], meta["base"])
    trajectory = clex_paper(rope, meta["max_factor"], amplification=meta["param_factor"], activation=meta["activation"])
    with torch.no_grad():
        trajectory.field.up_proj.copy_(torch.from_numpy(arrays[f"{case}/up"]))
        trajectory.field.down_proj.copy_(torch.from_numpy(arrays[f"{case}/down"]))
    return trajectory, torch.from_numpy(arrays[f"{case}/inv_freq"]).double()


@pytest.mark.parametrize("case", CASES)
def test_golden_values_of_the_official_layer_at_every_integer_t(case):
    trajectory, expected = official(case)
    factors = torch.arange(1, CASES[case]["max_factor"] + 1, dtype=torch.float64)
    torch.testing.assert_close(trajectory.inv_freq(factors).detach(), expected, rtol=2e-4, atol=0)


@pytest.mark.parametrize("case", ["silu_d128_f2", "tanh_d64"])
def test_default_steps_are_within_1e_5_of_a_tight_adaptive_solution(case):
    trajectory, _ = official(case)
    exact = clex_paper(trajectory.rope, 16, solver="dopri5", **_shape(trajectory))
    exact.load_state_dict(trajectory.state_dict())
    torch.testing.assert_close(trajectory.inv_freq(16.0), exact.inv_freq(16.0), rtol=1e-5, atol=0)


def _shape(trajectory: CLEX) -> dict:
    return {key: trajectory.options()[key] for key in ("amplification", "activation")}


def test_solver_converges_with_its_order():
    trajectory, _ = official("silu_d64")

    def solved(**options: object) -> torch.Tensor:
        other = clex_paper(trajectory.rope, 16, **(_shape(trajectory) | options))
        other.load_state_dict({name: value.double() for name, value in trajectory.state_dict().items()}, assign=True)
        return other.log_freq(16.0).detach()

    exact = solved(solver="rk4", steps=512)
    for solver, order in (("euler", 1), ("midpoint", 2), ("rk4", 4)):
        coarse, fine = ((solved(solver=solver, steps=n) - exact).abs().max().item() for n in (16, 32))
        assert np.log2(coarse / fine) > order - 0.4, solver


def rope(dim: int = 32) -> Rope:
    return Rope(1 / 10_000 ** (torch.arange(0, dim, 2).float() / dim), 2048, 10_000.0)


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.01, 1e4), seed=st.integers(0, 100), prior=st.sampled_from(["yarn", "ntk", "linear"]))
def test_defect_unbounded_dynamics_overflow(scale, seed, prior):
    """Officially a large field ends in inf and NaN. Ours stays between its bounds with any weights."""
    torch.manual_seed(seed)
    trajectory = CLEX(rope(), 32, prior=prior)
    for parameter in (trajectory.field.down_proj, trajectory.field.down_bias):
        torch.nn.init.normal_(parameter, std=scale)
    inv_freq = trajectory.inv_freq(torch.tensor([1.0, 2.0, 32.0]))
    assert torch.isfinite(inv_freq).all()
    moved = trajectory.log_freq(32.0) - trajectory.prior.log_freq(32.0)
    assert moved.abs().max() <= np.log(32.0) + 1e-6
    inv_freq.log().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in trajectory.parameters())


def test_the_official_field_does_overflow():
    """The control of the test above: the published field, as strong, leaves every bound."""
    torch.manual_seed(0)
    trajectory = clex_paper(rope(), 32, activation="silu")
    torch.nn.init.normal_(trajectory.field.down_proj, std=10.0)
    assert not torch.isfinite(trajectory.inv_freq(32.0)).all()


@pytest.mark.parametrize(("prior", "options"), [("yarn", {}), ("linear", {}), ("ntk", {"slope": 1})])
def test_bounded_field_between_no_scaling_and_interpolation(prior, options):
    """Where the prior lies between no scaling and PI at t = 16, so does the trajectory, to 0.01 per unit of ln t.

    On the way to 16 and beyond, it leaves that range by as much as the prior's mean rate up to t differs.
    """
    torch.manual_seed(0)
    trajectory = CLEX(rope(), 16, prior=prior, prior_options=options)
    start = trajectory.log_freq_1

    def mean_rate(z: torch.Tensor, t: float) -> torch.Tensor:
        return (start - z) / np.log(t)

    for sign in (-1, 1):
        torch.nn.init.constant_(trajectory.field.down_bias, sign * 100.0)
        for t in (2.0, 8.0, 16.0, 64.0):
            rate = mean_rate(trajectory.log_freq(t), t).detach()
            differs = mean_rate(trajectory.prior.log_freq(t), t) - mean_rate(trajectory.prior.log_freq(16.0), 16.0)
            assert (rate >= differs - 0.0101).all()
            assert (rate <= 1 + differs + 0.0101).all()


@pytest.mark.parametrize("prior", ["ntk", "yarn", "linear"])
def test_default_steps_follow_a_trained_field(prior):
    """Fields that move ln θ by about 1 are solved to 1e-5, and by about 2, as trained ones do, to 5e-5."""
    for std, error in ((0.5, 1e-5), (1.0, 5e-5)):
        torch.manual_seed(0)
        trajectory = CLEX(rope(64), 16, prior=prior)
        torch.nn.init.normal_(trajectory.field.down_proj, std=std)
        exact = CLEX(rope(64), 16, prior=prior, solver="dopri5")
        doubled = {name: value.double() for name, value in trajectory.state_dict().items()}
        for each in (trajectory, exact):
            each.load_state_dict(doubled, assign=True)
        assert (exact.log_freq(16.0) - exact.prior.log_freq(16.0)).abs().max() > 1.2 * std
        torch.testing.assert_close(trajectory.log_freq(16.0), exact.log_freq(16.0), rtol=0, atol=error)


@pytest.mark.parametrize("name", ["ntk", "yarn", "clex", "clex-paper"])
def test_a_default_device_changes_nothing(name):
    """As under `torch.set_default_device("cuda")`: the closed form stays where the rope is."""
    given = rope()
    plain = METHODS[name].build(given, 16)
    with torch.device("meta"):
        elsewhere = METHODS[name].build(given, 16)
    ours, theirs = (getattr(each, "prior", each).log_freq(8.0) for each in (plain, elsewhere))
    assert torch.equal(ours, theirs)


def test_what_was_learned_does_not_depend_on_the_largest_factor():
    torch.manual_seed(0)
    trajectory = CLEX(rope(), 16)
    torch.nn.init.normal_(trajectory.field.down_proj, std=0.5)
    wider = CLEX(rope(), 64)
    wider.load_state_dict(trajectory.state_dict())
    assert torch.equal(wider.log_freq(8.0), trajectory.log_freq(8.0))


def test_defect_integer_t_only():
    """Officially t is rounded to the table's integers. Ours is a function of any real t, and smooth."""
    trajectory, _ = official("silu_d64")
    between = trajectory.log_freq(torch.tensor([3.0, 3.25, 3.5, 3.75, 4.0], dtype=torch.float64)).detach()
    slow = between[:, -1]
    assert (slow.diff() < 0).all()
    assert slow[2] != slow[0]


def test_paper_offset_ignores_the_models_base():
    """The published field takes ln θ of base 10^4 even where the model's base is another."""
    torch.manual_seed(0)
    other = Rope(1 / 500_000 ** (torch.arange(0, 32, 2).double() / 32), 8192, 500_000.0)
    trajectory = clex_paper(other, 4)
    torch.nn.init.normal_(trajectory.field.down_proj, std=0.01)
    t, z = torch.tensor([1.0], dtype=torch.float64), other.log_freq
    offset = -torch.arange(16).double() / 16 * np.log(1e4)
    field = trajectory.field
    expected = 0.5 * torch.tanh((z + offset) @ field.up_proj.double()) @ field.down_proj.double()
    torch.testing.assert_close(field(t, z), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "yearn"}, "Available: ntk, yarn, linear"),
        ({"field": "free"}, "bounded, additive"),
        ({"activation": "relu"}, "silu, tanh"),
        ({"solver": "magic"}, "rk4"),
        ({"steps": 0}, "steps >= 1"),
        ({"amplification": 0}, "amplification > 0"),
    ],
)
def test_bad_options_name_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        METHODS["clex"].build(rope(), 16, **options)
