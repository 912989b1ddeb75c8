"""`longwave report`: one HTML file from records, training runs and a model's frequencies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from longwave.report.sources import Training
    from longwave.trajectory import Trajectory

CELLS = "cells"  # of `longwave compare`
PLAIN_FACTOR = 16.0  # the largest t drawn for a model that sets none


def report(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH...", help="Records and metrics.jsonl, or folders to search for them."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page.")] = Path("report.html"),
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Draw the frequencies of this model too.")
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option("--methods", metavar="METHOD,...", help="For --model; default its own and none,linear,ntk,yarn."),
    ] = None,
    title: Annotated[str, typer.Option("--title", metavar="TEXT", help="Title of the page.")] = "longwave report",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that exists.")] = False,
) -> None:
    """Write results as one HTML page: figures, tables with intervals, a summary, and what made each number.

    The page needs nothing else: it works offline, in light and dark, on a phone. Records of different protocols,
    texts or trained lengths come into separate sections. A damaged record is an error, never left out.

    Examples:

    longwave report perplexity-model/perplexity.json passkey-model/passkey.json

    longwave report results/ out/metrics.jsonl --model out --methods none,ntk,clex -o report.html
    """
    from rich.console import Console

    from longwave.files import write_text
    from longwave.report.html import page
    from longwave.report.sources import read_source

    if methods is not None and model is None:
        raise ValueError("--methods chooses what is drawn for --model. Pass a model too.")
    if output.suffix != ".html":
        raise ValueError(f"output {output} must end in .html.")
    if output.exists() and not overwrite:
        raise ValueError(f"{output} exists. Choose another name or pass --overwrite.")
    files = list(dict.fromkeys(file.resolve() for path in paths or () for file in _files(path)))
    runs = [file for file in files if file.suffix == ".jsonl"]
    sources = [read_source(_short(file)) for file in files if file not in runs]
    trainings = [read_training(_short(file)) for file in runs]
    trajectories = {} if model is None else trajectories_of_model(model, methods)
    text = page(sources, trainings=trainings, trajectories=trajectories, title=title)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(output, text)
    Console().print(f"written: {output}", highlight=False, soft_wrap=True)


def _files(path: Path) -> Iterator[Path]:
    """Records and metrics in a folder, a file as it is; not the cells that a comparison's records were made from."""
    from longwave.evaluation.records import is_ours

    if not path.exists():
        raise ValueError(f"{path} does not exist. Give records, metrics.jsonl, or folders that hold some.")
    if path.is_file():
        if path.suffix != ".json" and path.name != "metrics.jsonl":
            raise ValueError(f"{path} is neither a record (.json) nor metrics.jsonl.")
        yield path
        return
    inside = [f for f in sorted(path.rglob("*.json*")) if f.is_file() and not _hidden(f.relative_to(path).parts)]
    found = [f for f in inside if f.name == "metrics.jsonl" or (f.suffix == ".json" and is_ours(f))]
    if not found:
        raise ValueError(f"folder {path} holds no record and no metrics.jsonl. Run `longwave perplexity` first.")
    yield from found


def _hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith(".") or part == CELLS for part in parts)


def _short(path: Path) -> Path:
    """Relative to here where it is below: pages are passed on, and need not tell where their maker works."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def read_training(path: Path) -> Training:
    from longwave.files import read_json
    from longwave.report.sources import Training, check_metrics
    from longwave.training.metrics import read_metrics

    try:
        rows = read_metrics(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Leave it out, or train again.") from None
    record = path.with_name("training.json")
    return Training(path, check_metrics(rows, path), read_json(record) if record.is_file() else None)


def trajectories_of_model(path: str, methods: str | None) -> dict[str, Trajectory]:
    """The trajectories of methods on a model's rope, its own as it was trained."""
    from transformers.utils import logging

    from longwave.checkpoints.load import load
    from longwave.evaluation.subjects import TRAINING_FREE
    from longwave.extensions.attach import rope_of
    from longwave.extensions.handle import extension, find_extension, is_trained
    from longwave.methods import parse_method

    logging.disable_progress_bar()
    loaded = load(path, dtype="auto")
    own = extension(loaded).trajectories[0] if find_extension(loaded) is not None else None
    rope = own.rope if own is not None else rope_of(loaded)
    default = dict.fromkeys([*([own.name] if own is not None else []), *TRAINING_FREE])
    names = [spec.strip() for spec in methods.split(",") if spec.strip()] if methods is not None else list(default)
    if not names:
        raise ValueError("no methods given. Write for example --methods none,ntk,yarn.")
    found: dict[str, Trajectory] = {}
    for method in (parse_method(name)[0] for name in names):
        if own is not None and own.name == method.name and is_trained(loaded):
            found[method.name] = own
        elif method.trained:
            raise ValueError(f"{method.name} needs trained weights, and {path} has none. Leave it out of --methods.")
        else:
            found[method.name] = method.build(rope, own.max_factor if own is not None else PLAIN_FACTOR)
    return found
