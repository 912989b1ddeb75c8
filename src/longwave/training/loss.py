"""The loss of a model's training in blocks of tokens: no tensor of all tokens x the vocabulary is ever made.

Logits of 8,192 tokens over 128,000 entries take 4 GB in float32, and a loss with its gradient takes them three times.
Here the backbone runs once. Its hidden states then pass through the model's own forward in blocks, with a backbone that
returns them, so that soft-capping, scales, biases, adapters and casts stay exact.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import update_wrapper
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.tensor import DTensor
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from longwave.training.config import LOSS_BLOCKS
from longwave.training.documents import IGNORED

AUTO, ON, OFF = LOSS_BLOCKS
MANY = 2**27  # logits from which on `auto` makes blocks: 0.5 GB in float32
BLOCK = {"cpu": 2**24, "cuda": 2**27}  # logits of a block; on a GPU more, since a block costs a pass over the weights


def held_at_once(logits: int, way: str, kind: str) -> int:
    """How many of the logits of a micro-batch are in memory at the same time.

    Arguments:
        way: as for `loss_in_blocks`.
        kind: of the device, `cpu` or `cuda`.
    """
    if way == OFF or (way == AUTO and logits <= MANY):
        return logits
    return min(logits, BLOCK.get(kind, BLOCK["cuda"]))


@contextmanager
def loss_in_blocks(model: PreTrainedModel, way: str = AUTO) -> Iterator[None]:
    """Within the block, forwards of the model with labels compute their loss in blocks.

    Arguments:
        way: `auto` for blocks where there are more than 2^27 logits, `on` or `off`.
    """
    before = vars(model).get("forward")
    if way != OFF:
        blockwise = BlockwiseLoss(model, MANY if way == AUTO else 0)
        model.forward = update_wrapper(lambda *args, **inputs: blockwise(*args, **inputs), model.forward)
    try:
        yield
    finally:
        vars(model).pop("forward", None)
        if before is not None:
            model.forward = before


class BlockwiseLoss:
    """A forward with the interface of a model's own that returns the loss alone where it makes blocks.

    Arguments:
        model: whose forward it takes the place of.
        many: the number of logits from which on it makes blocks.
    """

    def __init__(self, model: PreTrainedModel, many: int) -> None:
        self.model, self.many, self.original = model, many, model.forward
        self.vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
        self.checked = False
        self.refused = self._refusal()

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        labels: Tensor | None = inputs.get("labels")
        wanted = labels is not None and torch.is_grad_enabled() and labels.numel() * self.vocabulary > self.many
        if args or not wanted or inputs.get("logits_to_keep"):
            return self.original(*args, **inputs)
        if not self.refused and labels is not None:
            given = {name: value for name, value in inputs.items() if name not in OF_LOSS}
            with _watched(self.model.base_model) as seen:
                output = self.original(**given, logits_to_keep=1)
            _, returned = seen[-1]
            hidden = returned[0]
            self._check(type(returned), hidden, output.logits)
            if not self.refused:
                targets = inputs.get("shift_labels")
                assert labels is not None
                targets = pad(labels, (0, 1), value=IGNORED)[..., 1:] if targets is None else targets
                loss = self._loss(hidden, targets.to(hidden.device), inputs.get("num_items_in_batch"))
                return type(output)(loss=loss)
        warnings.warn(f"{self.refused}: its loss takes all logits at once.", stacklevel=2)
        self.many = 2**62  # it has been said once
        return self.original(**inputs)

    def _refusal(self) -> str:
        """Why the model cannot have blocks; empty if it can."""
        model, name = self.model, type(self.model).__name__
        if "logits_to_keep" not in signature(model.forward).parameters or model.base_model is model:
            return f"{name} does not compute logits of chosen tokens"
        if getattr(model.config, "output_router_logits", False):
            return f"{name} adds a loss of its router to that of its tokens"
        return "" if model.loss_function is ForCausalLMLoss else f"{name} has a loss of its own"

    def _check(self, kind: type, hidden: Tensor, logits: Tensor) -> None:
        """Note how the backbone answers, and find out, once, whether its hidden states alone make the logits."""
        self.kind = kind
        if self.checked:
            return
        self.checked = True
        try:
            with torch.no_grad():
                own = self._logits(hidden[:, -1:].detach())
            alike = own.shape == logits.shape and torch.allclose(own, logits, rtol=1e-3, atol=1e-4)
        except (
            TypeError,
            AttributeError,
            ValueError,
            RuntimeError,
        ):  # what a foreign forward does with such a backbone
            alike = False
        if not alike:
            self.refused = f"{type(self.model).__name__} cannot run its head on hidden states alone"

    def _loss(self, hidden: Tensor, targets: Tensor, items: Tensor | int | None) -> Tensor:
        """The sum over all tokens, divided by `items`, by default the number of labels."""
        rows, targets = hidden.reshape(1, -1, hidden.shape[-1]), targets.reshape(1, -1)
        count = targets.ne(IGNORED).sum() if items is None else items
        size = max(1, BLOCK.get(hidden.device.type, BLOCK["cuda"]) // self.vocabulary)
        blocks = [slice(first, first + size) for first in range(0, targets.shape[1], size)]
        if self._gathers():  # a head that is put together for each call, and a loss that fp16 scales afterwards
            parts = (checkpoint(self.part, rows[:, at], targets[:, at], count, use_reentrant=False) for at in blocks)
            return torch.stack(list(parts)).sum()
        loss: Tensor = _Gradients.apply(rows, targets, count, self, blocks, *self._of_head())
        return loss

    def part(self, hidden: Tensor, targets: Tensor, items: Tensor | int) -> Tensor:
        """The loss of a block: hidden states [1, n, width], the tokens that follow [1, n]."""
        count: Any = items
        found: Tensor = ForCausalLMLoss(
            self._logits(hidden), None, self.vocabulary, num_items_in_batch=count, shift_labels=targets
        )
        return found

    def _logits(self, hidden: Tensor) -> Tensor:
        ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        with _answering(self.model, self.kind(last_hidden_state=hidden)):
            found: Tensor = self.original(input_ids=ids, use_cache=False).logits
        return found

    def _gathers(self) -> bool:
        half = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.float16
        return half or any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in self.model.parameters())

    def _of_head(self) -> list[nn.Parameter]:
        """The parameters that turn hidden states into logits and have a gradient."""
        backbone = {id(parameter) for parameter in self.model.base_model.parameters()}
        head = self.model.get_output_embeddings()
        found = [p for p in self.model.parameters() if id(p) not in backbone] + list(head.parameters() if head else ())
        return list({id(p): p for p in found if p.requires_grad}.values())

    def plain_head(self, parameters: Sequence[nn.Parameter]) -> nn.Linear | None:
        """The head, where it is one matrix, which alone has a gradient and is multiplied as it is."""
        head = self.model.get_output_embeddings()
        plain = type(head) is nn.Linear and head.bias is None and len(parameters) == 1 and parameters[0] is head.weight
        return head if plain and not torch.is_autocast_enabled(parameters[0].device.type) else None


OF_LOSS = ("labels", "shift_labels", "num_items_in_batch")


class _Gradients(torch.autograd.Function):
    """The loss of all blocks. The gradient of a block is computed beside its loss, while its logits are at hand."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        items: Tensor | int,
        loss: BlockwiseLoss,
        blocks: Sequence[slice],
        *parameters: nn.Parameter,
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        into = torch.empty_like(hidden)
        sums: list[Tensor | None] = [None] * len(parameters)
        head = loss.plain_head(parameters)
        if head is not None and parameters[0].dtype == torch.float32:
            sums = [torch.zeros_like(parameters[0])]
        for at in blocks:
            own = hidden[:, at].detach().requires_grad_()
            if head is not None and sums[0] is not None:
                into[:, at], part = _beside(loss, head, own, targets[:, at], items, sums[0])
            else:
                with torch.enable_grad():
                    part = loss.part(own, targets[:, at], items)
                into[:, at], *found = torch.autograd.grad(part, [own, *parameters], allow_unused=True)
                _add(sums, found)
            total += part.detach().to(total.device)
        ctx.save_for_backward(into, *sums)
        ctx.dtypes = [parameter.dtype for parameter in parameters]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, *sums = ctx.saved_tensors
        scale = float(gradient)
        into, *found = (each if each is None or scale == 1 else each * scale for each in (hidden, *sums))
        cast = [None if each is None else each.to(kind) for each, kind in zip(found, ctx.dtypes, strict=True)]
        return into, None, None, None, None, *cast


