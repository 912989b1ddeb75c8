"""Let several processes share the rows of a model: what it must be for that, and the shards that are in force."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from transformers import PreTrainedModel

from longwave.attention.shards import Shards, in_force
from longwave.extensions.handle import find_extension
from longwave.extensions.steering import let_ask, require_attention_alone, text_model

SHARED = "rows that several processes share", "Leave sequence_parallel out."


def prepare_shards(model: PreTrainedModel, count: int) -> None:
    """Let the attention of a model exchange tokens for heads, wherever shards are in force, until `forget_documents`.

    Arguments:
        count: processes that share a row.

    Raises:
        ValueError: for heads that the processes cannot share evenly, for a model that carries text on in other ways
            than by attention through the interface of transformers, and for attention methods that remember.
    """
    config, handle = text_model(model).config, find_extension(model)
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    if not _share(heads, keys, count):
        fitting = [str(other) for other in range(2, heads + 1) if _share(heads, keys, other)]
        raise ValueError(
            f"{count} processes cannot share the {heads} query heads and {keys} key heads of {type(model).__name__} "
            f"evenly. Pass one of these as sequence_parallel: {', '.join(['1', *fitting])}."
        )
    require_attention_alone(model, SHARED)
    attention = None if handle is None else handle.attention
    if attention is not None and attention.remembers:
        raise ValueError(
            f"{attention.name} chooses keys for all heads of a row, and {count} processes share its heads. Leave "
            "sequence_parallel out, or train a method with bands (two-band) or a scaling method."
        )
    let_ask(model, SHARED)


@contextmanager
def rows_shared(model: PreTrainedModel, shards: Shards | None) -> Iterator[None]:
    """Within the block, forwards of the model get the shards of rows, and their backward passes, too.

    Arguments:
        model: a model after `prepare_shards`.
        shards: this process's; None for whole rows.
    """
    if shards is None:
        yield
        return
    with in_force(replace(shards, config=text_model(model).config)):
        yield


def _share(heads: int, keys: int, count: int) -> bool:
    """Whether each process can have as many heads. Where there are fewer key heads, several processes have the same."""
    return heads % count == 0 and (keys % count == 0 or count % keys == 0)
