"""The trajectories that a report draws: a model's own, and others on the same rope."""

from __future__ import annotations

from collections.abc import Sequence

from longwave.checkpoints.load import load
from longwave.checkpoints.outline import outline
from longwave.evaluation.lengths import LONGEST_DEFAULT
from longwave.evaluation.subjects import TRAINING_FREE
from longwave.extensions.attach import rope_of
from longwave.extensions.handle import find_extension
from longwave.methods import parse_method, without_weights
from longwave.trajectory import Trajectory


def trajectories_of_model(path: str, methods: Sequence[str] | None = None) -> dict[str, Trajectory]:
    """The trajectories of methods on a model's rope, its own as it was trained.

    Arguments:
        path: any model that `longwave.load` reads.
        methods: their specs; None for the model's own and the training-free ones.

    Raises:
        ValueError: for a method that needs trained weights, unless the model has them.
    """
    loaded = outline(path)  # frequencies need no weights
    if loaded is None:
        loaded = load(path, dtype="auto")
    handle = find_extension(loaded)
    own = handle.trajectories[0] if handle is not None else None
    if own is not None:
        rope, most = own.rope, own.max_factor
    else:  # as far as it is measured by default
        rope, most = rope_of(loaded), LONGEST_DEFAULT
    names = methods
    if names is None:
        names = list(dict.fromkeys([*([own.name] if own is not None else []), *TRAINING_FREE]))
    found: dict[str, Trajectory] = {}
    for method in (parse_method(name)[0] for name in names):
        if handle is not None and own is not None and own.name == method.name and handle.is_trained:
            found[method.name] = own
        elif method.trained:
            raise without_weights(method, path, "Leave it out of --methods.")
        else:
            found[method.name] = method.build(rope, most)
    return found
