"""The base of an extended model whose weights are those of another folder: named, not copied."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longwave.checkpoints.folder import ModelFolder, kind_of, resolve
from longwave.checkpoints.weights import weight_files
from longwave.files import read_object
from longwave.layout import SETTINGS

BLOCK, BLOCKS = 2**16, 64  # bytes and number of the pieces of a file that a fingerprint reads


@dataclass(frozen=True)
class Base:
    """Where the weights of a base are, and how they are told from others.

    Arguments:
        model: its folder, or its name on the hub.
        fingerprint: of its weights.
        relative: its folder, seen from the folder of the extension; None on the hub.
        revision: the commit on the hub.
    """

    model: str
    fingerprint: str
    relative: str | None = None
    revision: str | None = None

    @classmethod
    def of(cls, found: ModelFolder, folder: Path) -> Base:
        """The base in a folder or on the hub, for an extension that is saved in `folder`."""
        if found.where:
            return cls(found.name, fingerprint(found.model), revision=found.commit)
        place = found.model.resolve()
        return cls(str(place), fingerprint(place), os.path.relpath(place, folder.resolve()))

    @classmethod
    def read(cls, folder: Path) -> Base | None:
        """The base that the extension in `folder` names; None where the folder has the weights itself.

        Raises:
            ValueError: for a record that names none.
        """
        found = read_object(folder / SETTINGS).get("base")
        if found is None:
            return None
        texts = isinstance(found, dict) and all(isinstance(found.get(key), str) for key in ("model", "fingerprint"))
        if not texts or any(not isinstance(value, str | None) for value in found.values()):
            raise ValueError(
                f"{folder / SETTINGS}: base is {found!r}, it must have model and fingerprint. Restore the file."
            )
        return cls(**{key: found.get(key) for key in ("model", "fingerprint", "relative", "revision")})

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if value is not None}

    def find(self, folder: Path) -> ModelFolder:
        """The base, seen from the extension in `folder`.

        Raises:
            ValueError: if it is not there.
        """
        if self.revision is not None:
            return resolve(self.model, revision=self.revision)
        places = [*([folder / self.relative] if self.relative else []), Path(self.model)]
        for place in places:
            if place.is_dir():  # the plain model of the folder, also where the folder is an export around `folder`
                return ModelFolder(str(place), place, kind_of(place))
        raise ValueError(
            f"{folder} holds what was trained, and its base model is not at {self.model}. Move the base back, or write "
            f"its new place into {folder / SETTINGS} (base, model)."
        )

    def check(self, found: ModelFolder, folder: Path) -> None:
        """A `ValueError` if the weights that were found are not those of this base."""
        own = fingerprint(found.model)
        if own != self.fingerprint:
            raise ValueError(
                f"{folder} was trained on other weights than those in {found.model} (fingerprint {own[:12]}, trained "
                f"on {self.fingerprint[:12]}). Give the base that it was trained on."
            )


def fingerprint(folder: Path) -> str:
    """SHA-256 over the sizes of the weight files, their headers, and 64 pieces of each, evenly spread.

    A model of 7 B parameters takes a second, and not a minute. Two trainings of one model differ in every matrix.

    Raises:
        ValueError: if the folder has no safetensors files.
    """
    digest = hashlib.sha256()
    for path in weight_files(folder):
        if not path.is_file():
            raise ValueError(f"{path} is missing: a base needs its weights as safetensors files.")
        size = path.stat().st_size
        digest.update(f"{size}\n".encode())
        step = max(BLOCK, size // BLOCKS)
        with path.open("rb") as handle:
            for start in range(0, size, step):
                handle.seek(start)
                digest.update(handle.read(BLOCK))
    return digest.hexdigest()
