"""Which tokens each protocol scores."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longwave.evaluation.windows import Windows, plan

SETTINGS = {"windows": 0, "targets": 64, "stride": 256}


def scored(windows: Windows) -> list[int]:
    """Positions in the stream of the tokens that are scored, in order."""
    return [p for end, n in zip(windows.ends, windows.scored, strict=True) for p in range(end - n, end)]


@given(st.integers(520, 3000), st.integers(1, 8), st.integers(1, 40))
def test_same_targets_scores_the_same_tokens_once(tokens: int, count: int, targets: int) -> None:
    plans = plan("same-targets", tokens, [128, 64, 512], windows=min(count, (tokens - 512) // targets + 1),
                 targets=targets, stride=1)  # fmt: skip
    assert len({tuple(scored(p)) for p in plans}) == 1
    positions = scored(plans[0])
    assert len(set(positions)) == len(positions)
    assert all(512 <= end <= tokens for end in plans[0].ends)


def test_same_targets_are_spread_over_the_stream() -> None:
    (windows,) = plan("same-targets", 10_000, [1000], **SETTINGS | {"windows": 4})
    assert windows.ends == (1000, 4000, 7000, 10_000)
    (one,) = plan("same-targets", 10_000, [1000], **SETTINGS | {"windows": 1})
    assert one.ends == (5500,)


def test_stride_scores_every_token_but_the_first_once() -> None:
    for windows in plan("stride", 512 * 9, [512, 1024], **SETTINGS):
        assert scored(windows) == list(range(1, 512 * 9))


def test_overlap_scores_whole_windows() -> None:
    (windows,) = plan("overlap", 2000, [512], **SETTINGS)
    assert windows.ends == (512, 768, 1024, 1280, 1536, 1792)
    assert set(windows.scored) == {511}


def test_truncate_takes_the_beginnings_of_the_documents_long_enough_for_every_length() -> None:
    starts = [0, 100, 1000, 1400, 1400, 1700]  # the fifth document is empty
    for length, windows in zip((50, 300), plan("truncate", 2000, [50, 300], **SETTINGS, documents=starts), strict=True):
        assert [end - length for end in windows.ends] == [100, 1000, 1400, 1700]
        assert set(windows.scored) == {length - 1}
    (two,) = plan("truncate", 2000, [300], **SETTINGS | {"windows": 2}, documents=starts)
    assert two.ends == (400, 2000)


def test_chunked_cache_leaves_out_the_first_token_of_each_chunk() -> None:
    (windows,) = plan("chunked-cache", 2000, [500], **SETTINGS, chunk=200)
    assert windows.ends == (500, 1000, 1500, 2000)
    assert [p for p in range(500) if p not in windows.positions()] == [0, 200, 400]
    assert set(windows.scored) == {497}
    (one,) = plan("chunked-cache", 2000, [500], **SETTINGS, chunk=4096)
    assert set(one.scored) == {499}


def test_fewer_windows_are_an_even_selection() -> None:
    (windows,) = plan("stride", 256 * 100, [256], **SETTINGS | {"windows": 4})
    assert windows.ends == (256, 256 * 34, 256 * 67, 256 * 100)
    assert windows.scored == (255, 255, 255, 255)  # the first token of a window has no context


def test_by_default_as_many_windows_as_fit_but_no_more_than_64() -> None:
    few, many = (plan("same-targets", n, [256], **SETTINGS | {"windows": None})[0] for n in (256 + 640, 10**6))
    assert len(few.ends) == 11
    assert len(many.ends) == 64


def test_batches_hold_windows_that_score_alike() -> None:
    (windows,) = plan("stride", 256 * 12, [512], **SETTINGS)
    batches = windows.batches(tokens_per_batch=2048)
    assert [b.stop - b.start for b in batches] == [1, 4, 4, 2]
    assert windows.batches(tokens_per_batch=1)[0] == slice(0, 1)
    with pytest.raises(ValueError, match="tokens per batch must be at least 1, got 0"):
        windows.batches(tokens_per_batch=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"protocol": "chunks"},
            "unknown protocol 'chunks'. Available: same-targets, stride, overlap, truncate, chunked",
        ),
        ({"protocol": "truncate"}, "needs to know where documents start"),
        (
            {"protocol": "truncate", "documents": [0, 100], "lengths": [1901]},
            "none of the 2 documents has 1901 .* has 1900",
        ),
        (
            {"protocol": "truncate", "documents": [0, 900], "lengths": [256, 900], "windows": 3},
            "the data has 2 documents of 900 tokens and more: that is room for 2 windows, not 3",
        ),
        ({"protocol": "truncate", "documents": [5, 3]}, "documents must be ascending places in a stream of 2000"),
        ({"protocol": "truncate", "documents": [0, 2001]}, "documents must be ascending places in a stream of 2000"),
        ({"protocol": "chunked-cache", "chunk": 1}, "chunk must be at least 2 tokens, got 1"),
        ({"lengths": [4096]}, "the data has 2000 tokens, fewer than one window of 4096"),
        ({"windows": 100}, "room for 28 windows, not 100"),
        ({"windows": -1}, "windows must be at least 1"),
        ({"lengths": [64, 256]}, r"shortest length \(64 tokens\) must exceed the 64 targets"),
        ({"targets": 0}, "targets must be at least 1, got 0"),
        ({"stride": 0}, "stride must be at least 1, got 0"),
    ],
)
def test_errors_say_what_is_possible(changes: dict, message: str) -> None:
    arguments = {"protocol": "same-targets", "tokens": 2000, "lengths": [256], **SETTINGS, **changes}
    protocol, tokens, lengths = (arguments.pop(name) for name in ("protocol", "tokens", "lengths"))
    with pytest.raises(ValueError, match=message):
        plan(protocol, tokens, lengths, **arguments)
