"""The one function that transformers calls for attention. Its setting lies on the attention layer, not in its name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

from longwave.attention.columns import Columns, plain_mask
from longwave.attention.documents import Apart, documents_of
from longwave.attention.kernels import decode, is_plain_decode
from longwave.attention.layers import is_local, without_positions
from longwave.attention.shards import Whole, shards_of
from longwave.attention.temperature import Constant, LogN

PREFIX = "longwave-"  # of the names under which transformers calls longwave: longwave-sdpa, longwave-eager, ...
BANDS = "-bands"  # their ending where an attention method is on
ON_LAYER = "_longwave_steering"  # the attribute of an attention layer
BANDED = "_longwave_banded"  # of a layer whose keys are divided into bands
NUMBER = "_longwave_number"  # of a layer: its number in the order of the model


class Steering:
    """The setting on an attention layer: its own attention, how queries are scaled, and which keys they see.

    All layers of a model share one setting. It is copied and pickled with the model. Wherever it is created, it
    registers the name in the model's config.

    Arguments:
        base: the implementation that the model had before.
        temperature: log-n, or its constant; None for none.
        bands: an attention method; None for none.
    """

    def __init__(self, base: str, temperature: LogN | Constant | None = None, bands: Any = None) -> None:
        self.base, self.temperature, self.bands = base, temperature, bands
        self.name = PREFIX + base + (BANDS if bands is not None else "")
        AttentionInterface.register(self.name, _Hook(base))
        if base in ALL_MASK_ATTENTION_FUNCTIONS:
            mask = Apart(ALL_MASK_ATTENTION_FUNCTIONS[base], causal_mask_function)
            own = mask if bands is None else Columns(mask, causal_mask_function)
            AttentionMaskInterface.register(self.name, Whole(own))

    def __reduce__(self) -> tuple[Any, ...]:
        return Steering, (self.base, self.temperature, self.bands)


class _Hook:
    """An attention function: scales the queries as the layer says, and calls the implementation it wraps."""

    def __init__(self, base: str) -> None:
        self.base = base
        # These implementations find their kernel by the name in the layer's config.
        self.by_name = is_flash_attention_requested(requested_attention_implementation=base) or "/" in base

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        shards = shards_of(module.config)
        if shards is not None:
            return shards.attend(self._whole, module, query, key, value, *args, **kwargs)
        return self._whole(module, query, key, value, *args, **kwargs)

    def _whole(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Attention of whole rows."""
        attention = _eager(module) if self.base == "eager" else ALL_ATTENTION_FUNCTIONS[self.base]
        steering: Steering | None = getattr(module, ON_LAYER, None)
        documents = documents_of(module.config)
        if documents is not None and self.by_name:
            kwargs |= documents.varlen
        if steering is not None and steering.temperature is not None and not is_local(module, kwargs):
            places = None if documents is None else documents.places
            positions = steering.temperature.positions(query, key, kwargs.get("position_ids"), places)
            if positions is not None:
                shards = shards_of(module.config)
                query = steering.temperature.scaled(query, positions, getattr(module, NUMBER), shards)
            elif not steering.temperature.by_keys:
                raise ValueError(f"log-n scaling lacks the positions: {without_positions(module)} Pass log_n=False.")
        if steering is not None and steering.bands is not None:
            mask, *rest = args or (kwargs.pop("attention_mask", None),)
            if getattr(module, BANDED, False):

                def stock(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Any:
                    return self._stock(attention, module, query, key, value, mask, *rest, **kwargs)

                return steering.bands.attend(module, query, key, value, mask, stock, kwargs)
            args = plain_mask(mask), *rest
        return self._stock(attention, module, query, key, value, *args, **kwargs)

    def _stock(
        self,
        attention: Callable[..., Any],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if self.base == "sdpa" and is_plain_decode(query, key, *args, **kwargs):
            return decode(query, key, value, **kwargs)
        return attention(_Renamed(module, self.base) if self.by_name else module, query, key, value, *args, **kwargs)


class _Renamed:
    """An attention layer as the wrapped implementation expects it: its config has the implementation's own name."""

    def __init__(self, layer: nn.Module, name: str) -> None:
        self.layer, self.config = layer, _NamedConfig(layer.config, name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)


class _NamedConfig:
    def __init__(self, config: Any, name: str) -> None:
        self.config, self._attn_implementation = config, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def _eager(module: nn.Module) -> Callable[..., Any]:
    """The eager attention of the file that defines the attention layer: each family has its own."""
    attention: Callable[..., Any] = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return attention
