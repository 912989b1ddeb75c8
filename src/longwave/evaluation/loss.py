"""Log-likelihoods of long windows without a [length x vocabulary] tensor."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from longwave.evaluation.base import BLOCK_ELEMENTS
from longwave.extensions.sites import host_of


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, the model is in eval mode; afterwards it is in the mode that it was in."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class Scorer:
    """-ln p(token | all tokens before it) for the last tokens of each row, its head applied in blocks.

    The backbone runs once over the whole row, without cache and without mask (so that attention stays
    causal-by-flag and never materialises [length x length]). Its hidden states then pass through the model's own
    forward in blocks, with a backbone that returns them: soft-capping, logit scaling, biases and casts stay exact. At
    first use this is compared with the plain forward on a few tokens. A model whose head needs more than hidden states
    is run plainly, with a warning.

    Arguments:
        model: a transformers causal LM; only `model(input_ids).logits` is required of it.
        block_elements: logits computed at a time, over the whole batch.
    """

    def __init__(self, model: nn.Module, *, block_elements: int = BLOCK_ELEMENTS) -> None:
        self.model: Any = host_of(model)  # PEFT puts its layers into the model that it wraps
        self.block_elements = block_elements
        self.vocabulary = int(self.model.config.get_text_config().vocab_size)
        self.keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self.backbone: Any = None
        self._checked = False

    @property
    def device(self) -> torch.device:
        """Where token ids have to be."""
        return self.model.get_input_embeddings().weight.device

    def nll(self, rows: Tensor, last: int) -> Tensor:
        """-ln p in nats, float32, shape [rows, last], of the last `last` tokens of each row.

        Arguments:
            rows: token ids [rows, length]; the whole row is the context.
            last: how many tokens to score, at most length - 1 (the first has nothing before it).
        """
        # Written into one tensor made beforehand: small results kept from block to block would lie between the
        # freed logits and stop glibc from reusing their memory (16 GB instead of 0.6 at 32k x 128k, measured
        # with a large MALLOC_MMAP_THRESHOLD_).
        found = torch.empty(len(rows), last)
        for block, logits, targets in self.blocks(rows, last):
            found[:, block] = _nll(logits, targets)
        return found

    def hits(self, rows: Tensor, last: int) -> Tensor:
        """Whether each of the last `last` tokens is the most likely one given all before it: bool [rows, last]."""
        found = torch.empty(len(rows), last, dtype=torch.bool)
        for block, logits, targets in self.blocks(rows, last):
            found[:, block] = logits.argmax(-1) == targets
        return found

    @torch.inference_mode()
    def blocks(self, rows: Tensor, last: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Which of the `last` tokens, their logits [rows, block, vocabulary] and ids [rows, block], in order."""
        count, length = rows.shape
        if not 1 <= last < length:
            raise ValueError(f"cannot score {last} tokens of a window of {length}: choose 1 to {length - 1}.")
        rows = rows.to(self.device, torch.long)
        if not self._checked:
            self.backbone = self._find_backbone(rows[:1, :16])
            self._checked = True
        start = length - last - 1  # the logits at `position` are about the token at `position + 1`
        if self.backbone is None:
            options = {"logits_to_keep": last + 1} if self.keeps else {}
            logits = self.model(input_ids=rows, use_cache=False, **options).logits
            yield slice(None), logits[:, -last - 1 : -1], rows[:, -last:].to(logits.device)
            return
        output = self.backbone(input_ids=rows, use_cache=False)
        hidden = output[0][:, start:-1].clone()  # a clone, so that the rest of the row is released
        kind = type(output)
        del output
        size = max(1, self.block_elements // (count * self.vocabulary))
        for first in range(0, last, size):
            block = slice(first, first + size)
            logits = self._head(self.backbone, kind, rows[:, start:-1][:, block], hidden[:, block])
            yield block, logits, rows[:, start + 1 :][:, block].to(logits.device)

    def _head(self, backbone: Any, kind: type, ids: Tensor, hidden: Tensor) -> Tensor:
        with _standing_still(backbone, kind(last_hidden_state=hidden)):
            return self.model(input_ids=ids, use_cache=False).logits

    def _find_backbone(self, rows: Tensor) -> Any:
        """The submodule whose hidden states determine the logits, found by comparing with the plain forward."""
        plain = self.model(input_ids=rows, use_cache=False).logits
        tolerance = 1e-3 * float(plain.float().nan_to_num(0, 0, 0).abs().max())
        for name in ("base_model", "get_decoder"):
            backbone = getattr(self.model, name, None)
            backbone = backbone if isinstance(backbone, nn.Module) or backbone is None else backbone()
            if backbone is None or backbone is self.model:
                continue
            try:
                output = backbone(input_ids=rows, use_cache=False)
                # Other ids: equal logits then show that the hidden states alone made them.
                logits = self._head(backbone, type(output), torch.zeros_like(rows), output[0])
            except Exception:  # whatever a foreign forward does when its backbone returns hidden states only
                continue
            if logits.shape == plain.shape and torch.allclose(
                logits.float(), plain.float(), rtol=1e-3, atol=tolerance, equal_nan=True
            ):
                return backbone
        name = type(self.model).__name__
        warnings.warn(f"{name} cannot run its head on hidden states alone: memory will grow.", stacklevel=2)
        return None


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    flat = cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1), reduction="none")
    return flat.view(targets.shape)


@contextmanager
def _standing_still(backbone: Any, output: Any) -> Iterator[None]:
    """Within, `backbone` returns `output` whatever it is called with."""
    before = backbone.__dict__.get("forward")  # accelerate's device hooks live there
    backbone.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if before is None:
            del backbone.forward
        else:
            backbone.forward = before
