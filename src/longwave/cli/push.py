"""`longwave push`: a model folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from longwave.checkpoints.push import PushSettings
from longwave.cli.options import Json, print_json
from longwave.cli.settings import with_settings


@with_settings(PushSettings)
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A longwave folder, or what `longwave export` wrote.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub; made if it is not there.")],
    as_json: Json = False,
    **settings: Any,
) -> None:
    """Upload a model folder to the Hugging Face hub, in one commit.

    Hidden files and the checkpoints of a training run are not uploaded. Files of the repository that the folder does
    not have stay there. The token is that of `hf auth login`, or HF_TOKEN.

    Examples:

    longwave push out me/my-model-16x --private

    longwave push exported me/my-model-16x-gguf --message "q8_0" --revision gguf
    """
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    from longwave.checkpoints.push import push as send

    if as_json:
        disable_progress_bars()
    sent = send(folder, repo, PushSettings.create(**settings))
    if as_json:
        print_json(sent)
    else:
        typer.echo(sent["url"])
