"""Attention by bands: requests beyond L get it in the place of the backend's own, and all others keep that.

The kernel of the backend runs for a batch as ever, unless all its requests have bands. Then the rows of those with
bands are computed once more, from the keys and values in the cache. The cache is the backend's: it writes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from longwave.attention.layout import Layout
from longwave.attention.placement import Placed
from longwave.attention.step import StepBand
from longwave.serving.banded import BandedProfile, method_of
from longwave.serving.profiles import Profiles
from longwave.serving.rows import Refused
from longwave.serving.vllm.tables import heads_of, layer_of, rotary_modules

BATCH = "longwave_batch"  # on a model whose attention has bands

# Cache, numbers of blocks [B, blocks] -> k, v [B, H_kv, tokens, D]
Reader = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
# Keys of each head that a step gathers at once, and how many of them may be padding: those of many short texts share a
# call, and a long text has its own. Measured on a CPU: a call costs about as much as so many keys. Not on a GPU.
GATHERED, PADDING = 16_384, 1024


@dataclass(frozen=True, eq=False)
class Chunk:
    """Several new tokens of one request: a part of its prompt, or tokens that were drafted.

    Arguments:
        tokens: its queries among those of the batch, the last ones of its text.
        length: tokens of its text so far.
        row: its place in the batch.
    """

    tokens: slice
    length: int
    row: int
    profile: BandedProfile
    placed: list[Placed]

    def blocks(self, table: Tensor, size: int) -> Tensor:
        """Those of its text, [1, blocks]."""
        return table[self.row : self.row + 1, : -(-self.length // size)]

    def attend(self, query: Tensor, k: Tensor, v: Tensor, scale: float, mass: float | Tensor) -> Tensor:
        """Attention of its tokens, [n, H, D]."""
        q, k, v = query[self.tokens].transpose(0, 1)[None], k[:, :, : self.length], v[:, :, : self.length]
        return self.profile.attend(q, k, v, self.placed, scale, mass)[0].transpose(0, 1)


@dataclass(frozen=True, eq=False)
class Steps:
    """Requests of one profile that have one new token each.

    Arguments:
        tokens: their queries among those of the batch, [B].
        rows: their places in the batch, [B].
        lengths: tokens of their texts so far, from the shortest to the longest.
    """

    tokens: Tensor
    rows: Tensor
    lengths: Sequence[int]
    profile: BandedProfile
    bands: list[StepBand]
    _blocks: dict[int, Tensor] = field(default_factory=dict, repr=False)  # by the tokens of a block
    _behind: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)  # by the columns of k

    def blocks(self, table: Tensor, size: int) -> Tensor:
        """Those of their texts, [B, blocks]. A shorter text repeats its last block."""
        if size not in self._blocks:
            every = torch.arange(-(-self.lengths[-1] // size))
            last = (torch.tensor(self.lengths) - 1) // size
            self._blocks[size] = torch.minimum(every, last[:, None]).to(table.device)
        return table[self.rows[:, None], self._blocks[size]]

    def attend(self, query: Tensor, k: Tensor, v: Tensor, scale: float, mass: float | Tensor) -> Tensor:
        """Attention of their tokens, [B, H, D]. What k and v have behind the end of a text is overwritten."""
        count = k.shape[2]
        if count not in self._behind:
            behind = torch.arange(count) >= torch.tensor(self.lengths)[:, None]
            rows, columns = behind.nonzero(as_tuple=True)
            self._behind[count] = rows.to(k.device), columns.to(k.device)
        rows, columns = self._behind[count]
        for each in (k, v):  # left by another text, and perhaps infinite: 0 times that is no number
            each[rows, :, columns] = 0.0
        return self.profile.attend_step(query[self.tokens][:, :, None], k, v, self.bands, scale, mass)[:, :, 0]


@dataclass(eq=False)
class Batch:
    """What the attention layers of a model know of the forward that runs.

    Arguments:
        profiles: with bands, by their number.
        numbers: the profile of each request, in the order of the batch; 0 has no bands.
    """

    profiles: dict[int, BandedProfile]
    numbers: Sequence[int] = ()
    _parts: list[Chunk | Steps] | None = field(default=None, repr=False)

    def begin(self, numbers: Sequence[int]) -> None:
        """A forward begins."""
        self.numbers, self._parts = numbers, None

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

    def parts(self, metadata: Any) -> list[Chunk | Steps]:
        """The requests with bands, as they are computed. The first layer that asks works them out."""
        if self._parts is None:
            device, count = metadata.seq_lens.device, len(self.numbers)
            ends, lengths = metadata.query_start_loc[: count + 1].tolist(), metadata.seq_lens[:count].tolist()
            self._parts, single = [], defaultdict(list)
            for row, number in enumerate(self.numbers):
                tokens, length = slice(ends[row], ends[row + 1]), lengths[row]
                new = tokens.stop - tokens.start
                if number and new == 1:
                    single[number].append((length, tokens.start, row))
                elif number and new:
                    profile = self.profiles[number]
                    placed = profile.placed(length - new, length, device)
                    self._parts.append(Chunk(tokens, length, row, profile, placed))
            for number, found in single.items():
                for some in _together(sorted(found)):
                    texts, *where = zip(*some, strict=True)
                    places, rows = (torch.tensor(each, device=device) for each in where)
                    profile = self.profiles[number]
                    self._parts.append(Steps(places, rows, texts, profile, profile.step(texts, device)))
        return self._parts


def _together(single: list[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Requests from the shortest to the longest, in parts whose keys are gathered at once."""
    some: list[tuple[int, ...]] = []
    own = 0  # keys of theirs
    for each in single:
        own += each[0]
        padded = each[0] * (len(some) + 1)
        if some and (padded > GATHERED or padded - own > max(PADDING, own // 10)):
            yield some
            some, own = [], each[0]
        some.append(each)
    if some:
        yield some


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
        for part in self.batch.parts(metadata):
            k, v = self.read(kv_cache, part.blocks(metadata.block_table, size))
            output[part.tokens] = part.attend(query, k, v, impl.scale, self.mass).to(output.dtype)


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
