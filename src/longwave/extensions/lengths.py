"""Rows, padding and packing: the number of tokens of every sequence of a batch, and the places of the tokens.

No other module knows the rules for this. Position ids come as [batch, n], or as [axes, batch, n] for models that count
images in several directions. There the largest position of a row counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional


def sequence_lengths(position_ids: Tensor) -> Tensor:
    """The length of each token's sequence: int64 [batch, n].

    Positions fall where the next sequence begins. Within a sequence they rise, may skip, and stay where tokens are
    hidden. So a sequence of one token counts to the one behind it: a token that sees itself alone does not depend on
    its position. With several axes the whole row counts as one sequence, because positions fall within an image, too.
    """
    if position_ids.ndim == 3:
        return (position_ids.amax((0, -1), keepdim=True)[0] + 1).expand(position_ids.shape[1:])
    positions = position_ids
    index = functional.pad((positions[:, 1:] < positions[:, :-1]).long(), (1, 0)).cumsum(-1)
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


def hides(mask: Any) -> TypeGuard[Tensor]:
    """Whether an attention mask hides columns. A mask of another shape than [batch, width] counts as none."""
    return isinstance(mask, Tensor) and mask.ndim == 2 and not bool(mask.all())


def counted_positions(mask: Tensor, columns: int) -> Tensor:
    """Position ids of the last `columns` columns: how many visible tokens are before each. int64 [batch, columns].

    A hidden token has the position of the visible token before it; 0 where there is none. It makes no row longer.

    Arguments:
        mask: attention mask [batch, width].
    """
    return (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -columns:]


def over_hidden(position_ids: Tensor, mask: Tensor) -> Tensor:
    """The same position ids, but every hidden token has the position of the visible token before it: [batch, n].

    Hidden tokens in front have the position of the first visible one. Nobody sees where a hidden token stands, and
    transformers puts it at 0, which looks like the border of a packed sequence.
    """
    visible = mask[:, -position_ids.shape[1] :].bool()
    column = torch.arange(visible.shape[1], device=visible.device)
    before = torch.where(visible, column, -1).cummax(1).values
    source = torch.where(before < 0, visible.long().argmax(1, keepdim=True), before)
    return position_ids.expand(len(visible), -1).gather(1, source)


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
