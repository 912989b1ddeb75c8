"""The cases of `runs/vllm_profiles.py`: exports, how they are asked, and what vLLM is started with."""

from __future__ import annotations

from typing import Any

PLAIN = {"VLLM_PLUGINS": ""}
V2 = {"VLLM_USE_V2_MODEL_RUNNER": "1", "TRITON_INTERPRET": "1"}
NGRAM = {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}}
LORA = {"enable_lora": True, "max_loras": 5, "max_lora_rank": 64, "max_num_batched_tokens": 192}
# Export -> how the demo's model is extended for it.
MADE: dict[str, dict[str, Any]] = {
    "yarn": {"method": "yarn"},
    "log-n": {"method": "yarn", "log_n": 1.0},
    "bands": {"method": "two-band"},
    "self-extend": {"method": "self-extend"},
    "yarn+dca": {"method": "yarn+dca", "log_n": 1.0},
}
HEADS = {"heads": "ntk", "banded-heads": "two-band"}  # random models whose heads differ, and their methods

# Case -> the export, how it is asked, keyword arguments of vllm.LLM, and the environment.
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, str]]] = {
    "yarn, alone": ("yarn", "alone", {}, {}),
    "yarn, mixed": ("yarn", "mixed", {"max_num_batched_tokens": 192, "enable_prefix_caching": True}, {}),
    "log-n, alone": ("log-n", "alone", {}, {}),
    "log-n, mixed": ("log-n", "mixed", {"max_num_batched_tokens": 192, "enable_prefix_caching": True}, {}),
    "log-n, mixed, compiled": ("log-n", "mixed", {"enforce_eager": False, "max_num_batched_tokens": 192}, {}),
    "yarn, mixed, preempted": ("yarn", "mixed", {"num_gpu_blocks_override": 300, "max_num_batched_tokens": 192}, {}),
    "yarn, mixed, n-gram": ("yarn", "mixed", NGRAM, {}),
    "yarn, mixed, bfloat16": ("yarn", "mixed", {"dtype": "bfloat16"}, {}),
    "yarn, mixed, V2": ("yarn", "mixed", {"max_num_batched_tokens": 192}, V2),
    "log-n, mixed, V2": ("log-n", "mixed", {"max_num_batched_tokens": 192}, V2),
    "model, mixed": ("model", "mixed", LORA, {}),
    "clex, mixed": ("clex", "mixed", LORA, {}),
    "heads, mixed": ("heads", "mixed", {"max_num_batched_tokens": 192}, {}),
    "neox, alone": ("neox", "alone", {}, {}),
    "neox, mixed": ("neox", "mixed", {"max_num_batched_tokens": 192, "enable_prefix_caching": True}, {}),
    "neox, mixed, V2": ("neox", "mixed", {"max_num_batched_tokens": 192}, V2),
    "heads, tensor parallel 2": ("heads", "mixed", {"tensor_parallel_size": 2}, {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}),
    "bands, alone": ("bands", "alone", {}, {}),
    "bands, mixed": ("bands", "mixed", {"max_num_batched_tokens": 192, "enable_prefix_caching": True}, {}),
    "bands, mixed, compiled": ("bands", "mixed", {"enforce_eager": False, "max_num_batched_tokens": 192}, {}),
    "bands, mixed, preempted": ("bands", "mixed", {"num_gpu_blocks_override": 40, "max_num_batched_tokens": 192}, {}),
    "bands, mixed, n-gram": ("bands", "mixed", NGRAM, {}),
    "bands, mixed, bfloat16": ("bands", "mixed", {"dtype": "bfloat16"}, {}),
    "bands, mixed, V2": ("bands", "mixed", {"max_num_batched_tokens": 192}, V2),
    "bands of others, mixed": ("self-extend", "mixed", {"max_num_batched_tokens": 192}, {}),
    "bands with YaRN below, mixed": ("yarn+dca", "mixed", {"max_num_batched_tokens": 192}, {}),
    "banded heads, mixed": ("banded-heads", "mixed", {"max_num_batched_tokens": 192}, {}),
    "banded heads, tensor parallel 2": (
        "banded-heads", "mixed", {"tensor_parallel_size": 2}, {"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
    ),
    "banded model, mixed": ("banded-model", "mixed", LORA, {}),
    "banded model, mixed, V2": ("banded-model", "mixed", LORA, V2),
    "plain vLLM": ("log-n", "within", {}, PLAIN),
    "plain vLLM, compiled": ("log-n", "within", {"enforce_eager": False}, PLAIN),
    "plain vLLM, V2": ("log-n", "within", {}, PLAIN | V2),
    "plain vLLM, heads": ("heads", "within", {}, PLAIN),
    "plain vLLM, neox": ("neox", "within", {}, PLAIN),
    "plain vLLM, neox, V2": ("neox", "within", {}, PLAIN | V2),
    "plain vLLM, bfloat16": ("yarn", "within", {"dtype": "bfloat16"}, PLAIN),
    "yarn, no salt": ("yarn", "salt", {"enable_prefix_caching": True}, {"LONGWAVE_NO_SALT": "1"}),
    "yarn, salt": ("yarn", "salt", {"enable_prefix_caching": True}, {}),
    "factors 1": ("ones", "alone", {}, {}),
    "factors 1, neox": ("ones, neox", "alone", {}, {}),
}  # fmt: skip
