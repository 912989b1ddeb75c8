"""Keep the documents of a row apart in a model: let its attention ask which document a token belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from transformers import PreTrainedModel

from longwave.attention.documents import Documents, in_force
from longwave.extensions.steering import let_ask, require_attention_alone, steering_of, stop_steering, text_model

JOINED = 'Pass documents="joined", or one document in each row.'
APART = "the documents of a row kept apart", JOINED


def prepare_documents(model: PreTrainedModel) -> None:
    """Let the attention of a model respect documents, from now on until `forget_documents`.

    Raises:
        ValueError: for a model with layers that are no attention, through which a document reaches the next one, and
            for attention that does not go through the interface of transformers.
    """
    require_attention_alone(model, APART)
    let_ask(model, APART)


def forget_documents(model: PreTrainedModel) -> None:
    """Take off what `prepare_documents` has put on."""
    steering = steering_of(model)
    if steering is not None and steering.temperature is None and steering.bands is None:
        stop_steering(model)


@contextmanager
def documents_apart(model: PreTrainedModel, ids: Tensor | None) -> Iterator[None]:
    """Within the block, forwards of the model, and their backward passes, keep documents apart.

    Position ids are those within each document, from 0, and may skip.

    Arguments:
        model: a model after `prepare_documents`.
        ids: the document of each token, int64 [batch, n], rising by 1 along a row from 0; None for rows of a single
            document each.
    """
    if ids is None:
        yield
        return
    with in_force(Documents(ids, text_model(model).config)):
        yield
