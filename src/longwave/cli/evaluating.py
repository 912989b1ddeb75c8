"""The options of the measuring commands, and the folder of their results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from longwave.cli.options import Json, Options, Overwrite
from longwave.evaluation.alike import model_name
from longwave.evaluation.lengths import check_spelling
from longwave.evaluation.windows import TOKENS_PER_BATCH, check_batch

if TYPE_CHECKING:
    from longwave.evaluation.candidates import Candidate
    from longwave.evaluation.comparison import Comparison
    from longwave.evaluation.suites import Step

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
        metavar="METHOD[@SCHEDULE][+ATTENTION],...",
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
    typer.Option(
        "--dtype",
        metavar="TYPE",
        help="Of the weights: auto, float32, bfloat16 or float16. auto: float32 on CPU, elsewhere as stored.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="NAME", help="For example cpu or cuda:1; default the accelerator, if any."),
]


def specs_in(methods: str) -> tuple[str, ...]:
    """The methods of a text such as `none,ntk,yarn`, in order, repetitions dropped."""
    return tuple(dict.fromkeys(spec.strip() for spec in methods.split(",") if spec.strip()))


def chosen_of(methods: str, option: list[str] | None) -> tuple[str, ...]:
    """The methods of a text, each with the options of --option that it has."""
    specs = specs_in(methods)
    if not option:
        return specs
    from longwave.evaluation.candidates import OWN
    from longwave.extensions.spec import with_options
    from longwave.settings import parse_pairs

    found = with_options([spec for spec in specs if spec != OWN], parse_pairs(option))
    return (*found, *(spec for spec in specs if spec == OWN))


def check_methods(methods: str | None) -> None:
    """Refuse a text that names no method; None names the default."""
    if methods is not None and not specs_in(methods):
        raise ValueError("no methods given. Write for example --methods none,ntk,yarn.")


@dataclass(frozen=True)
class Asked:
    """The options that every measuring command has; a field is an option.

    Raises:
        ValueError: for lengths, methods or a batch that no model has, before a model is looked for.
    """

    lengths: Lengths = None
    methods: Methods = None
    option: Options = None
    output: Results = None
    overwrite: Overwrite = False
    as_json: Json = False
    dtype: Dtype = "auto"
    device: Device = None
    tokens_per_batch: Batch = TOKENS_PER_BATCH

    def __post_init__(self) -> None:
        check_spelling(self.lengths)
        check_batch(self.tokens_per_batch)
        check_methods(self.methods)
        if self.option and self.methods is None:
            raise ValueError("--option is for --methods: give them, for example --methods none,two-band.")

    @property
    def specs(self) -> tuple[str, ...]:
        """The methods of --methods with their options, in order, repetitions dropped; none where it is not given."""
        return () if self.methods is None else chosen_of(self.methods, self.option)

    def comparison(
        self, candidates: list[Candidate], steps: list[Step], folder: Path, data: list[Path] | None
    ) -> Comparison:
        """The cells to measure, which are kept in `folder`."""
        from longwave.evaluation.comparison import Comparison
        from longwave.models import open_model, place

        setup = place(self.dtype, self.device).setup()
        return Comparison(
            candidates, steps, folder, lambda path: open_model(path, self.dtype, self.device), data or [],
            self.lengths, setup, self.tokens_per_batch,
        )  # fmt: skip


def results_folder(output: Path | None, command: str, model: str) -> Path:
    """The folder of the results: as given, or COMMAND-MODEL."""
    return Path(f"{command}-{model_name(model)}") if output is None else output


def short_path(path: str) -> str:
    """A path for titles: of a long one, the last two folders."""
    parts = Path(path).parts
    return path if len(path) <= 40 else str(Path("…", *parts[-2:]))
