"""What `generate`, `chat` and `tasks` share: they load a model, and extend a plain one by `--method`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from longwave.models import Opened

Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="METHOD[@SCHEDULE][+ATTENTION]",
        help="Extend a plain model without training; see `longwave methods`.",
    ),
]
To = Annotated[
    int | None,
    typer.Option("--to", metavar="TOKENS", help="Longest text, for --method; default 8 times the trained one."),
]


def check_method(method: str | None) -> None:
    """Refuse a `METHOD[@SCHEDULE][+ATTENTION]` that there is not, before a model is loaded."""
    from longwave.extensions.spec import parse_spec

    if method is not None:
        parse_spec(method)


def load(path: str, *, method: str | None, to: int | None, dtype: str, device: str | None) -> Opened:
    """A model with the extension of its folder, or a plain model under `method`.

    RoPE scaling in the config of a plain model stays a part of it.
    """
    from longwave.extensions.on_the_spot import extend_plain
    from longwave.models import open_model

    check_method(method)
    loaded = open_model(path, dtype, device)
    extend_plain(loaded.model, method, to, name=path)
    return loaded
