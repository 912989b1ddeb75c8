"""Where the pairs of a head's dimensions lie that a rotary embedding turns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Which dimensions are turned, and which of them make a pair.

    Arguments:
        interleaved: pairs are (0, 1), (2, 3), ...; otherwise (0, R/2), (1, R/2 + 1), ...
        at_end: the last R of the D dimensions are turned; otherwise the first R.
        backwards: pairs are turned by the negative angle.
    """

    interleaved: bool = False
    at_end: bool = False
    backwards: bool = False

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turn pairs by their angles, in float32 or better, and return the type of x.

        Arguments:
            x: [B, H, n, D].
            cos, sin: [B or 1, 1, n, R/2], times the scaling where there is one.
        """
        half = cos.shape[-1]
        start = x.shape[-1] - 2 * half if self.at_end else 0
        if self.interleaved:
            one, two = slice(start, start + 2 * half, 2), slice(start + 1, start + 2 * half, 2)
        else:
            one, two = slice(start, start + half), slice(start + half, start + 2 * half)
        wide = torch.promote_types(x.dtype, torch.float32)
        direct = x.dtype == wide and not (torch.is_grad_enabled() and (x.requires_grad or cos.requires_grad))
        a, b = x[..., one].to(wide), x[..., two].to(wide)
        cos, sin = cos.to(wide), -sin.to(wide) if self.backwards else sin.to(wide)
        turned = torch.empty(x.shape, dtype=x.dtype, device=x.device) if not x.requires_grad else x.clone()
        if x.shape[-1] > 2 * half:
            kept = slice(0, start) if self.at_end else slice(2 * half, None)
            turned[..., kept] = x[..., kept]
        if direct:  # no tensors between
            torch.mul(a, cos, out=turned[..., one]).addcmul_(b, sin, value=-1)
            torch.mul(b, cos, out=turned[..., two]).addcmul_(a, sin)
            return turned
        turned[..., one] = (a * cos - b * sin).to(x.dtype)
        turned[..., two] = (b * cos + a * sin).to(x.dtype)
        return turned


LAYOUTS = tuple(
    Layout(interleaved, at_end, backwards)
    for backwards in (False, True)
    for at_end in (False, True)
    for interleaved in (False, True)
)
