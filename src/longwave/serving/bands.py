"""The bands of a folder with profiles, as config.json has them. No torch here, see profiles.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bands:
    """The attention method of texts beyond L.

    Arguments:
        method: its name in `longwave.attention.ATTENTIONS`.
        options: what it was made with, beside L and the largest t.
        max_factor: the largest t.
        mass_heads: layer -> β of each head, in place of the method's; None where all have the same.
    """

    method: str
    options: Mapping[str, Any]
    max_factor: float
    mass_heads: Mapping[int, tuple[float, ...]] | None = None

    @classmethod
    def of(cls, section: Mapping[str, Any] | None) -> Bands | None:
        """The bands in a section of config.json; None if there are none.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: for a section that is damaged.
        """
        if section is None:
            return None
        heads = {int(layer): tuple(map(float, own)) for layer, own in section.get("mass_heads", {}).items()}
        return cls(str(section["method"]), dict(section["options"]), float(section["max_factor"]), heads or None)

    def as_dict(self) -> dict[str, Any]:
        """For config.json."""
        heads = self.mass_heads
        return {
            "method": self.method,
            "options": dict(self.options),
            "max_factor": self.max_factor,
            **({"mass_heads": {str(layer): list(own) for layer, own in heads.items()}} if heads else {}),
        }
