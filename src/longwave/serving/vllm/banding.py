"""Attention by bands: requests beyond L get it in the place of the backend's own, and all others keep that.

The kernel of the backend runs for a batch as ever, unless all its requests have bands. Then the rows of those with
bands are computed once more, from the keys and values in the cache. The cache is the backend's: it writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from longwave.attention.layout import Layout
from longwave.attention.placement import Placed
from longwave.serving.banded import BandedProfile, method_of
from longwave.serving.profiles import Profiles
from longwave.serving.rows import Refused
from longwave.serving.vllm.tables import heads_of, layer_of, rotary_modules

BATCH = "longwave_batch"  # on a model whose attention has bands

Reader = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # cache, numbers of blocks -> k, v [1, H_kv, tokens, D]


@dataclass(frozen=True, eq=False)
class Request:
    """A request with bands in a forward.

    Arguments:
        row: its place in the batch.
        tokens: its queries among those of the batch, the last ones of its text.
        length: tokens of its text so far.
    """

    row: int
    tokens: slice
    length: int
    profile: BandedProfile
    placed: list[Placed]


@dataclass(eq=False)
class Batch:
    """What the attention layers of a model know of the forward that runs.

    Arguments:
        profiles: with bands, by their number.
        numbers: the profile of each request, in the order of the batch; 0 has no bands.
    """

    profiles: dict[int, BandedProfile]
    numbers: Sequence[int] = ()
    _requests: list[Request] | None = field(default=None, repr=False)

    def begin(self, numbers: Sequence[int]) -> None:
        """A forward begins."""
        self.numbers, self._requests = numbers, None

    @contextmanager
    def running(self, numbers: Sequence[int]) -> Iterator[None]:
        """`begin`, and the end of it."""
        self.begin(numbers)
        try:
            yield
        finally:
            self.begin(())

    @property
    def banded(self) -> bool:
        """Whether any request has bands."""
        return any(self.numbers)

    @property
    def plain(self) -> bool:
        """Whether any request has none."""
        return not all(self.numbers)

    def requests(self, metadata: Any) -> list[Request]:
        """Those with bands, worked out by the first layer that asks."""
        if self._requests is None:
            device, count = metadata.seq_lens.device, len(self.numbers)
            ends, lengths = metadata.query_start_loc[: count + 1].tolist(), metadata.seq_lens[:count].tolist()
            self._requests = []
            for row, number in enumerate(self.numbers):
                tokens, length = slice(ends[row], ends[row + 1]), lengths[row]
                new = tokens.stop - tokens.start
                if number and new:
                    profile = self.profiles[number]
                    placed = profile.placed(length - new, length, device)
                    self._requests.append(Request(row, tokens, length, profile, placed))
        return self._requests


@dataclass(eq=False)
class LayerBands:
    """The bands of one attention layer.

    Arguments:
        batch: of its model.
        mass: β of all heads, or of each of this rank.
        read: how keys and values lie in the cache; known once there is one, see caches.py.
    """

    batch: Batch
    mass: float | Tensor
    read: Reader | None = None

    def run(self, impl: Any, query: Tensor, kv_cache: Tensor, metadata: Any, output: Tensor) -> None:
        """Write the rows of the requests that have bands."""
        if self.read is None:
            raise RuntimeError("the cache was not looked at when the engine started: this is a fault of longwave.")
        size = kv_cache.shape[2]
        for request in self.batch.requests(metadata):
            blocks = metadata.block_table[request.row, : -(-request.length // size)]
            k, v = (each[:, :, : request.length] for each in self.read(kv_cache, blocks))
            q = query[request.tokens].transpose(0, 1)[None]
            found = request.profile.attend(q, k, v, request.placed, impl.scale, self.mass)
            output[request.tokens] = found[0].transpose(0, 1)


@cache
def banded_class(kind: Any) -> Any:
    """The attention of a backend of vLLM, which hands requests with bands to `longwave_bands`."""

    class Banded(kind):  # type: ignore[misc]
        def forward(
            self, layer: Any, query: Tensor, key: Any, value: Any, kv_cache: Tensor, attn_metadata: Any,
            output: Tensor, *rest: Any, **named: Any,
        ) -> Any:  # fmt: skip
            bands: LayerBands = self.longwave_bands
            banded = attn_metadata is not None and bands.batch.banded
            if not banded or bands.batch.plain:
                super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *rest, **named)
            if banded:
                bands.run(self, query, kv_cache, attn_metadata, output)
            return output

    Banded.__name__ = Banded.__qualname__ = f"Banded{kind.__name__}"
    return Banded


def attention_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every attention module of vLLM with its name."""
    from vllm.model_executor.layers.attention import Attention

    return ((name, module) for name, module in model.named_modules() if isinstance(module, Attention))


def put_on(model: nn.Module, profiles: Profiles, padding: int) -> Batch | None:
    """Give bands to the attention layers of a model; None for profiles without bands."""
    if profiles.bands is None:
        return None
    known: Batch | None = getattr(model, BATCH, None)
    if known is not None:
        return known
    *_, rotary = next(rotary_modules(model))
    layout = Layout(interleaved=not rotary.is_neox_style)
    batch = Batch({n: BandedProfile(profiles, n, layout, padding) for n in range(1, len(profiles.profiles))})
    for each in batch.profiles.values():
        each.prepare(rotary.cos_sin_cache.device)
    for name, module in attention_modules(model):
        impl: Any = module.impl
        impl.longwave_bands = LayerBands(batch, _mass(name, module, profiles))
        impl.__class__ = banded_class(impl.__class__)
    setattr(model, BATCH, batch)
    return batch


def _mass(name: str, module: Any, profiles: Profiles) -> float | Tensor:
    assert profiles.bands is not None
    heads = profiles.bands.mass_heads
    if heads is None:
        return float(getattr(method_of(profiles), "mass", 0.0))
    number = layer_of(name)
    if number is None or number not in heads:
        raise Refused(f"{name} has no mass of its own in the folder's profiles. Export the model again.")
    device = next(module.parameters(), torch.empty(0)).device
    return heads_of(module, torch.tensor(heads[number], dtype=torch.float32)).to(device)
