"""vLLM's own OpenAI server, with the plugin that gives every request its t."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from longwave.serving.engines import served_name
from longwave.serving.settings import ServeSettings


def run(model: str, settings: ServeSettings) -> NoReturn:
    """Become vLLM's server. vLLM finds the plugin by its entry point."""
    if settings.api_key is not None:
        os.environ["VLLM_API_KEY"] = settings.api_key
    os.execv(sys.executable, command(model, settings))


def command(model: str, settings: ServeSettings) -> list[str]:
    """The command line of vLLM's server."""
    return [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model,
        "--served-model-name", served_name(model, settings), "--host", settings.host, "--port", str(settings.port),
        "--override-generation-config", f'{{"max_new_tokens": {settings.default_max_tokens}}}',
    ]  # fmt: skip
