import math

import pytest
import torch

from longwave.rope import Rope


def test_frequencies_are_kept_bit_for_bit_and_in_float64():
    inv_freq = 1 / 10_000 ** (torch.arange(0, 64, 2).float() / 64)
    rope = Rope(inv_freq, 4096)
    assert rope.inv_freq.dtype == torch.float64
    assert torch.equal(rope.inv_freq.float(), inv_freq)
    assert torch.equal(rope.log_freq.exp().float(), inv_freq)
    inv_freq.zero_()
    assert (rope.inv_freq > 0).all()


def test_base_is_read_from_the_frequencies_when_not_given():
    rope = Rope(1 / 500_000 ** (torch.arange(0, 128, 2, dtype=torch.float64) / 128), 8192)
    assert rope.base == pytest.approx(500_000, rel=1e-9)
    assert rope.rotary_dim == 128
    assert rope.wavelength[0].item() == pytest.approx(2 * math.pi)


@pytest.mark.parametrize(
    ("inv_freq", "length", "message"),
    [
        (torch.tensor([1.0, 0.0]), 16, "positive"),
        (torch.ones(2, 2), 16, "vector"),
        (torch.ones(2), 1, "at least 2"),
    ],
)
def test_nonsense_is_refused(inv_freq, length, message):
    with pytest.raises(ValueError, match=message):
        Rope(inv_freq, length)
