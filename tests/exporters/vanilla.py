"""Logits of many exported folders by transformers alone: run as a script by a Python that need not have longwave.

python vanilla.py FOLDERS.json LOGITS.npz PROMPTS.json
"""

import json
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.utils import logging


def main(folders: str, answers: str, prompts: str) -> None:
    """Writes `NAME.INDEX`, logits float32 [n, vocab], or `NAME.error`."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with open(prompts, encoding="utf-8") as file:
        asked = json.load(file)
    with open(folders, encoding="utf-8") as file:
        places = json.load(file)
    found = {}
    for name, folder in places.items():
        try:
            model = AutoModelForCausalLM.from_pretrained(folder).eval()
            with torch.no_grad():
                for index, prompt in enumerate(asked):
                    logits = model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0]
                    found[f"{name}.{index}"] = logits.float().numpy()
        except Exception as error:  # reported for this family, the others go on
            found[f"{name}.error"] = np.array(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    assert PreTrainedConfig and "longwave" not in sys.modules
    np.savez(answers, **found)


if __name__ == "__main__":
    main(*sys.argv[1:4])
