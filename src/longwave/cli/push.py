"""`longwave push`: a model folder to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from longwave.cli.options import Json, print_json

# What one of these patterns matches stays here; in them * matches / as well.
LEFT_OUT = [".*", "*/.*", "checkpoints/*"]


def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A longwave folder, or what `longwave export` wrote.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    message: Annotated[str | None, typer.Option("--message", metavar="TEXT", help="Of the commit.")] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="Made if it is not there; default main.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Upload a model folder to the Hugging Face hub, in one commit.

    Hidden files (half-written ones are) and checkpoints of a training run stay here; files of the repository that
    the folder does not have stay there. The token is that of `hf auth login`, or HF_TOKEN.

    Examples:

    longwave push out me/my-model-16x --private

    longwave push exported me/my-model-16x-gguf --message "q8_0" --revision gguf
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import disable_progress_bars, validate_repo_id  # type: ignore[attr-defined]

    _check(folder)
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ValueError(f"REPO has the form OWNER/NAME, got {repo!r}.")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(str(error)) from None
    if get_token() is None:
        raise ValueError("no token for the hub. Run `hf auth login`, or set HF_TOKEN.")
    if as_json:
        disable_progress_bars()
    http_error: Any = HfHubHTTPError.__bases__[0]  # of the HTTP library that huggingface_hub is built on, which changes
    api = HfApi()
    try:
        url = str(api.create_repo(repo, private=private or None, exist_ok=True))
        if private and not api.model_info(repo).private:
            raise ValueError(f"{repo} is there already, and public. Choose another name, or leave out --private.")
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            revision=revision,
            commit_message=message or f"Upload {folder.resolve().name}",
            ignore_patterns=LEFT_OUT,
        )
    except (http_error, ConnectionError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = " ".join(lines) or type(error).__name__
        raise ValueError(f"the hub did not take {folder}: {told}. Without a network nothing can be sent.") from None
    if revision is not None:
        url += f"/tree/{revision}"
    if as_json:
        print_json({"url": url, "repo": repo, "revision": revision or "main", "commit": commit.oid})
    else:
        typer.echo(url)


def _check(folder: Path) -> None:
    """The folder is a whole model, as far as the names of its files and its JSON say."""
    from longwave.checkpoints.folder import Kind, ModelFolder, kind_of, missing_part, read_object
    from longwave.checkpoints.weights import check_weights
    from longwave.layout import CONFIG, MODEL, SETTINGS

    if not folder.is_dir():
        raise ValueError(f"model folder {folder} does not exist.")
    if folder == Path():
        raise ValueError("give the folder by its name.")
    kind = kind_of(folder)
    if kind in (Kind.LONGWAVE, Kind.INCOMPLETE):
        if missing := missing_part(folder):
            raise ValueError(f"{missing} is missing: the folder is incomplete. Save the model again.")
        for path in (folder / SETTINGS, folder / MODEL / CONFIG):
            read_object(path)
        return
    if kind is Kind.ADAPTER:
        ModelFolder(str(folder), folder, kind).check()
    if any(folder.glob("*.gguf")):
        return
    weights = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
    if not (folder / CONFIG).is_file() or not weights:
        raise ValueError(
            f"{folder} holds no whole model: neither longwave.json, nor *.gguf, nor config.json and weights."
        )
    read_object(folder / CONFIG)
    if any(folder.glob("*.safetensors")):
        check_weights(folder)
