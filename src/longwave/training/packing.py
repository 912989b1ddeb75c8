"""The text of a run, packed into rows: one stream cut in order, or chats laid side by side."""

from __future__ import annotations

import logging
from bisect import bisect_left, insort

import numpy as np
import torch
from torch import Tensor

from longwave.data.chat_tokens import ChatStream
from longwave.data.tokens import TokenStream
from longwave.training.batches import pack
from longwave.training.config import APART
from longwave.training.documents import Marks

logger = logging.getLogger("longwave")


def pack_text(text: TokenStream, length: int, documents: str) -> tuple[Tensor, Marks | None]:
    """Rows of token ids [rows, length], and what training knows of their tokens.

    Raises:
        ValueError: if the text is shorter than one row.
    """
    if isinstance(text, ChatStream):
        rows, marks = pack_chats(text, length)
        return rows, marks if documents == APART else Marks(None, marks.learned, by_rows=True)
    marks = Marks(text.starts)
    return pack(text.tensor(), length), marks if documents == APART and marks.several else None


def pack_chats(text: ChatStream, length: int) -> tuple[Tensor, Marks]:
    """Whole chats in rows. What is left of a row is filled up by a document that nothing is learned from.

    Raises:
        ValueError: if no chat fits into a row.
    """
    sizes = text.sizes
    fits = np.flatnonzero(sizes <= length)
    if len(fits) < len(sizes):
        logger.warning(
            "left out %d of %d chats: they are longer than a row of %d tokens (the longest has %d). A larger row "
            "length takes them.", len(sizes) - len(fits), len(sizes), length, sizes.max(),
        )  # fmt: skip
    if not len(fits):
        raise ValueError(f"every chat is longer than a row of {length} tokens. Raise row length, or train length.")
    rows = best_fit(sizes[fits], length)
    ids, learned = np.full((len(rows), length), text.fill, np.int32), np.zeros((len(rows), length), bool)
    starts = []
    for number, row in enumerate(rows):
        at = 0
        for chat in fits[row]:
            first, size = int(text.starts[chat]), int(sizes[chat])
            ids[number, at : at + size] = text.ids[first : first + size]
            learned[number, at : at + size] = text.learned[first : first + size]
            starts.append(number * length + at)
            at += size
        if at < length:
            starts.append(number * length + at)
    return torch.from_numpy(ids), Marks(np.asarray(starts, np.int64), learned.reshape(-1), by_rows=True)


def best_fit(sizes: np.ndarray, length: int) -> list[list[int]]:
    """Which items share a row: the longest first, each in the row that it fills best.

    Source: best-fit decreasing, as in Ding et al., "Fewer Truncations Improve Language Modeling" (arXiv 2404.10830).
    """
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # tokens that are left -> rows
    rooms: list[int] = []  # its keys, ascending
    for item in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[item])
        place = bisect_left(rooms, size)
        if place < len(rooms):
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        else:
            room, row = length, len(rows)
            rows.append([])
        rows[row].append(item)
        if left := room - size:
            if left not in with_room:
                with_room[left] = []
                insort(rooms, left)
            with_room[left].append(row)
    return rows
