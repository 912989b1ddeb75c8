"""Find out how a model's attention layers rotate queries and keys: by a forward of a few tokens that watches them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from longwave.attention.bands import Attention
from longwave.attention.layers import attention_layers, is_local
from longwave.attention.layout import LAYOUTS, Layout
from longwave.errors import first_line
from longwave.extensions.bands import BandedAttention
from longwave.extensions.plan import Plan
from longwave.extensions.rotary import ScaledRotary
from longwave.extensions.steering import BY_BANDS, attention_of, require_steerable, set_attention, text_model

NAME = "longwave-probe"
TOKENS = 8
WITHIN = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # relative
LOCAL = "local"  # of a layer that says in its call only that it sees a window
UNKNOWN = ("softcap", "s_aux", "position_bias")  # arguments of an attention function that bands do not know


SEEN = "_longwave_seen"  # on an attention layer during the probe


class _Seen:
    """What the attention function of a layer was given last."""

    def __init__(self) -> None:
        self.query = self.key = self.value = torch.empty(0)
        self.kwargs: dict[str, Any] = {}

    def note(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> None:
        self.query, self.key, self.value = query, key, value
        self.kwargs = kwargs | {"attention_mask": args[0] if args else kwargs.get("attention_mask")}


def _see(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """An attention function that notes what it is given. It is one for all models, and keeps nothing itself."""
    seen: _Seen | None = getattr(module, SEEN, None)
    if seen is not None:
        seen.note(query, key, value, *args, **kwargs)
    batch, heads, tokens, _ = query.shape
    return value.new_zeros(batch, tokens, heads, value.shape[-1]), None


AttentionInterface.register(NAME, _see)


class OutlinedAttention(BandedAttention):
    """The attention method of a model without weights. How its layers rotate is not known: it says what can be run."""

    def embeddings(self, plan: Plan, x: Tensor) -> Any:
        raise ValueError(
            f"the model was extended by {self.attention.name} before it had its weights. Restore and extend it again."
        )


def banded(model: PreTrainedModel, attention: Attention, rotaries: list[ScaledRotary]) -> BandedAttention:
    """An attention method for the layers of a model that can have it.

    Raises:
        ValueError: if none can, or the model has rotary modules of several frequencies.
    """
    if len({rotary.trajectory for rotary in rotaries}) > 1:
        raise _refusal(model, "it has rotary modules of several frequencies")
    devices = set((getattr(model, "hf_device_map", None) or {}).values())
    if len(devices) > 1:
        raise _refusal(model, f"its layers are on {len(devices)} devices. Load it on one")
    require_steerable(model, BY_BANDS)
    layers, layout = banded_layers(model, rotaries[0])
    if layout is None:
        return OutlinedAttention(attention, rotaries[0], LAYOUTS[0], layers)
    return BandedAttention(attention, rotaries[0], layout, layers)


def banded_layers(model: PreTrainedModel, rotary: ScaledRotary) -> tuple[list[int], Layout | None]:
    """The numbers of the layers that attend to the whole context by rotated queries and keys, and how they rotate.

    How they rotate is None for a model on the meta device: nothing runs without weights.

    Raises:
        ValueError: if there is none, or a layer does what bands cannot do; the message says what.
    """
    text = text_model(model)
    every = attention_layers(text)
    layers = [layer for layer in every if not is_local(layer, {})]
    if not layers:
        raise _refusal(model, "all its layers see a sliding window. Set sliding_window to None in its config first")
    if next(text.parameters()).is_meta:
        return [every.index(layer) for layer in layers], None
    found: dict[nn.Module, Layout | str | None] = {}
    try:
        with _watched(text, layers, lambda layer: _watch(model, rotary, layer, found)), torch.no_grad():
            device = next(text.parameters()).device
            text(input_ids=torch.arange(1, TOKENS + 1, device=device)[None], use_cache=False)
    except ValueError:
        raise
    except Exception as error:  # whatever a model raises that does without its own attention
        raise _refusal(model, f"its layers cannot be examined ({type(error).__name__}: {first_line(error)})") from None
    if all(layer in found and found[layer] is LOCAL for layer in layers):
        raise _refusal(model, "all its layers see a sliding window. Set sliding_window to None in its config first")
    banded = {number: found[layer] for number, layer in enumerate(every) if isinstance(found.get(layer), Layout)}
    if not banded:
        raise _refusal(model, "no layer of it that sees the whole context rotates its queries and keys")
    if len(set(banded.values())) > 1:
        raise _refusal(model, "its layers rotate in several ways")
    return list(banded), next(layout for layout in banded.values() if isinstance(layout, Layout))


@contextmanager
def _watched(text: PreTrainedModel, layers: list[nn.Module], watch: Callable[[nn.Module], Any]) -> Iterator[None]:
    """For the length of a `with` block, the model is in eval mode, and the layers are watched."""
    before, modes = attention_of(text), {module: module.training for module in text.modules()}
    hooks = [layer.register_forward_pre_hook(watch(layer), with_kwargs=True) for layer in layers]
    try:
        set_attention(text, NAME)
        text.eval()
        yield
    finally:
        for hook in hooks:
            hook.remove()
        set_attention(text, before)
        for module, mode in modes.items():
            module.training = mode
        for layer in layers:
            vars(layer).pop(SEEN, None)


def _watch(
    model: PreTrainedModel, rotary: ScaledRotary, watched: nn.Module, found: dict[nn.Module, Layout | str | None]
) -> Any:
    seen = _Seen()
    setattr(watched, SEEN, seen)

    def watch(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        embeddings, positions = kwargs.get("position_embeddings"), kwargs.get("position_ids")
        if embeddings is None or positions is None or positions.ndim != 2:
            raise _refusal(model, f"its {type(layer).__name__} is not given rotations and positions by name")
        layer.forward(*args, **kwargs)
        turned = seen.query, seen.key
        if is_local(layer, seen.kwargs):
            found[layer] = LOCAL
            return
        if seen.kwargs["attention_mask"] is not None:
            raise _refusal(model, "its attention makes a mask of its own")
        asked = [name for name in UNKNOWN if seen.kwargs.get(name) is not None]
        if asked:
            raise _refusal(model, f"its attention has {asked[0]}")
        if "position_ids" not in seen.kwargs:
            raise _refusal(model, f"its {type(layer).__name__} hands no position_ids to the attention function")
        if seen.value.shape[-1] != seen.query.shape[-1] or seen.query.shape[1] % seen.key.shape[1]:
            raise _refusal(model, "its queries and values differ in width (latent attention)")
        layer.forward(*args, **{**kwargs, "position_embeddings": _identity(embeddings)})
        found[layer] = _layout(model, rotary, (seen.query, seen.key), turned, positions)

    return watch


def _layout(
    model: PreTrainedModel,
    rotary: ScaledRotary,
    plain: tuple[Tensor, Tensor],
    turned: tuple[Tensor, Tensor],
    positions: Tensor,
) -> Layout | None:
    """How `turned` came from `plain`; None if nothing was turned."""
    within = WITHIN.get(plain[0].dtype, 1e-4)
    if all(map(torch.equal, plain, turned)):
        return None
    own = rotary.frequencies.own
    scaling = float(getattr(rotary.base, "attention_scaling", 1.0) if rotary.layer_type is None else 1.0)
    phase = (positions.cpu().double()[..., None] * own.cpu().double())[:, None]  # not every device has float64
    cos, sin = ((part * scaling).to(plain[0].device, torch.float32) for part in (phase.cos(), phase.sin()))
    for layout in LAYOUTS:
        if 2 * own.numel() > plain[0].shape[-1]:
            break
        errors = [
            (layout.turn(before, cos, sin) - after).abs().max() / after.abs().max()
            for before, after in zip(plain, turned, strict=True)
        ]
        if all(bool(error <= within) for error in errors):
            return layout
    raise _refusal(model, "its layers rotate queries and keys in a way that longwave does not know")


def _identity(embeddings: Any) -> Any:
    """Rotations by nothing, in the form of those given: cos and sin, or complex numbers."""
    if isinstance(embeddings, Tensor):
        return torch.ones_like(embeddings)
    return torch.ones_like(embeddings[0]), torch.zeros_like(embeddings[1])


def _refusal(model: nn.Module, why: str) -> ValueError:
    return ValueError(f"{type(model).__name__} cannot have an attention method: {why}. Choose a scaling method alone.")
