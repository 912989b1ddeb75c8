"""Extend a transformers model in place, steer its length factor, and undo it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from longwave.architectures import Site, find_sites, host_of, reset_frequencies, rope_at
from longwave.generation import install_hooks, remove_hooks, rotaries_of
from longwave.logn import disable_log_n, enable_log_n, log_n_of, put_log_n_back
from longwave.methods import Method, parse_method
from longwave.rope import Rope
from longwave.rotary import ScaledRotary, frequency_name
from longwave.schedule import Schedule, Static, parse_schedule
from longwave.trajectory import Snapshot, Trajectory

Model = TypeVar("Model", bound=nn.Module)
POLICIES = ("fit", "grow", "fixed")


def extend(
    model: Model,
    method: str = "clex",
    *,
    max_factor: float,
    schedule: str | Schedule | None = None,
    prior: str | None = None,
    log_n: bool | float | None = None,
    beyond: str = "error",
    original_length: int | None = None,
    trajectory: Trajectory | None = None,
    **options: Any,
) -> Model:
    """Make the model's rotary embedding follow z(t), in place; `restore` undoes it.

    Nothing changes within the original length L: logits at t = 1 are bitwise those of the plain model.
    A new `clex` starts as its prior and is meant to be trained. What `load` made of RoPE scaling in a model's
    config gives way: the model as transformers runs it is then what is extended.

    Arguments:
        model: any transformers causal LM that owns a rotary module; PEFT-wrapped is fine.
        method: `METHOD[@SCHEDULE]`, see `longwave.METHODS`.
        max_factor: the largest length factor t; sequences up to max_factor·L tokens are in range.
        schedule: length -> t, as an object or its spec (`continuous`, `ceiling`, `threshold`, `static=8`).
        prior: of `clex`: `ntk`, `yarn` or `linear`.
        log_n: per-query log-n attention scaling: an exponent, True for 1, False for off; None takes
            the method's default.
        beyond: what a sequence over max_factor·L tokens does: `error` or `clamp`.
        original_length: L in tokens, if the model's config says it wrong or not at all.
        trajectory: a ready one instead of `method` and `options`; what else is given must agree with it.
        options: passed on to the method.

    Returns:
        The same model.

    Raises:
        ValueError: no rotary module (the message says what the model has); already extended; unknown
            method, schedule or option; max_factor < 1; settings that are not the trajectory's; log-n on
            an attention that cannot have it.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"extend takes a model, got {type(model).__name__}. Load it first: longwave.load(path).")
    spec, chosen = parse_method(trajectory.name if trajectory is not None else method)
    if schedule is not None:
        chosen = parse_schedule(schedule) if isinstance(schedule, str) else schedule
    if isinstance(chosen, Static) and chosen.factor > max_factor:
        raise ValueError(f"schedule {chosen.spec} is over max_factor {max_factor:g}. Raise max_factor.")
    if prior is not None:
        options["prior"] = prior
    if trajectory is not None:
        _refuse_other_settings(trajectory, max_factor=max_factor, original_length=original_length, **options)
    with _without_recognised(model):
        host = host_of(model)
        sites = find_sites(model)
        ropes = [rope_at(site, host.config.get_text_config(decoder=True), original_length) for site in sites]
        trajectories = (
            _trajectories(spec, ropes, max_factor, options) if trajectory is None else [trajectory] * len(sites)
        )
        rotaries = [
            ScaledRotary(site.module, own, chosen, layer_type=site.layer_type, beyond=beyond).train(
                site.module.training
            )
            for site, own in zip(sites, trajectories, strict=True)
        ]
        exponent = spec.log_n if log_n is None else float(log_n)
        if exponent:
            enable_log_n(host, trajectories[0].rope.original_length, exponent)
        for site, rotary in zip(sites, rotaries, strict=True):
            _place(site, rotary)
        install_hooks(host)
    return model


