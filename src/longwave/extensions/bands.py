"""Run an attention method inside a model: which t every row has, how its keys are stored, and where they are placed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from longwave.attention.bands import Attention
from longwave.attention.columns import is_columns, is_custom, plain_mask
from longwave.attention.documents import documents_of
from longwave.attention.engine import Scoring, attend
from longwave.attention.hook import BANDED, NUMBER, ON_LAYER
from longwave.attention.layout import Layout
from longwave.attention.rows import RowWise
from longwave.attention.shards import shards_of
from longwave.extensions.bounded import bound
from longwave.extensions.memory import remembering
from longwave.extensions.plan import Plan, of_columns, together
from longwave.extensions.planner import Planner
from longwave.extensions.rotary import ScaledRotary
from longwave.extensions.rotation import Turn
from longwave.extensions.selecting import attend_rows

Stock = Callable[..., tuple[Tensor, Any]]  # the model's own attention: (query, key, value, mask) -> output, weights


class BandedAttention:
    """An attention method on a model: what its attention layers and its rotary module ask.

    Keys are rotated before they are cached, by the places of the band that most keys belong to
    (`Attention.stored`). The keys of other bands are turned from there to their places.

    Arguments:
        attention: the method.
        rotary: the scaled rotary module whose trajectory and dial it follows.
        layout: which dimensions of a head are turned.
        layers: which attention layers have bands, by their numbers in the order of the model.
    """

    def __init__(self, attention: Attention, rotary: ScaledRotary, layout: Layout, layers: Collection[int]) -> None:
        self.attention, self.rotary, self.layout, self.layers = attention, rotary, layout, layers
        self.numbers: set[int] = set()  # of those layers in a cache
        self.planner = Planner(attention, rotary)

    def follow(self, rotary: ScaledRotary) -> None:
        """Take the trajectory and the dial of another rotary module, a copy that PEFT has put into the model."""
        self.rotary = self.planner.rotary = rotary

    def put_on(self, number: int, layer: nn.Module) -> None:
        """Let an attention layer rotate its queries and keys as the method stores them, if the layer has bands."""
        if number in self.layers:
            setattr(layer, BANDED, True)
            self.numbers |= {layer.layer_idx} if isinstance(layer.layer_idx, int) else set()
            layer.register_forward_pre_hook(store_rotated, with_kwargs=True)

    def take_off(self, layer: nn.Module) -> None:
        """Take off what `put_on` has put on."""
        vars(layer).pop(BANDED, None)
        for key in [key for key, hook in layer._forward_pre_hooks.items() if hook is store_rotated]:
            del layer._forward_pre_hooks[key]
            layer._forward_pre_hooks_with_kwargs.pop(key, None)

    def prepare(self, cache: Any, padding: int = 0) -> None:
        """Let an empty cache hold no more than the method sees.

        Arguments:
            padding: the most columns in front of a row's text.
        """
        if self.attention.bounded is not None and isinstance(cache, DynamicCache) and not int(cache.get_seq_length()):
            first, last = self.attention.bounded
            within = self.attention.original_length  # rows of up to L tokens see all their keys
            bound(cache, self.numbers, first + padding, max(first + last, within))

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        stock: Stock,
        kwargs: dict[str, Any],
    ) -> tuple[Tensor, Any]:
        """Attention of a layer, [B, n, H, D], and its weights where the model's own attention runs and returns them.

        Arguments:
            module: the layer.
            query: [B, H, n, D]; key, value: [B, H_kv, m, D], rotated as `store_rotated` has it.
            mask: the positions of the columns, see `attention.columns`.
            stock: the model's own attention, for rows within L.
            kwargs: what the layer hands to its attention function.
        """
        plan = self.planner.plan(kwargs["position_ids"], documents_of(module.config))
        cache, _THREAD.cache = _THREAD.cache, None
        held = getattr(_layer_of(cache, module), "columns", None)  # which columns the cache holds; None for all
        if plan.plain:
            return stock(query, key, value, of_columns(plain_mask(mask), held))
        if not is_columns(mask):
            raise ValueError(
                f"{self.attention.name} needs an attention mask of two axes, [batch, tokens], or none; got one of "
                f"{getattr(mask, 'ndim', 'no')} axes. Pass the mask of the padding alone."
            )
        if is_custom(mask):
            raise ValueError(
                f"{self.attention.name} lets a token see those before it, and this model was to see others (several "
                "texts in a row, or images). Use a scaling method alone here."
            )
        if kwargs.get("output_attentions"):
            raise ValueError(f"{self.attention.name} has no attention weights to return. Leave output_attentions out.")
        if kwargs.get("dropout"):
            raise ValueError(f"{self.attention.name} has no dropout. Set attention_dropout to 0 in the config.")
        parts = []
        for group in plan.groups:
            q, k, v = group.of(query), group.of(key), group.of(value)
            if group.bands is None:
                own = of_columns(plain_mask(mask), held)
                parts.append(stock(q, k, v, None if own is None else group.of(own))[0])
                continue
            scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
            if self.attention.remembers:
                method = cast(RowWise, self.attention)
                memories = None if cache is None else remembering(cache, module.layer_idx, method)  # type: ignore[arg-type]
                setting = {"layout": self.layout, "spectrum": group.spectrum, "scale": scale}
                parts.append(attend_rows(method, (q, k, v), plan.rows_of(group, method, mask), memories, setting))
                continue
            placed = plan.placed(group, mask, held, torch.promote_types(query.dtype, torch.float32))
            output = attend(q, k, v, placed, Scoring(self.layout, scale, self.mass_of(module)))
            parts.append(output.transpose(1, 2).contiguous())
        return together(plan.groups, parts), None

    def mass_of(self, layer: nn.Module) -> float | Tensor:
        """β of all heads of a layer, or of each that this process attends with, [H]."""
        heads = self.rotary.heads
        learned, shards = None if heads is None else heads.mass_of(getattr(layer, NUMBER)), shards_of(layer.config)
        if learned is None:
            return getattr(self.attention, "mass", 0.0)
        return learned if shards is None else shards.heads(learned)

    def embeddings(self, plan: Plan, x: Tensor) -> Any:
        """What the rotary module hands to the layers (cos and sin): every token at the place where it is stored.

        Arguments:
            x: a tensor [batch or 1, ...] of the type and on the device of what the module returns.
        """
        kind = x.dtype, x.device
        if kind not in plan.embeddings:
            base, rotation = self.rotary.frequencies.own, self.rotary.rotation
            parts = []
            for group in plan.groups:
                positions = group.of(plan.positions)
                if group.bands is None:
                    parts.append(rotation.run(group.of(x), positions, Turn(base, 1.0)))
                    continue
                assert group.spectrum is not None
                if group.stored is None:
                    places, theta = torch.zeros_like(positions), base
                else:
                    places = group.stored.key(positions.to(torch.float64))
                    theta = group.spectrum.of(group.stored)
                parts.append(rotation.run(group.of(x), places, Turn(theta.to(base.device), 1.0)))
            plan.embeddings[kind] = together(plan.groups, parts)
        return plan.embeddings[kind]

    def same(self, a: float, b: float) -> bool:
        """Whether a cache that was filled at one t serves at the other."""
        attention, frequencies = self.attention, self.rotary.frequencies
        if a == b:
            return True
        if min(a, b) <= 1:
            return attention.like_plain and frequencies.same(1.0, attention.factor(max(a, b)))
        if attention.state(a) != attention.state(b):
            return False
        return frequencies.same(attention.factor(a), attention.factor(b))


def store_rotated(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Before a layer's forward: cos and sin of the places where its keys are stored."""
    steering = getattr(layer, ON_LAYER, None)
    if steering is None or steering.bands is None:
        return None
    positions = kwargs.get("position_ids")
    if positions is None:
        raise ValueError(f"{type(layer).__name__} is not told the positions of its tokens. Pass position_ids.")
    bands: BandedAttention = steering.bands
    shards = shards_of(layer.config)
    plan = bands.planner.plan(positions if shards is None else shards.positions, documents_of(layer.config))
    _THREAD.cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
    if plan.plain:
        return None
    own = kwargs["position_embeddings"]
    stored = bands.embeddings(plan, own if isinstance(own, Tensor) else own[0])
    if shards is not None:
        stored = shards.own(stored) if isinstance(stored, Tensor) else tuple(map(shards.own, stored))
    return args, {**kwargs, "position_embeddings": stored}


class _Thread(threading.local):
    """The cache of the layer that runs in this thread: from before its forward to its attention."""

    cache: Cache | None = None


_THREAD = _Thread()


def _layer_of(cache: Cache | None, layer: nn.Module) -> Any:
    """The layer's part of the cache; None where there is none yet."""
    layers: Sequence[Any] = getattr(cache, "layers", ())
    number: Any = getattr(layer, "layer_idx", None)
    return layers[number] if isinstance(number, int) and 0 <= number < len(layers) else None
