"""Answers read as `generate` writes them: the prompt in one forward, then one token after another from the cache.

Most methods read a prompt as they decode, and one forward over prompt and answer gives the same logits. Some attention
methods do not: `Attention.prefill_differs`.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from longwave.extensions.handle import find_extension
from longwave.extensions.sites import host_of


def must_decode(model: nn.Module) -> bool:
    """Whether the model's attention method reads a prompt otherwise than it decodes."""
    handle = find_extension(model)
    attention = None if handle is None else handle.dial.attention
    return attention is not None and attention.prefill_differs


@torch.inference_mode()
def decoded_logits(model: nn.Module, ids: Tensor, prompt: int) -> Tensor:
    """Logits [rows, tokens after the prompt + 1, vocabulary]: of the prompt's last token, and of each one after it.

    The tokens after the prompt are the right ones. While greedy decoding is right, it reads the same.

    Arguments:
        ids: token ids [rows, tokens], without padding.
        prompt: how many of them are read in one forward.
    """
    host: Any = host_of(model)
    keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(host.forward).parameters else {}
    cache, found = None, []
    for part in (ids[:, :prompt], *ids[:, prompt:].split(1, dim=1)):
        if not part.shape[1]:
            continue
        output = host(input_ids=part, past_key_values=cache, use_cache=True, **keep)
        cache = output.past_key_values
        found.append(output.logits[:, -1:])
    return torch.cat(found, dim=1)
