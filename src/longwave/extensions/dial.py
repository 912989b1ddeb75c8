"""The dial: which length factor t every sequence runs at. All parts of an extension read t here and nowhere else.

The dial decides t for forwards and for `generate`, from lengths. Training draws t and sets the dial.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from longwave.attention import Attention
from longwave.extensions.lengths import sequence_lengths
from longwave.extensions.setting import Setting
from longwave.names import unknown
from longwave.schedule import Schedule, Static, tokens_at

POLICIES = ("fit", "grow", "fixed")


class Decided(NamedTuple):
    """The t of a forward, as `Dial.read` gives it, and the position ids that it was read from."""

    factor: float | Tensor
    positions: Tensor | None


class Follower(Protocol):
    """A part of an extension that works with t."""

    def settle(self) -> None:
        """Prepare for the setting in force, so that steps of `generate` and compiled forwards need not."""


class Dial:
    """Policy and schedule -> t of every row or packed sequence.

    A model has one dial. `set` turns it for all threads. Within `held` a thread turns it for itself alone. A forward in
    another thread therefore never runs at the t of this thread's `generate`. Compiled forwards know no threads: run
    them in one thread at a time.

    Arguments:
        original_length: L, in tokens.
        max_factor: the largest t in range.
        schedule: n tokens -> t.
        beyond: `error` or `clamp`, see `Setting`.

    `attention` is the attention method of the extension. It asks the trajectory for a t of its own.

    Raises:
        ValueError: for another `beyond`.
    """

    def __init__(self, original_length: int, max_factor: float, schedule: Schedule, beyond: str = "error") -> None:
        self.original_length, self.max_factor = original_length, max_factor
        self.attention: Attention | None = None
        self.followers: Sequence[Follower] = ()
        self.noted = False  # whether a part asks for `decided`
        self._setting = self._seen = Setting(schedule, beyond)

    @property
    def now(self) -> Setting:
        """The setting in force in this thread; in compiled code the one that was set last, in whatever thread.

        torch.compile guards attributes and traces no thread: code that was compiled for one t is not run at another.
        """
        return self._seen if torch.compiler.is_compiling() else _held().get(self, self._setting)

    @property
    def max_length(self) -> int:
        """The longest sequence in range, ⌊max_factor·L⌋ tokens."""
        return tokens_at(self.max_factor, self.original_length)

    @property
    def policy(self) -> str:
        """`fit`, `grow` or `fixed`."""
        setting = self.now
        return "grow" if setting.grows else "fit" if setting.factor is None else "fixed"

    def set(self, **changes: Any) -> None:
        """Change fields of the setting in force."""
        setting = self._seen = replace(self.now, **changes)
        if self in _held():
            _held()[self] = setting
        else:
            self._setting = setting

    def turn(self, policy: str, factor: float | Tensor | None = None) -> None:
        """Choose a policy, see `longwave.set_policy`, and let the followers settle.

        Raises:
            ValueError: unknown policy; `fixed` without factor; another policy with one; factor outside
                [1, max_factor].
        """
        if policy not in POLICIES:
            raise ValueError(unknown("policy", policy, POLICIES))
        if (policy == "fixed") != (factor is not None):
            if factor is None:
                raise ValueError('policy "fixed" needs a factor: set_policy(model, "fixed", 4.0).')
            raise ValueError(f'policy "fixed" has a factor, others take none, got {policy!r} with factor {factor}.')
        self.set(factor=None if factor is None else self.allowed(factor), grows=policy == "grow", generating=False)
        self.settle()

    def allowed(self, factor: float | Tensor) -> float | Tensor:
        """A t as given: a number, or a tensor [batch].

        Raises:
            ValueError: for anything else, and outside [1, max_factor].
        """
        try:
            values = torch.as_tensor(factor, dtype=torch.float64)
        except (TypeError, ValueError):
            values = torch.empty(0)
        if values.ndim > 1 or values.numel() == 0 or isinstance(factor, bool):
            raise ValueError(f"factor must be a number or a tensor [batch], got {factor!r}.")
        if not bool(((values >= 1) & (values <= self.max_factor)).all()):
            raise ValueError(f"factor must be between 1 and max_factor {self.max_factor:g}, got {factor}.")
        return values.item() if values.ndim == 0 else factor if isinstance(factor, Tensor) else values

    def settle(self) -> None:
        """Let the followers prepare for the setting in force."""
        for follower in self.followers:
            follower.settle()

    @contextmanager
    def held(self) -> Iterator[Dial]:
        """Within the block this thread has a setting of its own; afterwards the earlier setting is in force again."""
        held = _held()
        outer, held[self] = held.get(self), self.now
        try:
            yield self
        finally:
            if outer is None:
                del held[self]
            else:
                held[self] = outer
            self._seen = self.now
            self.settle()

    def factor_for(self, length: int) -> float:
        """t for a sequence of `length` tokens by the schedule, at most max_factor.

        Raises:
            ValueError: beyond ⌊max_factor·L⌋ tokens, unless `beyond` is `clamp`.
        """
        self.check(length)
        setting = self.now
        counted = self.doubled(length) if setting.grows else length
        return min(setting.schedule(counted, self.original_length, self.max_factor), self.max_factor)

    def doubled(self, length: int) -> int:
        """`length` rounded up to L, 2L, 4L, ..., or to the longest in range."""
        rounded = self.original_length * 2 ** math.ceil(
            math.log2(max(length, self.original_length) / self.original_length)
        )
        return max(length, min(rounded, self.max_length))

    def check(self, length: int, remedy: str = "Shorten it", *, columns: int | None = None) -> None:
        """Refuse a sequence out of range, unless `beyond` is `clamp`.

        Arguments:
            columns: tokens of the forward, where the length comes from their positions.
        """
        if length > self.max_length and self.now.beyond == "error":
            what = f"a sequence of {length} tokens is longer than"
            if columns is not None and columns < length:
                what, remedy = f"position {length - 1} is not among the first", "Give smaller position_ids"
            raise ValueError(
                f"{what} {self.max_length} = max_factor {self.max_factor:g} x "
                f'{self.original_length}. {remedy}, or extend with a larger max_factor or beyond="clamp".'
            )

    @property
    def decided(self) -> Decided:
        """What the rotary module has read for the forward that runs in this thread.

        Raises:
            RuntimeError: before it has.
        """
        found, factor = _THREAD.decided.get(self), self.now.factor
        if factor is not None:
            return Decided(factor, None if found is None else found.positions)
        if found is None:
            raise RuntimeError("a layer asks for t before the model's rotary module has read it. Call the whole model.")
        return found

    def follow(self, position_ids: Tensor) -> None:
        """Before a layer of a forward: its t is the one to go by, also where the layer runs again for its gradient."""
        found = _THREAD.decided.get(self)
        if found is None or found.positions is not position_ids:
            self.read(position_ids)

    def read(self, position_ids: Tensor) -> float | Tensor:
        """t of a forward: one number, one for each row [batch], or one for each token [batch, n].

        Arguments:
            position_ids: [batch, n], or [axes, batch, n].
        """
        factor = self._read(position_ids)
        if self.noted:
            self._note(Decided(factor, position_ids))
        return factor

    @torch.compiler.disable
    def _note(self, decided: Decided) -> None:
        _THREAD.decided[self] = decided

    def _read(self, position_ids: Tensor) -> float | Tensor:
        setting = self.now
        if not position_ids.numel():
            return 1.0
        if setting.factor is not None:
            # To read a position would break a graph, and makes a GPU wait.
            if setting.beyond == "error" and not (setting.generating or torch.compiler.is_compiling()):
                self.check(int(position_ids.max()) + 1, columns=position_ids.shape[-1])
            return setting.factor
        if isinstance(setting.schedule, Static) and setting.beyond == "clamp":  # no position is read
            return min(setting.schedule.factor, self.max_factor)
        lengths = sequence_lengths(position_ids)
        found = lengths.unique()
        self.check(int(found[-1]), columns=position_ids.shape[-1])
        factors = [self.factor_for(length) for length in found.tolist()]
        if len(set(factors)) == 1:
            return factors[0]
        return torch.tensor(factors, dtype=torch.float64, device="cpu")[torch.searchsorted(found, lengths).cpu()]

    def start_generating(self, lengths: Sequence[int], new: int) -> None:
        """Decide t for all steps of one generation.

        Arguments:
            lengths: tokens that t has to suit, one for each row or for all of them.
            new: tokens that may follow where t grows. They are checked now, so that no step has to check them.
        """
        self.check(max(lengths) + (new if self.now.grows else 0), "Shorten the prompt or lower max_new_tokens")
        if self.now.factor is None:
            self._generate_at(tuple(self.factor_for(length) for length in lengths))
        else:
            self.set(generating=True)
            self.settle()

    def grow_to(self, lengths: Sequence[int]) -> bool:
        """Take the t of longer texts, if the policy is `grow`. Returns whether t changed."""
        setting = self.now
        if not setting.grows:
            return False
        factors = tuple(self.factor_for(length) for length in lengths)
        now = setting.row_factors
        if factors == (now if len(now) == len(factors) else now * len(factors)):
            return False
        self._generate_at(factors)
        return True

    def _generate_at(self, factors: tuple[float, ...]) -> None:
        factor = factors[0] if len(set(factors)) == 1 else torch.tensor(factors, dtype=torch.float64)
        self.set(factor=factor, generating=True)
        self.settle()


class _Thread(threading.local):
    """The settings that this thread holds, and the t of its forwards."""

    def __init__(self) -> None:
        self.settings: WeakKeyDictionary[Dial, Setting] = WeakKeyDictionary()
        self.decided: WeakKeyDictionary[Dial, Decided] = WeakKeyDictionary()


# Locks and thread-local settings are not attributes of the dial: a model that holds them cannot be copied.
_THREAD = _Thread()
_LOCKS: WeakKeyDictionary[Dial, threading.RLock] = WeakKeyDictionary()


def _held() -> WeakKeyDictionary[Dial, Setting]:
    return _THREAD.settings


def lock_of(dial: Dial) -> threading.RLock:
    """One `generate` of a model runs at a time: compiled steps share the tensors that hold their frequencies."""
    return _LOCKS.setdefault(dial, threading.RLock())
