"""RoPE scaling in a model's config, read as one point of a trajectory.

transformers calls the section of a config `rope_parameters` and the kind of scaling `rope_type`. A method whose
frequencies a config can express has a `RopeType`, which reads such a section.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from longwave.rope import Rope
from longwave.rules import Rule
from longwave.schedule import Schedule

RECORD = "longwave"  # the key that an export of ours adds to its config


@dataclass(frozen=True)
class Scaling:
    """The RoPE scaling of a config in our terms.

    Arguments:
        factor: the t that the config describes.
        original_length: L in tokens.
        reach: the longest sequence that the config speaks of, in tokens.
        schedule: length -> t as transformers does it.
        options: of the method.
        inv_freq: θ(1) where the model's modules hold scaled frequencies, None where they hold θ(1).
        attention: the attention scaling at z(1) that goes with `inv_freq`.
    """

    factor: float
    original_length: int
    reach: int
    schedule: Schedule
    options: dict[str, Any] = field(default_factory=dict)
    inv_freq: Tensor | None = None
    attention: float = 1.0

    @property
    def max_factor(self) -> float:
        """The largest t of the trajectory: over `factor` where the model reads more than factor·L tokens."""
        return max(self.factor, self.reach / self.original_length)


@dataclass(frozen=True)
class RopeType:
    """A type of RoPE scaling in the configs of transformers, and how a method reads it.

    Arguments:
        name: the `rope_type` of the config.
        from_rope_parameters: (rope_parameters, rope, max_position_embeddings) -> Scaling. The rope holds the model's
            frequencies as transformers computed them; the length is 0 where the config has none. A `ValueError`
            says why the method cannot express the section.
        keys: the keys that the type has beside those of every type, and which values they may have. A section with
            any other key is not ours to understand.
        required: keys without which transformers cannot build the type.
        from_record: (record, rope_parameters, rope) -> Scaling, for the type that an export of ours is written in:
            the record is what the export says of itself under the key `longwave`.
    """

    name: str
    from_rope_parameters: Callable[[Mapping[str, Any], Rope, int], Scaling]
    keys: Mapping[str, Rule] = field(default_factory=dict)
    required: tuple[str, ...] = ("factor",)
    from_record: Callable[[Mapping[str, Any], Mapping[str, Any], Rope], Scaling] | None = None


def factor_in(parameters: Mapping[str, Any]) -> float:
    """The section's factor; a `ValueError` if it is null."""
    if parameters["factor"] is None:
        raise ValueError("its factor is null.")
    return float(parameters["factor"])


def original_length_in(parameters: Mapping[str, Any]) -> int:
    """L. max_position_embeddings counts before the scaling in some configs and after it in others: L must be given.

    Of most types transformers itself puts it there.
    """
    original = parameters.get("original_max_position_embeddings")
    if original is None:
        raise ValueError(
            "its original length is unknown. Write original_max_position_embeddings beside its factor into the config."
        )
    return int(original)
