"""Rows of cos and sin for every t, behind those of the model's own rotary modules; queries scaled by log-n."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from longwave.serving.banded import BandedProfile
from longwave.serving.profiles import Profiles
from longwave.serving.rows import Refused, append_rows, log_ratios
from longwave.serving.vllm.queries import scaled_class, tabled_class

MARK = "longwave_starts"  # on a model whose tables are extended
KEPT = "longwave_rows"  # on a rotary module: what its rows were made from, and the first of each profile


def rotary_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Any]]:
    """Every place of a rotary module of vLLM: name of the parent, parent, name in it, module."""
    from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase

    for name, parent in model.named_modules():
        for own, child in parent.named_children():
            if isinstance(child, RotaryEmbeddingBase):
                yield name, parent, own, child


def extend_tables(model: nn.Module, profiles: Profiles, padding: int) -> list[int]:
    """Append the rows of all profiles to the tables of a model; the first row of each.

    Arguments:
        padding: more rows for each profile: tokens that are drafted, and may be refused, beyond its length.

    Raises:
        Refused: for a model whose rotary modules are others than the profiles were made for.
    """
    if (starts := getattr(model, MARK, None)) is not None:
        return list(starts)
    places = list(rotary_modules(model))
    if not places:
        from longwave.serving.vllm.foreign import extend_foreign

        starts = extend_foreign(model, profiles, padding)
        setattr(model, MARK, starts)
        return starts
    modules = list({id(child): child for *_, child in places}.values())
    every = {tuple(_extend(module, profiles, padding)) for module in modules}
    if len(every) > 1 or len({module.cos_sin_cache.shape[0] for module in modules}) > 1:
        raise Refused(f"{type(model).__name__} has rotary tables of several lengths, which is not supported.")
    starts = list(every.pop())
    if profiles.scales_queries:
        _scale_queries(places, profiles, starts, padding)
    setattr(model, MARK, starts)
    return starts


def _extend(module: Any, profiles: Profiles, padding: int) -> list[int]:
    """Append to one table. Returns the first rows."""
    if (known := getattr(module, KEPT, None)) is not None and known[:2] == (profiles, padding):
        return list(known[2])  # vLLM shares rotary modules among the engines of a process

    def banded(number: int, count: int) -> Tensor:
        return BandedProfile(profiles, number).rows(count)

    made, starts = append_rows(
        module.cos_sin_cache, module.base, profiles, padding, type(module).__name__,
        None if profiles.bands is None else banded,
    )  # fmt: skip
    module.cos_sin_cache = made
    setattr(module, KEPT, (profiles, padding, starts))
    if getattr(module, "cos_sin_cache_bf16", None) is not None:
        module.cos_sin_cache_bf16 = module.cos_sin_cache.to(torch.bfloat16)
    return starts


def _scale_queries(
    places: list[tuple[str, nn.Module, str, Any]], profiles: Profiles, starts: list[int], padding: int
) -> None:
    """Put rotary modules that scale queries in the places of the others, whose tables they share."""
    module = places[0][3]
    ratios = log_ratios(profiles, starts, module.cos_sin_cache.shape[0], padding).to(module.cos_sin_cache.device)
    shared: dict[int, Any] = {}
    for name, parent, own, module in places:
        exponents = _exponents(name, parent, profiles)
        if exponents is None:
            continue  # a layer that log-n leaves alone
        if profiles.log_n_heads is not None or module.rotary_dim != module.head_size:
            parent.register_module(own, _by_head(module, ratios, exponents))
            continue
        if id(module) not in shared:
            shared[id(module)] = _by_table(module, (float(exponents) * ratios).exp())
        parent.register_module(own, shared[id(module)])


def _exponents(name: str, attention: nn.Module, profiles: Profiles) -> Tensor | None:
    """The exponents of an attention layer: one for all heads, or those of this rank's heads; None for none."""
    if profiles.log_n_heads is None:
        return torch.tensor([profiles.log_n], dtype=torch.float32)
    number = layer_of(name)
    found = None if number is None else profiles.log_n_heads.get(number)
    return None if found is None else heads_of(attention, torch.tensor(found, dtype=torch.float32))


def layer_of(name: str) -> int | None:
    """The number of the layer that a module is part of, from its name; None outside of layers."""
    number = re.search(r"\.(\d+)\.", f".{name}.")
    return None if number is None else int(number[1])


def heads_of(attention: nn.Module, every: Tensor) -> Tensor:
    """The entries of the heads that this rank of tensor parallelism has."""
    from vllm.distributed import get_tensor_model_parallel_rank

    count = getattr(attention, "num_heads", None)
    if not isinstance(count, int) or every.numel() % count:
        raise Refused(
            f"{type(attention).__name__} does not say how many heads it has, and what was learned differs by head."
        )
    first = get_tensor_model_parallel_rank() * count if every.numel() > count else 0
    return every[first : first + count]


def _by_head(module: Any, ratios: Tensor, exponents: Tensor) -> Any:
    kind: Any = type(module)
    made = _copy(module, scaled_class(kind))
    made.register_buffer("query_ratios", ratios, persistent=False)
    made.register_buffer("query_exponents", exponents.to(ratios.device), persistent=False)
    return made


def _by_table(module: Any, scales: Tensor) -> Any:
    kind: Any = type(module)
    made, queries = _copy(module, tabled_class(kind)), _copy(module, kind)
    queries.cos_sin_cache = (module.cos_sin_cache.float() * scales[:, None]).to(module.cos_sin_cache.dtype)
    if getattr(module, "cos_sin_cache_bf16", None) is not None:
        queries.cos_sin_cache_bf16 = queries.cos_sin_cache.to(torch.bfloat16)
    made.queries = queries
    return made


def _copy(module: Any, kind: Any) -> Any:
    """The module in another class, with tables that it shares."""
    made = copy.copy(module)
    made._buffers, made._modules = dict(module._buffers), dict(module._modules)
    made.__class__ = kind
    made._forward_method = getattr(made, module._forward_method.__name__)
    return made
