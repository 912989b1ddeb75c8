"""The drop-in rotary module: the model's own layout, run with the frequencies of a trajectory."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from longwave.schedule import Schedule
from longwave.trajectory import Trajectory

BEYOND = ("error", "clamp")


class ScaledRotary(nn.Module):
    """Takes the place of a model's rotary module and has its interface: (x, position_ids) -> cos, sin.

    The forward of the model's own module, `base`, runs without its decorators (they switch gradients
    off and rescale by their own rules) on a stand-in whose frequencies are θ(t). Layout, partial
    rotation, multi-axis positions and the model's own attention scaling stay the model's business.
    At t = 1 the frequencies are the ones `base` holds, bit for bit.

    t comes from `factor`: None takes it from the schedule and the largest position of each call;
    a number fixes it for the calls to come; a tensor [batch] gives every row its own. Keys that are
    already in a cache keep the t they were rotated with, so decode at a fixed t. `generating` says that
    `generate` has checked the length and nothing will change meanwhile: its steps then wait for no device.

    Frequencies, positions and angles stay float32 or better under `.to(bfloat16)` and autocast.

    Arguments:
        base: the model's own rotary module.
        trajectory: z(t) for L = trajectory.rope.original_length.
        schedule: sequence length -> t.
        layer_type: for modules with one set of frequencies per layer type, the one to scale.
        beyond: for sequences over max_factor·L tokens: `error` (default), or `clamp` to run them at
            t = max_factor, where positions beyond the range are extrapolated.

    Raises:
        ValueError: from forward, if the sequence is longer than max_factor·L and `beyond` is `error`.
    """

    def __init__(
        self,
        base: nn.Module,
        trajectory: Trajectory,
        schedule: Schedule,
        *,
        layer_type: str | None = None,
        beyond: str = "error",
    ) -> None:
        super().__init__()
        if beyond not in BEYOND:
            raise ValueError(f"unknown beyond {beyond!r}. Available: {', '.join(BEYOND)}.")
        self.base = base
        self.trajectory = trajectory
        self.schedule = schedule
        self.layer_type = layer_type
        self.beyond = beyond
        self.factor: float | Tensor | None = None
        self.generating = False
        self._cache: tuple[float, list[Tensor], Tensor] | None = None

    @property
    def max_length(self) -> int:
        """The longest sequence in range, ⌊max_factor·L⌋ tokens."""
        return math.floor(self.trajectory.max_factor * self.trajectory.rope.original_length)

    def factor_for(self, length: int) -> float:
        """t for a sequence of `length` tokens by the schedule, at most max_factor; see `beyond`."""
        self._check_length(length)
        rope, limit = self.trajectory.rope, self.trajectory.max_factor
        return min(self.schedule(length, rope.original_length, limit), limit)

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        """What the base returns (mostly cos and sin, [batch, n, d]), at θ(t)."""
        if layer_type != self.layer_type:  # the local layers of a mixed model keep their own rotation
            return self.base(x, position_ids, layer_type)
        factor = self._factor_of(position_ids)
        if isinstance(factor, Tensor):
            return self._rotate_rows(x, position_ids, factor)
        return self._rotate(x, position_ids, factor)

    def _factor_of(self, position_ids: Tensor) -> float | Tensor:
        if self.factor is None:
            return self.factor_for(int(position_ids.max()) + 1)
        if not (self.generating or torch.compiler.is_compiling()):  # reading a position would break the graph
            self._check_length(int(position_ids.max()) + 1)
        return self.factor

    def _check_length(self, length: int) -> None:
        if length > self.max_length and self.beyond == "error":
            factor, original = self.trajectory.max_factor, self.trajectory.rope.original_length
            raise ValueError(
                f"a sequence of {length} tokens is longer than {self.max_length} = max_factor {factor:g} x "
                f'{original}. Shorten it, or extend with a larger max_factor or beyond="clamp".'
            )

    def _rotate(self, x: Tensor, position_ids: Tensor, factor: float) -> Any:
        """The base's forward at one t."""
        stand_in = self._stand_in(self._frequencies(factor), self.trajectory.attention_scaling(factor))
        layer = () if self.layer_type is None else (self.layer_type,)
        with torch.autocast(x.device.type, enabled=False):
            return undecorated_forward(self.base)(stand_in, x, position_ids, *layer)

    def _rotate_rows(self, x: Tensor, position_ids: Tensor, factors: Tensor) -> Any:
        """One forward of the base for every distinct t, put back in the order of the batch."""
        if factors.shape != (x.shape[0],):
            raise ValueError(
                f"factor has shape {tuple(factors.shape)} but the batch has {x.shape[0]} rows. "
                "Set a number, or one t for each row."
            )
        position_ids = position_ids.expand(*position_ids.shape[:-2], x.shape[0], -1)
        groups = [(t, (factors == t).nonzero().flatten().to(x.device)) for t in factors.unique().tolist()]
        parts = [self._rotate(x[rows], position_ids[..., rows, :], t) for t, rows in groups]
        order = torch.cat([rows for _, rows in groups]).argsort()
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)[order]
        return tuple(torch.cat(columns)[order] for columns in zip(*parts, strict=True))

    def _frequencies(self, factor: float) -> Tensor:
        """θ(t) for the stand-in: as many entries as the base has, on its device, float32 or better."""
        own: Tensor = getattr(self.base, frequency_name(self.layer_type))
        parameters = list(self.trajectory.parameters())
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
            inv_freq = self._solve_untraced(factor)
            # own + 0: bit for bit the model's numbers, yet connected, so that DistributedDataParallel
            # finds every parameter in the graph of a step at t = 1
            return own + (inv_freq - inv_freq.detach()) if factor == 1 else inv_freq
        if factor == 1:
            return own
        if torch.compiler.is_compiling() and not parameters:
            return self._solve(factor)  # a few element-wise operations, best left to the compiler
        return self._cached(factor)

    def _solve(self, factor: float) -> Tensor:
        own: Tensor = getattr(self.base, frequency_name(self.layer_type))
        inv_freq = self.trajectory.inv_freq(factor).to(own.device, torch.float32)
        # frequencies of 0 (dimensions that do not turn) are no part of the trajectory
        return functional.pad(inv_freq, (0, own.numel() - inv_freq.numel()))

    @torch.compiler.disable  # torchdiffeq branches on tensors: one graph break, before the first layer
    def _solve_untraced(self, factor: float) -> Tensor:
        return self._solve(factor)

    @torch.compiler.disable
    @torch.no_grad()
    def _cached(self, factor: float) -> Tensor:
        """The last solution while t and the parameters stay as they were.

        Contents are compared, not version counters: a write through `.data` moves no counter, and
        the parameters are small enough (tens of thousands of numbers) for a comparison at each step.
        """
        parameters = list(self.trajectory.parameters())
        cache = self._cache
        if cache is not None and cache[0] == factor and (self.generating or _same(cache[1], parameters)):
            return cache[2]
        inv_freq = self._solve(factor)
        self._cache = (factor, [parameter.clone() for parameter in parameters], inv_freq)
        return inv_freq

    def _stand_in(self, inv_freq: Tensor, attention_scaling: float) -> _StandIn:
        prefix = "" if self.layer_type is None else f"{self.layer_type}_"
        scaling = getattr(self.base, f"{prefix}attention_scaling", 1.0) * attention_scaling
        ours: dict[str, Any] = {
            f"{prefix}inv_freq": inv_freq,
            f"{prefix}attention_scaling": scaling,
            "rope_init_fn": lambda *_, **__: (inv_freq, scaling),  # phimoe calls it in every forward
        }
        return _StandIn(self.base, undecorated_forward(self.base).__code__.co_names, ours)

    def start_generating(self, length: int) -> None:
        """Check and settle what the steps up to `length` tokens have in common: t and its frequencies."""
        if self.factor is None:
            self.factor = self.factor_for(length)
        else:
            self._check_length(length)
        self.generating, self._cache = True, None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScaledRotary:
        """Follow the model to another device; frequencies keep their precision (see `Trajectory._apply`)."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.bfloat16, torch.float16) else moved

        self._cache = None
        super()._apply(move, recurse)
        return self

    def __getattr__(self, name: str) -> Any:
        """Attributes that a model reads from its rotary module (`config`, `inv_freq`) are the base's."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def extra_repr(self) -> str:
        rope = self.trajectory.rope
        return (
            f"{self.trajectory.name}@{self.schedule.spec}, original_length={rope.original_length}, "
            f"max_factor={self.trajectory.max_factor:g}, beyond={self.beyond}"
        )


class _StandIn:
    """What the base's forward sees as `self`: our frequencies, and everything else from the base.

    The names that the forward uses are copied, because torch.compile traces plain attributes but no
    proxies; names that it composes at run time fall through.
    """

    def __init__(self, base: nn.Module, names: tuple[str, ...], ours: dict[str, Any]) -> None:
        self.base = base
        for name in names:
            if hasattr(base, name):
                setattr(self, name, getattr(base, name))
        for name, value in ours.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)


def frequency_name(layer_type: str | None, name: str = "inv_freq") -> str:
    """The attribute that holds a rotary module's frequencies."""
    return name if layer_type is None else f"{layer_type}_{name}"


def undecorated_forward(base: nn.Module) -> Callable[..., Any]:
    """The forward as written, without `torch.no_grad` and `dynamic_rope_update` around it."""
    return inspect.unwrap(type(base).forward)


def _same(kept: list[Tensor], parameters: list[nn.Parameter]) -> bool:
    return all(a.device == b.device and torch.equal(a, b) for a, b in zip(kept, parameters, strict=True))
