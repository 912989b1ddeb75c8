"""Data sets of the Hugging Face hub, by name."""

from __future__ import annotations

from pathlib import Path

import datasets

from longwave.data.bars import progress_bars
from longwave.data.paths import HUB
from longwave.errors import first_line
from longwave.names import shortened

SPLIT = "train"  # where none is named
FORM = "Write hub:NAME, hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT."


def hub_files(given: str) -> list[Path]:
    """The arrow files in the cache of `hub:NAME[:CONFIG][:SPLIT]`. A data set that is not there yet is downloaded.

    `datasets.load_dataset` does the work. It runs no code of the data set. A folder of data files may stand for NAME.

    Raises:
        ValueError: for a data set, a configuration or a split that there is not.
    """
    name, *parts = given.removeprefix(HUB).split(":")
    if not name or len(parts) > 2:
        raise ValueError(f"data {given} is no name of a data set. {FORM}")
    config, split = (parts[0] or None, parts[1]) if len(parts) == 2 else (None, parts[0] if parts else "")
    if len(parts) == 1 and split in _configs(name):
        config, split = split, ""
    try:
        with progress_bars(False):
            found = datasets.load_dataset(name, config)
    except (ValueError, OSError, datasets.exceptions.DatasetGenerationError) as error:
        raise ValueError(f"data {given} cannot be loaded: {first_line(error).rstrip('.')}. {FORM}") from None
    if (wanted := split or SPLIT) not in found:
        raise ValueError(f"data {given} has no split {wanted}; it has {shortened(found)}. {FORM}")
    return [Path(each["filename"]) for each in found[wanted].cache_files]


def _configs(name: str) -> list[str]:
    """The configurations of a data set; none if they cannot be told."""
    try:
        return list(datasets.get_dataset_config_names(name))
    except (ValueError, OSError):
        return []
