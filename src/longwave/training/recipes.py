"""Recipes: the settings of a run in a YAML file. Some come with longwave, see `longwave recipes`. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from longwave.names import unknown
from longwave.settings import Settings, kind_of
from longwave.training.config import TrainConfig
from longwave.training.machine import Machine

SUFFIX = ".yaml"
OPTION = "option"  # a mapping here; on the command line KEY=VALUE, repeated
RUN = ("model", "data", "output")  # beside the settings: what a run reads, and where it writes
ABOUT = "about"  # one line for the list of recipes
KINDS: tuple[type[Settings], ...] = (TrainConfig, Machine)


@dataclass(frozen=True)
class Recipe:
    """A recipe as it was read.

    Arguments:
        source: its name or its file, for messages.
        about: one line on what it is for.
        given: what it sets, by the names of the parameters of `longwave train`: `train_length`, `data`.
    """

    source: str
    about: str
    given: Mapping[str, Any]

    def without(self, keys: tuple[str, ...]) -> Recipe:
        """The recipe without some of its keys.

        Raises:
            ValueError: for a key that the recipe does not have.
        """
        given = dict(self.given)
        for key in keys:
            if given.pop(field_of(key), None) is None:
                raise ValueError(unknown(f"key of recipe {self.source}", key, map(key_of, self.given)))
        return Recipe(self.source, self.about, given)


def names() -> list[str]:
    """The recipes that come with longwave."""
    found = (Path(entry.name) for entry in resources.files("longwave.recipes").iterdir())
    return sorted(path.stem for path in found if path.suffix == SUFFIX)


def text_of(recipe: str) -> str:
    """The text of a recipe: a YAML file, or by name one that comes with longwave.

    Raises:
        ValueError: if there is none.
    """
    if recipe in names():
        return resources.files("longwave.recipes").joinpath(f"{recipe}{SUFFIX}").read_text("utf-8")
    path = Path(recipe)
    if not path.is_file():
        if path.suffix or len(path.parts) > 1:
            raise ValueError(f"there is no file {recipe}. Pass a YAML file, or one of {', '.join(names())}.")
        raise ValueError(unknown("recipe", recipe, names()).rstrip(".") + ", or a YAML file.")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"recipe {recipe} is not UTF-8 text ({error.reason} at byte {error.start}).") from None


def read_recipe(recipe: str) -> Recipe:
    """A recipe by name, or from a YAML file. Its keys are the options of `longwave train` without their dashes.

        about: one line for the list
        model: my-model
        data: [books, code]
        train-length: 4096
        max-factor: 16

    Paths in it are relative to the working folder, as on the command line.

    Raises:
        ValueError: naming the file and the key, for what is no recipe, unknown keys and values of a wrong kind.
    """
    return parse_recipe(text_of(recipe), recipe)


def parse_recipe(text: str, source: str) -> Recipe:
    """`read_recipe` of a text; `source` is its name in errors."""
    try:
        found = yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"recipe {source} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or not found:
        raise ValueError(f"recipe {source} must hold keys with values, such as `train-length: 4096`.")
    try:
        given = dict(_checked(found))
    except ValueError as error:
        raise ValueError(f"recipe {source}: {error}") from None
    return Recipe(source, str(given.pop(ABOUT, "")), given)


def field_of(key: str) -> str:
    """The parameter of `longwave train` that a key stands for. `train_length` is read as `train-length`."""
    return "options" if key == OPTION else key.replace("-", "_")


def key_of(name: str) -> str:
    """The key of a parameter."""
    return OPTION if name == "options" else name.replace("_", "-")


def _checked(found: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Every parameter with its value; None counts as not given."""
    owners = {item.name: kind for kind in KINDS for item in fields(kind)}
    known, taken = [ABOUT, *RUN, *map(key_of, owners)], set()
    for key, value in found.items():
        name = field_of(str(key))
        if key_of(name) not in known:
            raise ValueError(unknown("key", key, known))
        if name in taken:
            raise ValueError(f"{key_of(name)} is given twice. Leave one out.")
        taken.add(name)
        if value is not None:
            yield name, _setting(owners[name], name, value) if name in owners else _place(name, value)


def _setting(owner: type[Settings], name: str, value: Any) -> Any:
    """A setting of its kind; a number is taken for text where text is wanted, as on the command line."""
    kind = get_type_hints(owner)[name]
    if name == "options":
        if not isinstance(value, dict):
            raise ValueError(f"{OPTION} must hold keys with values, such as {{window: 64}}, got {value!r}.")
        return {str(key): each for key, each in value.items()}
    if kind_of(kind) is str and type(value) in (int, float):
        value = str(value)
    refusal = owner.refusal(name, value)
    if refusal is not None:
        raise ValueError(refusal)
    if owner is Machine:
        Machine.create(**{name: value})  # its settings are checked each for itself
    return value


def _place(name: str, value: Any) -> Any:
    """A path, or several for `data`."""
    if name == "data":
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not found or not all(isinstance(each, str) for each in found):
            raise ValueError(f"data must be a path or a list of paths, got {value!r}.")
        return found
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {value!r}.")
    return value


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, and no key stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", node.start_mark)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
