"""Lengths and positions for a trainer that knows none: transformers' own, TRL's, a loop of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from longwave.extensions.foreign import unwrapped
from longwave.extensions.handle import extension
from longwave.extensions.steering import count_keys
from longwave.training.draw import LengthSampler
from longwave.training.frozen import require_unfrozen


@contextmanager
def drawn_lengths(
    model: nn.Module, *, max_factor: float | None = None, least_factor: float = 1.0, chunks: int = 8, seed: int = 0
) -> Iterator[nn.Module]:
    """For the length of a `with` block every training step has a drawn t, and its rows have positions up to t·L.

    Without it rows of up to L tokens run at t = 1, where no extension has a gradient: the weights learn, and the
    frequencies do not. Evaluation within the block is as ever.

        with longwave.drawn_lengths(trainer.model):
            trainer.train()

    Arguments:
        model: an extended model, also in a PeftModel.
        max_factor: the largest t drawn; the extension's.
        least_factor: the smallest t drawn.
        chunks: contiguous pieces of a row, between which positions skip.
        seed: of the draws.

    Raises:
        ValueError: for a part of the extension that is frozen; in a step, for rows packed with several sequences.
    """
    handle = extension(model)
    host, dial = unwrapped(model, "drawn_lengths"), handle.dial
    require_unfrozen(host)
    sampler = LengthSampler(
        original_length=handle.original_length,
        max_factor=handle.max_factor if max_factor is None else max_factor,
        least_factor=least_factor,
        chunks=chunks,
        seed=seed,
    )
    before, steps = dial.now, 0

    def draw(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        nonlocal steps
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not (host.training and torch.is_grad_enabled()) or ids is None:
            dial.set(factor=before.factor)
            return args, kwargs
        _require_single(kwargs.get("position_ids"))
        t, positions = sampler(*ids.shape, step=steps)
        steps += 1
        dial.set(factor=t)
        mask = kwargs.get("attention_mask")  # without one transformers takes a skip for the start of a sequence
        mask = torch.ones_like(ids) if mask is None else mask
        return args, kwargs | {"position_ids": positions.to(ids.device), "attention_mask": mask}

    hook = host.register_forward_pre_hook(draw, with_kwargs=True, prepend=True)
    if sampler.max_factor > dial.max_factor:
        dial.set(beyond="clamp")
    count_keys(host, True)
    try:
        yield model
    finally:
        hook.remove()
        count_keys(host, False)
        dial.set(factor=before.factor, beyond=before.beyond)


def _require_single(positions: Tensor | None) -> None:
    """A `ValueError` for rows with several sequences, which positions that skip would tear apart."""
    if positions is not None and bool((positions.diff(dim=-1) < 0).any()):
        raise ValueError(
            "the rows are packed with several sequences, whose positions begin anew. Train with packing off (TRL: "
            "packing=False), or use `longwave train`, which packs documents itself."
        )
