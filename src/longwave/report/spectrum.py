"""The section of a report that shows what methods do to the frequencies of one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import longwave.report.frequencies as draw
from longwave.report.markup import Markup, element, join, table
from longwave.report.sections import Pen, Section
from longwave.report.trajectories import Banded
from longwave.trajectory import Trajectory


def spectrum(trajectories: Mapping[str, Trajectory], pen: Pen, banded: Mapping[str, Banded] | None = None) -> Section:
    """Trajectories, wavelengths and stretches of methods, all of one rope.

    Arguments:
        banded: attention methods. Those that are in `trajectories`, too, have a scaling method below them.
    """
    above = banded or {}
    kept = [name for name in above if name not in trajectories]
    first = next(iter(trajectories.values()))
    rope, inside = first.rope, draw.turning(first)
    pairs, original = rope.rotary_dim // 2, rope.original_length
    names = ", ".join(trajectories)
    summary = [
        f"{inside} of {pairs} pairs of rotary dimensions complete a rotation within the trained length of {original:,} "
        f"tokens; the other {pairs - inside} never show a full turn in training.",
        *(_sentence(label, trajectory, above.get(label)) for label, trajectory in trajectories.items()),
        *([f"{', '.join(kept)}: frequencies as pre-trained at every t."] if kept else []),
    ]
    body = join(
        element("p", f"Trained length L = {original:,} tokens, {rope.rotary_dim} rotary dimensions.", class_="soft"),
        pen.figure(
            draw.paths(trajectories), f"Trajectories z(t) of all pairs under {names}.",
            "Trajectories: ln θ of each pair against the length factor t. Blue: pairs that complete a rotation within "
            "L before scaling; orange: pairs that do not. A pair below the dashed line completes no rotation within "
            "t·L, the length in use.",
        ),
        pen.figure(
            draw.wavelengths(trajectories), f"Wavelengths by pair before scaling and under {names}.",
            "Wavelengths: tokens that a pair needs for a rotation, as pre-trained and at the largest t. A pair below "
            "a dotted line completes a rotation within that length.",
        ),
        pen.figure(
            draw.stretches(trajectories), f"Frequency stretch of each pair at each t under {names}.",
            "Stretch λ = θ(1)/θ(t) of each pair: 1 leaves a pair as it is, t interpolates it fully.",
        ),
        _table(trajectories),
    )  # fmt: skip
    return Section(f"Frequencies · {names}", summary, body)


def _sentence(label: str, trajectory: Trajectory, above: Banded | None) -> str:
    most = trajectory.max_factor
    snapshot = trajectory.at(most)
    reach = _range(snapshot.stretch.tolist())
    at = f"{label} at t = {most:g}"
    if above is not None:
        at = f"{label} at t = {above.attention.max_factor:g} has the frequencies of {trajectory.name} at t = {most:.4g}"
    return f"{at}: stretch λ {reach}, attention scaling {snapshot.attention_scaling:.3g}."


def _table(trajectories: Mapping[str, Trajectory]) -> Markup:
    steps = sorted({t for trajectory in trajectories.values() for t in draw.factors(trajectory.max_factor)})
    head = [element("th", "method", scope="col"), *(element("th", f"t = {t:g}", scope="col") for t in steps)]
    body = []
    for label, trajectory in trajectories.items():
        cells = [_cell(trajectory, t) for t in steps]
        body.append(element("tr", element("th", label, scope="row"), *cells))
    caption = "Pairs that complete a rotation within the length in use, t·L; below, the range of the stretch λ."
    return table(caption, head, body)


def _cell(trajectory: Trajectory, t: float) -> Markup:
    if t > trajectory.max_factor:
        return element("td", "–")
    reach = _range(trajectory.at(t).stretch.tolist())
    return element("td", str(draw.turning(trajectory, t)), element("small", reach))


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} – {high}"
