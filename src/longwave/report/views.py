"""How records are shown outside the report: tables for a terminal, and one picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from longwave.evaluation.curves import Curve, Grid, curves, grids
from longwave.evaluation.kinds import Share
from longwave.evaluation.quantity import Quantity
from longwave.evaluation.records import Record, quantity_of
from longwave.report.extrapolation import LEGEND, is_known
from longwave.report.heatmap import grid_figure
from longwave.report.plots import curve_figure
from longwave.report.tables import curve_table, grid_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class View(ABC):
    """Records that are shown together.

    Arguments:
        original_length: L.
        note: on the intervals, below the title of the picture; empty for a picture without intervals.
    """

    original_length: int
    note: str

    @property
    @abstractmethod
    def title(self) -> str:
        """Of the picture and above the tables."""

    @property
    @abstractmethod
    def legend(self) -> str:
        """The meaning of what stands beside the values in the tables; empty if nothing does."""

    @abstractmethod
    def tables(self) -> list[Table]: ...

    @abstractmethod
    def figure(self, title: str | None = None, subtitle: str | None = None) -> Figure: ...


@dataclass(frozen=True)
class Lines(View):
    """A line and a row of a table for each curve."""

    curves: Sequence[Curve]
    quantity: Quantity
    original_length: int
    note: str = "bands: 95 % interval"

    @property
    def title(self) -> str:
        return f"{self.quantity.title} by context length"

    @property
    def legend(self) -> str:
        return self.quantity.legend

    def tables(self) -> list[Table]:
        return [curve_table(self.curves, self.quantity, self.original_length)]

    def figure(self, title: str | None = None, subtitle: str | None = None) -> Figure:
        return curve_figure(
            self.curves, self.quantity, original_length=self.original_length, title=title, subtitle=subtitle
        )


@dataclass(frozen=True)
class Maps(View):
    """A heat map and a table for each grid."""

    grids: Sequence[Grid]
    quantity: Share
    original_length: int
    note: str = ""

    @property
    def title(self) -> str:
        return f"{self.quantity.title} by context length and depth"

    @property
    def legend(self) -> str:
        return LEGEND if is_known(grid.trained for grid in self.grids) else ""

    def tables(self) -> list[Table]:
        return [grid_table(grid, self.original_length) for grid in self.grids]

    def figure(self, title: str | None = None, subtitle: str | None = None) -> Figure:
        return grid_figure(
            self.grids, self.quantity, original_length=self.original_length, title=title, subtitle=subtitle
        )


def view(records: Sequence[Record], *, mixed: bool = False) -> View:
    """The view of one or more records that may share a table; `mixed` as in `longwave.evaluation.curves.curves`."""
    quantity, original = quantity_of(records[0]), int(records[0]["original_length"])
    if isinstance(quantity, Share) and quantity.mapped:
        return Maps(grids(records, mixed=mixed), quantity, original)
    return Lines(curves(records, mixed=mixed), quantity, original)
