"""Folders that `datasets.Dataset.save_to_disk` wrote."""

from __future__ import annotations

import os
from pathlib import Path

from longwave.files import read_json

STATE = "state.json"
RECORDS = (STATE, "dataset_info.json")  # file in which `datasets` describes the data beside it


def saved_files(folder: Path) -> list[Path] | None:
    """The arrow files of a saved data set; None for any other folder.

    The folder may hold arrow files that are not the data: `datasets` keeps results of `map` and `filter` there.

    Raises:
        ValueError: if one of the files is missing, or lies outside the folder.
    """
    if not (folder / STATE).is_file():
        return None
    try:
        state = read_json(folder / STATE)
    except ValueError:  # some other program's state.json
        return None
    if not isinstance(state, dict) or not isinstance(state.get("_data_files"), list):
        return None
    if not all(isinstance(each, dict) and isinstance(each.get("filename"), str) for each in state["_data_files"]):
        return None
    files = [Path(os.path.normpath(folder / each["filename"])) for each in state["_data_files"]]
    for file in files:
        if not file.is_relative_to(os.path.normpath(folder)):
            raise ValueError(
                f"data {folder} is a saved data set with its file {file} elsewhere. Save or copy it again."
            )
        if not file.is_file():
            raise ValueError(f"data {folder} is a saved data set without its file {file.name}. Save or copy it again.")
    return files
