"""Reach a model of the Hugging Face hub, or its files in the cache; say in a sentence why neither has it."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longwave.errors import first_line

logger = logging.getLogger("longwave")

HUB = ("cache_dir", "force_download", "local_files_only", "revision", "token")  # where to get a model, and which

TIMEOUT = 10.0  # seconds, until the hub counts as unreachable
OF_THIS_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)  # disk full, or not ours to write


def as_reached(name: str, patterns: list[str], where: Mapping[str, Any]) -> dict[str, Any]:
    """`where`, with `local_files_only` if the hub does not answer and the cache has such files of the model.

    Without it transformers would try for half a minute to reach the hub, for each file that a model may have.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, IncompleteSnapshotError, RevisionNotFoundError

    if where.get("local_files_only"):
        return dict(where)
    try:
        HfApi(token=where.get("token")).model_info(name, revision=where.get("revision"), timeout=TIMEOUT)
    except RevisionNotFoundError as error:
        raise ValueError(reason(name, where.get("revision"), error)) from None
    except _hub_errors() as trouble:
        found = {**where, "local_files_only": True}
        try:
            snapshot_download(name, allow_patterns=patterns, **found)
        except _hub_errors() as error:
            why = error if isinstance(error, IncompleteSnapshotError) else trouble
            raise ValueError(reason(name, where.get("revision"), why)) from None
        if isinstance(trouble, HfHubHTTPError):  # it answers: what it holds may be newer than the cache
            logger.warning("%s Taken from the cache instead.", reason(name, where.get("revision"), trouble))
        return found
    return dict(where)


def download(name: str, patterns: list[str], ignored: list[str], where: Mapping[str, Any]) -> Path:
    """Download files of a hub model into the cache. Returns the folder of the snapshot in the cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=ignored, **where))
    except _hub_errors() as error:
        raise ValueError(reason(name, where.get("revision"), error)) from None


def _hub_errors() -> tuple[type[Exception], ...]:
    """The errors that a look-up on the hub may end in."""
    from huggingface_hub.errors import HFValidationError

    return http_error(), OSError, HFValidationError


def http_error() -> type[Exception]:
    """What the HTTP library below huggingface_hub raises; which library that is depends on its version."""
    from huggingface_hub.errors import HfHubHTTPError

    found: type[Exception] = HfHubHTTPError.__bases__[0]
    return found


def reason(name: str, revision: str | None, error: Exception) -> str:
    """Why the hub gave no file, and what to do; an error of this machine is raised as it is."""
    from huggingface_hub import errors

    if isinstance(error, OSError) and error.errno in OF_THIS_MACHINE:
        raise error  # it is not the hub's, and says what is wrong
    if isinstance(error, errors.HFValidationError):
        return f"there is no folder {name}, and it is no name on the hub, which has the form OWNER/NAME."
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated. Accept its terms on https://huggingface.co/{name}, then run `hf auth login`."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no folder {name}, and no such model on the hub. If it is private, run `hf auth login`."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {revision!r} on the hub. Name one of its branches, tags or commits."
    if isinstance(error, errors.IncompleteSnapshotError):
        return f"{name} is in the cache in part only, and the hub cannot be reached. Load it once with a network."
    unreachable = (errors.LocalEntryNotFoundError, ConnectionError, http_error())
    if isinstance(error, unreachable) and not isinstance(error, errors.HfHubHTTPError):
        at = "" if revision is None else f" at revision {revision!r}"
        return (
            f"there is no folder {name}, the cache does not have {name}{at}, and the hub cannot be reached. "
            "Check the name, the network, and HF_HUB_OFFLINE."
        )
    return f"the hub does not give us {name}: {first_line(error)}."
