"""What an export has written."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from longwave.exporters.verify import Agreement
from longwave.files import write_json
from longwave.layout import EXPORT_RECORD
from longwave.trajectory import Snapshot


@dataclass(frozen=True, eq=False)
class Exported:
    """A finished folder.

    Arguments:
        folder: where it lies.
        target: its format.
        snapshot: the frequencies that it runs at.
        notes: what its user should know.
        agreement: the result of the verification; None if there was none.
        profiles: every t of a folder for several; empty for a folder with one. `snapshot` is of the largest.
    """

    folder: Path
    target: str
    snapshot: Snapshot = field(repr=False)
    notes: list[str] = field(default_factory=list)
    agreement: Agreement | None = None
    profiles: tuple[float, ...] = ()

    @property
    def files(self) -> dict[str, int]:
        """The bytes of each file, also in subfolders, without longwave-export.json."""
        return {
            path.relative_to(self.folder).as_posix(): path.stat().st_size
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.name != EXPORT_RECORD
        }

    def to_json(self) -> dict[str, Any]:
        """For `--json` and longwave-export.json."""
        return {
            "folder": str(self.folder),
            "target": self.target,
            "files": self.files,
            "factor": self.snapshot.factor,
            "length": self.snapshot.max_length,
            "original_length": self.snapshot.original_length,
            **({"profiles": list(self.profiles)} if self.profiles else {}),
            "factors": self.snapshot.factors.tolist(),
            "attention_scaling": self.snapshot.attention_scaling,
            "notes": self.notes,
            "agreement": None if self.agreement is None else self.agreement.to_json(),
        }

    def write_record(self, folder: Path) -> None:
        """Write longwave-export.json about the files in `folder`, which will be moved to their place."""
        record = replace(self, folder=folder).to_json()
        write_json(folder / EXPORT_RECORD, {key: value for key, value in record.items() if key != "folder"})
