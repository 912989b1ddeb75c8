"""Figures of trajectories: where each frequency goes, what its wavelength becomes, how far it is stretched."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from longwave.report.figures import WIDTH, legend, panels
from longwave.report.plots import COLOURS, INK, MARK, blank, style_of, tidy
from longwave.trajectory import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Trajectories = Mapping[str, Trajectory]
POINTS = 49  # of a curve over t


def factors(max_factor: float) -> list[float]:
    """1, 2, 4, ... and the maximum itself."""
    return [*(2.0**k for k in range(math.ceil(math.log2(max_factor)))), float(max_factor)]


def turning(trajectory: Trajectory, t: float = 1.0) -> int:
    """How many pairs complete a rotation within t·L tokens at t."""
    wavelength = 2 * math.pi / trajectory.at(t).inv_freq
    return int((wavelength <= t * trajectory.rope.original_length).sum())


def paths(trajectories: Trajectories) -> Figure:
    """z(t) = ln θ(t) of every pair, a panel for each method.

    Blue pairs complete a rotation within L before scaling, orange pairs do not. A pair below the dashed line,
    ln(2π/(tL)), completes no rotation within t·L, the length in use.
    """
    figure, found = panels(list(trajectories), 3.0)
    for axes, trajectory in zip(found, trajectories.values(), strict=True):
        rope, most = trajectory.rope, trajectory.max_factor
        ts = [most ** (k / (POINTS - 1)) for k in range(POINTS)]
        lines = [trajectory.at(t).inv_freq.log().tolist() for t in ts]
        within = (rope.wavelength <= rope.original_length).tolist()
        for pair, inside in enumerate(within):
            axes.plot(ts, [z[pair] for z in lines], color=COLOURS[0 if inside else 1], linewidth=0.9, alpha=0.85)
        once = [math.log(2 * math.pi / (t * rope.original_length)) for t in ts]
        axes.plot(ts, once, color=INK, linewidth=1.2, linestyle=(0, (5, 3)))
        _factor_axis(axes, most)
        axes.set_ylabel("z = ln θ")
    _share_y(found)
    return figure


def wavelengths(trajectories: Trajectories) -> Figure:
    """Wavelengths 2π/θ of the pairs before scaling and at the largest t of each method, with L and t·L."""
    rope = next(iter(trajectories.values())).rope
    most = max(trajectory.max_factor for trajectory in trajectories.values())
    figure = blank((WIDTH, 4.6))
    axes = tidy(figure.add_subplot())
    pairs = list(range(len(rope.inv_freq)))
    axes.plot(pairs, rope.wavelength.tolist(), color=INK, linewidth=2.2, alpha=0.5, label="pre-trained")
    for index, (label, trajectory) in enumerate(trajectories.items()):
        snapshot = trajectory.at(trajectory.max_factor)
        waves = (2 * math.pi / snapshot.inv_freq).tolist()
        # Signs in turn, so that one line on top of another leaves some of both to be seen.
        style = style_of(index) | {"markersize": 4, "markevery": (index, len(trajectories))}
        axes.plot(pairs, waves, linewidth=1.2, label=f"{label}, t = {trajectory.max_factor:g}", **style)
    axes.set_yscale("log")
    for length, name in ((rope.original_length, "L"), (most * rope.original_length, f"{most:g}·L")):
        axes.axhline(length, color=MARK, linewidth=1, linestyle=":")
        axes.annotate(f"{name} = {length:,.0f}", (0, length), xycoords=axes.get_yaxis_transform(), xytext=(4, 3),
                      textcoords="offset points", fontsize=9, color=MARK)  # fmt: skip
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.minorticks_off()
    _whole_numbers(axes)
    axes.set_xlabel("pair i of rotary dimensions")
    axes.set_ylabel("tokens per rotation, 2π/θ")
    legend(axes)
    return figure


def stretches(trajectories: Trajectories) -> Figure:
    """λ_i = θ_i(1)/θ_i(t) of each pair, a line for each t, a panel for each method."""
    figure, found = panels(list(trajectories), 3.0)
    for axes, trajectory in zip(found, trajectories.values(), strict=True):
        steps = factors(trajectory.max_factor)
        for index, t in enumerate(steps):
            stretch = trajectory.at(t).stretch.tolist()
            strength = 0.25 + 0.75 * index / max(1, len(steps) - 1)
            axes.plot(range(len(stretch)), stretch, color=COLOURS[0], alpha=strength, linewidth=1.5, label=f"t = {t:g}")
        axes.set_yscale("log", base=2)
        axes.set_yticks(steps, [f"{t:g}" for t in steps])
        axes.minorticks_off()
        tidy(axes)
        _whole_numbers(axes)
        axes.set_xlabel("pair i")
        axes.set_ylabel("stretch λ")
    longest = max(found, key=lambda axes: len(axes.lines))  # one legend for all: inside a panel it would hide lines
    figure.legend(*longest.get_legend_handles_labels(), loc="outside upper center", ncols=6, frameon=False, fontsize=9)
    _share_y(found)
    return figure


def _whole_numbers(axes: Axes) -> None:
    """Ticks of an axis that counts pairs."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _factor_axis(axes: Axes, most: float) -> None:
    axes.set_xscale("log", base=2)
    ticks = factors(most)
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.minorticks_off()
    axes.set_xlabel("length factor t")
    tidy(axes)


def _share_y(found: Sequence[Axes]) -> None:
    limits = [axes.get_ylim() for axes in found]
    for axes in found:
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
