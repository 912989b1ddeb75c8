"""Which engine serves a model: vLLM, or our own server over transformers."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from longwave.checkpoints.folder import resolve
from longwave.errors import install
from longwave.files import read_object
from longwave.layout import CONFIG
from longwave.serving.profiles import KEY
from longwave.serving.settings import ServeSettings


def engine_of(model: str, settings: ServeSettings) -> str:
    """`vllm` or `transformers`.

    Raises:
        ValueError: if what the engine needs is not installed.
    """
    there = find_spec("vllm") is not None
    engine = settings.engine
    if engine == "auto":
        engine = "vllm" if there and has_profiles(model) else "transformers"
    if engine == "vllm" and not there:
        raise ValueError("--engine vllm needs vLLM, which is not installed. Leave --engine out.")
    lacking = [] if engine == "vllm" else [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if lacking:
        raise ValueError(f"longwave serve needs {' and '.join(lacking)}. Run: {install('serve')}")
    return engine


def has_profiles(model: str) -> bool:
    """Whether a folder was exported for several t."""
    config = resolve(model).served / CONFIG
    return config.is_file() and KEY in read_object(config)


def served_name(model: str, settings: ServeSettings) -> str:
    """What clients call the model: no path of this machine."""
    if settings.name is not None:
        return settings.name
    return Path(os.path.abspath(model)).name if Path(model).exists() else model
