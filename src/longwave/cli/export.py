"""`longwave export`: a folder or file that serving engines load without longwave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from longwave.cli.options import Json, Model, Output, Overwrite, check_inputs, print_json
from longwave.files import check_output


def export(
    model: Model,
    output: Output,
    to: Annotated[Literal["hf", "gguf", "ctranslate2"], typer.Option("--to", help="Who is to read it.")] = "hf",
    factor: Annotated[
        float | None,
        typer.Option("--factor", metavar="T", help="Length factor t; default the model's largest, 8 with --method."),
    ] = None,
    length: Annotated[
        int | None, typer.Option("--length", metavar="TOKENS", help="The same as a number of tokens.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", metavar="METHOD", help="For a plain model: what to export it with, e.g. yarn."),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize",
            metavar="TYPE",
            help="gguf: f16 (default), f32, bf16, q8_0, q5_1, q5_0, q4_1, q4_0; ctranslate2: keep (default), float32, "
            "float16, bfloat16, int8, int8_float32, int8_float16, int8_bfloat16, int16.",
        ),
    ] = None,
    log_n: Annotated[
        Literal["constant", "drop"],
        typer.Option("--log-n", help="Per-query log-n: its value for the last query as a constant, or none."),
    ] = "constant",
    verify: Annotated[
        bool, typer.Option("--verify", help="Run it in the engine and compare; keep nothing that does not agree.")
    ] = False,
    verify_tokens: Annotated[
        int, typer.Option("--verify-tokens", metavar="N", help="The longest prompt of the verification.")
    ] = 4096,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", metavar="FILE", help="A perplexity.json for the model card; repeatable."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Freeze a model at one length factor, for engines that know nothing of longwave.

    At one t every method is a vector of factors for the frequencies, which transformers, vLLM, SGLang, llama.cpp
    and CTranslate2 can read. Weights are streamed; the folder appears when it is complete, with a model card.

    Examples:

    longwave export out --factor 8 --output out-8x

    longwave export out --length 32768 --to gguf --quantize q8_0 --verify --output out-gguf

    longwave export MODEL --method yarn --factor 4 --output yarn-4x
    """
    check_inputs(model)
    if factor is not None and length is not None:
        raise ValueError("give the length factor or the length in tokens, not both: --factor 8 or --length 32768.")
    check_output(output, overwrite=overwrite)

    from rich.console import Console
    from transformers.utils import logging

    from longwave.exporters.run import export as run

    logging.disable_progress_bar()
    console = Console(stderr=True, highlight=False)
    with console.status("reading") as status:
        done = run(
            model, output, to=to, factor=factor, length=length, method=method, quantize=quantize, log_n=log_n,
            verified=verify, verify_tokens=verify_tokens, results=results or (), overwrite=overwrite,
            tell=status.update,
        )  # fmt: skip
    if as_json:
        print_json(done.to_json())
        return
    size = sum(path.stat().st_size for path in done.folder.iterdir())
    snapshot = done.snapshot
    typer.echo(
        f"{done.folder}: {to}, {size / 1e6:,.1f} MB, t {snapshot.factor:g}, {snapshot.max_length:,} tokens, "
        f"attention scaling {snapshot.attention_scaling:.4g}"
    )
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)
    if done.agreement is not None:
        typer.echo(f"verified: {done.agreement}")
