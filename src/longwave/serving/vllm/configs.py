"""What the configs of vLLM say."""

from __future__ import annotations

from typing import Any

from longwave.serving.profiles import KEY, Profiles

_KNOWN: dict[int, tuple[Any, Profiles | None]] = {}  # by the identity of a config, which is kept with it


def profiles_of(model_config: Any) -> Profiles | None:
    """The profiles of the model that an engine was started for; None if it has none."""
    config = model_config.hf_config
    if id(config) not in _KNOWN:
        _KNOWN[id(config)] = config, Profiles.of({KEY: getattr(config, KEY, None)}, bands=True)
    return _KNOWN[id(config)][1]


def draft_tokens(vllm_config: Any) -> int:
    """How many tokens may be drafted beyond the end of a text."""
    speculative = vllm_config.speculative_config
    return 0 if speculative is None else int(speculative.num_speculative_tokens or 0)
