"""The models of a comparison, each with the methods that it is measured under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from longwave.checkpoints.folder import ModelFolder, resolve
from longwave.checkpoints.load import extension_of, unrecognised_scaling
from longwave.evaluation.subjects import TRAINING_FREE

OWN = "own"


@dataclass(frozen=True)
class Candidate:
    """A model to be compared.

    Arguments:
        path: a folder, or a name on a hub.
        name: what its rows are called; candidates of one name are runs (seeds) of the same thing.
        methods: those that it is measured under. `own` stands for the method that the model was extended with. None
            given: that method, or for a plain model the training-free ones.
    """

    path: str
    name: str
    methods: tuple[str, ...] = ()

    @cached_property
    def folder(self) -> ModelFolder:
        """The model's files, found once: a name on a hub means one commit from then on."""
        return resolve(self.path)

    @cached_property
    def extension(self) -> tuple[str, float] | None:
        """Its own method and max_factor, if it is extended."""
        return extension_of(self.folder)

    @cached_property
    def specs(self) -> tuple[str, ...]:
        """The methods to measure, `own` replaced. The model is not loaded for that."""
        own = () if self.extension is None else (self.extension[0],)
        found = [spec for given in self.methods for spec in (own if given == OWN else (given,))]
        if self.methods and not found:
            raise ValueError(f"{self.path} has no method of its own. Write for example --methods none,ntk,yarn.")
        return tuple(dict.fromkeys(found)) or own or self._plain_specs

    @property
    def _plain_specs(self) -> tuple[str, ...]:
        """The methods of a plain model that is given none: the training-free ones.

        A model with RoPE scaling that longwave cannot read is measured as it is: a method would scale it twice.
        """
        return ("none",) if unrecognised_scaling(self.folder) else TRAINING_FREE


def label(candidates: Sequence[Candidate], candidate: Candidate, spec: str) -> str:
    """The label of a row: the method, the candidate's name, or both, whichever tells the rows apart."""
    if len({each.name for each in candidates}) == 1:
        return spec
    return candidate.name if len(candidate.specs) == 1 else f"{candidate.name}: {spec}"


def refuse_copies(candidates: Sequence[Candidate], identities: Mapping[str, dict[str, str]]) -> None:
    """Refuse the same model twice under one name: it would count as two runs, and narrow the interval.

    Arguments:
        identities: the fingerprint of each model, by its path.
    """
    known: dict[tuple[str, str], str] = {}
    for each in candidates:
        key = each.name, str(identities[each.path])
        if key in known:
            raise ValueError(
                f"{known[key]} and {each.path} are the same model, and runs of {each.name} must differ. "
                "Leave one out, or give them different names."
            )
        known[key] = each.path
