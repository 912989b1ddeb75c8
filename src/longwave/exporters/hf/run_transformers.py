"""Greedy continuations and their log-probabilities by transformers alone: run as a script, without longwave.

python run_transformers.py FOLDER PROMPTS.json ANSWERS.npz NEW_TOKENS
"""

import json
import sys
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def main(folder: str, prompts: str, answers: str, tokens: str) -> None:
    """PROMPTS.json is a list of lists of token ids; ANSWERS.npz gets tokens0, log_probs0, tokens1, ..."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found: dict[str, Any] = {}
    with open(prompts, encoding="utf-8") as file:
        asked = json.load(file)
    for index, prompt in enumerate(asked):
        ids, cache, chosen, rows = torch.tensor([prompt]), None, [], []
        with torch.no_grad():
            for _ in range(int(tokens)):
                output = model(input_ids=ids, past_key_values=cache, use_cache=True)
                cache, logits = output.past_key_values, output.logits[0, -1].float()
                rows.append(logits.log_softmax(-1))
                chosen.append(int(logits.argmax()))
                ids = torch.tensor([[chosen[-1]]])
        found[f"tokens{index}"], found[f"log_probs{index}"] = np.array(chosen), torch.stack(rows).numpy()
    np.savez(answers, **found)


if __name__ == "__main__":
    main(*sys.argv[1:5])
