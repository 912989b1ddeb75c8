"""`longwave generate`: continue a text that may be longer than the model was trained for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from longwave.cli.evaluating import Device, Dtype
from longwave.cli.generating import Chunk, Method, NewTokens, Temperature, To, TopP
from longwave.cli.options import Json, Model, Seed, check_inputs, print_json


def generate(
    model: Model,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="The text to go on from.")] = None,
    prompt_file: Annotated[
        Path | None, typer.Option("--prompt-file", metavar="FILE", help="The same from a file; - for stdin.")
    ] = None,
    max_new_tokens: NewTokens = None,
    method: Method = None,
    to: To = None,
    policy: Annotated[
        Literal["fit", "grow"],
        typer.Option("--policy", help="fit: one t, from prompt and --max-new-tokens; grow: t doubles with the text."),
    ] = "fit",
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    prefill_chunk: Chunk = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text while it is generated.")] = False,
    as_json: Json = False,
    dtype: Dtype = "auto",
    device: Device = None,
) -> None:
    """Continue a text, at the length factor that its length asks for.

    Prints the new text on stdout, and a line about lengths, t and speed on stderr. With --method any local model
    is extended on the spot, without training.

    Examples:

    longwave generate out --prompt-file report.txt --max-new-tokens 300 --stream

    longwave generate MODEL --method yarn --to 32768 --prompt-file report.txt

    cat report.txt question.txt | longwave generate out --prompt-file - --json
    """
    from longwave.cli import generating

    check_inputs(model)
    text = generating.read_prompt(prompt, prompt_file)
    loaded = generating.load(model, method=method, to=to, dtype=dtype, device=device)
    options = generating.sampling(loaded.tokenizer, temperature, top_p, seed)
    found = generating.continue_text(
        loaded.model, loaded.tokenizer, text, max_new_tokens=max_new_tokens, policy=policy,
        stream=stream and not as_json, chunk=prefill_chunk, options=options,
    )  # fmt: skip
    if as_json:
        print_json(found)
        return
    if not stream:
        typer.echo(found["text"])
    sys.stdout.flush()
    typer.echo(
        f"[{found['prompt_tokens']:,} + {found['new_tokens']:,} tokens · t {found['factor']:.4g} · "
        f"{found['new_tokens'] / found['seconds']:.1f} tokens/s, reading included]",
        err=True,
    )
