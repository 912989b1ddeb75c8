"""Suites: which evaluations to run with which settings, as YAML files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from longwave.evaluation.base import Evaluation
from longwave.evaluation.lengths import check_spelling
from longwave.evaluation.quantity import ALONG, BY_POSITION
from longwave.evaluation.registry import EVALUATIONS
from longwave.names import look_up, unknown
from longwave.settings import Settings

SUFFIX = ".yaml"
KEYS = ("name", "lengths")
NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Step:
    """One evaluation of a suite.

    Arguments:
        name: of its record, unique in the suite.
        evaluation: what is measured.
        settings: all of its settings.
        lengths: as `parse_lengths` reads them, None for doublings up to the model's maximum.
    """

    name: str
    evaluation: Evaluation[Any]
    settings: Settings
    lengths: str | None = None


def names() -> list[str]:
    """The suites that come with longwave."""
    found = (Path(entry.name) for entry in resources.files(__name__).iterdir())
    return sorted(path.stem for path in found if path.suffix == SUFFIX)


def read_suite(suite: str) -> list[Step]:
    """The steps of a suite by name, or of a YAML file.

    The file is a list; each item names one evaluation with its settings, and may have a `name` and `lengths`:

        - perplexity: {protocol: stride, windows: 64}
          name: perplexity-stride
          lengths: 1x,2x,4x

    Raises:
        ValueError: for an unknown suite, evaluation or setting, or a file that is not such a list.
    """
    if suite in names():
        return parse_suite(resources.files(__name__).joinpath(f"{suite}{SUFFIX}").read_text("utf-8"), suite)
    path = Path(suite)
    if not path.is_file():
        raise ValueError(unknown("suite", suite, names()).rstrip(".") + ", or a YAML file.")
    try:
        return parse_suite(path.read_text("utf-8"), suite)
    except UnicodeDecodeError as error:
        raise ValueError(f"suite {suite} is not UTF-8 text ({error.reason} at byte {error.start}).") from None


def parse_suite(text: str, source: str) -> list[Step]:
    """`read_suite` of a text; `source` is its name in errors."""
    try:
        items = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"suite {source} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(items, list) or not items:
        raise ValueError(f"suite {source} must be a list of evaluations, such as `- perplexity: {{windows: 64}}`.")
    steps = [_step(item, f"suite {source}, item {number}") for number, item in enumerate(items, start=1)]
    taken: set[str] = set()
    for step in steps:
        if step.name in taken:
            raise ValueError(f"suite {source} has two evaluations called {step.name!r}: give each a `name`.")
        taken.add(step.name)
    for step in steps:
        if step.settings.as_dict().get(BY_POSITION.key) and f"{step.name}{ALONG}" in taken:
            name = f"{step.name}{ALONG}"
            raise ValueError(
                f"suite {source} has an evaluation called {name!r}, and {step.name!r} writes its figure by position to "
                f"{name}.png: give one of them another `name`."
            )
    return steps


def _step(item: Any, where: str) -> Step:
    item = {item: {}} if isinstance(item, str) else item
    kinds = [key for key in item if key not in KEYS] if isinstance(item, dict) else []
    if len(kinds) != 1:
        raise ValueError(f"{where} must name one evaluation ({', '.join(EVALUATIONS)}), besides {' and '.join(KEYS)}.")
    kind, given = str(kinds[0]), item[kinds[0]]
    if not isinstance(given, dict | None):
        raise ValueError(f"{where}: {kind} takes settings such as {{windows: 64}}, got {given!r}.")
    name, lengths = str(item.get("name", kind)), None if item.get("lengths") is None else str(item["lengths"])
    if not NAME.fullmatch(name):
        raise ValueError(f"{where}: name {name!r} may have letters, digits, '.', '_' and '-' only.")
    try:
        evaluation = look_up("evaluation", kind, EVALUATIONS)
        settings = evaluation.settings(given or {})
        check_spelling(lengths)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return Step(name, evaluation, settings, lengths)
