"""What the plugin cannot serve, at the start."""

from __future__ import annotations

from typing import Any

from longwave.serving.profiles import KEY, Profiles

# Options of SGLang that give tokens other positions or requests other caches, the value that is off, and what they do.
OTHERS = (
    ("speculative_algorithm", (None,), "speculation gives drafted tokens positions of their own"),
    ("disaggregation_mode", (None, "null"), "caches that travel between engines do not carry the length factor"),
    ("dcp_size", (None, 1), "context parallelism of the decoder shares tokens out by their positions"),
    ("attn_cp_size", (None, 1), "context parallelism shares tokens out by their positions"),
    ("enable_prefill_cp", (None, False), "context parallelism shares tokens out by their positions"),
    ("enable_mis", (None, False), "scoring of several items gives tokens positions of their own"),
    ("dllm_algorithm", (None,), "diffusion gives tokens positions of their own"),
)


def profiles_of(model_config: Any) -> Profiles | None:
    """The profiles of the model that SGLang was started for; None if it has none."""
    return Profiles.of({KEY: getattr(model_config.hf_config, KEY, None)})


def refuse(runner: Any, profiles: Profiles) -> None:
    """Refuse what the plugin cannot serve.

    Arguments:
        runner: a `ModelRunner` that has loaded its model.

    Raises:
        ValueError: naming it.
    """
    reason = _reason(runner, profiles)
    if reason is not None:
        raise ValueError(f"longwave cannot serve rope profiles here: {reason}")


def _reason(runner: Any, profiles: Profiles) -> str | None:
    for option, off, what in OTHERS:
        if not hasattr(runner.server_args, option):
            return f"SGLang is another one: it has no option {option}."
        if getattr(runner.server_args, option) not in off:
            return f"{what}. Start without --{option.replace('_', '-')}."
    if profiles.scales_queries:
        return "log-n scales queries, which the plugin for SGLang does not do. Export a model without it, or take vLLM."
    if any(each.adapter is not None for each in profiles.profiles):
        return "the weights follow the length factor by a LoRA, which needs the plugin for vLLM."
    if runner.use_mla_backend:
        return "the model has latent attention (MLA), whose code reads positions and tables itself."
    if runner.model_config.model_is_mrope:
        return "positions on several axes (M-RoPE) have no profiles. Export a text model."
    text = runner.model_config.hf_text_config
    if getattr(text, "llama_4_scaling", None) or getattr(text, "attn_temperature_tuning", None):
        return f"{text.model_type} reads positions in its attention, too."
    return None
