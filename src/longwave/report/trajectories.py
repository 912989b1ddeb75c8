"""What a report draws of methods on one model: their trajectories, and the distances that attention methods give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from longwave.attention import Attention
from longwave.checkpoints.load import load
from longwave.checkpoints.outline import outline
from longwave.evaluation.lengths import LONGEST_DEFAULT
from longwave.evaluation.subjects import TRAINING_FREE
from longwave.extensions.attach import rope_of
from longwave.extensions.build import build_attention, build_trajectories, refuse_unknown_options
from longwave.extensions.handle import Extension, find_extension
from longwave.extensions.spec import parse_spec, spelled
from longwave.methods import without_weights
from longwave.trajectory import Trajectory


@dataclass(frozen=True)
class Banded:
    """An attention method with the trajectory below it."""

    attention: Attention
    trajectory: Trajectory


@dataclass(frozen=True)
class Drawn:
    """What is drawn, by the names of the methods, all of one rope.

    Arguments:
        trajectories: those that change frequencies, and `none`; an attention method has the one below it.
        banded: the attention methods.
        refused: attention methods that cannot run at the largest t, and why.
    """

    trajectories: dict[str, Trajectory] = field(default_factory=dict)
    banded: dict[str, Banded] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len({**self.trajectories, **self.banded})


def drawn_of_model(path: str, methods: Sequence[str] | None = None) -> Drawn:
    """The trajectories and attention methods on a model's rope, its own as it was trained.

    Arguments:
        path: any model that `longwave.load` reads.
        methods: their specs; None for the model's own and the training-free ones.

    Raises:
        ValueError: for a method that needs trained weights, unless the model has them, and if every method is
            an attention method with distances that the model does not know.
    """
    loaded = outline(path)  # frequencies need no weights
    if loaded is None:
        loaded = load(path, dtype="auto")
    handle = find_extension(loaded)
    rope, most = (rope_of(loaded), LONGEST_DEFAULT) if handle is None else (handle.rope, handle.max_factor)
    names: Sequence[str] = methods if methods is not None else _own_and_free(handle)
    found = Drawn()
    for spec in map(parse_spec, names):
        own = handle is not None and handle.spec == spec.name and not spec.options
        label = spelled(spec.name, "", spec.options)
        if handle is not None and own and handle.is_trained:
            attention, trajectory = handle.dial.attention, handle.trajectories[0]
        elif spec.method.trained:
            raise without_weights(spec.method, path, "Leave it out of --methods.")
        else:
            refuse_unknown_options(spec, spec.options)
            of_method, of_attention = spec.split(spec.options)
            try:
                attention = build_attention(spec, [rope], most, of_attention)
            except ValueError as error:
                found.refused[label] = str(error)
                continue
            reach = most if attention is None else attention.factor(most)
            trajectory = build_trajectories(spec, [rope], reach, of_method)[0]
        if attention is not None:
            found.banded[label] = Banded(attention, trajectory)
        if attention is None or trajectory.max_factor > 1:
            found.trajectories[label] = trajectory
    if found.refused and not len(found):
        raise ValueError(next(iter(found.refused.values())))
    return found


def _own_and_free(handle: Extension | None) -> list[str]:
    """The model's own method, and the training-free ones."""
    return list(dict.fromkeys([*([] if handle is None else [handle.spec]), *TRAINING_FREE]))