def extend_from(model: Model, bases: Mapping[nn.Module, nn.Module], method: str, **arguments: Any) -> Model:
    """`extend` from other frequencies than the model's rotary modules hold; `restore` gives those modules back.

    Arguments:
        bases: for each of the model's rotary modules the one to start from, which may be itself.
        method, arguments: of `extend`; where it fails, the model is as before.
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
    loaded = {bases[site.module]: site.module for site in sites}
    for rotary in rotaries(model):
        if loaded[rotary.base] is not rotary.base:
            rotary.loaded = loaded[rotary.base]
    return model


def extend_again(model: Model, method: str, **arguments: Any) -> Model:
    """`extend` an extended model anew, from the same z(1); where that fails, it is left restored."""
    bases = {rotary.base if rotary.loaded is None else rotary.loaded: rotary.base for rotary in rotaries(model)}
    return extend_from(restore(model), bases, method, **arguments)


def restore(model: Model) -> Model:
    """Give the model its own rotary modules, attention and methods back; a plain model stays as it is.

    One that came with RoPE scaling in its config has that again.
    """
    for parent, name, rotary in _places(model):
        setattr(parent, name, rotary.base if rotary.loaded is None else rotary.loaded)
    _clean(model)
    return model


@contextmanager
def extended(model: Model, method: str = "clex", **arguments: Any) -> Iterator[Model]:
    """`extend` for the length of a `with` block: `with extended(model, "ntk", max_factor=8): ...`."""
    before = _places(model) if isinstance(model, nn.Module) else []
    extend(model, method, **arguments)
    try:
        yield model
    finally:
        restore(model)
        _put_back(model, before)


@contextmanager
def _without_recognised(model: nn.Module) -> Iterator[None]:
    """Take off the model what `load` recognised in its config; where the block fails, put it on again."""
    before = _places(model)
    if not all(rotary.recognised for *_, rotary in before):
        raise ValueError("the model is already extended. Call longwave.restore(model) first.")
    if before:
        restore(model)
    try:
        yield
    except BaseException:
        _put_back(model, before)
        raise


@contextmanager
def suspended(model: Model) -> Iterator[Model]:
    """The plain model, at z(1), for the length of a `with` block, then the very same extension again."""
    host, places = host_of(model), _places(model)
    for parent, name, rotary in places:
        setattr(parent, name, rotary.base)
    log_n = disable_log_n(host)
    _clean(model)
    try:
        yield model
    finally:
        _put_back(model, places)
        put_log_n_back(host, log_n)


def rotaries(model: nn.Module) -> list[ScaledRotary]:
    """The scaled rotary modules of an extended model, looked up afresh.

    Raises:
        ValueError: if the model is not extended.
    """
    found = rotaries_of(model)
    if not found:
        raise ValueError("the model is not extended. Call longwave.extend(model, ...) or longwave.load(path).")
    return found


@contextmanager
def frozen(model: Model, factor: float) -> Iterator[Model]:
    """For the length of a `with` block, the model as an export of it at t = `factor` runs.

    t is fixed, and per-query log-n gives way to the constant that it is for the query at t·L, as in
    `Snapshot.with_log_n`.
    """
    host = host_of(model)
    exponent = log_n_of(host)
    before = [(rotary, rotary.factor, rotary.grows) for rotary in rotaries(model)]
    for rotary, *_ in before:
        rotary.constant_scaling = rotary.trajectory.at(factor).constant_log_n(exponent)
    log_n = disable_log_n(host)
    try:
        yield set_length(model, "fixed", factor)
    finally:
        put_log_n_back(host, log_n)
        for rotary, old, grows in before:
            rotary.constant_scaling = 1.0
            rotary.fix(old, grows=grows)


def set_length(model: Model, policy: str = "fit", factor: float | Tensor | None = None) -> Model:
    """Choose how t follows the length.

    - `fit` (the state after `extend`): a forward takes t from the length of each sequence, and `generate` from
      prompt + new tokens, once per call. Decoding with a cache then equals the forward over the whole text.
    - `grow`, for text without a known end: lengths count as L, 2L, 4L, ..., so that t changes rarely; where it
      does, `generate` computes the cache again from the first token, which doubling keeps at O(1) per token.
      Greedy decoding with and without a cache agree under it, too.
    - `fixed`: t = factor in every call; a tensor [batch] gives each row its own. A compiled forward without gradient
      keeps the frequencies from this moment: call it again (or `model.eval()`) after changing a field's weights.

    In a batch every row has its own t, and so has every sequence packed into a row.

    Raises:
        ValueError: unknown policy; `fixed` without factor or another with one; factor outside [1, max_factor].
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}. Available: {', '.join(POLICIES)}.")
    if (policy == "fixed") != (factor is not None):
        raise ValueError(f'policy "fixed" needs a factor, others take none, got {policy!r} with factor {factor}.')
    for rotary in rotaries(model):
        limit = rotary.trajectory.max_factor
        if factor is not None:
            values = torch.as_tensor(factor, dtype=torch.float64)
            if not bool(((values >= 1) & (values <= limit)).all()):
                raise ValueError(f"factor must be between 1 and max_factor {limit:g}, got {factor}.")
    for rotary in rotaries(model):
        rotary.fix(factor if factor is None or isinstance(factor, Tensor) else float(factor), grows=policy == "grow")
    return model


