"""Upload a model folder to the Hugging Face hub, in one commit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longwave.checkpoints.base import Base
from longwave.checkpoints.folder import Kind, ModelFolder, kind_of, require_parts
from longwave.checkpoints.hub import http_error
from longwave.errors import lines
from longwave.files import read_object
from longwave.layout import CHECKPOINTS, CONFIG, MODEL, SETTINGS
from longwave.settings import Settings, setting

# What one of these patterns matches stays here; in them * matches / as well.
LEFT_OUT = [".*", "*/.*", f"{CHECKPOINTS}/*"]


@dataclass(frozen=True)
class PushSettings(Settings):
    """How a folder is uploaded."""

    private: bool = setting(False, "Make the repository private.")
    message: str | None = setting(None, "Message of the commit; default: Upload, and the name of the folder.")
    revision: str | None = setting(
        None, "Branch of the commit; made if it is not there. Default: main.", metavar="BRANCH"
    )


def push(folder: Path, repo: str, settings: PushSettings) -> dict[str, str]:
    """Send a folder to a repository, which is made if it is not there.

    Arguments:
        folder: a longwave folder, or what `longwave export` wrote.
        repo: OWNER/NAME.

    Returns:
        `url`, `repo`, `revision`, and the id of the `commit`.

    Raises:
        ValueError: for a folder that is no whole model, a name that cannot be, a repository that is there and public
            and was to be private, and what the hub refuses.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    require_whole(folder)
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ValueError(f"REPO has the form OWNER/NAME, got {repo!r}.")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(str(error)) from None
    if get_token() is None:
        raise ValueError("no token for the hub. Run `hf auth login`, or set HF_TOKEN.")
    try:
        url, commit = _upload(folder, repo, settings)
    except (http_error(), ConnectionError) as error:
        told = " ".join(lines(error))
        hint = "" if isinstance(error, HfHubHTTPError) else " Without a network nothing can be sent."
        raise ValueError(f"the hub did not take {folder}: {told.rstrip('.')}.{hint}") from None
    if settings.revision is not None:
        url += f"/tree/{settings.revision}"
    return {"url": url, "repo": repo, "revision": settings.revision or "main", "commit": commit}


def _upload(folder: Path, repo: str, settings: PushSettings) -> tuple[str, str]:
    from huggingface_hub import HfApi

    api, private, revision = HfApi(), settings.private, settings.revision
    url = str(api.create_repo(repo, private=private or None, exist_ok=True))
    if private and not api.model_info(repo).private:
        raise ValueError(f"{repo} is there already, and public. Choose another name, or leave out --private.")
    if revision is not None:
        api.create_branch(repo, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo,
        folder_path=folder,
        revision=revision,
        commit_message=settings.message or f"Upload {folder.resolve().name}",
        ignore_patterns=LEFT_OUT,
    )
    return url, commit.oid


def require_whole(folder: Path) -> None:
    """The folder is a whole model, as far as the names of its files and its JSON say."""
    from longwave.checkpoints.weights import check_weights

    if not folder.is_dir():
        raise ValueError(f"model folder {folder} does not exist.")
    if folder == Path():
        raise ValueError("give the folder by its name.")
    kind = kind_of(folder)
    if kind in (Kind.LONGWAVE, Kind.INCOMPLETE):
        require_parts(folder)
        base = Base.read(folder)
        if base is None:
            read_object(folder / MODEL / CONFIG)
        elif base.revision is None:
            raise ValueError(
                f"{folder} names its base model by a folder of this machine, {base.model}, which nobody else has. Push "
                "the base and train from its name on the hub, or write its weights, too: "
                "longwave.save(longwave.load(DIR), NEW_DIR)."
            )
        return
    if kind is Kind.ADAPTER:
        ModelFolder(str(folder), folder, kind).check()
    if any(folder.glob("*.gguf")):
        return
    weights = any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))
    if not (folder / CONFIG).is_file() or not weights:
        raise ValueError(f"{folder} holds no whole model: neither {SETTINGS}, nor *.gguf, nor {CONFIG} and weights.")
    read_object(folder / CONFIG)
    if any(folder.glob("*.safetensors")):
        check_weights(folder)
