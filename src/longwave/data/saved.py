"""Folders that `datasets.Dataset.save_to_disk` wrote."""

from __future__ import annotations

from pathlib import Path

from longwave.files import read_json

STATE = "state.json"
RECORDS = (STATE, "dataset_info.json")  # file in which `datasets` describes the data beside it


def saved_files(folder: Path) -> list[Path] | None:
    """The arrow files of a saved data set, in their order; None for any other folder.

    The folder may hold arrow files that are not the data: `datasets` keeps results of `map` and `filter` there.

    Raises:
        ValueError: if one of the files is missing.
    """
    if not (folder / STATE).is_file():
        return None
    try:
        state = read_json(folder / STATE)
    except ValueError:  # some other program's state.json
        return None
    if not isinstance(state, dict) or not isinstance(state.get("_data_files"), list):
        return None
    files = [folder / entry["filename"] for entry in state["_data_files"]]
    for file in files:
        if not file.is_file():
            raise ValueError(f"data {folder} is a saved data set without its file {file.name}. Save or copy it again.")
    return files