def snapshot(model: nn.Module, t: float) -> Snapshot:
    """The model's trajectory frozen at t.

    Raises:
        ValueError: if the model is not extended, or its rotary modules follow different trajectories.
    """
    return _the_trajectory(model).at(t)


def rope_of(model: nn.Module, original_length: int | None = None) -> Rope:
    """What the model was pre-trained with, extended or not."""
    if rotaries_of(model):
        return _the_trajectory(model).rope
    return rope_at(find_sites(model)[0], host_of(model).config.get_text_config(decoder=True), original_length)


def trajectories_of(model: nn.Module) -> list[Trajectory]:
    """The distinct trajectories of an extended model, mostly one, in the order of the model.

    Of a rotary module that PEFT trains (`modules_to_save`), its copy counts and not the original.
    """
    in_use = [rotary for rotary in rotaries(model) if rotary not in _set_aside(model)]
    return list(dict.fromkeys(rotary.trajectory for rotary in in_use))


def _places(model: nn.Module) -> list[tuple[nn.Module, str, ScaledRotary]]:
    """(parent, attribute, module) of every reference to a scaled rotary module."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if isinstance(child, ScaledRotary)
    ]


def _put_back(model: nn.Module, places: list[tuple[nn.Module, str, ScaledRotary]]) -> None:
    for parent, name, rotary in places:
        reset_frequencies(rotary.base, rotary.layer_type)
        setattr(parent, name, rotary)
    if places:
        install_hooks(host_of(model))


def _clean(model: nn.Module) -> None:
    """Take off what `extend` has put beside the rotary modules."""
    host = host_of(model)
    disable_log_n(host)
    remove_hooks(host)


def _set_aside(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(".original_module")]


def _the_trajectory(model: nn.Module) -> Trajectory:
    found = trajectories_of(model)
    if len(found) > 1:
        raise ValueError(f"the model follows {len(found)} trajectories. Ask each of longwave.rotaries(model).")
    return found[0]


def _trajectories(method: Method, ropes: list[Rope], max_factor: float, options: dict[str, Any]) -> list[Trajectory]:
    """One trajectory per distinct rope, shared by the modules that have it."""
    known = inspect.signature(method.build).parameters
    if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in known.values()):
        available = sorted(set(known) - {"rope", "max_factor", "name"})
        if unknown := sorted(set(options) - set(available)):
            raise ValueError(
                f"{method.name} has no option {unknown[0]!r}. Available: {', '.join(available) or 'none'}."
            )
    built: dict[tuple[float, ...], Trajectory] = {}
    for rope in ropes:
        key = tuple(rope.inv_freq.tolist())
        if key not in built:
            try:
                built[key] = method.build(rope, max_factor, **options)
            except TypeError as error:  # an option that the method's constructor does not have
                raise ValueError(f"{method.name}: {error}.") from None
    return [built[tuple(rope.inv_freq.tolist())] for rope in ropes]


def _refuse_other_settings(trajectory: Trajectory, **given: Any) -> None:
    own = {"max_factor": trajectory.max_factor, "original_length": trajectory.rope.original_length}
    own |= trajectory.options()
    for name, value in given.items():
        if value is not None and value != own.get(name):
            raise ValueError(
                f"{name} {value!r} is not the trajectory's, which has {own.get(name)!r}. "
                "Leave it out or give the same, or extend without trajectory."
            )


def _place(site: Site, rotary: ScaledRotary) -> None:
    reset_frequencies(site.module, site.layer_type)
    rotary.trajectory.to(getattr(site.module, frequency_name(site.layer_type)).device)
    for parent, name in site.owners:
        setattr(parent, name, rotary)
