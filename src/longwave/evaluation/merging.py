"""The record of a table, from those of its cells."""

from __future__ import annotations

from collections.abc import Sequence

from longwave.evaluation.alike import Table, check_trained_lengths
from longwave.evaluation.cells import Cell
from longwave.evaluation.results import Record, record


def merged(cells: Sequence[Cell], found: Sequence[Record]) -> Record:
    """One record of all rows. It names the model of each row, and the cells that the rows come from.

    Arguments:
        cells: of one step.
        found: the record of each.

    Raises:
        ValueError: if the rows cannot be compared.
    """
    check_trained_lengths({cell.model: each["original_length"] for cell, each in zip(cells, found, strict=True)})
    table = Table(cells[0].step)
    for cell, each in zip(cells, found, strict=True):
        table.add(cell.model, each["settings"])
    rows = [
        {**row, "label": cell.label, "model": each["model"]}
        for cell, each in zip(cells, found, strict=True)
        for row in each["rows"]
    ]
    models = list(dict.fromkeys(cell.model for cell in cells))
    about = found[0]["model"] if len(models) == 1 else {"path": ", ".join(models)}
    return {**_record(found[0], about, rows), "cells": [cell.key for cell in cells]}


def of_one_model(found: Sequence[Record]) -> Record:
    """One record of all rows of one model. It names no cells: they are deleted after it.

    Arguments:
        found: the record of each cell.
    """
    return _record(found[0], found[0]["model"], [row for each in found for row in each["rows"]])


def _record(first: Record, about: dict[str, object], rows: list[dict[str, object]]) -> Record:
    shared = {key: first[key] for key in ("settings", "original_length", "data", "seed")}
    return record(first["schema"], model=about, rows=rows, **shared)
