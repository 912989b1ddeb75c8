"""Settings: frozen dataclasses whose fields carry their help, their choices and their limits.

The options of a command, its help page and the check of a suite are made from the same fields. No torch here: the
help of every command is made from such classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from types import MappingProxyType, NoneType, UnionType
from typing import Any, ClassVar, Self, TypedDict, Union, Unpack, get_args, get_origin, get_type_hints

from longwave.names import unknown

REQUIRED = MISSING  # as a default: the setting has to be given
KINDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}


class About(TypedDict, total=False):
    """What a field may say of itself.

    Arguments:
        group: the part of the help page that it stands in.
        choices: what it may be, if not anything of its type.
        least: the smallest number allowed.
        most: the largest one, for a field that has `least`, too.
        metavar: what stands for its value on the help page, `N` for numbers and `TEXT` for text by default.
    """

    group: str | None
    choices: Collection[str]
    least: float | None
    most: float | None
    metavar: str | None


def setting(default: Any, help: str, **about: Unpack[About]) -> Any:
    """A field of a `Settings` class.

    Arguments:
        default: its value where none is given; None stands for one that depends on the model or the data, and the
            help says which. REQUIRED if there is none.
        help: one sentence for the help page.
        **about: see `About`.
    """
    unsaid = {"group": None, "choices": (), "least": None, "most": None, "metavar": None}
    return field(default=default, metadata={"help": help, **unsaid, **about})


@dataclass(frozen=True)
class Settings:
    """Settings that are checked when they are made. `create` makes them from what was given, names included.

    Raises:
        ValueError: naming the setting, what it got, and what is allowed.
    """

    whose: ClassVar[str] = ""  # in messages: `windows of perplexity must be ...`
    noun: ClassVar[str] = "setting"  # in messages: `unknown training setting ...`
    # What stands in place of a field's default where nothing is named, and whose it is: help pages say both.
    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    recipe_of: ClassVar[str] = ""

    def __post_init__(self) -> None:
        kinds = self.kinds()
        for item in fields(self):
            value = getattr(self, item.name)
            refusal = self.refusal(item.name, value)
            if refusal is not None:
                raise ValueError(refusal)
            if type(value) is int and kind_of(kinds[item.name]) is float:
                object.__setattr__(self, item.name, float(value))

    @classmethod
    def create(cls, **given: Any) -> Self:
        """Defaults, and what is `given` in their place; None counts as not given.

        Raises:
            ValueError: for an unknown name, and as the class.
        """
        known = [item.name for item in fields(cls)]
        for name in given:
            if name not in known:
                what = f"{cls.noun} of {cls.whose}" if cls.whose else cls.noun
                raise ValueError(unknown(what, name, sorted(known)))
        return cls(**{name: value for name, value in given.items() if value is not None})

    @classmethod
    def refusal(cls, name: str, value: Any) -> str | None:
        """Why the setting of that name cannot have this value, whatever the other settings are; None if it can."""
        (item,) = (item for item in fields(cls) if item.name == name)
        allowed = cls._allowed(item.metadata, cls.kinds()[name], value)
        of = f" of {cls.whose}" if cls.whose else ""
        return None if allowed is None else f"{name.replace('_', ' ')}{of} must be {allowed}, got {value!r}."

    @classmethod
    def kinds(cls) -> dict[str, Any]:
        """Name of a field -> its type."""
        own: Any = cls  # mypy takes a class whose instances have no hash for one without a hash
        return _kinds_of(own)

    def as_dict(self) -> dict[str, Any]:
        """All settings by name, as JSON values."""
        return asdict(self)

    @staticmethod
    def _allowed(metadata: Any, kind: Any, value: Any) -> str | None:
        """What the value should have been, None if it is fine."""
        if value is None and is_optional(kind):
            return None
        wanted, least, most = kind_of(kind), metadata["least"], metadata["most"]
        types = (int, float) if wanted is float else (wanted,)
        if wanted in KINDS and (type(value) not in types or (wanted is float and not math.isfinite(value))):
            if wanted is str and isinstance(value, bool):
                words = f"one of {', '.join(metadata['choices'])}" if metadata["choices"] else "text"
                return f"{words} (in YAML off and on are false and true: put the word in quotes)"
            return KINDS[wanted] if wanted is not float or least is None else limits(wanted, least, most)
        if metadata["choices"] and value not in metadata["choices"]:
            return f"one of {', '.join(metadata['choices'])}"
        if least is not None and (value < least or (most is not None and value > most)):
            return limits(wanted, least, most)
        return None


@cache
def _kinds_of(settings: type) -> dict[str, Any]:
    """Python reads the annotations anew each time that it is asked."""
    return get_type_hints(settings)


def limits(kind: Any, least: float, most: float | None) -> str:
    """The numbers allowed, in words."""
    if most is not None:
        return f"between {least:g} and {most:g}"
    return f"a number >= {least:g}" if kind is float else f"at least {least:g}"


def kind_of(kind: Any) -> Any:
    """The type of a field, `int` for `int | None`."""
    if get_origin(kind) in (Union, UnionType):
        return next(each for each in get_args(kind) if each is not NoneType)
    return kind


def is_optional(kind: Any) -> bool:
    """Whether a field of this type may be None."""
    return get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)


def parse_pairs(pairs: Iterable[str]) -> dict[str, Any]:
    """What options `KEY=VALUE` say, each value as JSON where it is JSON and as text where it is not.

    Raises:
        ValueError: for a text that is no KEY=VALUE, and for a key that is given twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not (key and separator):
            raise ValueError(f"an option of a method is KEY=VALUE, got {pair!r}. Write for example window=64.")
        if key in found:
            raise ValueError(f"option {key} is given twice. Leave one out.")
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found
