"""Find the files of a model, and tell what kind of folder they make. No other module does this.

The name of a model is its folder, or OWNER/NAME of the Hugging Face hub. The files of a hub model go into the cache
of huggingface_hub. Without a network the files in this cache are enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

from longwave.checkpoints.hub import as_reached, download
from longwave.files import read_object
from longwave.layout import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    ADAPTERS,
    CONFIG,
    EXPORT_RECORD,
    EXTENSION,
    MODEL,
    PROFILES,
    SETTINGS,
    TOKENIZERS,
    TRAINING,
    WEIGHTS,
)

KINDS = [  # what tells kinds
    SETTINGS, EXPORT_RECORD, CONFIG, f"{MODEL}/{CONFIG}", ADAPTER, TRAINING, f"{EXTENSION}/{SETTINGS}",
]  # fmt: skip
FILES = [
    "*.json", "*.safetensors", "*.model", "tokenizer.model.*", "*.txt", "*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*",
    "USE_POLICY*",
]  # fmt: skip
FOREIGN = (".gguf",)  # endings of files with the weights of a model for other programs
NOT_THESE = ["consolidated*", "original/*"]  # the same weights again, in another format


class Kind(Enum):
    """What a folder holds."""

    LONGWAVE = "an extended model, as longwave.save writes it"
    OFFICIAL = "a CLEX checkpoint in the official format"
    EXPORT = "what `longwave export` wrote"
    PLAIN = "a Hugging Face model"
    ADAPTER = "a PEFT adapter"
    FOREIGN = "weights in a format that longwave does not read"
    INCOMPLETE = "an extended model of which longwave.json is missing"
    UNKNOWN = "no model"


@dataclass(frozen=True)
class ModelFolder:
    """A model and its files.

    Arguments:
        name: the folder, or the name on the hub, as it was given.
        path: the folder; of a hub model its snapshot in the cache; of an export with profiles its extension's.
        kind: what the folder holds.
        where: for a hub model, the keyword arguments that find this snapshot again; empty for a folder.
    """

    name: str
    path: Path
    kind: Kind
    where: Mapping[str, Any] = field(default_factory=dict)

    @property
    def commit(self) -> str | None:
        """Of a hub model."""
        return self.where.get("revision")

    @property
    def model(self) -> Path:
        """The folder of the plain model; it is that of the base where the weights are not the folder's own."""
        if self.kind is not Kind.LONGWAVE:
            return self.path
        return self.path / MODEL if self.base is None else self.base.model

    @property
    def served(self) -> Path:
        """The folder that engines read: of an export with profiles the one around its extension."""
        around = self.path.parent
        return around if self.path.name == EXTENSION and _has_profiles(around) else self.path

    @cached_property
    def base(self) -> ModelFolder | None:
        """The model whose weights the extension stands on, where they are not copied.

        Raises:
            ValueError: if it is not there, or is another one.
        """
        from longwave.checkpoints.base import Base  # which resolves a folder itself

        named = Base.read(self.path) if self.kind is Kind.LONGWAVE else None
        if named is None:
            return None
        self.fetch()  # the base may be a part of the same model
        found = named.find(self.path)
        if self.where and found.path.resolve() == self.served.resolve():  # an export of the hub is its own base
            found = replace(found, name=self.name, where=self.where)
        found = found.check().fetch()
        named.check(found, self.path)
        return found

    def fetch(self, *, weights: bool = True) -> ModelFolder:
        """The same model with its files on this machine; those of a folder are there already."""
        if self.where:
            download(self.name, FILES, [*NOT_THESE, *([] if weights else ["*.safetensors"])], self.where)
        return self

    def refusal(self) -> str | None:
        """Why longwave cannot load the folder, and what to do; None if longwave can load it."""
        place = self.name if self.where else str(self.path)
        if self.kind is Kind.INCOMPLETE:
            return f"{place}/{SETTINGS} is missing: the folder is incomplete. Save the model again."
        if self.kind is Kind.ADAPTER:
            base = read_object(self.path / ADAPTER).get("base_model_name_or_path")
            what, other = (f" of {base}", f", or load {base} itself") if base else ("", "")
            return (
                f"{place} is a PEFT adapter{what}, not a model. Merge it into its model (peft: merge_and_unload), "
                f"save that and load it{other}."
            )
        if self.kind is Kind.EXPORT and "model_type" not in _config(self.path):
            target = read_object(self.path / EXPORT_RECORD).get("target")
            return f"{place} is an export for {target}, which longwave does not read. Load its source instead."
        if self.kind in (Kind.EXPORT, Kind.PLAIN) and _has_profiles(self.path) and not _extension_of(self.path):
            return (
                f"{place} has profiles for engines, and lacks {EXTENSION}/{SETTINGS}, by which longwave reads them. "
                "Export the model again, or load what it was exported from."
            )
        if self.kind is Kind.FOREIGN:
            suffix = next(end for end in FOREIGN if any(self.path.glob(f"*{end}"))).removeprefix(".").upper()
            return (
                f"{place} holds {suffix} files, which longwave does not read. Load the model that they were made from."
            )
        if self.kind is Kind.UNKNOWN:
            hint = ""
            if (self.path / TRAINING).is_file():
                hint = " Its training has not ended: run the same `longwave train` with --resume."
            return f"{place} holds no model: neither {SETTINGS} nor {CONFIG} is there.{hint}"
        return None

    def check(self) -> ModelFolder:
        """Return the folder itself; a `ValueError` if longwave cannot load its contents."""
        if found := self.refusal():
            raise ValueError(found)
        return self