def _beside(
    loss: BlockwiseLoss, head: nn.Linear, own: Tensor, targets: Tensor, items: Tensor | int, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of a block's hidden states, and its loss. The gradient of the head is added to `weight` in place.

    A tensor of the size of the head for each block would cost as much time as a fifth of the step on a CPU.
    """
    with torch.enable_grad(), _watched(head) as seen:
        part = loss.part(own, targets, items)
    (rows,), logits = seen[-1]
    gradient, of_logits = torch.autograd.grad(part, [own, logits])
    weight.addmm_(of_logits.flatten(0, -2).T, rows.detach().flatten(0, -2))
    return gradient, part.detach()


def _add(sums: list[Tensor | None], found: Sequence[Tensor | None]) -> None:
    """Add gradients up, in float32: a sum of many blocks in bfloat16 would lose the small ones."""
    for number, gradient in enumerate(found):
        if gradient is not None:
            known = sums[number]
            sums[number] = gradient.float() if known is None else known.add_(gradient)


@contextmanager
def _watched(module: nn.Module) -> Iterator[list[Any]]:
    """Within, what a module gets by place and what it returns are noted."""
    seen: list[Any] = []
    handle = module.register_forward_hook(lambda module, args, output: seen.append((args, output)))
    try:
        yield seen
    finally:
        handle.remove()


@contextmanager
def _answering(model: PreTrainedModel, output: Any) -> Iterator[None]:
    """Within, the model finds in the place of its backbone a function that returns `output`.

    The function lies before the backbone, which stays where it is: no hook of an engine on the backbone is called.
    """
    vars(model)[model.base_model_prefix] = lambda *args, **inputs: output
    try:
        yield
    finally:
        del vars(model)[model.base_model_prefix]
