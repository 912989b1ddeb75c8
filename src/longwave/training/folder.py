"""The folder of a training run: its record, and what the run may read, go on with and delete there."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from longwave.files import check_output, make_folder, read_object, write_json
from longwave.layout import ADAPTERS, CHECKPOINTS, EVALUATED, LIVE_REPORT, METRICS, MODEL, SETTINGS, TRACKED, WEIGHTS
from longwave.layout import TRAINING as RECORD
from longwave.provenance import command, versions
from longwave.training.checkpoints import checkpoint_step, discard, discard_rest, newest_whole, set_aside
from longwave.training.config import EARLIER_RUNS, TrainConfig
from longwave.training.metrics import ANEW, MetricsLog, read_metrics, summary
from longwave.training.ranks import Ranks

# Deleted in this order: without the first a folder is incomplete, by the last it is known to be ours.
RESULTS = (
    SETTINGS, WEIGHTS, METRICS, EVALUATED, LIVE_REPORT, TRACKED, CHECKPOINTS, ADAPTERS, MODEL, RECORD,
)  # fmt: skip

logger = logging.getLogger("longwave")

EARLIER = {"status": str, "config": dict, "model": str, "data": dict}  # what a run needs of the run before


@dataclass(frozen=True)
class RunFolder:
    """The output folder of a run.

    Arguments:
        path: the folder.
        config: the settings of the run.
        model: its path, or its class.
        files: SHA-256 of the data by file.
        shares: of the parts of a mixture, by their names.
        ranks: how processes share the steps; None for a new run.
    """

    path: Path
    config: TrainConfig
    model: str
    files: Mapping[str, str]
    shares: Mapping[str, float] = field(default_factory=dict)
    ranks: Ranks | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def record(self) -> dict[str, Any]:
        """What the run depends on."""
        return {
            "model": self.model,
            "config": self.config.as_dict() | {"accumulation": self.layout.begun},
            "data": dict(self.files),
            "shares": dict(self.shares),
            "versions": versions(),
            "seed": self.config.seed,
            **self.layout.record,
            "command": command(),
        }

    @property
    def layout(self) -> Ranks:
        """How the processes share the micro-batches of a step."""
        return self.ranks or Ranks.of(self.config)

    @property
    def exists(self) -> bool:
        """Whether a run was started here before."""
        return (self.path / RECORD).exists()

    @property
    def is_finished(self) -> bool:
        """Whether that run has its result."""
        return bool(self._earlier()["status"] == "finished") and (self.path / SETTINGS).exists()

    def require_apart(self, inputs: Iterable[Path | str]) -> None:
        """What the run reads must not be what it deletes or replaces."""
        results = [(self.path / name).resolve() for name in RESULTS]
        for path in inputs:
            place = Path(path).resolve()
            if place == self.path.resolve() or any(place.is_relative_to(result) for result in results):
                raise ValueError(
                    f"{path} is read by this run and part of its output {self.path}. Write to another folder."
                )

    def going_on(self) -> RunFolder:
        """The folder of the run that was started here, which must be this one; its steps stay what they are."""
        mine, earlier = self.record, self._earlier()
        self._require_known_lengths(earlier["config"])
        changed = self.config.differences(earlier["config"])
        if mine["model"] != earlier["model"]:
            changed.append(f"model {earlier['model']} -> {mine['model']}")
        if list(mine["data"].values()) != list(earlier["data"].values()):
            changed.append("the data are not the same")
        if list(self.shares.values()) != list(earlier.get("shares", {}).values()):
            changed.append("the shares of the data are not the same")
        if changed:
            raise ValueError(
                f"--resume goes on with the same run, but {'; '.join(changed)}. Start another with a new --output."
            )
        return replace(self, ranks=Ranks.going_on(self.config, earlier))

    def tell_changes(self) -> None:
        """Say what a resumed run does otherwise from here on."""
        if changed := self.config.changed_learning(self._earlier()["config"]):
            logger.warning("the run in %s goes on with other settings: %s.", self.path, "; ".join(changed))

    def _require_known_lengths(self, config: Mapping[str, Any]) -> None:
        """A run begun when `train_length` was the length of a row is this run only if all its windows were rows."""
        if "row_length" not in config and config.get("long_share"):
            row = config.get("train_length")
            raise ValueError(
                f"{self.path / RECORD} is of an older version, where train length was the length of a row, and cannot "
                f"go on. Start again: --overwrite --row-length {row}, and the longest real window as --train-length."
            )

    def require_room(self, *, resume: bool, overwrite: bool) -> None:
        """The folder is new, or may be written to, and what will be deleted there is an earlier run's."""
        if self.exists and not (resume or overwrite):
            raise ValueError(
                f"output folder {self.path} is not empty: it holds a training run. "
                "Pass --resume to go on, or --overwrite."
            )
        check_output(self.path, overwrite=resume or overwrite)
        # Only a record shows that a folder `model` is an earlier run's and not somebody's model.
        found = [name for name in RESULTS if (self.path / name).exists()]
        if found and not (_has(self.path / RECORD, "status") or _has(self.path / SETTINGS, "format")):
            raise ValueError(
                f"{self.path / found[0]} was not written by longwave: {RECORD} is missing. Write to another folder."
            )

    def state(self) -> Path | None:
        """The checkpoint to go on from, None if there is none. Each newer one is damaged, and is set aside by name."""
        found, faults = newest_whole(self.checkpoints)
        for path, fault in faults.items():
            aside = set_aside(path)
            goes_on = "" if found is None else f" The run goes on from {found.name}."
            logger.warning("%s is damaged: %s. It is now called %s.%s", path, fault, aside.name, goes_on)
        return found

    def start(self, *, resume: bool, state: Path | None = None) -> MetricsLog:
        """Write the record. A new run first deletes an earlier one's results, for which it could pass otherwise.

        Arguments:
            state: the checkpoint that the run goes on from.
        """
        make_folder(self.path)
        if resume:
            discard_rest(self.checkpoints)
        else:
            self._remove_results()
        write_json(self.path / RECORD, {"status": "running", **self.record})
        return MetricsLog(self.path / METRICS, 0 if state is None else checkpoint_step(state))

    def evaluated(self, state: Path | None) -> MetricsLog:
        """The rows of what is measured while training.

        Arguments:
            state: the checkpoint that the run goes on from; None for a new run.
        """
        return MetricsLog(self.path / EVALUATED, 0 if state is None else checkpoint_step(state))

    def losses(self, state: Path | None) -> list[float]:
        """The losses of the steps before a checkpoint.

        Arguments:
            state: the checkpoint that the run goes on from; None for a new run.
        """
        if state is None:
            return []
        return [row["loss"] for row in read_metrics(self.path / METRICS, ANEW) if row["step"] <= checkpoint_step(state)]

    def stop(self, step: int, reason: str) -> None:
        """Write the record of a run that was stopped before its last step. Its checkpoints stay."""
        write_json(self.path / RECORD, {"status": "stopped", **self.record, "step": step, "stopped_by": reason})

    def diverged(self, reason: str) -> None:
        """Write the record of a run that was given up because its loss rose. Its checkpoints stay."""
        write_json(self.path / RECORD, {"status": "diverged", **self.record, "reason": reason})

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Within, the trained model is saved; an error deletes what was written of it. The checkpoints have it all."""
        try:
            yield
        except Exception:
            for name in (SETTINGS, WEIGHTS, f".{WEIGHTS}"):
                (self.path / name).unlink(missing_ok=True)
            for name in (ADAPTERS, MODEL):
                discard(self.path / name)
            raise

    def finish(self, trained_length: int | None, used: Mapping[str, Any] | None = None) -> None:
        """Write the record of a run whose model is saved.

        Arguments:
            trained_length: the longest real window that the model was trained on, here or before; None: unknown.
            used: what the run has read.
        """
        result = summary(self.path / METRICS) | {"trained_length": trained_length, **(used or {})}
        write_json(self.path / RECORD, {"status": "finished", **self.record, "result": result})
        self.tidy()

    def tidy(self) -> None:
        """Delete the checkpoints of a finished run, unless they are to be kept."""
        if not self.config.keep_checkpoints:
            discard(self.checkpoints)

    def _earlier(self) -> dict[str, Any]:
        """The record of the run that was started here."""
        path = self.path / RECORD
        found = read_object(path)
        for name, kind in EARLIER.items():
            if not isinstance(found.get(name), kind):
                raise ValueError(f"{path} has no {name} of a run of longwave train. Write to another folder.")
        return found

    def _remove_results(self) -> None:
        for name in RESULTS:
            path = self.path / name
            if path.is_dir():
                discard(path)
            else:
                path.unlink(missing_ok=True)


def recorded_settings(folder: Path | str) -> dict[str, Any] | None:
    """The settings of the run that was started in a folder; None where none was."""
    record = Path(folder) / RECORD
    config = read_object(record).get("config") if record.exists() else None
    return config if isinstance(config, dict) else None


def kept_settings(folder: Path | str) -> dict[str, Any]:
    """Settings that a run keeps when it is resumed and they are not given, as recorded; nothing where no run was."""
    config = recorded_settings(folder)
    return {} if config is None else {name: config.get(name, before) for name, before in EARLIER_RUNS.items()}


def _has(record: Path, key: str) -> bool:
    return record.is_file() and key in read_object(record)
