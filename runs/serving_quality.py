"""What short prompts pay in a serving engine: profiles against one static scaling.

    python runs/serving_quality.py make FOLDER HELDOUT [MODEL]    with longwave: exports, windows, passkeys
    python runs/serving_quality.py ask FOLDER [--json FILE]       with vLLM and the plugin

Exports of the demo's model under YaRN and two bands, and of MODEL, a folder that `longwave train --engine-ready` wrote:
with profiles 1, 2, 4, 8, and static at t = 8, as engines have it without the plugin (not for two bands). Asked of each:
perplexity of the last 63 tokens of windows of L and of 8 L, and passkeys in prompts of L and of 8 L.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "src" / "longwave" / "demo" / "model"
L, T, SCORED = 256, 8, 63
ASKED = "asked.json"


def make(folder: Path, text: Path, model: Path | None, windows: int, trials: int) -> None:
    """Write the exports and what they are asked."""
    from transformers import AutoTokenizer

    import longwave
    from longwave.data.documents import read_documents
    from longwave.evaluation.templates import SHORT
    from longwave.evaluation.trials import Prompts

    folder.mkdir(parents=True, exist_ok=True)
    for name, source, method in (("yarn", BASE, "yarn"), ("two-band", BASE, "two-band"), ("trained", model, None)):
        if source is not None:
            longwave.export(source, folder / f"{name}-profiles", method=method, profiles="1,2,4,8")
            if method != "two-band":  # no engine has a static one
                longwave.export(source, folder / f"{name}-static", method=method, factor=T, quantize="float32")
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    ids = tokenizer("\n".join(read_documents([text])["text"])).input_ids
    step = (len(ids) - T * L) // windows
    ends = [T * L + number * step for number in range(windows)]
    prompts = Prompts(tokenizer, SHORT)
    asked = {
        "windows": {str(t): [ids[end - t * L : end] for end in ends] for t in (1, T)},
        "passkeys": {
            str(t): [
                {"prompt": trial.ids[: -trial.answer], "answer": trial.ids[-trial.answer :]}
                for trial in prompts.trials(t * L, trials, 10, seed=0)
            ]
            for t in (1, T)
        },
    }
    (folder / ASKED).write_text(json.dumps(asked))


def ask(folder: Path) -> dict[str, Any]:
    """The numbers of every export."""
    from vllm import LLM, SamplingParams

    asked, found = json.loads((folder / ASKED).read_text()), {}
    scored = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    for export in sorted(path for path in folder.iterdir() if path.is_dir()):
        lora = {"enable_lora": True, "max_loras": 4, "max_lora_rank": 64} if (export / "adapters").exists() else {}
        settings: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "enable_prefix_caching": False}
        llm = LLM(str(export), max_model_len=T * L, **settings | lora)
        row: dict[str, Any] = {}
        for t, windows in asked["windows"].items():
            if lora:
                continue  # log-probabilities of a prompt fail beside a LoRA in vLLM 0.32 for CPUs
            # The last token of a window is the one that is asked for: prompt and answer have the window's length.
            outputs = llm.generate([{"prompt_token_ids": each[:-1]} for each in windows], scored, use_tqdm=False)
            losses = [
                -next(iter(step.values())).logprob for output in outputs for step in output.prompt_logprobs[-SCORED:]
            ]
            row[f"perplexity, {t} L"] = round(math.exp(sum(losses) / len(losses)), 4)
        for t, trials in asked["passkeys"].items():
            right = 0
            for trial in trials:
                sampling = SamplingParams(temperature=0, max_tokens=len(trial["answer"]), ignore_eos=True)
                (output,) = llm.generate({"prompt_token_ids": trial["prompt"]}, sampling, use_tqdm=False)
                right += list(output.outputs[0].token_ids) == trial["answer"]
            row[f"passkeys, {t} L"] = f"{right} of {len(trials)}"
        found[export.name] = row
        print(export.name, json.dumps(row), flush=True)
        del llm
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "ask"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR",
    }.items():  # fmt: skip
        os.environ.setdefault(name, value)
    if args.what == "make":
        make(args.folder, args.text, args.model, args.windows, args.trials)
        return
    found = ask(args.folder)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
