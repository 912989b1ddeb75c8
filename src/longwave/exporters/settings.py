"""The settings of an export: the options of `longwave export`, and the keywords of `longwave.export`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longwave.exporters import EXPORTERS
from longwave.serving.profiles import check_factors
from longwave.settings import Settings, setting

RENAMED = {"length": "to", "verified": "verify"}


def _summaries() -> str:
    return "; ".join(f"{name}: {exporter.summary}" for name, exporter in EXPORTERS.items())


def _types() -> str:
    """The quantizations of every target, for the help."""
    return "; ".join(
        f"{name}: " + ", ".join([f"{exporter.quantizations[0]} (default)", *exporter.quantizations[1:]])
        for name, exporter in EXPORTERS.items()
        if exporter.quantizations
    )


@dataclass(frozen=True)
class ExportSettings(Settings):
    """What is exported, and how."""

    target: str = setting(next(iter(EXPORTERS)), f"The format to write. {_summaries()}.", choices=EXPORTERS)
    factor: float | None = setting(None, "Length factor t; default the model's largest, 8 with --method.", metavar="T")
    profiles: str | None = setting(
        None,
        "Several length factors in one folder, such as 1,2,4,8: vLLM with longwave's plugin runs each request at the "
        "least that it needs.",
        metavar="T,T,...",
    )
    to: int | None = setting(None, "The longest text in tokens, in place of --factor.", metavar="TOKENS")
    method: str | None = setting(None, "The method to export a plain model with, e.g. yarn.", metavar="METHOD")
    options: Mapping[str, Any] = setting((), "Option of --method; repeatable. `longwave methods NAME` lists them.")
    quantize: str | None = setting(None, f"Type of the weights. {_types()}.", metavar="TYPE")
    log_n: str = setting(
        "constant",
        "Per-query log-n becomes a constant, its value for the last query, or is dropped.",
        choices=("constant", "drop"),
    )
    verify: bool = setting(False, "Run the export in its engine, compare it with longwave, and keep it if they agree.")
    verify_tokens: int = setting(4096, "The longest prompt of the verification.", least=1)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", dict(self.options))
        super().__post_init__()
        if self.options and self.method is None:
            raise ValueError("options are for a method: give one, for example yarn.")
        if self.profiles is not None:
            self._check_profiles()
        if self.factor is not None and self.to is not None:
            raise ValueError("give the length factor or the length in tokens, not both: --factor 8 or --to 32768.")

    def _check_profiles(self) -> None:
        check_factors(self.profile_factors)
        others = {"factor": self.factor is not None, "to": self.to is not None, "quantize": self.quantize is not None}
        others |= {"log n": self.log_n != "constant", "verify": self.verify}
        if given := [name for name, is_given in others.items() if is_given]:
            why = (
                "the engine compares them with longwave at its start" if given == ["verify"] else "they hold several t"
            )
            raise ValueError(f"profiles go without {given[0]}: {why}. Leave one of the two out.")
        if self.target != next(iter(EXPORTERS)):
            raise ValueError(f"profiles are read by vLLM alone, and the target is {self.target}. Leave the target out.")

    @property
    def profile_factors(self) -> tuple[float, ...]:
        """t of every profile; empty without profiles.

        Raises:
            ValueError: for text that is no list of numbers.
        """
        try:
            return tuple(float(part) for part in (self.profiles or "").split(",") if part.strip() or self.profiles)
        except ValueError:
            raise ValueError(f"profiles must be length factors such as 1,2,4,8, got {self.profiles!r}.") from None


def renamed(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings under their names of today. The names of yesterday still work, with a `DeprecationWarning`.

    Raises:
        ValueError: for a setting that is given by both names.
    """
    found = dict(given)
    if isinstance(found.get("to"), str):
        _warn(f"export(to={found['to']!r}) is now export(target={found['to']!r}); `to` is a number of tokens.")
        _move(found, "to", "target")
    for old, new in RENAMED.items():
        if old in found:
            _warn(f"export({old}=...) is now export({new}=...).")
            _move(found, old, new)
    return found


def _move(found: dict[str, Any], old: str, new: str) -> None:
    value = found.pop(old)
    if value is None:
        return
    if found.get(new) is not None:
        raise ValueError(f"{old} is the old name of {new}. Give {new} alone.")
    found[new] = value


def _warn(message: str) -> None:
    warnings.warn(message, DeprecationWarning, stacklevel=4)  # where `export` was called
