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


def chosen(method: str | None, option: list[str] | None) -> str | None:
    """The method with the options of --option, checked before a model is loaded.

    Raises:
        ValueError: for a method or an option that there is not.
    """
    from longwave.extensions.spec import with_options
    from longwave.settings import parse_pairs

    options = parse_pairs(option or ())
    if method is None:
        if options:
            raise ValueError("--option is for --method: give one, for example --method two-band.")
        return None
    return with_options([method], options)[0]


def load(path: str, *, method: str | None, to: int | None, dtype: str, device: str | None) -> Opened:
    """A model with the extension of its folder, or a plain model under `method`.

    RoPE scaling in the config of a plain model stays a part of it.
    """
    from longwave.extensions.on_the_spot import extend_plain
    from longwave.models import open_model

    loaded = open_model(path, dtype, device)
    extend_plain(loaded.model, method, to, name=path)
    return loaded
