"""Greedy continuations by CTranslate2 on the CPU, with log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longwave.exporters.base import Answer
from longwave.files import read_json


def run_generator(folder: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Answer]:
    """Decode with the engine's cache."""
    import ctranslate2

    vocabulary = read_json(folder / "vocabulary.json")
    generator = ctranslate2.Generator(str(folder), device="cpu")
    answers = []
    for prompt in prompts:
        [result] = generator.generate_batch(
            [[vocabulary[token] for token in prompt]], max_length=new_tokens, end_token=[], sampling_topk=1,
            include_prompt_in_result=False, return_logits_vocab=True,
        )  # fmt: skip
        steps = [np.array(step).reshape(-1)[: len(vocabulary)] for step in result.logits[0]]
        logits = np.stack(steps).astype(np.float64)
        log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        answers.append(Answer(list(result.sequences_ids[0]), log_probs.astype(np.float32)))
    return answers
