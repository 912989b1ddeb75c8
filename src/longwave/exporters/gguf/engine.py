"""Greedy continuations by llama.cpp's server, with log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from longwave.exporters.base import Answer
from longwave.exporters.gguf import llamacpp
from longwave.exporters.gguf.plan import gguf_package
from longwave.exporters.gguf.vocabulary import NORMAL

SHOWN = 8192  # the largest vocabulary that the engine is asked all log-probabilities of
TOP = 64  # of a larger one, the most likely


def run_server(folder: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Answer]:
    """Greedy continuations, a token at a time, from the log-probabilities that the server shows.

    The server's own choice would stop at an end of text, and it shows no log-probabilities for a token that ends
    inside a character. So its sampler is forced to a harmless token after they are computed. The log-probabilities are
    of the softmax over the whole vocabulary, however few of them are shown.
    """
    file, size, harmless = _the_file(folder)
    shown = size if size <= SHOWN else TOP
    answers = []
    with llamacpp.served(file, max(map(len, prompts)) + new_tokens, exact=True) as address:
        for prompt in prompts:
            tokens: list[int] = []
            rows = np.full((new_tokens, size), np.nan, dtype=np.float32)
            for step in range(new_tokens):
                answer = llamacpp.ask(
                    address, "/completion", prompt=[*prompt, *tokens], n_predict=1, n_probs=shown,
                    post_sampling_probs=False, temperature=0.0, cache_prompt=True, logit_bias=[[harmless, 1e9]],
                )  # fmt: skip
                top = answer["completion_probabilities"][0]["top_logprobs"]
                tokens.append(int(top[0]["id"]))
                rows[step, [entry["id"] for entry in top]] = [entry["logprob"] for entry in top]
            answers.append(Answer(tokens, rows))
    return answers


def _the_file(folder: Path) -> tuple[Path, int, int]:
    """The folder's GGUF file, its number of tokens, and a token of plain text."""
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise ValueError(f"{folder} holds {len(files)} GGUF files, expected one.")
    fields = gguf_package().GGUFReader(files[0]).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    texts = (i for i, token in enumerate(tokens) if types[i] == NORMAL and token.isascii() and token.isalnum())
    return files[0], len(tokens), next(texts)
