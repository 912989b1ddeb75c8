"""Run a method that remembers (a selection) inside a model: each row by itself, with its memory of earlier forwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longwave.attention.rows import Row, RowWise
from longwave.extensions.memory import Memories, Remembered


@dataclass(frozen=True)
class Extent:
    """A row of a forward, without its padding.

    Arguments:
        first: the column of its first key.
        length: how many keys it has.
        decoding: it is one token after a prompt.
    """

    first: int
    length: int
    decoding: bool


def extents_of(method: RowWise, positions: Tensor, columns: Tensor, prompts: tuple[int, ...]) -> list[Extent]:
    """Where each row lies.

    Arguments:
        positions: of the queries, int64 [B or 1, n].
        columns: positions of the keys, int64 [B, m], -1 where there is none.
        prompts: tokens of the prompt of each row where they are known: one number for all, or for some rows in turn.

    Raises:
        ValueError: for padding that is not on the left, and for positions that skip.
    """
    batch, count = columns.shape[0], positions.shape[1]
    found = []
    for row, (keys, queries) in enumerate(zip(columns, positions.expand(batch, -1), strict=True)):
        filled = (keys >= 0).nonzero().flatten()
        length = len(filled)
        first = int(filled[0]) if length else 0
        own = min(length, count)
        expected = torch.arange(length - own, length, device=queries.device)
        if length and (int(filled[-1]) - first + 1 != length or not torch.equal(queries[count - own :], expected)):
            raise ValueError(
                f"{method.name} takes rows that are padded on the left alone, with positions 0, 1, 2, ...; row {row} "
                "is not of this kind. Pad on the left, and leave position_ids out."
            )
        prompt = prompts[row * len(prompts) // batch] if prompts else 1
        found.append(Extent(first, length, count == 1 and length > max(prompt, 1)))
    return found


def attend_rows(
    method: RowWise,
    tensors: tuple[Tensor, Tensor, Tensor],
    rows: dict[int, Extent],
    memories: Memories | None,
    setting: dict[str, Any],
) -> Tensor:
    """Attention of rows, one after the other: [B, n, H, D], 0 for padding.

    Arguments:
        tensors: q [B, H, n, D]; k, v [B, H_kv, m, D].
        rows: where each of them lies, by its number in the batch of the forward.
        memories: of the layer; None where nothing is cached.
        setting: layout, spectrum and scale of a `Row`.

    Raises:
        ValueError: under gradients, and where a cache was changed behind the memory.
    """
    q, k, v = tensors
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise ValueError(
            f"{method.name} has no gradient: it chooses keys. Run the model under torch.no_grad(), or train with "
            "another attention method."
        )
    output = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], v.shape[3])
    for at, (number, extent) in enumerate(rows.items()):
        if not extent.length:
            continue
        own, columns = min(q.shape[2], extent.length), slice(extent.first, extent.first + extent.length)
        row = Row(
            q[at : at + 1, :, q.shape[2] - own :], k[at : at + 1, :, columns], v[at : at + 1, :, columns],
            decoding=extent.decoding, **setting,
        )  # fmt: skip
        before = None if memories is None else memories.of(number)
        if before is not None and before.length != row.start:
            raise ValueError(
                f"the cache has {row.start} tokens, and {method.name} remembers {before.length}: it was changed from "
                "outside. Pass the whole text with a new cache."
            )
        found, memory = method.attend(row, None if before is None else before.memory)
        output[at, q.shape[2] - own :] = found[0].transpose(0, 1)
        if memories is not None:
            memories.keep(number, Remembered(extent.length, memory))
    return output
