"""Keep the documents of a row apart in a model: let its attention ask which document a token belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from transformers import PreTrainedModel

from longwave.attention.documents import Documents, in_force
from longwave.attention.hook import Steering
from longwave.attention.layers import attention_layers
from longwave.extensions.steering import (
    attention_of,
    require_interface,
    steer_again,
    steering_of,
    stop_steering,
    text_model,
)

JOINED = 'Pass documents="joined", or one document in each row.'
APART = "the documents of a row kept apart", JOINED


def prepare_documents(model: PreTrainedModel) -> None:
    """Let the attention of a model respect documents, from now on until `forget_documents`.

    Raises:
        ValueError: for a model with layers that are no attention, through which a document reaches the next one, and
            for attention that does not go through the interface of transformers.
    """
    text = text_model(model)
    layers, of_attention = text.config.num_hidden_layers, len(attention_layers(text))
    if 0 < of_attention < layers:
        raise ValueError(
            f"{type(model).__name__} cannot have {APART[0]}: {layers - of_attention} of its {layers} layers carry text "
            f"on without attention. {JOINED}"
        )
    if steering_of(model) is None:
        base = attention_of(model)
        require_interface(model, base, APART)
        steer_again(model, Steering(base))


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
