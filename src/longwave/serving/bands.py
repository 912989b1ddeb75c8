"""The bands of a folder with profiles, as config.json has them. No torch here, see profiles.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Far:
    """The frequencies of the bands that follow the trajectory, at one t.

    Arguments:
        inv_freq: θ in rad/token, for d/2 pairs.
        attention_scaling: of cos and sin, on both sides of a logit.
    """

    inv_freq: tuple[float, ...]
    attention_scaling: float


@dataclass(frozen=True)
class Bands:
    """The attention method of texts beyond L.

    Arguments:
        method: its name in `longwave.attention.ATTENTIONS`.
        options: what it was made with, beside L and the largest t.
        max_factor: the largest t.
        far: of every profile with t > 1, in their order.
        mass_heads: layer -> β of each head, in place of the method's; None where all have the same.
    """

    method: str
    options: Mapping[str, Any]
    max_factor: float
    far: tuple[Far, ...]
    mass_heads: Mapping[int, tuple[float, ...]] | None = None

    @classmethod
    def of(cls, section: Mapping[str, Any] | None, profiles: int) -> Bands | None:
        """The bands in a section of config.json; None if there are none.

        Arguments:
            profiles: how many profiles with t > 1 there are.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: for a section that is damaged.
        """
        if section is None:
            return None
        far = tuple(Far(tuple(map(float, each["inv_freq"])), float(each["attention_scaling"])) for each in section["far"])
        if len(far) != profiles:
            raise ValueError(f"{len(far)} entries of far for {profiles} profiles beyond L")
        heads = {int(layer): tuple(map(float, own)) for layer, own in section.get("mass_heads", {}).items()}
        return cls(str(section["method"]), dict(section["options"]), float(section["max_factor"]), far, heads or None)

    def as_dict(self) -> dict[str, Any]:
        """For config.json."""
        heads = self.mass_heads
        return {
            "method": self.method,
            "options": dict(self.options),
            "max_factor": self.max_factor,
            "far": [
                {"inv_freq": list(each.inv_freq), "attention_scaling": each.attention_scaling} for each in self.far
            ],
            **({"mass_heads": {str(layer): list(own) for layer, own in heads.items()}} if heads else {}),
        }
