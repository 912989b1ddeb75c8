"""CLEX: a learned trajectory, the solution of a neural ODE that starts from a closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint

from longwave.methods.fields import AdditiveField, BoundedField, Field
from longwave.methods.linear import Linear
from longwave.methods.ntk import NTK
from longwave.methods.smooth_field import SmoothField
from longwave.methods.yarn import YaRN
from longwave.names import unknown
from longwave.rope import Rope
from longwave.trajectory import Trajectory

PRIORS: dict[str, type[Trajectory]] = {"ntk": NTK, "yarn": YaRN, "linear": Linear}
# Log-n attention, on by default with CLEX, does for each query what YaRN's temperature does for all of them
# at once; both together would sharpen attention twice.
PRIOR_OPTIONS: dict[str, dict[str, Any]] = {"yarn": {"temperature": 0.0}}
FIELDS: dict[str, Callable[..., Field]] = {"bounded": BoundedField, "additive": AdditiveField, "smooth": SmoothField}
FIXED_STEP_SOLVERS = ("euler", "midpoint", "heun3", "rk4")
ADAPTIVE_SOLVERS = ("dopri5", "dopri8", "bosh3")  # tolerances 1e-8 and 1e-10: references, not for training


class CLEX(Trajectory):
    """z(t) = z_prior(t) + r(t), with dr/dc = field(z, t) and r(1) = 0.

    The closed-form part needs no solver; only the residual r is integrated, over the field's clock c
    (ln t or ln(2t - 1)), scaled to [0, 1] for every t so that one solve serves a batch of factors
    and t = 1 still reaches the parameters, with a gradient of zero.

    Arguments:
        prior: the closed form that it starts as: `ntk` (default), `yarn` or `linear`. An attention method may
            have another default for what stands below it (`Attention.below`), for the field, too.
        field: `bounded` (default); `smooth`, which moves neighbouring pairs alike and may go below interpolation;
            or `additive`, the published one.
        amplification: λ, hidden width of the field in multiples of d.
        activation: `silu` or `tanh`.
        steps: solver steps from t = 1 to t, at any t (fixed-step solvers).
        solver: torchdiffeq solver, `rk4` by default; an adaptive one (`dopri5`) ignores `steps`.
        cosines: of the smooth field alone: how many cosines over the pair index it has, 4 by default.
        prior_options: keyword arguments of the prior, e.g. `{"slope": 1}`; YaRN comes without its
            temperature, whose work log-n attention does (`{"temperature": 0.1}` brings it back).
        name: the preset this is (`clex`, `clex-paper`).

    Source: CLEX (arXiv 2310.16450).
    """

    def __init__(
        self,
        rope: Rope,
        max_factor: float,
        *,
        prior: str = "ntk",
        field: str = "bounded",
        amplification: float = 1.0,
        activation: str = "silu",
        steps: int = 10,
        solver: str = "rk4",
        cosines: int | None = None,
        prior_options: dict[str, Any] | None = None,
        name: str = "clex",
    ) -> None:
        super().__init__(rope, max_factor)
        for argument, value, allowed in (
            ("prior", prior, tuple(PRIORS)),
            ("field", field, tuple(FIELDS)),
            ("solver", solver, FIXED_STEP_SOLVERS + ADAPTIVE_SOLVERS),
        ):
            if value not in allowed:
                raise ValueError(unknown(f"{name} {argument}", value, allowed))
        if not (math.isfinite(amplification) and amplification > 0) or steps < 1:
            raise ValueError(f"{name} needs amplification > 0 and steps >= 1, got {amplification} and {steps}.")
        if cosines is not None and field != "smooth":
            raise ValueError(f"{name} has cosines in its smooth field only, got field {field!r}. Leave cosines out.")
        self.name = name
        self.steps, self.solver = int(steps), solver
        self._options: dict[str, Any] = {
            "prior": prior,
            "field": field,
            "amplification": float(amplification),
            "activation": activation,
            "steps": int(steps),
            "solver": solver,
            "prior_options": PRIOR_OPTIONS.get(prior, {}) | (prior_options or {}),
        }
        self.prior = PRIORS[prior](rope, max_factor, **self._options["prior_options"])
        hidden = max(1, round(amplification * rope.rotary_dim))
        only = {} if cosines is None else {"cosines": cosines}
        self.field: Field = FIELDS[field](self.prior, hidden, activation, **only)
        self._options |= self.field.options()

    def options(self) -> dict[str, Any]:
        return dict(self._options)

    def attention_scaling(self, t: float) -> float:
        return self.prior.attention_scaling(t)

    def log_freq(self, t: float | Tensor) -> Tensor:
        with torch.autocast(self.log_freq_1.device.type, enabled=False):
            return self.prior.log_freq(t) + self._residual(self.as_factor(t))

    def rate(self, t: float | Tensor) -> Tensor:
        factor = self.as_factor(t)
        with torch.autocast(self.log_freq_1.device.type, enabled=False):
            slope = self._slope(factor, self.log_freq(t))
            # d/dt of the residual = dr/dc · dc/dt, both clocks being ln of a line in t
            with torch.enable_grad():
                probe = factor.detach().requires_grad_()
                (speed,) = torch.autograd.grad(self.field.clock(probe).sum(), probe)
            return self.prior.rate(t) + slope * speed

    def _slope(self, factor: Tensor, log_freq: Tensor) -> Tensor:
        slope: Tensor = self.field(factor, log_freq)
        return slope

    def _grid(self, func: object, start: Tensor, ends: Tensor) -> Tensor:
        return torch.linspace(0, 1, self.steps + 1, dtype=ends.dtype, device=ends.device)

    def _residual(self, factor: Tensor) -> Tensor:
        """r(t), shape [..., d/2]."""
        span = self.field.clock(factor)

        def derivative(share: Tensor, residual: Tensor) -> Tensor:
            at = self.field.factor(share * span)
            return span * self._slope(at, self.prior.log_freq(at.squeeze(-1)) + residual)

        ends = torch.tensor([0.0, 1.0], dtype=factor.dtype, device=factor.device)
        start = torch.zeros(*factor.shape[:-1], self.log_freq_1.numel(), dtype=factor.dtype, device=factor.device)
        options = {"grid_constructor": self._grid} if self.solver in FIXED_STEP_SOLVERS else None
        solution: Tensor = odeint(derivative, start, ends, method=self.solver, options=options, rtol=1e-8, atol=1e-10)
        return solution[-1]


def clex_paper(rope: Rope, max_factor: float, **options: Any) -> CLEX:
    """The official layer: additive field on NTK(2t - 1), tanh as in version 2 (SiLU in version 1)."""
    paper: dict[str, Any] = {"prior": "ntk", "field": "additive", "activation": "tanh", "steps": 12}
    return CLEX(rope, max_factor, name="clex-paper", **(paper | options))
