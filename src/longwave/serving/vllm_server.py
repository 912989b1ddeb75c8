"""vLLM's own OpenAI server, with the plugin that gives every request its t."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from longwave.checkpoints.folder import resolve
from longwave.files import read_object
from longwave.layout import ADAPTER, CONFIG
from longwave.serving.engines import has_profiles, served_name
from longwave.serving.profiles import Profiles
from longwave.serving.settings import ServeSettings

# Settings that our own server has, and vLLM has not.
OWN = ("max_body", "queue", "prefill_chunk", "default_max_tokens")
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can hold LoRAs of


def run(model: str, settings: ServeSettings, *, dtype: str = "auto") -> NoReturn:
    """Become vLLM's server. vLLM finds the plugin by its entry point.

    Raises:
        ValueError: for a setting that vLLM has not.
    """
    line = command(model, settings, dtype=dtype)
    if settings.api_key is not None:
        os.environ["VLLM_API_KEY"] = settings.api_key
    os.execv(sys.executable, line)


def command(model: str, settings: ServeSettings, *, dtype: str = "auto") -> list[str]:
    """The command line of vLLM's server.

    Raises:
        ValueError: for a setting that vLLM has not.
    """
    changed = [item.name for item in fields(settings) if getattr(settings, item.name) != item.default]
    if given := [name for name in OWN if name in changed]:
        option = given[0].replace("_", "-")
        raise ValueError(f"--{option} is for longwave's own server, and vLLM serves here. Leave it out.")
    if not settings.is_loopback:
        # vLLM asks for the key under /v1 alone, and answers requests of text under /invocations, too
        raise ValueError(
            f"--host {settings.host!r} would let other machines past the API key of vLLM. Leave --host out, and put a "
            "proxy before it."
        )
    found = resolve(model)
    folder = (
        (found if has_profiles(model) else found.check()).fetch().served
    )  # a name of the hub as a folder: the LoRAs lie in it
    return [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--dtype", dtype,
        "--served-model-name", served_name(model, settings), "--host", settings.host, "--port", str(settings.port),
        # without it vLLM gives up what is under way at the first SIGTERM
        "--shutdown-timeout", str(math.ceil(settings.drain)), *profile_options(folder),
    ]  # fmt: skip


def profile_options(folder: Path) -> list[str]:
    """The options of vLLM that the profiles of a folder need; none for a folder without.

    Raises:
        ValueError: for a LoRA that is larger than vLLM can hold.
    """
    config = folder / CONFIG
    profiles = Profiles.of(read_object(config), bands=True) if config.is_file() else None
    if profiles is None:
        return []
    graphs = [] if profiles.bands is None else ["--compilation-config", json.dumps({"cudagraph_mode": "PIECEWISE"})]
    return [*graphs, *_lora_options(folder, [each.adapter for each in profiles.profiles if each.adapter])]


def _lora_options(folder: Path, adapters: list[str]) -> list[str]:
    """For weights that follow t by a LoRA for each profile."""
    if not adapters:
        return []
    rank = max(int(read_object(folder / adapter / ADAPTER)["r"]) for adapter in adapters)
    held = next((each for each in RANKS if each >= rank), None)
    if held is None:
        raise ValueError(
            f"the LoRAs of {folder} have rank {rank}, and vLLM holds {RANKS[-1]} at most. Train a smaller one."
        )
    # one place more than there are LoRAs: see vllm/checks.py
    return ["--enable-lora", "--max-loras", str(len(adapters) + 1), "--max-lora-rank", str(held)]
