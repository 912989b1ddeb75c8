"""A training-free method put on a plain model that a command has just opened."""

from __future__ import annotations

from transformers import PreTrainedModel

from longwave.extensions.attach import extend, restore
from longwave.extensions.handle import find_extension
from longwave.extensions.reach import original_length_of
from longwave.extensions.spec import parse_spec
from longwave.methods import without_weights

FACTOR = 8  # of a method without a length to reach


def extend_plain(
    model: PreTrainedModel, method: str | None, to: int | None, *, name: str = "the model", dashes: str = "--"
) -> None:
    """Put `method` on a plain model, of which RoPE scaling in its config is a part; without one it stays as it is.

    Arguments:
        method: `METHOD[@SCHEDULE][+ATTENTION]`.
        to: longest text, in tokens; default 8 times the trained length.
        name: of the model, in messages.
        dashes: what stands before the names of both options in messages.

    Raises:
        ValueError: for a model with an extension of its own, a method that needs training, and a `to` that is too
            short or without a method.
    """
    handle = find_extension(model)
    if handle is not None and not handle.recognised:
        if method is not None or to is not None:
            raise ValueError(
                f"{name} has its own extension. {dashes}method and {dashes}to are for plain models: leave them out."
            )
        return
    if method is None:
        if to is not None:
            raise ValueError(
                f"{dashes}to says how far a {dashes}method is to reach: give one, for example {dashes}method yarn."
            )
        return
    found = parse_spec(method).method
    if found.trained:
        raise without_weights(found, name)
    original = original_length_of(restore(model))
    if to is not None and to < original:
        raise ValueError(f"{dashes}to {to} is less than the {original} tokens that the model was trained for.")
    extend(model, method, max_factor=FACTOR if to is None else to / original)
