"""What an attention method says: which keys a query sees, and at which distance.

The keys of a query are divided into bands. Within a band the query at p and a key at j are scored as if they stood at
other places:

    logit = c_p · scale · <R(query(p)) q, R(key(j)) k>,    first(p) <= j < last(p)

A method is a class with its bands; the engine does the rest. No band of a method sees the future, and no key of a query
is in two bands.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from functools import lru_cache
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from longwave.schedule import tokens_at
from longwave.settings import REQUIRED, Settings, setting

Place = Callable[[Tensor], Tensor]  # positions -> positions, element by element


@dataclass(frozen=True, eq=False)
class Band:
    """An interval of keys for each query, and the places at which queries and keys are scored.

    The phase of a query at p is query(p)·θ + lead·θ(1); that of a key at j is key(j)·θ. θ is the trajectory's θ(t), or
    θ(1) where the band keeps the model's own frequencies. Of the keys of a query none is farther than the one at
    first(p).

    Arguments:
        first, last: the keys of the query at p are first(p) <= j < last(p); first may be negative.
        query, key: the places; `key` depends on j alone.
        own: the band keeps θ(1) whatever the trajectory is.
        lead: tokens that every distance has more, at θ(1).
        room: how many keys the band may have before mass acts, see `Attention.mass`; None where it never acts.
    """

    first: Place
    last: Place
    query: Place
    key: Place
    own: bool = False
    lead: float = 0.0
    room: float | None = None


def same(position: Tensor) -> Tensor:
    """The place is the position itself."""
    return position


def zero(position: Tensor) -> Tensor:
    """The place is 0, whatever the position."""
    return torch.zeros_like(position)


def always(value: float) -> Place:
    """One place for all positions."""
    return lambda position: torch.full_like(position, value)


def near(window: float, *, own: bool = False) -> Band:
    """The last `window` keys, the query's own among them, at their true distance."""
    return Band(lambda p: p - window + 1, lambda p: p + 1, same, same, own)


def far(window: float, *, query: Place, key: Place, room: float | None = None, lead: float = 0.0) -> Band:
    """All keys that `near(window)` does not have."""
    return Band(zero, lambda p: p - window + 1, query, key, lead=lead, room=room)


