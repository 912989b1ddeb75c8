"""The drop-in rotary module: the model's own layout, run with the frequencies of a trajectory."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from longwave.schedule import Schedule, Static
from longwave.trajectory import Trajectory

BEYOND = ("error", "clamp")
KEPT_SOLUTIONS = 64  # frequencies at as many t are kept: more than a batch has, and small


class ScaledRotary(nn.Module):
    """Takes the place of a model's rotary module and has its interface: (x, position_ids) -> cos, sin.

    The forward of the model's own module, `base`, runs without its decorators (they switch gradients
    off and rescale by their own rules) on a stand-in whose frequencies are θ(t). Layout, partial
    rotation, multi-axis positions and the model's own attention scaling stay the model's business.
    At t = 1 the frequencies are the ones `base` holds, bit for bit.

    t comes from `factor`: None takes it from the schedule and the length of each sequence (rows of a batch and
    sequences packed into a row have their own, and the base runs once for each distinct t); a number fixes it
    for the calls to come; a tensor [batch] gives every row its own. Keys that are already in a cache keep the
    t they were rotated with, so decode at a fixed t. `generating` says that `generate` has checked the length and
    nothing will change meanwhile: its steps then wait for no device. `grows` rounds lengths up to L, 2L, 4L, ...

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

    powers: Tensor
    factors: Tensor

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
        self.loaded: nn.Module | None = None  # the checkpoint's own, with its scaling, where `base` stands in for it
        self.recognised = False  # whether `load` found this extension in the checkpoint's config
        self.trajectory = trajectory
        self.schedule = schedule
        self.layer_type = layer_type
        self.beyond = beyond
        self.register_buffer("powers", trajectory.rope.powers, persistent=False)
        self.register_buffer("factors", trajectory.rope.factors, persistent=False)
        self.constant_scaling = 1.0  # on cos and sin, beside the trajectory's: see `longwave.attach.frozen`
        self.factor: float | Tensor | None = None
        self.generating = self.grows = False
        self._solved: dict[float, Tensor] = {}  # θ by t, while the parameters are those in _solved_with
        self._solved_with: list[Tensor] | None = None
        # Of a fixed t or a generation: t of all rows or of each; the frequencies and scaling that all share, or the
        # rows of each t with theirs
        self._row_factors: tuple[float, ...] = ()
        self._steady: tuple[Tensor, Tensor] | None = None
        self._groups: list[tuple[Tensor, Tensor, float]] = []
        self._settled = False  # compiled code may ask for this; reading `factor` would compile it anew for each t

    @property
    def max_length(self) -> int:
        """The longest sequence in range, ⌊max_factor·L⌋ tokens; of a recognised scaling the reach of its config."""
        return math.floor(self.trajectory.max_factor * self.trajectory.rope.original_length)

    def factor_for(self, length: int) -> float:
        """t for a sequence of `length` tokens by the schedule, at most max_factor; see `beyond`."""
        self._check_length(length)
        original, limit = self.trajectory.rope.original_length, self.trajectory.max_factor
        return min(self.schedule(self.doubled(length) if self.grows else length, original, limit), limit)

    def doubled(self, length: int) -> int:
        """`length` rounded up to L, 2L, 4L, ..., or to the longest in range."""
        original = self.trajectory.rope.original_length
        rounded = original * 2 ** math.ceil(math.log2(max(length, original) / original))
        return max(length, min(rounded, self.max_length))

    def forward(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        """What the base returns (mostly cos and sin, [batch, n, d]), at θ(t)."""
        if layer_type != self.layer_type:  # the local layers of a mixed model keep their own rotation
            return self.base(x, position_ids, layer_type)
        # A compiled step cannot ask whether the parameters are still the same ones; while they are trained it must.
        compiled = torch.compiler.is_compiling() and not torch.is_grad_enabled()
        if self.generating or (compiled and self._settled):
            if self._groups:
                return self._rotate_rows(x, position_ids, self._groups)
            if self._steady is not None:
                return self._run(x, position_ids, *self._steady)
        factor = self._factor_of(position_ids)
        if not isinstance(factor, Tensor):
            return self._run(x, position_ids, *self._at(factor))
        if factor.ndim == 1:
            return self._rotate_rows(x, position_ids, self._by_factor(factor.tolist()))
        return self._mix(x, position_ids, factor)

    def _factor_of(self, position_ids: Tensor) -> float | Tensor:
        """t: a number, one for each row [batch], or for each token [batch, n]."""
        if self.factor is None:
            if isinstance(self.schedule, Static) and self.beyond == "clamp":  # whatever the positions: none is read
                return min(self.schedule.factor, self.trajectory.max_factor)
            lengths = sequence_lengths(position_ids)
            found = lengths.unique()
            factors = [self.factor_for(length) for length in found.tolist()]
            if len(set(factors)) == 1:
                return factors[0]
            return torch.tensor(factors, dtype=torch.float64, device="cpu")[torch.searchsorted(found, lengths).cpu()]
        if not (self.generating or torch.compiler.is_compiling()):  # reading a position would break the graph
            self._check_length(int(position_ids.max()) + 1)
        return self.factor

    def _check_length(self, length: int, remedy: str = "Shorten it") -> None:
        if length > self.max_length and self.beyond == "error":
            factor, original = self.trajectory.max_factor, self.trajectory.rope.original_length
            raise ValueError(
                f"a sequence of {length} tokens is longer than {self.max_length} = max_factor {factor:g} x "
                f'{original}. {remedy}, or extend with a larger max_factor or beyond="clamp".'
            )

    def _at(self, factor: float) -> tuple[Tensor, float]:
        """Frequencies and attention scaling at one t."""
        return self._frequencies(factor), self.trajectory.attention_scaling(factor) * self.constant_scaling

    def _run(self, x: Tensor, position_ids: Tensor, inv_freq: Tensor, attention_scaling: float | Tensor) -> Any:
        stand_in = self._stand_in(inv_freq, attention_scaling)
        layer = () if self.layer_type is None else (self.layer_type,)
        with torch.autocast(x.device.type, enabled=False):
            return undecorated_forward(self.base)(stand_in, x, position_ids, *layer)

    def _rotate_rows(self, x: Tensor, position_ids: Tensor, groups: Sequence[tuple[Tensor, Tensor, float]]) -> Any:
        """One forward of the base for every distinct t, put back in the order of the batch."""
        position_ids = position_ids.expand(*position_ids.shape[:-2], x.shape[0], -1)
        order = torch.cat([rows for rows, *_ in groups])
        if len(order) != x.shape[0]:
            raise ValueError(
                f"factor has shape ({len(order)},) but the batch has {x.shape[0]} rows. "
                "Set a number, or one t for each row (beams and returned sequences are rows, too)."
            )
        parts = [
            self._run(x[rows], position_ids[..., rows, :], inv_freq, scaling) for rows, inv_freq, scaling in groups
        ]
        order = order.argsort()
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)[order]
        return tuple(torch.cat(columns)[order] for columns in zip(*parts, strict=True))

    def _by_factor(self, factors: Sequence[float]) -> list[tuple[Tensor, Tensor, float]]:
        """The rows of each distinct t, with its frequencies and attention scaling."""
        device = getattr(self.base, frequency_name(self.layer_type)).device
        rows = {t: [row for row, own in enumerate(factors) if own == t] for t in sorted(set(factors))}
        return [(torch.tensor(own, device=device), *self._at(t)) for t, own in rows.items()]

    def _mix(self, x: Tensor, position_ids: Tensor, factors: Tensor) -> Any:
        """One forward of the base for every distinct t, each token taking what belongs to its own."""
        mixed: Any = None
        for t in factors.unique().tolist():
            part = self._run(x, position_ids, *self._at(t))
            own = (factors == t).to(x.device)
            if mixed is None:
                mixed = part
            elif isinstance(part, Tensor):
                mixed = _choose(own, part, mixed)
            else:
                mixed = tuple(_choose(own, new, old) for new, old in zip(part, mixed, strict=True))
        return mixed

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
        """θ_i(t) = 1/(λ_i·b^(2i/d)) with λ_i in float32.

        That is how transformers computes the frequencies of a `longrope` config: what an export runs at is what
        ran here, bit for bit. Rounding λ moves θ by one part in 10^7, as rounding θ itself would.
        """
        own: Tensor = getattr(self.base, frequency_name(self.layer_type))
        trajectory = self.trajectory
        stretch = (trajectory.log_freq_1 - trajectory.log_freq(factor)).exp()
        inv_freq = 1.0 / ((stretch.to(own.device) * self.factors).float() * self.powers)
        # frequencies of 0 (dimensions that do not turn) are no part of the trajectory
        return functional.pad(inv_freq, (0, own.numel() - inv_freq.numel()))

    @torch.compiler.disable  # torchdiffeq branches on tensors: one graph break, before the first layer
    def _solve_untraced(self, factor: float) -> Tensor:
        return self._solve(factor)

    @torch.compiler.disable
    @torch.no_grad()
    def _cached(self, factor: float) -> Tensor:
        """The last solutions while the parameters stay as they were.

        Contents are compared, not version counters: a write through `.data` moves no counter, and
        the parameters are small enough (tens of thousands of numbers) for a comparison at each step.
        """
        parameters = list(self.trajectory.parameters())
        fits = self.generating or (self._solved_with is not None and _same(self._solved_with, parameters))
        if not fits or len(self._solved) >= KEPT_SOLUTIONS:
            self._solved, self._solved_with = {}, [parameter.clone() for parameter in parameters]
        if factor not in self._solved:
            self._solved[factor] = self._solve(factor)
        return self._solved[factor]

    def _stand_in(self, inv_freq: Tensor, attention_scaling: float | Tensor) -> _StandIn:
        prefix = "" if self.layer_type is None else f"{self.layer_type}_"
        scaling = getattr(self.base, f"{prefix}attention_scaling", 1.0) * attention_scaling
        ours: dict[str, Any] = {
            f"{prefix}inv_freq": inv_freq,
            f"{prefix}attention_scaling": scaling,
            "rope_init_fn": lambda *_, **__: (inv_freq, scaling),  # phimoe calls it in every forward
        }
        return _StandIn(self.base, undecorated_forward(self.base).__code__.co_names, ours)

    def same_frequencies(self, a: float, b: float) -> bool:
        """Whether two t make no difference (`none`, or a trajectory that stands still)."""
        return torch.equal(self._cached(a), self._cached(b))

    def fix(self, factor: float | Tensor | None, *, grows: bool = False) -> None:
        """Steer by hand: `factor` for the calls to come, or None to follow the length, in doublings if it `grows`."""
        self.factor, self.grows, self.generating = factor, grows, False
        self._settle()

    @contextmanager
    def steered(self) -> Iterator[None]:
        """Whatever t is fixed inside, put the steering back as it was."""
        before = self.factor, self.generating, self.grows
        try:
            yield
        finally:
            self.factor, self.generating, self.grows = before
            self._settle()

    def start_generating(self, lengths: Sequence[int], new: int) -> None:
        """Settle what the steps of one generation have in common: t and its frequencies.

        Arguments:
            lengths: tokens that t has to suit, one for each row or for all of them.
            new: tokens that may follow where t `grows`; checked now, so that no step has to.
        """
        self._check_length(max(lengths) + (new if self.grows else 0), "Shorten the prompt or lower max_new_tokens")
        self.generating = False  # so that `_cached` looks whether the parameters are still the same ones
        if self.factor is None:
            self._take(tuple(self.factor_for(length) for length in lengths))
        else:
            self._settle()
        self.generating = True

    def grow_to(self, lengths: Sequence[int]) -> bool:
        """Take the t of longer texts, if `grows`; whether that changed it."""
        factors = tuple(self.factor_for(length) for length in lengths) if self.grows else self._row_factors
        if factors == self._row_factors:
            return False
        self._take(factors)
        return True

    def _take(self, factors: tuple[float, ...]) -> None:
        self.factor = factors[0] if len(set(factors)) == 1 else torch.tensor(factors, dtype=torch.float64)
        self._settle()
        self._row_factors = factors

    @torch.no_grad()
    def _settle(self) -> None:
        """Solve for the t in force, for steps that must not: those of `generate`, and compiled ones.

        What all rows share goes into tensors that stay where they are: another t compiles no step again.
        """
        self._groups, self._settled = [], self.factor is not None
        if self.factor is None:
            return
        self._row_factors = tuple(torch.as_tensor(self.factor, dtype=torch.float64).reshape(-1).tolist())
        if len(set(self._row_factors)) > 1:
            self._groups = self._by_factor(self._row_factors)
            return
        inv_freq, scaling = self._at(self._row_factors[0])
        # At t = 1 they are the base's own, which a cast model may hold in bfloat16: no place for others.
        if self._steady is None or self._steady[0].dtype != inv_freq.dtype:
            with torch.inference_mode(False):  # else only inference mode could write to them later
                self._steady = torch.empty_like(inv_freq), torch.empty((), device=inv_freq.device)
        for kept, new in zip(self._steady, (inv_freq, torch.tensor(scaling)), strict=True):
            kept.copy_(new)

    def train(self, mode: bool = True) -> ScaledRotary:
        """As `nn.Module.train`; on the way to evaluation the frequencies of a fixed t are solved again."""
        super().train(mode)
        if not (mode or self.generating):
            self._settle()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScaledRotary:
        """Follow the model to another device; frequencies keep their precision (see `Trajectory._apply`)."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.bfloat16, torch.float16) else moved

        self._solved, self._solved_with, self._steady = {}, None, None
        super()._apply(move, recurse)
        self._settle()
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


def _choose(own: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` at the tokens that are its `own` [batch, n], `old` elsewhere; both [batch, n, ...]."""
    return torch.where(own.reshape(*own.shape, *[1] * (new.ndim - 2)), new, old)


def sequence_lengths(position_ids: Tensor) -> Tensor:
    """For each token the length of the sequence that it belongs to: int64 [batch, n].

    Positions rise within a sequence (they may skip), and fall or stay where the next one begins. Of several axes
    ([axes, batch, n]) the largest position of the row counts: they fall within an image, too.
    """
    if position_ids.ndim == 3:
        return (position_ids.amax((0, -1), keepdim=True)[0] + 1).expand(position_ids.shape[1:])
    positions = position_ids
    index = functional.pad((positions[:, 1:] <= positions[:, :-1]).long(), (1, 0)).cumsum(-1)
    longest = torch.zeros_like(positions).scatter_reduce(1, index, positions + 1, "amax")
    return longest.gather(1, index)
