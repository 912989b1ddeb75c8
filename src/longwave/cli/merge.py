"""`longwave merge`: a LoRA without a gate becomes part of the weights."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from longwave.cli.options import Model, Output, Overwrite, check_inputs

Quantize = Annotated[
    Literal["none"] | None,
    typer.Option(
        "--quantize",
        help="none: merge a LoRA trained on a base in 4 or 8 bits into the base as it is. The model changes a little.",
        show_default=False,
    ),
]


def merge(model: Model, output: Output, quantize: Quantize = None, overwrite: Overwrite = False) -> None:
    """Merge a LoRA into its base: a folder with all weights, which needs neither PEFT nor the base.

    It is for a LoRA of `--lora r=16,gate=none`. One that follows the length has other weights at each t: `longwave
    export` writes those of one t.

    Example:

    longwave merge out --output merged
    """
    check_inputs(model)
    from transformers.utils.logging import disable_progress_bar

    import longwave

    disable_progress_bar()
    typer.echo(f"merged, written to {longwave.merge(model, output, quantize=quantize, overwrite=overwrite)}")
