"""What a forward keeps for its gradient, counted on tensors that have shapes and no memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

STAND_IN = "longwave-plan"  # among the attention implementations of transformers
COPIES, DENSE_COPIES = 3, 6  # of a layer's largest tensor, at one moment of its backward; fitted to measured peaks


@dataclass(frozen=True)
class Forward:
    """The forward that is counted.

    Arguments:
        rows, length: of its micro-batch.
        bf16: whether matrices are multiplied in bfloat16, under autocast.
        bands: of the attention method; 0 for the model's own attention, in a kernel that keeps no logits.
        dense: whether the bands are one softmax over all logits, as without a kernel for them.
        weights: whether weights, or an adapter on them, are trained: a linear layer keeps its input then.
    """

    rows: int
    length: int
    bf16: bool
    bands: int = 0
    dense: bool = False
    weights: bool = True


@dataclass(frozen=True)
class Kept:
    """Bytes that are kept.

    Arguments:
        layers: within the decoder's layers, in all.
        largest: within the layer that keeps most.
        inputs: the inputs of the layers, which are all that checkpointing keeps of them.
        rest: outside the layers, without the logits.
        working: what the backward of a layer holds for a moment.
    """

    layers: int
    largest: int
    inputs: int
    rest: int
    working: int

    def total(self, *, checkpointing: bool) -> int:
        """The most at one time."""
        inside = self.inputs + self.largest if checkpointing else self.layers
        return inside + self.rest + self.working

    def shared(self, count: int) -> Kept:
        """What each of so many processes keeps that share the rows."""
        return Kept(*(getattr(self, item.name) // count for item in fields(self)))


def count_kept(model: PreTrainedModel, forward: Forward) -> Kept | None:
    """What a forward of the model up to its head keeps; None for a model that cannot be run without values.

    Arguments:
        model: a plain model whose parameters are on the meta device. It is of no use afterwards.
    """
    AttentionInterface.register(STAND_IN, _attention(forward))
    model.config.get_text_config()._attn_implementation = STAND_IN
    model.config._attn_implementation = STAND_IN
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            _replace(model, forward)
            return _count(model.base_model.train(), forward)
    except Exception:  # whatever a forward does whose path depends on values
        return None


def _count(backbone: nn.Module, forward: Forward) -> Kept:
    owned = {parameter.untyped_storage()._cdata for parameter in backbone.parameters()}
    found: dict[int, dict[int, Tensor]] = defaultdict(dict)  # by layer; -1 outside: by storage
    inputs: list[int] = []
    now = [-1]

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in owned and not any(key in each for each in found.values()):
            found[now[0]][key] = tensor
        return tensor

    def enter(layer: nn.Module, arguments: Any, named: Any) -> None:
        hidden = arguments[0] if arguments else named["hidden_states"]
        now[0] = len(inputs)
        inputs.append(_bytes(hidden))

    def leave(*_: Any) -> None:
        now[0] = -1

    for layer in backbone.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.register_forward_pre_hook(enter, with_kwargs=True)
            layer.register_forward_hook(leave)
    ids = torch.zeros(forward.rows, forward.length, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=forward.bf16), saved_tensors_hooks(pack, lambda kept: kept):
        backbone(input_ids=ids, use_cache=False)
    rest = sum(map(_bytes, found.pop(-1, {}).values()))
    layers = [sum(map(_bytes, each.values())) for each in found.values()]
    tensors = [_bytes(each) for inside in found.values() for each in inside.values()]
    copies = DENSE_COPIES if forward.bands and forward.dense else COPIES
    return Kept(sum(layers), max(layers, default=0), sum(inputs), rest, copies * max(tensors, default=0))


def _bytes(tensor: Tensor) -> int:
    return int(tensor.untyped_storage().nbytes())


def _replace(model: nn.Module, forward: Forward) -> None:
    """Put parameters without memory in the place of those on the meta device; tied ones stay one.

    Under autocast the matrices are in bfloat16 at once: their casts are counted with the weights.
    """
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        cast = forward.bf16 and isinstance(module, nn.Linear)
        for name, old in list(module._parameters.items()):
            if old is not None and id(old) not in made:
                values = torch.empty(old.shape, dtype=torch.bfloat16 if cast else old.dtype)
                made[id(old)] = nn.Parameter(values, requires_grad=forward.weights)
            if old is not None:
                module._parameters[name] = made[id(old)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _attention(forward: Forward) -> Callable[..., tuple[Tensor, None]]:
    """An attention that keeps what that of the run keeps."""

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: Any = None, **_: Any
    ) -> tuple[Tensor, None]:
        if not forward.weights:  # only the scalars of heads, or frequencies, have a gradient
            query = query * torch.ones(query.shape[-1], dtype=query.dtype, requires_grad=True)
        if forward.bands and forward.dense:
            output = _dense(query, key, value, forward.bands)
        else:
            output = _kernels(query, key, value, forward.bands)
        return output.transpose(1, 2).contiguous(), None

    return attend


class _Fused(torch.autograd.Function):
    """Attention in a kernel, which keeps its inputs and its output alone."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, length, _ = query.shape
        output = query.new_empty(rows, length, heads, value.shape[-1]).transpose(1, 2)  # as kernels lay it out
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)
        context.save_for_backward(query, key, value, output, lse)
        return output


def _kernels(query: Tensor, key: Tensor, value: Tensor, bands: int) -> Tensor:
    """A call for each band; several outputs are weighted by their log-sum-exps."""
    query, key = query.to(value.dtype), key.to(value.dtype)  # as autocast does
    if bands < 2:
        return _Fused.apply(query, key, value)
    parts = [_Fused.apply(query * 1.0, key, value) for _ in range(bands)]
    weighted = [part * torch.ones(*part.shape[:3], 1) for part in parts]
    return sum(weighted[1:], weighted[0]).to(value.dtype)


def _dense(query: Tensor, key: Tensor, value: Tensor, bands: int) -> Tensor:
    """One softmax over all logits, as `longwave.attention.engine.dense` makes it."""
    group = query.shape[1] // key.shape[1]
    logits = torch.empty(*query.shape[:3], key.shape[2])
    mask = torch.empty(query.shape[2], key.shape[2], dtype=torch.bool)
    for _ in range(bands):
        scores = ((query * 1.0) @ key.repeat_interleave(group, 1).mT).float() * 1.0
        logits = torch.where(mask, scores, logits)
    nothing = logits.isneginf().all(-1, keepdim=True)
    weights = torch.where(nothing, 0.0, torch.where(nothing, 0.0, logits).softmax(-1))
    return weights.to(value.dtype) @ value.repeat_interleave(group, 1)
