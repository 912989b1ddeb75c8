"""Rows, padding and packing: the number of tokens of every sequence of a batch, and the places of the tokens.

No other module knows the rules for this. Position ids come as [batch, n], or as [axes, batch, n] for models that count
images in several directions. There the largest position of a row counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def sequence_lengths(position_ids: Tensor) -> Tensor:
    """The length of each token's sequence: int64 [batch, n].

    Positions rise within a sequence (they may skip), and fall or stay where the next sequence begins. With
    several axes the whole row counts as one sequence, because positions fall within an image, too.
    """
    if position_ids.ndim == 3:
        return (position_ids.amax((0, -1), keepdim=True)[0] + 1).expand(position_ids.shape[1:])
    positions = position_ids
    index = functional.pad((positions[:, 1:] <= positions[:, :-1]).long(), (1, 0)).cumsum(-1)
    longest = torch.zeros_like(positions).scatter_reduce(1, index, positions + 1, "amax")
    return longest.gather(1, index)


def row_ends(position_ids: Tensor) -> Tensor:
    """Tokens of each row, its largest position + 1 (the last one may be padding): int64 [batch]."""
    return _one_axis(position_ids).amax(-1) + 1


def row_starts(position_ids: Tensor) -> Tensor:
    """Tokens before each row: its least position, int64 [batch]."""
    return _one_axis(position_ids).amin(-1)


def _one_axis(position_ids: Tensor) -> Tensor:
    return position_ids.amax(0) if position_ids.ndim == 3 else position_ids


def padded_positions(mask: Any, columns: int) -> Tensor | None:
    """Position ids of the last `columns` columns, without padding: int64 [batch, columns]; None if there is no padding.

    Padding behind a row has the row's last position; left padding has position 0. Neither makes a row longer.

    Arguments:
        mask: attention mask [batch, width]; a mask of another shape counts as no mask.
    """
    if not isinstance(mask, Tensor) or mask.ndim != 2 or bool(mask.all()):
        return None
    return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -columns:]


def prompt_columns(inputs: Mapping[str, Any], width: int) -> int:
    """Columns of the whole text, with cached tokens and padding; `width` if `inputs` do not tell."""
    given = (inputs.get(name) for name in ("position_ids", "attention_mask"))
    return next((int(tensor.shape[-1]) for tensor in given if tensor is not None), width)


def prompt_lengths(inputs: Mapping[str, Any], width: int) -> tuple[int, ...]:
    """Tokens of each row of a prompt, without padding; one number if all rows have the same length."""
    positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    if positions is None and mask is None:
        return (width,)
    found: Tensor = mask.sum(-1) if positions is None else row_ends(torch.atleast_2d(positions))  # type: ignore[union-attr]
    lengths: list[int] = found.tolist()
    return tuple(lengths) if len(set(lengths)) > 1 else (lengths[0],)
