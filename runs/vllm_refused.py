"""What vLLM with the plugin must refuse at its start, in one sentence each.

python runs/vllm_refused.py FOLDER    FOLDER as `runs/vllm_profiles.py make` has filled it
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

# What must not start: the export, keyword arguments of vllm.LLM, what is changed before, and a part of the message.
REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "a text longer than the largest profile": ("yarn", {"max_model_len": 8192}, "", "more than the 4096 tokens"),
    "another release of vLLM": ("yarn", {}, "release", "was tested with vLLM 0.32, and this is 9.9"),
    "a changed function": ("yarn", {}, "signature", "preprocess_add_request takes self, request_list, and not self"),
    "another base": ("yarn", {}, "base", "rotates by other frequencies than the profiles were made for"),
    "a LoRA, and none is on": ("model", {}, "", "Start with --enable-lora --max-loras 5 --max-lora-rank 16"),
    "too few places for LoRAs": (
        "model",
        {"enable_lora": True, "max_loras": 4, "max_lora_rank": 64},
        "",
        "--max-loras 5",
    ),
    "LoRAs of a larger rank": (
        "model",
        {"enable_lora": True, "max_loras": 5, "max_lora_rank": 8},
        "",
        "and vLLM was started for 8",
    ),
    "a worker without the plugin": ("yarn", {}, "worker", "a worker runs without the plugin"),
    "bands over a quantized cache": (
        "bands",
        {"kv_cache_dtype": "fp8"},
        "",
        "bands need a cache that is not quantized",
    ),
    "bands in full CUDA graphs": (
        "bands",
        {},
        "graphs",
        "full CUDA graphs (FULL_AND_PIECEWISE) would hold",
    ),
    "a cache that lies otherwise": (
        "bands",
        {},
        "cache",
        "lays the keys of model.layers.0.self_attn.attn",
    ),
    "no plugin": ("yarn", {"max_model_len": 4096}, "plugin", "max_model_len"),
}


def refused(folder: Path, name: str) -> dict[str, Any]:
    """Start what must not start, and say what was said."""
    export, options, change, _ = REFUSED[name]
    if change == "release":
        import vllm

        vllm.__version__ = "9.9.0"
    if change == "signature":
        from vllm.v1.engine.core import EngineCore

        EngineCore.preprocess_add_request = lambda self, request_list: None
    if change == "worker":
        from longwave.serving.vllm import runner_v1

        runner_v1.prepare = lambda runner: None
    if change == "graphs":  # CPUs have none
        from vllm.config import CUDAGraphMode

        from longwave.serving.vllm import checks

        reason = checks.reason_of

        def in_graphs(vllm_config: Any, *rest: Any) -> Any:
            vllm_config.compilation_config.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
            return reason(vllm_config, *rest)

        checks.reason_of = in_graphs
    if change == "cache":
        from longwave.serving.vllm import caches

        caches.READERS = ()
    if change == "base":
        options = {**options, "hf_overrides": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}}
    from vllm import LLM

    settings = {"dtype": "float32", "enforce_eager": True, "disable_log_stats": True}
    try:
        LLM(str(folder / export), **settings | options)
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    return {"refused": None}


def check_refused(folder: Path) -> dict[str, bool]:
    found = {}
    for name, (_, _, change, message) in REFUSED.items():
        environment = os.environ | {"LONGWAVE_CASE": name} | ({"VLLM_PLUGINS": ""} if change == "plugin" else {})
        line = [sys.executable, __file__, str(folder)]
        done = subprocess.run(line, env=environment, capture_output=True, text=True)
        said = json.loads(done.stdout.strip().splitlines()[-1])["refused"] if done.returncode == 0 else done.stderr
        found[name] = said is not None and message in said
        print(f"{name}: {'refused' if found[name] else f'NOT AS EXPECTED: {said}'}", flush=True)
    return found


if __name__ == "__main__":
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    }.items():  # fmt: skip
        os.environ.setdefault(name, value)
    where = Path(sys.argv[1])
    if "LONGWAVE_CASE" in os.environ:
        print(json.dumps(refused(where, os.environ["LONGWAVE_CASE"])))
    else:
        sys.exit(not all(check_refused(where).values()))
