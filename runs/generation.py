"""Generation at length: passkeys through the path of `longwave generate`, and what `grow` costs.

    python runs/generation.py FOLDER [--factor 8] [--trials 100] [--json generation.json]

FOLDER is what `longwave train` wrote. The first part asks the same passkeys as `longwave passkey` does, as text,
decoded greedily with a cache. The second generates from one trained length to FACTOR of them under `grow`, checks
every token against decoding without a cache at the same t, and compares the time with one t for all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from transformers import PreTrainedModel

import longwave
from longwave.evaluation.templates import SHORT
from longwave.evaluation.trials import Prompts
from longwave.extensions.continuation import GenerateSettings, continue_text
from longwave.extensions.reach import original_length_of
from longwave.files import write_json
from longwave.models import Opened, open_model
from longwave.provenance import versions


def passkeys(loaded: Opened, length: int, trials: int) -> dict[str, float]:
    """Share of keys found by generating, and by scoring as `longwave passkey` does."""
    model, tokenizer = loaded.model, loaded.tokenizer
    asked = Prompts(tokenizer, SHORT).trials(length, trials, 10, seed=0)
    found, tokens = 0, []
    for trial in asked:
        prompt = tokenizer.decode(trial.ids[: -trial.answer], skip_special_tokens=True)
        result = continue_text(model, tokenizer, prompt, GenerateSettings(max_new_tokens=trial.answer))
        found += result.text.strip().startswith(trial.key)
        tokens.append(result.prompt_tokens + trial.answer)
    scored = longwave.passkey(model, tokenizer, [length], trials=trials, seed=0).lengths[0].rate.value
    return {"generated": found / trials, "scored": scored, "longest_text": max(tokens)}


def grown(model: PreTrainedModel, start: int, end: int, repeats: int) -> dict[str, object]:
    """Tokens of `grow` against decoding without a cache, and its time against one t."""
    ids = torch.randint(2, model.config.vocab_size, (1, start), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": end - start, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    times: dict[str, list[float]] = {"fit": [], "grow": []}
    for round_ in range(repeats):
        for policy in ("fit", "grow") if round_ % 2 == 0 else ("grow", "fit"):
            longwave.set_policy(model, policy)
            started = time.perf_counter()
            text = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            times[policy].append(time.perf_counter() - started)
            if policy == "grow":
                ours = text
    longwave.set_policy(model, "grow")
    with torch.no_grad():  # every token is predicted from what is before it, at the t of that length
        same = [
            int(model(ours[:, :n], use_cache=False).logits[0, -1].argmax()) == int(ours[0, n])
            for n in range(start, end)
        ]
    return {
        "tokens": len(same),
        "tokens_equal": sum(same),
        "seconds": {policy: statistics.median(spent) for policy, spent in times.items()},
        "ratio": statistics.median(a / b for a, b in zip(times["grow"], times["fit"], strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--factor", type=int, default=8, help="length to reach, in trained lengths")
    parser.add_argument("--trials", type=int, default=100, help="passkeys")
    parser.add_argument("--repeats", type=int, default=3, help="timed generations of each policy")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    loaded = open_model(args.folder, "float32", "cpu")
    length = original_length_of(loaded.model)
    found = {
        "passkeys": passkeys(loaded, args.factor * length, args.trials),
        "grow": grown(loaded.model, length - 8, args.factor * length, args.repeats),
        "versions": versions(),
    }
    keys, grow = found["passkeys"], found["grow"]
    print(f"passkeys at {args.factor}x: {keys['generated']:.0%} by generating, {keys['scored']:.0%} by scoring")
    print(f"grow, 1x to {args.factor}x: {grow['tokens_equal']} of {grow['tokens']} tokens as without a cache, "
          f"{grow['ratio']:.3f} times the seconds of one t")  # fmt: skip
    if args.json:
        write_json(args.json, found)


if __name__ == "__main__":
    main()
