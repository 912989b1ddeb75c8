"""`longwave generate`: continue a text that may be longer than the model was trained for."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longwave.cli.evaluating import Device, Dtype
from longwave.cli.generating import Method, To
from longwave.cli.options import Json, Model, Options, check_inputs, print_json
from longwave.cli.settings import with_settings
from longwave.extensions.continuation import GenerateSettings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Prompt = Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="The text to go on from.")]
PromptFile = Annotated[
    Path | None, typer.Option("--prompt-file", metavar="FILE", help="A file with that text; - for stdin.")
]
Stream = Annotated[bool, typer.Option("--stream", help="Print the text while it is generated.")]


@with_settings(GenerateSettings)
def generate(
    model: Model,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    method: Method = None,
    option: Options = None,
    to: To = None,
    stream: Stream = False,
    as_json: Json = False,
    dtype: Dtype = "auto",
    device: Device = None,
    **settings: Any,
) -> None:
    """Continue a text, at the length factor that its length asks for.

    Prints the new text on stdout, and a line about lengths, t and speed on stderr. --method extends a plain model for
    this text, without training.

    Examples:

    longwave generate out --prompt-file report.txt --max-new-tokens 300 --stream

    longwave generate MODEL --method yarn --to 32768 --prompt-file report.txt

    cat report.txt question.txt | longwave generate out --prompt-file - --json
    """
    check_inputs(model)
    text, how = read_prompt(prompt, prompt_file), GenerateSettings.create(**settings)

    from transformers import TextStreamer

    from longwave.cli import generating
    from longwave.extensions.continuation import continue_text

    method = generating.chosen(method, option)
    loaded = generating.load(model, method=method, to=to, dtype=dtype, device=device)
    stream = stream and not as_json
    streamer = TextStreamer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True) if stream else None
    found = continue_text(
        loaded.model, loaded.tokenizer, text, how, streamer=streamer, hint=extension_hint(loaded.model, method)
    )
    if as_json:
        print_json(asdict(found))
        return
    if not stream:
        typer.echo(found.text)
    sys.stdout.flush()
    typer.echo(
        f"[{found.prompt_tokens:,} + {found.new_tokens:,} tokens · t {found.factor:.4g} · "
        f"{found.new_tokens / found.seconds:.1f} tokens/s, reading included]",
        err=True,
    )


def read_prompt(prompt: str | None, file: Path | None) -> str:
    """The text of the one that is given.

    Raises:
        ValueError: if both are given or none, or the text cannot be read or is empty.
    """
    if (prompt is None) == (file is None):
        raise ValueError("give the prompt as --prompt TEXT or as --prompt-file FILE (- for stdin), one of them.")
    if file is None:
        text = prompt or ""
    elif str(file) == "-":
        text = sys.stdin.read()
    elif not file.is_file():
        raise ValueError(f"prompt file {file} does not exist. Give a text file, or - for stdin.")
    else:
        try:
            text = file.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"prompt file {file} is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    if not text.strip():
        raise ValueError("the prompt is empty. Give some text.")
    return text


def extension_hint(model: PreTrainedModel, method: str | None) -> str:
    """Advice for a text that is too long; empty if the model cannot be extended by `--method`."""
    from longwave.checkpoints.scaled import unrecognised
    from longwave.extensions.handle import find_extension

    if method is not None:
        return ", or let the method reach farther: --to TOKENS"
    handle = find_extension(model)
    extensible = (handle is None or handle.recognised) and not unrecognised(model)
    return ", or extend the model: --method yarn --to TOKENS" if extensible else ""