def check_model(path: Path | str) -> None:
    """Refuse a model folder that does not exist, where `path` cannot be a name on a hub."""
    folder = Path(path)
    if not str(path):
        raise ValueError("the model's name is empty. Give a folder, or OWNER/NAME of the Hugging Face hub.")
    if folder.is_file():
        raise ValueError(f"{path} is a file. Give the folder that it lies in.")
    if not folder.exists() and (folder.is_absolute() or str(path).startswith(".") or len(folder.parts) > 2):
        raise ValueError(f"model folder {path} does not exist.")


def resolve(name: Path | str | ModelFolder, **where: Any) -> ModelFolder:
    """Find a model and tell its kind. Of a hub model only the small files that tell the kind are downloaded.

    Arguments:
        name: a folder, or a name on the Hugging Face hub; a folder comes first. A `ModelFolder` is given back.
        where: for the hub: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

    Raises:
        ValueError: if there is no such model, or a file that says its kind is damaged.
    """
    if isinstance(name, ModelFolder):
        return name
    check_model(name)
    if Path(name).is_dir():
        return _folder(str(name), Path(name), {})
    where = as_reached(str(name), KINDS, where)
    path = download(str(name), KINDS, [], where)
    return _folder(str(name), path, {**where, "revision": path.name})


def _folder(name: str, path: Path, where: Mapping[str, Any]) -> ModelFolder:
    """A model and its files: an export with profiles is the extended model that it was made from."""
    own = _extension_of(path) if _has_profiles(path) else None
    return ModelFolder(name, own or path, kind_of(own or path), where)


def kind_of(folder: Path) -> Kind:
    """What a folder holds, from the names of its files and from config.json.

    Raises:
        ValueError: if config.json is damaged.
    """
    if (folder / SETTINGS).is_file():
        return Kind.LONGWAVE
    if (folder / WEIGHTS).exists():
        return Kind.INCOMPLETE
    if is_export(folder):
        return Kind.EXPORT
    if (folder / ADAPTER).is_file():  # before config.json: transformers loads the adapter, too
        return Kind.ADAPTER
    if (folder / CONFIG).is_file():
        scaling = _config(folder).get("rope_scaling")
        official = isinstance(scaling, dict) and scaling.get("type", scaling.get("rope_type")) == "clex"
        return Kind.OFFICIAL if official else Kind.PLAIN
    if (folder / MODEL).is_dir():
        return Kind.INCOMPLETE
    return Kind.FOREIGN if any(path.suffix in FOREIGN for path in folder.iterdir()) else Kind.UNKNOWN


def is_export(folder: Path) -> bool:
    """Whether `longwave export` wrote the folder."""
    return (folder / EXPORT_RECORD).is_file()


def require_parts(folder: Path) -> None:
    """A `ValueError` for the first file that an extended model needs and `folder` lacks."""
    settings = read_object(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    model = [] if settings.get("base") is not None else [folder / MODEL / CONFIG]
    adapter = [folder / ADAPTERS / name for name in (ADAPTER, ADAPTER_WEIGHTS)] if "adapter" in settings else []
    for path in (folder / SETTINGS, folder / WEIGHTS, *model, *adapter):
        if not path.is_file():
            raise ValueError(f"{path} is missing: the folder is incomplete. Save the model again.")


def tokenizer_folder(*folders: Path) -> Path | None:
    """The first of the folders that holds a tokenizer."""
    return next((place for place in folders if any(any(place.glob(name)) for name in TOKENIZERS)), None)


def _config(folder: Path) -> dict[str, Any]:
    return read_object(folder / CONFIG) if (folder / CONFIG).is_file() else {}


def _has_profiles(folder: Path) -> bool:
    return PROFILES in _config(folder)


def _extension_of(folder: Path) -> Path | None:
    """Where the extension of an export with profiles lies, if it is there."""
    return folder / EXTENSION if (folder / EXTENSION / SETTINGS).is_file() else None
