"""The length factors that a folder can be served at, and which one a request gets.

`longwave export --profiles` writes them into config.json, under `rope_profiles`. No torch here: engines read this
file in processes that have nothing else of longwave.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from longwave.layout import PROFILES
from longwave.serving.bands import Bands

KEY = PROFILES
FORMAT, BANDED = 1, 2  # without bands and with them, so that an engine of before bands refuses the second


class OutOfRange(ValueError):
    """A request that no profile serves; the message is for its sender."""


@dataclass(frozen=True)
class Profile:
    """The model at one t.

    Arguments:
        factor: t.
        length: ⌊t·L⌋ tokens, the longest text.
        factors: λ_i in θ_i(t) = 1/(λ_i·b^(2i/d)), for d/2 pairs.
        attention_scaling: multiplies cos and sin.
        inv_freq: θ(t) in rad/token, by which an engine checks what it has computed from the factors.
        adapter: the folder of the LoRA that the weights have at this t, inside of the model's; None for none.
    """

    factor: float
    length: int
    factors: tuple[float, ...]
    attention_scaling: float
    inv_freq: tuple[float, ...]
    adapter: str | None = None


@dataclass(frozen=True)
class Choice:
    """What a request gets: the number of its profile, and how many tokens it may write."""

    profile: int
    new_tokens: int


@dataclass(frozen=True)
class Profiles:
    """All profiles of a folder, by t. The first has t = 1: the plain model.

    Arguments:
        original_length: L, in tokens.
        profiles: by t.
        log_n: the exponent of per-query log-n: the query at position p is multiplied by max(1, ln(p + 1)/ln L)^log_n.
        log_n_heads: layer -> an exponent for each head, in place of `log_n`; empty where all have the same.
        bands: the attention method of texts beyond L; None for the model's own. The frequencies of a profile are then
            those of the bands that follow t; the others keep those of the first profile.
    """

    original_length: int
    profiles: tuple[Profile, ...]
    log_n: float = 0.0
    log_n_heads: Mapping[int, tuple[float, ...]] | None = None
    bands: Bands | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any], *, bands: bool = False) -> Profiles | None:
        """The profiles in a config.json; None if it has none.

        Arguments:
            bands: whether the caller computes bands.

        Raises:
            ValueError: for profiles that are damaged, or of a later format, and for bands that nobody would compute.
        """
        section = config.get(KEY)
        if section is None:
            return None
        if not isinstance(section, Mapping) or section.get("format") not in (FORMAT, BANDED):
            found = section.get("format") if isinstance(section, Mapping) else section
            raise ValueError(
                f"{KEY} of config.json has format {found!r}, and this longwave reads {FORMAT} and {BANDED}. Update it."
            )
        if section["format"] == BANDED and not bands:
            raise ValueError(f"{KEY} of config.json has bands, which this engine does not compute. Serve it by vLLM.")
        try:
            heads = {int(layer): tuple(map(float, own)) for layer, own in section.get("log_n_heads", {}).items()}
            profiles = tuple(
                Profile(
                    float(each["factor"]),
                    int(each["length"]),
                    tuple(map(float, each["factors"])),
                    float(each["attention_scaling"]),
                    tuple(map(float, each["inv_freq"])),
                    each.get("adapter"),
                )
                for each in section["profiles"]
            )
            found = cls(
                int(section["original_length"]),
                profiles,
                float(section.get("log_n", 0.0)),
                heads or None,
                Bands.of(section["bands"] if section["format"] == BANDED else None),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{KEY} of config.json is damaged: {error!r}. Export the model again.") from None
        check_factors([profile.factor for profile in profiles])
        return found

    def as_dict(self) -> dict[str, Any]:
        """For config.json."""
        return {
            "format": FORMAT if self.bands is None else BANDED,
            "original_length": self.original_length,
            "log_n": self.log_n,
            **(
                {"log_n_heads": {str(layer): list(own) for layer, own in self.log_n_heads.items()}}
                if self.log_n_heads
                else {}
            ),
            **({"bands": self.bands.as_dict()} if self.bands is not None else {}),
            "profiles": [
                {
                    "factor": each.factor,
                    "length": each.length,
                    "factors": list(each.factors),
                    "attention_scaling": each.attention_scaling,
                    "inv_freq": list(each.inv_freq),
                    **({"adapter": each.adapter} if each.adapter else {}),
                }
                for each in self.profiles
            ],
        }

    @property
    def max_length(self) -> int:
        """The longest text, in tokens."""
        return self.profiles[-1].length

    @property
    def scales_queries(self) -> bool:
        """Whether queries are scaled by log-n."""
        return self.log_n != 0 or self.log_n_heads is not None

    @property
    def reserve(self) -> int:
        """Tokens that an answer without a limit may have at least: a quarter of L."""
        return max(1, self.original_length // 4)

    def choose(
        self, prompt: int, new: int | None, wanted: float | None = None, limit: int | None = None, least: int = 0
    ) -> Choice:
        """The least t for a text: prompt + new <= ⌊t·L⌋.

        An answer without a limit gets the least t that leaves room for `reserve` tokens, and may fill that room. So a
        short question runs on the plain model, and not at the largest t.

        Arguments:
            prompt: tokens that are there.
            new: the most tokens that may follow; None for no limit.
            wanted: t, where the sender chose it. It must be one of the profiles, and large enough.
            limit: the longest text that the engine was started for; None for that of the profiles.
            least: tokens that an answer without a limit must have, if they are more than `reserve`.

        Raises:
            OutOfRange: for a text that is too long, and a t that there is not or that is too small.
        """
        most = min(self.max_length, limit or self.max_length)
        if prompt >= most:
            raise OutOfRange(f"the prompt has {prompt} tokens, and a text may have {most}, the answer included.")
        needed = min(prompt + (max(self.reserve, least) if new is None else new), most)
        number = next(number for number, each in enumerate(self.profiles) if each.length >= needed)
        if wanted is not None:
            number = self._wanted(wanted, prompt + max(1, least) if new is None else needed)
        room = min(self.profiles[number].length, most) - prompt
        return Choice(number, room if new is None else min(new, room))

    def _wanted(self, wanted: float, needed: int) -> int:
        factors = [each.factor for each in self.profiles]
        if isinstance(wanted, bool) or not isinstance(wanted, int | float) or wanted not in factors:
            known = ", ".join(f"{factor:g}" for factor in factors)
            raise OutOfRange(f"rope_factor must be one of {known}, got {wanted!r}.")
        number = factors.index(wanted)
        if self.profiles[number].length < needed:
            least = next((each.factor for each in self.profiles if each.length >= needed), factors[-1])
            raise OutOfRange(
                f"rope_factor {wanted:g} serves {self.profiles[number].length} tokens, and this text may have "
                f"{needed}. "
                f"Choose {least:g} or more, or leave it out."
            )
        return number


def check_factors(factors: Sequence[float]) -> None:
    """Refuse length factors that do not begin with 1, do not rise, or are no numbers.

    Raises:
        ValueError: naming them.
    """
    shown = ", ".join(f"{factor:g}" for factor in factors) or "none"
    if not factors or factors[0] != 1:
        raise ValueError(f"profiles must begin with 1, the plain model, got {shown}. Write 1,2,4,8 for example.")
    if any(not math.isfinite(factor) for factor in factors) or any(a >= b for a, b in pairwise(factors)):
        raise ValueError(f"profiles must be length factors that rise, got {shown}. Write 1,2,4,8 for example.")
