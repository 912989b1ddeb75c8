"""The plugin for SGLang against longwave: every request at its own length factor.

    python runs/vllm_profiles.py make FOLDER    with longwave: exports with profiles, and what longwave answers
    python runs/sglang_profiles.py FOLDER [EXPORT]    with SGLang 0.5.23 and, by `pip install --no-deps`, longwave

The same eight prompts, 24 greedy tokens each: one at a time, all in one batch, and again with what the cache has kept.
Those within L are compared with SGLang without the plugin, too. On a CPU, in float32. The lines go into
FOLDER/sglang.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

NEW, LENGTH = 24, 256
GREEDY = {"temperature": 0, "max_new_tokens": NEW, "ignore_eos": True}
OPTIONS = {
    "device": "cpu", "attention_backend": "torch_native", "sampling_backend": "pytorch", "grammar_backend": "none",
    "dtype": "float32", "mem_fraction_static": 0.05, "max_total_tokens": 20000, "chunked_prefill_size": 192,
    "skip_tokenizer_init": True, "skip_server_warmup": True, "log_level": "warning",
}  # fmt: skip


def answers(engine: Any, prompts: list[list[int]], **custom: Any) -> list[dict[str, Any]]:
    """Tokens, their log-probabilities, and how many tokens of the prompt were cached."""
    sampling = GREEDY | ({"custom_params": custom} if custom else {})
    found = engine.generate(input_ids=prompts, sampling_params=sampling, return_logprob=True)
    return [
        {
            "tokens": list(each["output_ids"]),
            "log_probs": [each_token[0] for each_token in each["meta_info"]["output_token_logprobs"]],
            "cached": each["meta_info"]["cached_tokens"],
        }
        for each in found
    ]


def refusal(engine: Any, prompt: list[int], **custom: Any) -> str:
    try:
        answers(engine, [prompt], **custom)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "answered"


def run(folder: Path, export: str) -> dict[str, Any]:
    """In this process."""
    import sglang

    prompts = json.loads((folder / "prompts.json").read_text())
    within = [prompt for prompt in prompts if len(prompt) + NEW <= LENGTH]
    engine = sglang.Engine(model_path=str(folder / export), **OPTIONS)
    if os.environ.get("SGLANG_PLUGINS") == "none":
        found: dict[str, Any] = {"within": [answers(engine, [prompt])[0] for prompt in within]}
        engine.flush_cache()
        found["batch"] = answers(engine, within)
        found["long"] = refusal(engine, prompts[-1])
    else:
        found = {"alone": [answers(engine, [prompt])[0] for prompt in prompts]}
        engine.flush_cache()
        found["batch"], found["again"] = answers(engine, prompts), answers(engine, prompts)
        engine.flush_cache()
        part = prompts[4][:224]
        asked = [(part, {}), (part, {"rope_factor": 4}), (part, {}), (part, {"rope_factor": 4}), (prompts[4], {})]
        found["salt"] = [answers(engine, [prompt], **custom)[0] for prompt, custom in asked]
        found["refused"] = [
            refusal(engine, part, rope_factor=64), refusal(engine, prompts[-1], rope_factor=2),
            refusal(engine, part, rope_profile=0), refusal(engine, prompts[-1] * 3),
        ]  # fmt: skip
    engine.shutdown()
    return found


def compared(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> dict[str, Any]:
    """Equal tokens of each prompt, and the largest difference of a log-probability before the first other one."""
    equal, difference = [], 0.0
    for own, other in zip(found, wanted, strict=True):
        pairs = zip(own["tokens"], other["tokens"], strict=True)
        same = next((number for number, (a, b) in enumerate(pairs) if a != b), NEW)
        equal.append(same)
        gaps = (abs(a - b) for a, b in zip(own["log_probs"][:same], other["log_probs"], strict=False))
        difference = max([difference, *gaps])
    return {"equal": equal, "difference": difference, "cached": [each["cached"] for each in found]}


def main(folder: Path, export: str) -> None:
    results = {}
    for name, environment in (("plugin", {}), ("plain", {"SGLANG_PLUGINS": "none"})):
        out = folder / f"sglang-{name}.json"
        line = [sys.executable, __file__, "one", str(folder), export, str(out)]
        subprocess.run(line, env=os.environ | environment, check=True)
        results[name] = json.loads(out.read_text())
    plugin, plain = results["plugin"], results["plain"]
    wanted = json.loads((folder / f"{export}.json").read_text())
    lines = {how: compared(plugin[how], wanted) for how in ("alone", "batch", "again")}
    for how in lines:  # without the plugin a text has one token less: SGLang ends it before its last position
        pairs = zip(plugin[how], plain["within"], strict=False)
        lines[how]["from plain SGLang"] = [
            compared([own | {"tokens": own["tokens"][: len(other["tokens"])]}], [other])["difference"]
            for own, other in pairs
        ]
    lines["salt"] = {
        "cached": [each["cached"] for each in plugin["salt"]],
        "cached against not": [
            compared([plugin["salt"][2 + number]], [plugin["salt"][number]])["difference"] for number in (0, 1)
        ],
        "t = 4 against t = 1": compared([plugin["salt"][1]], [plugin["salt"][0]])["difference"],
        "480": compared(plugin["salt"][4:], wanted[4:5]),
    }
    lines["refused"] = plugin["refused"]
    lines["plain, batch against alone"] = compared(plain["batch"], plain["within"])["difference"]
    lines["plain, 2000 tokens"] = plain["long"]
    (folder / "sglang.json").write_text(json.dumps(lines, indent=1))
    for how, line_ in lines.items():
        print(how, "|", json.dumps(line_), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "one":
        Path(sys.argv[4]).write_text(json.dumps(run(Path(sys.argv[2]), sys.argv[3])))
    else:
        main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "yarn")
