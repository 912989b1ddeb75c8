"""Several documents in one row: a token sees the tokens of its own document alone.

Position ids cannot say where a document begins, because in training they skip inside a document, too. So document ids
travel beside them. While a forward and its backward run, they are in force for one model, and everything that reads
keys asks here: the mask that transformers makes, flash kernels, log-n, and the bands of an attention method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, eq=False)
class Documents:
    """The documents of a batch of rows.

    Arguments:
        ids: the document of each token, int64 [batch, n]. They rise by 1 along a row, from 0.
        config: of the text model that they are in force for.
    """

    ids: Tensor
    config: Any = None

    @cached_property
    def places(self) -> Tensor:
        """How many tokens of its document stand before each token, int64 [batch, n]."""
        column = torch.arange(self.ids.shape[1], device=self.ids.device).expand_as(self.ids)
        first = pad(self.ids.diff(dim=1) != 0, (1, 0), value=True)
        return column - torch.where(first, column, 0).cummax(dim=1).values

    @cached_property
    def varlen(self) -> dict[str, Any]:
        """What a flash kernel takes: where documents begin in all rows, one behind the other."""
        begins = (self.places.reshape(-1) == 0).nonzero().reshape(-1)
        edges = pad(begins, (0, 1), value=self.ids.numel()).to(torch.int32)
        longest = int(edges.diff().max())
        return {"cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": longest, "max_length_k": longest}

    def rising(self, positions: Tensor, width: int) -> Tensor:
        """Positions that rise along the whole row: `width` more in each document, of which none has so many."""
        return positions + self.ids * width

    def require(self, queries: int, keys: int) -> None:
        """A `ValueError` where a forward has other tokens than the documents."""
        if not queries == keys == self.ids.shape[1]:
            raise ValueError(
                f"document ids are of {self.ids.shape[1]} tokens, and attention has {queries} queries and {keys} keys. "
                "Pass whole rows, without a cache."
            )


class Apart:
    """A mask function of transformers under which tokens see their own document alone, where documents are in force.

    Windows and chunks of local layers are counted within a document.

    Arguments:
        mask: the mask function of the model's own attention.
        causal: the rule of transformers that a token sees those before it.
    """

    def __init__(self, mask: Callable[..., Any], causal: Callable[..., Any]) -> None:
        self.mask, self.causal = mask, causal

    def __call__(self, **given: Any) -> Any:
        documents = documents_of(given.get("config"))
        if documents is None:
            return self.mask(**given)
        documents.require(given["q_length"], given["kv_length"])
        seen, ids, places = given.get("mask_function", self.causal), documents.ids, documents.places

        def own(row: Any, head: Any, query: Any, key: Any) -> Any:
            return (ids[row, query] == ids[row, key]) & seen(row, head, places[row, query], places[row, key])

        return self.mask(**{**given, "mask_function": own, "allow_is_causal_skip": False})


class _InForce:
    """The documents of the forward that runs. Backward runs layers again in other threads, so it is one for all."""

    documents: Documents | None = None


def documents_of(config: Any) -> Documents | None:
    """The documents that are in force for the model with this text config."""
    documents = _InForce.documents
    return documents if documents is not None and documents.config is config else None


@contextmanager
def in_force(documents: Documents | None) -> Iterator[None]:
    """Within the block these documents are in force: for the forward, and for the backward of the same step."""
    before, _InForce.documents = _InForce.documents, documents
    try:
        yield
    finally:
        _InForce.documents = before
