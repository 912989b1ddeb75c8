"""Steer the length factor of an extended model, and freeze it as an export does."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import TypeVar

import torch
from torch import Tensor, nn

from longwave.attention.hook import Steering
from longwave.attention.temperature import Constant
from longwave.extensions.dial import lock_of
from longwave.extensions.handle import Extension, extension, find_extension
from longwave.extensions.steering import steer_again, stop_steering
from longwave.trajectory import Snapshot

Model = TypeVar("Model", bound=nn.Module)


def set_policy(model: Model, policy: str = "fit", t: float | Tensor | None = None) -> Model:
    """Choose how t follows the length.

    - `fit` (the state after `extend`): a forward takes t from the length of each sequence, and `generate` from
      prompt + new tokens, once per call. Decoding with a cache then equals the forward over the whole text.
    - `grow`, for text without a known end: lengths count as L, 2L, 4L, ..., so that t changes rarely. Where t
      changes, `generate` computes the cache again from the first token. Because lengths double, this costs O(1)
      per token. Greedy decoding with and without a cache agree under `grow`, too.
    - `fixed`: t is the same in every call; a tensor [batch] gives each row its own t. A compiled forward without
      gradient keeps the frequencies from this moment. After a change of a field's weights, call `set_policy` again
      (or `model.eval()`).

    In a batch every row has its own t, and so has every sequence packed into a row. If `generate` runs in another
    thread, `set_policy` waits for it.

    Raises:
        ValueError: unknown policy; `fixed` without t; another policy with t; t outside [1, max_factor].
    """
    dial = extension(model).dial
    with lock_of(dial):
        dial.turn(policy, t)
    return model


def set_length(model: Model, policy: str = "fit", factor: float | Tensor | None = None) -> Model:
    """The old name of `set_policy`."""
    warnings.warn("set_length is now set_policy(model, policy, t).", DeprecationWarning, stacklevel=2)
    return set_policy(model, policy, factor)


def _one_number(factor: float | Tensor) -> float:
    """The one t for all rows."""
    whole = factor.ndim == 0 and factor.dtype != torch.bool if isinstance(factor, Tensor) else isinstance(factor, Real)
    if isinstance(factor, bool) or not whole:
        raise ValueError(f"frozen takes one t for all rows, a number, got {factor!r}.")
    return float(factor)


@contextmanager
def frozen(model: Model, factor: float | Tensor) -> Iterator[Model]:
    """For the length of a `with` block, the model runs as its export at t = `factor` does.

    t is fixed. A constant takes the place of per-query log-n: its value for the query at t·L, as in
    `Snapshot.with_log_n`; with learned exponents every head has a constant of its own. An adapter is on by g(t). All
    threads see the frozen model. A `generate` that runs in another thread ends first.

    Arguments:
        factor: t, a number or a tensor without dimensions.

    Raises:
        ValueError: if the model is frozen already, or t is no number or outside [1, max_factor].
    """
    handle = extension(model)
    dial = handle.dial
    if handle.attention is not None:
        raise ValueError(f"no export can express {handle.attention.name}: nothing to freeze. Use set_policy.")
    with lock_of(dial):
        before = dial.now
        if before.constant_scaling is not None:
            raise ValueError("the model is frozen already. Leave that block first.")
        t = _one_number(factor)
        dial.turn("fixed", t)
        heads = handle.heads if handle.log_n_by_head else None
        constant = 1.0 if heads else handle.trajectories[0].at(t).constant_log_n(handle.log_n)
        steering = stop_steering(handle.host)
        if heads is not None and steering is not None:
            factors = heads.constants(t, handle.original_length)
            steer_again(handle.host, Steering(steering.base, Constant(factors)))
        dial.set(constant_scaling=constant)
        dial.settle()
    try:
        yield model
    finally:
        with lock_of(dial):
            dial.set(factor=before.factor, grows=before.grows, constant_scaling=None)
            dial.settle()
            if find_extension(handle.host) is handle:  # it may have been restored
                stop_steering(handle.host)
                steer_again(handle.host, steering)


def weights_that_follow(handle: Extension) -> str:
    """The parts of an extension that change weights with t, for messages; empty if it has none."""
    parts = {"learned exponents of log-n": handle.heads, "an adapter": handle.adapter}
    return " and ".join(name for name, part in parts.items() if part is not None)


def snapshot(model: nn.Module, t: float) -> Snapshot:
    """The model's trajectory frozen at t.

    Raises:
        ValueError: if the model is not extended, has an attention method, learned scalars or an adapter, or its rotary
            modules follow different trajectories.
    """
    handle = extension(model)
    if handle.attention is not None:
        raise ValueError(f"no snapshot can express {handle.attention.name}: it gives each band an own rotation.")
    if parts := weights_that_follow(handle):
        raise ValueError(f"no snapshot can express {parts}: it holds frequencies. longwave.export writes the weights.")
    return handle.trajectory.at(t)
