"""Extend a transformers model in place, and undo it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import nn

from longwave.attention.hook import Steering
from longwave.extensions.adapter import LoRA
from longwave.extensions.arguments import check_model
from longwave.extensions.assembly import build_parts, put_on
from longwave.extensions.handle import Extension, extension, find_extension, hold, let_go
from longwave.extensions.hooks import install_hooks, remove_hooks
from longwave.extensions.mounts import Mount, scaled_inside
from longwave.extensions.request import Request
from longwave.extensions.sites import find_sites, host_of, rope_at
from longwave.extensions.steering import steer_again, steering_of, stop_steering
from longwave.rope import Rope
from longwave.schedule import Schedule
from longwave.trajectory import Trajectory

Model = TypeVar("Model", bound=nn.Module)


def extend(
    model: Model,
    method: str | None = None,
    *,
    max_factor: float,
    schedule: str | Schedule | None = None,
    prior: str | None = None,
    log_n: bool | float | None = None,
    beyond: str = "error",
    original_length: int | None = None,
    trajectory: Trajectory | None = None,
    head_scalars: bool = False,
    adapter: LoRA | None = None,
    **options: Any,
) -> Model:
    """Make the model's rotary embedding follow z(t), in place; `restore` undoes it.

    Nothing changes within the original length L: logits at t = 1 are bitwise those of the plain model.
    A new `clex` starts as its prior and is meant to be trained. If `load` recognised RoPE scaling in the model's
    config, `extend` replaces it: the new extension starts from the model as transformers runs it.

    Arguments:
        model: any transformers causal LM that owns a rotary module; PEFT-wrapped is fine.
        method: `METHOD[@SCHEDULE][+ATTENTION][:OPTION=VALUE]...`, or an attention method alone: see
            `longwave.METHODS` and `longwave.ATTENTIONS`. None takes the best that needs no training, `two-band`; with
            a ready trajectory that trajectory alone.
        max_factor: the largest length factor t; sequences up to max_factor·L tokens are in range.
        schedule: length -> t, as an object or its spec (`continuous`, `ceiling`, `threshold`, `static=8`).
        prior: of `clex`: `ntk`, `yarn` or `linear`; None takes what the attention method has below it, else `ntk`.
        log_n: per-query log-n attention scaling: an exponent, True for 1, False for off; None takes
            the method's default.
        beyond: what a sequence over max_factor·L tokens does: `error` or `clamp`.
        original_length: L in tokens, if the model's config gives a wrong L or none.
        trajectory: a ready one instead of `method` and `options`; all other settings must agree with it.
        head_scalars: give each head a mass and a temperature of its own, to be trained. They start at the method's.
        adapter: let the weights follow t, too, by a LoRA that is off within L, to be trained.
        options: of the method, and of the attention method; `longwave methods NAME` lists them.

    Returns:
        The same model.

    Raises:
        ValueError: no rotary module (the message says what the model has); already extended; unknown
            method, schedule or option; max_factor < 1; settings that disagree with the trajectory; log-n or an
            attention method on a model that cannot have it.
    """
    check_model(model, "extend")
    request = Request.read(
        method,
        max_factor=max_factor,
        schedule=schedule,
        prior=prior,
        log_n=log_n,
        beyond=beyond,
        original_length=original_length,
        trajectory=trajectory,
        head_scalars=head_scalars,
        adapter=adapter,
        options=options,
    )
    with _without_recognised(model):
        host, sites = host_of(model), find_sites(model)
        _hold(put_on(host, sites, build_parts(host, sites, request), request))
    return model


def extend_from(model: Model, bases: Mapping[nn.Module, nn.Module], method: str, **arguments: Any) -> Model:
    """`extend`, starting from other frequencies than those of the model's rotary modules.

    `restore` gives the model's own modules back.

    Arguments:
        bases: for each rotary module of the model, the module to start from; it may be the same one.
        method, arguments: as in `extend`. If `extend` fails, the model is as before.
    """
    sites = find_sites(model)
    try:
        for site in sites:
            for parent, name in site.owners:
                setattr(parent, name, bases[site.module])
        extend(model, method, **arguments)
    except BaseException:
        for site in sites:
            for parent, name in site.owners:
                setattr(parent, name, site.module)
        raise
    loaded = {base: module for module, base in bases.items() if base is not module}
    handle = extension(model)
    handle.seats = tuple(
        replace(seat, scaled=loaded.get(getattr(seat.parent, seat.name).base)) for seat in handle.seats
    )
    return model


def extend_again(model: Model, method: str, **arguments: Any) -> Model:
    """`extend` an extended model anew, from the same z(1). If this fails, the model is left restored."""
    bases = {mount.own: mount.rotary.base for mount in extension(model).mounts}
    return extend_from(restore(model), bases, method, **arguments)


def restore(model: Model) -> Model:
    """Give the model its own rotary modules, attention and methods back; a plain model stays as it is.

    A model that came with RoPE scaling in its config has the scaling again.
    """
    check_model(model, "restore")
    handle = find_extension(model)
    if handle is not None:
        for mount in handle.mounts:
            setattr(mount.parent, mount.name, mount.own)
        for parent, name, rotary in list(scaled_inside(handle.host)):  # where PEFT has put one when it unwrapped
            setattr(parent, name, rotary.base)
        _take_off(handle)
    return model


@contextmanager
def extended(model: Model, method: str | None = None, **arguments: Any) -> Iterator[Model]:
    """`extend` for the length of a `with` block: `with extended(model, "ntk", max_factor=8): ...`."""
    check_model(model, "extended")
    before = _remember(model)
    extend(model, method, **arguments)
    try:
        yield model
    finally:
        restore(model)
        _put_back(before)


@contextmanager
def suspended(model: Model) -> Iterator[Model]:
    """For the length of a `with` block the plain model, at z(1); afterwards the very same extension again."""
    check_model(model, "suspended")
    before = _remember(model)
    if before is not None:
        for mount in before.mounts:
            setattr(mount.parent, mount.name, mount.rotary.base)
        _take_off(before.handle)
    try:
        yield model
    finally:
        _put_back(before)


@contextmanager
def _without_recognised(model: nn.Module) -> Iterator[None]:
    """Take off the extension that `load` recognised in the config. If the block fails, put it on again."""
    before = _remember(model)
    if before is not None and not before.handle.recognised:
        raise ValueError("the model is already extended. Call longwave.restore(model) first.")
    restore(model)
    try:
        yield
    except BaseException:
        _put_back(before)
        raise


def rope_of(model: nn.Module, original_length: int | None = None) -> Rope:
    """The rope that the model was pre-trained with; the model may be extended or not."""
    handle = find_extension(model)
    if handle is not None:
        return handle.rope
    return rope_at(find_sites(model)[0], host_of(model).config.get_text_config(decoder=True), original_length)


@dataclass(frozen=True, eq=False)
class _Before:
    """An extension with the places of its modules and its steering, so that it can come back."""

    handle: Extension
    mounts: list[Mount]
    steering: Steering | None


def _remember(model: nn.Module) -> _Before | None:
    handle = find_extension(model)
    return None if handle is None else _Before(handle, handle.mounts, steering_of(handle.host))


def _put_back(before: _Before | None) -> None:
    if before is None:
        return
    for mount in before.mounts:
        mount.put_on()
    if before.handle.adapter is not None:
        before.handle.adapter.put_back()
    steer_again(before.handle.host, before.steering)
    _hold(before.handle)


def _hold(handle: Extension) -> None:
    hold(handle.reconcile())
    install_hooks(handle.host)


def _take_off(handle: Extension) -> None:
    """Take off everything that `extend` has put on the model beside the rotary modules."""
    stop_steering(handle.host)
    if handle.adapter is not None:
        handle.adapter.take_off()
    remove_hooks(handle.host)
    let_go(handle.host)
