"""The section of a report that shows at which distance an attention method sees each key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longwave.report.figures import panels
from longwave.report.markup import element, join
from longwave.report.plots import COLOURS, MARK, tidy
from longwave.report.sections import Pen, Section
from longwave.report.trajectories import Banded
from longwave.schedule import tokens_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 4096  # of a line over distances; all of them in a shorter text
FACTORS = (2.0, 4.0, 16.0)


@dataclass(frozen=True, eq=False)
class Line:
    """The keys of one band, as the last query of a text sees them.

    Arguments:
        true: true distances in tokens, ascending.
        seen: the distances that the model sees; NaN where the band does not have the key.
    """

    true: Tensor
    seen: Tensor


def lines(method: Banded, t: float) -> list[Line]:
    """The distances of each band for the last query of t·L tokens.

    A band that follows the trajectory is stretched by its slowest pair: under Position Interpolation all pairs agree.
    """
    attention, trajectory = method.attention, method.trajectory
    tokens = tokens_at(t, attention.original_length)
    last = torch.tensor([tokens - 1.0], dtype=torch.float64)
    true = _distances(tokens)
    at = min(attention.factor(t), trajectory.max_factor)
    stretch = float(trajectory.at(at).stretch.max())
    found = []
    for band in attention.bands(t):
        keys = last - true
        seen = (band.query(last) - band.key(keys)) / (1.0 if band.own else stretch) + band.lead
        has = (band.first(last) <= keys) & (keys < band.last(last))
        found.append(Line(true, seen.masked_fill(~has, float("nan"))))
    return found


def factors_shown(most: float) -> list[float]:
    """2, 4 and 16 as far as they are in range, and the largest t."""
    return sorted({t for t in FACTORS if t < most} | {most})


def figure(methods: Mapping[str, Banded]) -> Figure:
    """True distance against the distance that the model sees, a panel for each method, a colour for each band."""
    made, found = panels(list(methods), 3.0)
    for axes, method in zip(found, methods.values(), strict=True):
        length, shown = method.attention.original_length, factors_shown(method.attention.max_factor)
        longest = tokens_at(shown[-1], length)
        axes.plot([1, longest], [1, longest], color=MARK, linewidth=1, linestyle=":")
        axes.axhline(length, color=MARK, linewidth=1, linestyle="--")
        for index, t in enumerate(shown):
            strength = 0.35 + 0.65 * (index + 1) / len(shown)
            for band, line in enumerate(lines(method, t)):
                colour = COLOURS[band % len(COLOURS)]
                axes.plot(line.true.tolist(), line.seen.tolist(), color=colour, alpha=strength, linewidth=1.6)
        _token_axes(axes, length, longest)
    return made


def distances(methods: Mapping[str, Banded], pen: Pen) -> Section:
    """The distances of attention methods, all of one rope."""
    names = ", ".join(methods)
    length = next(iter(methods.values())).attention.original_length
    drawn = pen.figure(
        figure(methods), f"True distance of a key and the distance that the model sees, under {names}.",
        "Distance that the model sees against the true distance of a key, for the last query of t·L tokens; a line for "
        f"each t ({_factors(methods)}), the largest strongest, and a colour for each band. Dotted: the true distance. "
        "Dashed: L. A key without a line is not seen. Where frequencies change, the slowest pair counts.",
    )  # fmt: skip
    about = element("p", f"Trained length L = {length:,} tokens.", class_="soft")
    return Section(f"Distances · {names}", [_sentence(*each) for each in methods.items()], join(about, drawn))


def _sentence(name: str, method: Banded) -> str:
    most = method.attention.max_factor
    every = torch.stack([line.seen for line in lines(method, most)])
    farthest = float(every.nan_to_num(0.0).max()) / method.attention.original_length
    hidden = "All keys are seen."
    if method.attention.changes == "visible keys":  # a selection chooses its keys within a band
        hidden = (
            "Keys between its bands are not seen."
            if bool(every.isnan().all(0).any())
            else "The method chooses which keys are seen."
        )
    return f"{name} at t = {most:g}: no key is farther than {farthest:.2f} L for the model. {hidden}"


def _factors(methods: Mapping[str, Banded]) -> str:
    every = {t for method in methods.values() for t in factors_shown(method.attention.max_factor)}
    return ", ".join(f"{t:g}" for t in sorted(every))


def _distances(tokens: int) -> Tensor:
    """Distances 0 ... tokens - 1, or so many of them, evenly in logarithms, that a line looks the same."""
    if tokens <= POINTS:
        return torch.arange(tokens, dtype=torch.float64)
    steps = torch.logspace(0, torch.tensor(tokens - 1.0).log10().item(), POINTS, dtype=torch.float64).round()
    return torch.cat([torch.zeros(1, dtype=torch.float64), steps.clamp(max=tokens - 1)]).unique()


def _token_axes(axes: Axes, length: int, longest: int) -> None:
    """Both axes in units of L: equal steps are doublings."""
    shares = {length / 16: "L/16", length / 4: "L/4", length: "L", 4 * length: "4L", 16 * length: "16L"}
    for set_scale, set_ticks in ((axes.set_xscale, axes.set_xticks), (axes.set_yscale, axes.set_yticks)):
        set_scale("log", base=2)
        ticks = [place for place in shares if place <= longest]
        set_ticks(ticks, [shares[place] for place in ticks])
    axes.set_xlim(length / 16, longest)
    axes.set_ylim(length / 16, longest)
    axes.minorticks_off()
    tidy(axes)
    axes.set_xlabel("true distance")
    axes.set_ylabel("distance seen")
