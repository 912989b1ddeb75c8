"""What an extension does to a tiny model of each causal-LM type; the slow test and the docs page share it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tiny import VOCABULARY, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

import longwave

TOKENS = 24  # within the windows of no sliding layer, within L of every model
FACTOR = 2.0


@dataclass(frozen=True)
class Finding:
    """One causal-LM type: how far it got, and the reason where it got no further."""

    model_type: str
    built: bool = False
    attached: bool = False
    exact: bool = False  # logits at t = 1 and after restore bitwise those of the plain model
    scaled: bool = False  # logits at t = 2 are others
    gradient: bool = False  # non-zero on the field at t = 2
    log_n: bool = False  # runs with per-query log-n, exact within L
    reason: str = ""
    bands: bool = False  # runs with an attention method: exact within L, other logits beyond, the same with a cache
    without_bands: str = ""  # the reason where it does not


def examine(model_type: str) -> Finding:
    """Build, extend with `clex`, compare, differentiate, restore."""
    try:
        model = tiny_model(model_type)
        plain = _logits(model)
    except Exception as error:  # whatever transformers raises for a config it cannot run
        return Finding(model_type, reason=_first_line(error))
    differentiable = _logits(model, grad=True)  # kernels may differ from those without gradients
    if not torch.equal(plain, _logits(model)):
        return Finding(model_type, reason="its own logits differ from run to run")
    try:
        longwave.extend(model, "clex", max_factor=4, log_n=False, original_length=64)
    except ValueError as error:
        return Finding(model_type, built=True, reason=_first_line(error))
    exact = torch.equal(plain, _logits(model)) and torch.equal(differentiable, _logits(model, grad=True))
    longwave.set_policy(model, "fixed", FACTOR)
    scaled = not torch.equal(plain, _logits(model))
    gradient = _has_gradient(model)
    longwave.restore(model)
    exact &= torch.equal(plain, _logits(model)) and "trajectory" not in " ".join(model.state_dict())
    log_n, reason = _runs_with_log_n(model, plain)
    bands, without_bands = _runs_with_bands(model, plain)
    return Finding(model_type, True, True, exact, scaled, gradient, log_n, reason, bands, without_bands)


def _logits(model: PreTrainedModel, grad: bool = False) -> Tensor:
    ids = torch.arange(2 * TOKENS).reshape(2, TOKENS) * 7 % (VOCABULARY - 8) + 4
    with torch.set_grad_enabled(grad):
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits


def _has_gradient(model: PreTrainedModel) -> bool:
    field = [p for rotary in longwave.rotaries(model) for p in rotary.trajectory.parameters()]
    logits = _logits(model, grad=True)
    direction = torch.sin(torch.arange(logits.numel())).reshape(logits.shape)
    (logits * direction).sum().backward()
    return any(p.grad is not None and bool(p.grad.isfinite().all() and p.grad.any()) for p in field)


def _runs_with_log_n(model: PreTrainedModel, plain: Tensor) -> tuple[bool, str]:
    """`extend` decides: what it accepts must run."""
    try:
        longwave.extend(model, "none", max_factor=4, log_n=True, original_length=64)
    except ValueError as error:
        return False, _first_line(error)
    exact = torch.equal(plain, _logits(model))
    longwave.restore(model)
    return exact and torch.equal(plain, _logits(model)), ""


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:200]}"


@torch.no_grad()
def _runs_with_bands(model: PreTrainedModel, plain: Tensor) -> tuple[bool, str]:
    """Under an attention method: t = 1 and restored bitwise plain, t = 2 not; token by token the same as at once."""
    ids = torch.arange(40)[None] * 7 % (VOCABULARY - 8) + 4  # longer than the near band
    own = _cached_differs(model, ids)  # that of a model with recurrent layers depends on the parts
    try:
        longwave.extend(model, "two-band", max_factor=4, original_length=64)
    except ValueError as error:
        return False, _first_line(error)
    try:
        exact = torch.equal(plain, _logits(model))
        longwave.set_policy(model, "fixed", FACTOR)
        whole, cached = model(input_ids=ids, use_cache=False).logits, _cached_differs(model, ids)
        longwave.restore(model)
        moved = float((whole - model(input_ids=ids, use_cache=False).logits).abs().max())
        ok = exact and moved > 0 and cached <= max(1e-4, 2 * own) and torch.equal(plain, _logits(model))
        return ok, "" if ok else f"exact {exact}, moved by {moved:.1e}, cached differs by {cached:.1e}"
    except Exception as error:
        return False, _first_line(error)
    finally:
        longwave.restore(model)


def _cached_differs(model: PreTrainedModel, ids: Tensor) -> float:
    """By how much logits differ that a cache in two parts gives; 0 for a model without a cache of keys."""
    try:
        whole = model(input_ids=ids, use_cache=False).logits
        first = model(input_ids=ids[:, :20], use_cache=True)
        cache = {"past_key_values": first.past_key_values, "position_ids": torch.arange(20, 40)[None]}  # as `generate`
        return float((whole[:, 20:] - model(input_ids=ids[:, 20:], **cache).logits).abs().max())
    except (AttributeError, TypeError):
        return 0.0
