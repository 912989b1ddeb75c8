"""Run an exported artefact in its engine and compare it with the model it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from longwave.checkpoints.load import load
from longwave.checkpoints.tokenizer import load_tokenizer
from longwave.exporters.base import Answer, Exporter
from longwave.exporters.settings import ExportSettings
from longwave.exporters.source import Source
from longwave.extensions.attach import extend
from longwave.extensions.policy import frozen
from longwave.extensions.steering import stop_steering
from longwave.trajectory import Snapshot

NEW_TOKENS = 24
PASSAGES = 3  # prompts, at lengths spread up to the longest


@dataclass(frozen=True)
class Agreement:
    """How far an engine agrees with longwave at the same t and the same constant log-n.

    Arguments:
        engine: name and version.
        prompt_tokens: length of each prompt.
        new_tokens: greedy tokens after each.
        equal: how many tokens of the engine are those that longwave takes in the same place.
        total: the number of tokens of the engine.
        max_difference: the largest |Δ log-probability| over the vocabulary, None where the engine shows none.
    """

    engine: str
    prompt_tokens: list[int]
    new_tokens: int
    equal: int
    total: int
    max_difference: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def check(self, tolerance: float | None) -> None:
        """Refuse an export that the engine does not run as longwave runs the model.

        Arguments:
            tolerance: the largest difference of a log-probability. None for quantized weights: half of their tokens
                must be equal.

        Raises:
            ValueError: with the figures.
        """
        if tolerance is None:
            fine = self.equal >= self.total / 2
        elif self.max_difference is None:
            fine = self.equal == self.total
        else:
            fine = self.max_difference <= tolerance
        if not fine:
            allowed = "half of the tokens must be equal" if tolerance is None else f"{tolerance:g} is allowed"
            raise ValueError(f"the engine does not agree with longwave, and nothing was kept. {self}; {allowed}.")

    def __str__(self) -> str:
        difference = "not shown" if self.max_difference is None else f"{self.max_difference:.2g}"
        longest = max(self.prompt_tokens)
        return (
            f"{self.engine}: {self.equal} of {self.total} greedy tokens equal, largest difference of a "
            f"log-probability {difference}, prompts of up to {longest:,} tokens"
        )


def verify_export(
    exporter: Exporter, source: Source, snapshot: Snapshot, folder: Path, settings: ExportSettings
) -> Agreement:
    """Load the model of an export in longwave, and compare."""
    scaling = "trajectory" if settings.method is None else "plain"
    as_stored = exporter.exact and exporter.quantization(settings.quantize) == exporter.quantization(None)
    model = load(source.path, scaling=scaling, dtype="auto" if as_stored else torch.float32).eval()
    if settings.method is not None:
        extend(model, settings.method, max_factor=source.extension.max_factor)
    if settings.log_n == "drop":
        stop_steering(model)
    longest = min(snapshot.max_length, settings.verify_tokens)
    prompts = passages(source.tokenizer, longest, min(snapshot.original_length // 2, longest))
    return verify(exporter, folder, model, snapshot.factor, prompts)


def verify(
    exporter: Exporter,
    folder: Path,
    model: PreTrainedModel,
    factor: float,
    prompts: Sequence[Sequence[int]],
    new_tokens: int = NEW_TOKENS,
) -> Agreement:
    """Ask the engine, and compare with the model under `frozen(model, factor)` after the same tokens.

    longwave reads the engine's own tokens before each comparison: a token that differs counts once, and the tokens
    after it are compared all the same.
    """
    engine = exporter.engine()
    answers = exporter.run(folder, prompts, new_tokens)
    equal, differences = 0, []
    for prompt, answer in zip(prompts, answers, strict=True):
        own = expected(model, factor, prompt, answer)
        equal += int((own.argmax(-1) == np.array(answer.tokens)).sum())
        if answer.log_probs is not None:
            differences.append(float(np.nanmax(np.abs(own[:, : answer.log_probs.shape[1]] - answer.log_probs))))
    return Agreement(
        engine=engine,
        prompt_tokens=[len(prompt) for prompt in prompts],
        new_tokens=new_tokens,
        equal=equal,
        total=new_tokens * len(answers),
        max_difference=max(differences) if differences else None,
    )


@torch.no_grad()
def expected(model: PreTrainedModel, factor: float, prompt: Sequence[int], answer: Answer) -> np.ndarray:
    """longwave's log-probabilities before each token of the answer, [new, vocab], decoded with a cache."""
    rows = []
    with frozen(model, factor):
        ids, cache = torch.tensor([list(prompt)], device=model.device), None
        for token in answer.tokens:
            output = model(input_ids=ids, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            rows.append(output.logits[0, -1].float().log_softmax(-1).cpu())
            ids = torch.tensor([[token]], device=model.device)
    found: np.ndarray = torch.stack(rows).numpy()
    return found


def passages(tokenizer_folder: Path, longest: int, shortest: int) -> list[list[int]]:
    """Prompts of plain text, from `shortest` tokens to `longest`, with room for the answer."""
    tokenizer = load_tokenizer(tokenizer_folder)
    ids = tokenizer(TEXT, add_special_tokens=False, verbose=False)["input_ids"]
    longest = max(1, longest - NEW_TOKENS)
    whole = ids * (longest // len(ids) + 1)
    lengths = np.linspace(min(shortest, longest), longest, PASSAGES).astype(int)
    return [whole[:length] for length in dict.fromkeys(lengths.tolist())]


# Lewis Carroll, Alice's Adventures in Wonderland (1865), public domain.
TEXT = """Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: \
once or twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it, \
"and what is the use of a book," thought Alice, "without pictures or conversations?"

So she was considering in her own mind (as well as she could, for the hot day made her feel very sleepy and stupid), \
whether the pleasure of making a daisy-chain would be worth the trouble of getting up and picking the daisies, when \
suddenly a White Rabbit with pink eyes ran close by her. There was nothing so very remarkable in that; nor did Alice \
think it so very much out of the way to hear the Rabbit say to itself, "Oh dear! Oh dear! I shall be late!"

"""
