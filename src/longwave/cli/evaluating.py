"""What the measuring commands share: loading, the list of methods, where results go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from longwave.evaluation.quantity import Quantity

Lengths = Annotated[
    str | None,
    typer.Option(
        "--lengths",
        metavar="N,...",
        help="Multiples of the trained length (2x) or tokens (4096). Default: 1x, 2x, 4x, ... to the model's maximum, "
        "16x for a plain model.",
    ),
]
Methods = Annotated[
    str | None,
    typer.Option(
        "--methods",
        metavar="METHOD[@SCHEDULE],...",
        help="Default: the model's own method; none,linear,ntk,yarn for a plain one.",
    ),
]
Results = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="DIR", help="Folder for JSON and PNG; default COMMAND-MODEL."),
]
Batch = Annotated[int, typer.Option("--tokens-per-batch", metavar="N", help="Tokens read at a time.")]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option("--dtype", help="Of the weights; auto: float32 on CPU, elsewhere as they are stored."),
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="E.g. cpu, cuda:1; default the accelerator, if any.")
]


@dataclass(frozen=True)
class Loaded:
    """A model ready to be measured, its tokenizer, and the `model` entry of its records."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    about: dict[str, Any]


def _device(device: str | None) -> str:
    """The one asked for, or the accelerator, if any."""
    import torch

    if device is not None:
        return device
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"


def setup(dtype: str, device: str | None) -> dict[str, str]:
    """What `load` makes of both options: the kind of device, and the type of the weights or `stored`."""
    kind = _device(device).partition(":")[0]
    return {"device": kind, "dtype": dtype if dtype != "auto" else "float32" if kind == "cpu" else "stored"}


def load(path: str, dtype: str, device: str | None, *, scaling: str = "trajectory") -> Loaded:
    """Read a model of any kind and its tokenizer, and put it on its device; `scaling` as in `longwave.load`."""
    import torch
    from transformers.utils import logging

    from longwave.checkpoints.folder import resolve
    from longwave.checkpoints.load import load as load_model
    from longwave.checkpoints.tokenizer import load_tokenizer
    from longwave.files import read_json
    from longwave.layout import TRAINING

    logging.disable_progress_bar()
    device = _device(device)
    try:
        place = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # a build without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device {device!r} cannot be used here ({reason}). Write for example cpu or cuda:0."
        ) from None
    stored = dtype == "auto" and place.type != "cpu"
    wanted = "auto" if stored else torch.float32 if dtype == "auto" else getattr(torch, dtype)
    found = resolve(path)
    model = load_model(found, dtype=wanted, scaling=scaling)
    tokenizer = load_tokenizer(found)
    about = {
        "path": path,
        "type": model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device,
    }
    record = found.path / TRAINING
    if record.is_file():
        about["training_seed"] = read_json(record).get("seed")
    return Loaded(model.to(place), tokenizer, about)  # type: ignore[arg-type]


def default_lengths(model: PreTrainedModel) -> str:
    """Doublings of the trained length up to an extended model's maximum, or to 16x of a plain one."""
    from longwave.extensions.handle import find_extension
    from longwave.extensions.reach import original_length_of, reach_of

    most = reach_of(model) // original_length_of(model) if find_extension(model) is not None else 16
    return ",".join(f"{2**k}x" for k in range(most.bit_length()))


def choose(model: PreTrainedModel, methods: str | None, lengths: list[int]) -> list[str]:
    """The method specs to measure, each of them tried: what cannot work fails before anything is computed."""
    from longwave.evaluation.subjects import default_specs, under
    from longwave.extensions.reach import check_lengths

    if methods is None:
        specs = default_specs(model)
    else:
        specs = list(dict.fromkeys(spec.strip() for spec in methods.split(",") if spec.strip()))
    if not specs:
        raise ValueError("no methods given. Write for example --methods none,ntk,yarn.")
    for spec in specs:
        with under(model, spec, lengths):
            check_lengths(model, lengths)
    return specs


def results_folder(output: Path | None, command: str, model: str, overwrite: bool) -> Path:
    """Where results will go. A folder that holds something is refused now, not after an hour's work."""
    from longwave.files import check_output

    folder = Path(f"{command}-{Path(model).resolve().name}") if output is None else output
    return check_output(folder, overwrite=overwrite)


def measured_rows(
    model: PreTrainedModel,
    specs: list[str],
    lengths: list[int],
    tokens: int,
    measure: Callable[..., Any],
    quantity: Quantity,
) -> list[dict[str, Any]]:
    """A row of a record for each method, progress shown.

    Arguments:
        tokens: that one method reads.
        measure: called with `progress=`; returns a result with `lengths`.
        quantity: what is measured.
    """
    from longwave.cli.progressing import progress
    from longwave.evaluation.subjects import under

    rows: list[dict[str, Any]] = []
    with progress(len(specs) * tokens) as meter:
        for spec in specs:
            with under(model, spec, lengths) as subject:
                result = measure(progress=meter.start(subject.label))
                rows.append({**subject.to_json(), "lengths": [entry.to_json() for entry in result.lengths]})
            meter.finished(f"{subject.label}: {quantity.line(rows[-1]['lengths'])}", len(rows), len(specs))
    return rows


def write_and_show(found: dict[str, Any], folder: Path, **how: Any) -> None:
    """`longwave.cli.showing.show`, with the fields of `Showing` as options."""
    from longwave.cli.showing import Showing, show

    show(found, folder, Showing(**how))


def short(path: str) -> str:
    """A model's name for titles: the last folders of a long path."""
    parts = Path(path).parts
    return path if len(path) <= 40 else str(Path("…", *parts[-2:]))
