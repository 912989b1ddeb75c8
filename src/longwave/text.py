"""Deprecated names of `longwave.data`."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

_HOME_OF = {
    "data_files": "longwave.data.sources",
    "data_hashes": "longwave.data.hashes",
    "read_documents": "longwave.data.documents",
    "stream_and_starts": "longwave.data.tokens",
    "token_stream": "longwave.data.tokens",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_HOME_OF)}")
    home = _HOME_OF[name]
    message = f"longwave.text.{name} has moved. Import {name} from {home}."
    warnings.warn(message, DeprecationWarning, stacklevel=2)
    return getattr(import_module(home), name)
