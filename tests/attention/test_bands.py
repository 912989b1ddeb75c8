"""What holds for the bands of every attention method."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longwave.attention import ATTENTIONS, get_attention
from longwave.attention.bands import Attention
from longwave.schedule import tokens_at

METHODS = sorted(ATTENTIONS)
FLAT = "two-band", "leaky-rerope", "rerope", "self-extend", "dca", "streaming-llm", "lm-infinite"  # no distance over L
LENGTHS = st.integers(32, 400)


def made(name: str, original_length: int = 256, max_factor: float = 32.0, **options: float) -> Attention:
    return get_attention(name).create(original_length=original_length, max_factor=max_factor, **options)


def seen(attention: Attention, t: float, tokens: int) -> torch.Tensor:
    """How many bands have each pair of query and key, [tokens, tokens]."""
    at = torch.arange(tokens, dtype=torch.float64)
    return sum(((band.first(at)[:, None] <= at) & (at < band.last(at)[:, None])).long() for band in attention.bands(t))  # type: ignore[return-value]


@given(st.sampled_from(METHODS), LENGTHS, st.floats(1.01, 4.0))
@settings(max_examples=80, deadline=None)
def test_no_pair_is_in_two_bands_and_none_sees_the_future(name: str, length: int, t: float) -> None:
    tokens = min(int(t * length), 700)
    pairs = seen(made(name, length), t, tokens)
    assert int(pairs.max()) == 1
    assert int(pairs.triu(1).max()) == 0
    assert bool((pairs.diagonal() == 1).all())


@pytest.mark.parametrize("name", ["two-band", "leaky-rerope", "rerope", "self-extend", "dca", "string"])
def test_methods_for_the_whole_context_see_every_key(name: str) -> None:
    assert torch.equal(seen(made(name), 3.0, 500), torch.ones(500, 500).tril().long())


@given(st.sampled_from(METHODS), LENGTHS, st.floats(1.01, 4.0))
@settings(max_examples=40, deadline=None)
def test_the_span_is_the_largest_distance_seen(name: str, length: int, t: float) -> None:
    attention, tokens = made(name, length), tokens_at(t, length)
    at, largest = torch.arange(tokens, dtype=torch.float64), 0.0
    for band in attention.bands(t):
        pairs = (band.first(at)[:, None] <= at) & (at < band.last(at)[:, None])
        follows = 1.0 if band.own or name != "two-band" else attention.factor(t)  # Position Interpolation below it
        distance = band.lead + (band.query(at)[:, None] - band.key(at)) / follows
        largest = max(largest, float(distance[pairs].max()) if bool(pairs.any()) else 0.0)
    assert largest <= attention.span(t)
    # t·L need not be whole; and what remembers a choice may see more than its bands say.
    assert attention.remembers or attention.span(t) <= largest + 2


@pytest.mark.parametrize("length", [64, 256, 2048, 4096])
@pytest.mark.parametrize("name", FLAT)
def test_no_distance_is_over_l_at_a_million_tokens(name: str, length: int) -> None:
    assert made(name, length, 1e6).span(1_000_000 / length) <= length + 1


def test_string_reaches_to_a_third_more() -> None:
    assert made("string", 4096).factor(1.3) == 1 and made("string", 4096).factor(1.4) > 1


@pytest.mark.parametrize("name", METHODS)
def test_the_options_make_the_method_again(name: str) -> None:
    attention = made(name, 256, 16.0)
    again = get_attention(name).create(original_length=256, max_factor=16.0, **attention.options())
    assert again == attention and hash(again) == hash(attention)


def test_defaults_follow_from_l() -> None:
    assert made("two-band").w == 64 and made("two-band").options() == {"reach": 0.75, "mass": 1.0}
    assert made("two-band").span(16.0) == pytest.approx(0.75 * 256)
    assert made("self-extend").state(16.0) == (38,)  # the smallest G with 64 + 4032/G <= 170.7
    assert made("leaky-rerope").state(16.0) == (21.0,)
    assert (made("dca").c, made("dca").s) == (192, 160)
    assert made("streaming-llm").w == 252 and made("lm-infinite").w == 256


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("two-band", {"window": 200}, "window of two-band must be shorter than its reach of 0.75 x 256"),
        ("two-band", {"reach": 0.1}, "must be shorter than its reach"),
        ("two-band", {"window": 0}, "window of two-band must be at least 1, got 0"),
        ("two-band", {"mass": -1.0}, "mass of two-band must be a number >= 0, got -1"),
        ("two-band", {"windwo": 3}, "unknown option of two-band 'windwo'. Did you mean 'window'"),
        ("self-extend", {"group": 2.5}, "group of self-extend must be a whole number"),
        ("dca", {"local": 192}, "local of dca must be less than its reach of 192 tokens"),
        ("string", {"shift": 8, "local": 9}, "local of string must be less than shift 8"),
        ("streaming-llm", {"sinks": -1}, "sinks of streaming-llm must be at least 0"),
    ],
)
def test_options_that_cannot_be(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        made(name, **options)


def test_unknown_methods() -> None:
    with pytest.raises(ValueError, match=r"unknown attention method 'dcaa'\. Did you mean 'dca'"):
        get_attention("dcaa")


class TestIdentities:
    """Methods that become others at the edges of their options."""

    def test_self_extend_in_groups_of_one_and_leaky_rerope_divided_by_one(self) -> None:
        for name, options in (("self-extend", {"group": 1}), ("leaky-rerope", {"divisor": 1.0})):
            assert_same_distances(made(name, **options), lambda d: d)

    def test_leaky_rerope_divided_by_much_is_rerope(self) -> None:
        assert_same_distances(made("leaky-rerope", divisor=1e12), lambda d: d.clamp(max=64))
        assert_same_distances(made("rerope"), lambda d: d.clamp(max=64))

    def test_two_bands_of_reach_l_without_mass_are_leaky_rerope(self) -> None:
        leaky, two = made("leaky-rerope"), made("two-band", reach=1.0, mass=0.0)
        assert two.factor(4.0) == leaky.state(4.0)[0]
        assert_same_distances(leaky, lambda d: torch.where(d < 64, d, 64 + (d - 64) / two.factor(4.0)))

    def test_a_window_over_the_text_is_the_plain_model(self) -> None:
        for name in ("streaming-llm", "lm-infinite"):
            assert_same_distances(made(name, window=2000), lambda d: d)


def assert_same_distances(attention: Attention, distance: object) -> None:
    at = torch.arange(600, dtype=torch.float64)
    for band in attention.bands(4.0):
        pairs = (band.first(at)[:, None] <= at) & (at < band.last(at)[:, None])
        found, expected = band.query(at)[:, None] - band.key(at), distance(at[:, None] - at)  # type: ignore[operator]
        assert torch.allclose(found[pairs], expected[pairs])
