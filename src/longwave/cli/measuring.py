"""The commands that measure one thing on one model: an evaluation has its command by its line in EVALUATIONS."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

from longwave.cli.evaluating import Asked, results_folder, short_path
from longwave.cli.options import Data, Model, check_inputs
from longwave.cli.settings import with_fields, with_settings
from longwave.evaluation.alike import model_name
from longwave.evaluation.base import Evaluation
from longwave.evaluation.suites import Step

UNFINISHED = ".unfinished"  # in the output folder: the cells of a run, until its record is written


def command_of(evaluation: Evaluation[Any]) -> Callable[..., None]:
    """The command of an evaluation: the options that all have, and its settings."""

    def of_text(model: Model, data: Data, asked: Asked, **settings: Any) -> None:
        measure_one(evaluation, model, data, asked, settings)

    def of_none(model: Model, asked: Asked, **settings: Any) -> None:
        measure_one(evaluation, model, None, asked, settings)

    command = with_fields("asked", Asked)(of_text if evaluation.needs_data else of_none)
    command.__name__, command.__doc__ = evaluation.name, evaluation.help()
    return with_settings(evaluation.Settings, group=f"Settings of {evaluation.name}")(command)


def measure_one(
    evaluation: Evaluation[Any], model: str, data: list[Path] | None, asked: Asked, settings: dict[str, Any]
) -> None:
    """Measure a model under several methods, write the record with its pictures, and show it.

    The cells of a run are kept until the record is written: a run that was stopped goes on where it was.
    """
    step = Step(evaluation.name, evaluation, evaluation.Settings.create(**settings))
    check_inputs(model, data=data)

    from longwave.cli.comparing import compute
    from longwave.cli.showing import Showing, show
    from longwave.evaluation.candidates import Candidate
    from longwave.evaluation.merging import of_one_model

    folder = results_folder(asked.output, evaluation.name, model)
    candidate = Candidate(model, model_name(model), asked.specs)
    comparison = asked.comparison([candidate], [step], folder / UNFINISHED, data)
    _check(folder, asked.overwrite)  # last: a default folder that is full must not hide what else is wrong
    compute(comparison, attrgetter("label"), lambda: _claimed(folder))
    found = of_one_model([comparison.store.read(cell) for cell in comparison.cells])
    show(found, folder, Showing(short_path(model), asked.overwrite, asked.as_json))
    shutil.rmtree(folder / UNFINISHED)


def _check(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that holds anything but the cells of a run that was stopped."""
    from longwave.files import check_output

    stopped = folder.is_dir() and [path.name for path in folder.iterdir()] == [UNFINISHED]
    check_output(folder, overwrite=overwrite or stopped)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Within, no other process measures into the folder. What holds no finished cell afterwards is removed."""
    from filelock import FileLock, Timeout

    from longwave.evaluation.cells import FOLDER
    from longwave.files import make_folder

    unfinished = folder / UNFINISHED
    make_folder(unfinished)
    lock = FileLock(unfinished / "lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"another process measures into {folder}. Wait for it, or choose another --output.") from None
    try:
        yield
    finally:
        lock.release()
        if not any((unfinished / FOLDER).glob("*.json")):
            shutil.rmtree(unfinished)
            if not any(folder.iterdir()):
                folder.rmdir()