@dataclass(frozen=True)
class Attention(Settings, ABC):
    """An attention method with its options. A subclass has a name and its bands.

    A model that is extended by it runs its own attention up to L tokens, bit for bit, and the bands beyond.

    Arguments:
        original_length: L, in tokens.
        max_factor: the largest length factor t.

    Raises:
        ValueError: naming the option, what it got, and what is allowed.
    """

    def __init_subclass__(cls) -> None:
        cls.whose = getattr(cls, "name", "")

    original_length: int = setting(REQUIRED, "L, in tokens.", least=2)
    max_factor: float = setting(REQUIRED, "The largest length factor t.", least=1)

    noun: ClassVar[str] = "option"
    name: ClassVar[str]
    summary: ClassVar[str]  # one line for tables
    source: ClassVar[str]  # paper or code
    changes: ClassVar[str] = "distances"  # for tables: distances, visible keys
    cost: ClassVar[str] = "as full attention"  # for tables
    trajectory: ClassVar[str] = "none"  # the scaling method under it where none is named
    below: ClassVar[Mapping[str, Any]] = MappingProxyType({})  # defaults of the scaling method under it, if it has them
    log_n: ClassVar[float] = 1.0  # the exponent of log-n by default
    scaling: ClassVar[float] = 1.0  # on cos and sin, beside the trajectory's own
    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {}
    )  # training defaults, by the names of `TrainConfig`'s fields
    prefill_differs: ClassVar[bool] = False  # a prompt is read otherwise than it is decoded: an answer must be decoded
    remembers: ClassVar[bool] = False  # what a row sees depends on what its earlier forwards left, see `rows.RowWise`

    @abstractmethod
    def bands(self, t: float) -> tuple[Band, ...]:
        """The bands at length factor t."""

    @property
    def stored(self) -> int | None:
        """The band by whose places keys are rotated when they are cached; None to cache them without rotation.

        A step of decoding rotates the keys of the other bands anew: choose the band that has most keys.
        """
        return -1

    @property
    def like_plain(self) -> bool:
        """Up to L tokens the bands are the model's own attention: a cache of a short text serves a long one."""
        return False

    @property
    def bounded(self) -> tuple[int, int] | None:
        """How many of the first and of the last keys are seen, where no others are: a cache need not hold more."""
        return None

    @property
    def prefill_chunk(self) -> int:
        """So many tokens of a prompt share one choice: a prompt that is read in parts needs parts of a multiple."""
        return 1

    def state(self, t: float) -> tuple[float, ...]:
        """The numbers through which the bands follow t. Two t with one state share their bands, and a cache."""
        return ()

    def span(self, t: float) -> float:
        """How many places apart a query and a key of n = t·L tokens may be, both counted: the largest distance + 1."""
        return _span(self, t)

    def factor(self, t: float) -> float:
        """The t that the trajectory is asked for: span/L, and 1 where no distance is over L."""
        span = self.span(t)
        return span / self.original_length if span > self.original_length + 1 else 1.0

    def options(self) -> dict[str, Any]:
        """The options that were given or have a default of their own, by name, as JSON values."""
        own = [item.name for item in self.own_fields()]
        return {name: value for name in own if (value := getattr(self, name)) is not None}

    @classmethod
    def own_fields(cls) -> list[Field[Any]]:
        """The options that may be given, as fields: they have a default and a help."""
        return [item for item in fields(cls) if item.name not in ("original_length", "max_factor")]


@dataclass(frozen=True)
class NearAndFar(Attention):
    """An attention method with a near band of w keys and a far band that holds the others."""

    window: int | None = setting(
        None, "Keys fewer than so many tokens away are near ones. Default: L/4.", least=1, metavar="TOKENS"
    )
    reach: float = setting(1.0, "The largest distance that far keys may have, as a share of L.", least=0)
    mass: float = setting(
        0.0,
        "How much the logits of far keys are lowered as there are more of them: 0 not at all, 1 by the logarithm.",
        least=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.w < self.reach * self.original_length:
            raise ValueError(
                f"the window of {self.name} must be shorter than its reach of {self.reach:g} x {self.original_length} "
                f"tokens, got {self.w}. Lower window, or raise reach."
            )

    @property
    def w(self) -> int:
        """The window in tokens."""
        return max(1, self.original_length // 4) if self.window is None else self.window

    def far(self, *, query: Place, key: Place, lead: float = 0.0) -> Band:
        """The far band. Mass acts on it from L tokens on."""
        return far(self.w, query=query, key=key, lead=lead, room=max(1, self.original_length - self.w))

    def compression(self, t: float) -> float:
        """f = max(1, (n - w)/(ρL - w)): so much shorter the distances beyond w must be at n = t·L for reach ρL."""
        length = self.original_length
        return max(1.0, (t * length - self.w) / (self.reach * length - self.w))


@lru_cache(maxsize=256)
def _span(attention: Attention, t: float) -> float:
    tokens, most = tokens_at(t, attention.original_length), 2**20  # of a long text its two ends are enough
    positions = torch.arange(max(0, tokens - most), tokens, dtype=torch.float64)
    if tokens > most:
        positions = torch.cat([torch.arange(min(most, tokens - most), dtype=torch.float64), positions])
    farthest = 0.0
    for band in attention.bands(t):
        first, last = band.first(positions).clamp(min=0), band.last(positions)
        distance = (band.query(positions) - band.key(first))[first < last]
        if distance.numel():
            farthest = max(farthest, float(distance.max()) + band.lead)
    return farthest + 1
