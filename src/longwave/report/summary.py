"""What a group of records says, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longwave.evaluation.writing import counted
from longwave.report.groups import Group

ENOUGH_RUNS = 5  # of a row with several runs; a single run is no sample


@dataclass(frozen=True)
class Verdict:
    """What is said of one length. Lengths with equal verdicts share their sentences.

    Arguments:
        best: the rows with the best value.
        chance: a sentence on whether the differences to the other rows could be chance; empty if all rows are equal.
        within: whether the length is within the trained one; False unless all rows are equal.
    """

    best: tuple[str, ...]
    chance: str = ""
    within: bool = False

    @property
    def equal(self) -> bool:
        """Whether all rows are the best."""
        return not self.chance


def summary(group: Group) -> list[str]:
    """Sentences with nothing in them but what the records hold."""
    verdicts: dict[Verdict, list[int]] = {}
    for length in group.lengths:
        best = group.best(length)
        if best:
            verdicts.setdefault(_verdict(group, length, best), []).append(length)
    return [*(_said(group, verdict, lengths) for verdict, lengths in verdicts.items()), *_values(group)]


def _verdict(group: Group, length: int, best: Sequence[str]) -> Verdict:
    if len(best) == len(group.values(length)):
        return Verdict(tuple(best), within=length <= group.original_length)
    return Verdict(tuple(best), _chance(group, length, best))


def _said(group: Group, verdict: Verdict, lengths: Sequence[int]) -> str:
    """Which rows are best at which lengths, and whether that could be chance."""
    quantity = group.quantity
    if verdict.equal:
        values = [quantity.text(group.values(length)[verdict.best[0]].value) for length in lengths]
        at = [f"{value} at {group.ratio(length)}" for value, length in zip(values, lengths, strict=True)]
        who = "Within the trained length, all rows" if verdict.within else "All rows"
        return f"{who} have the same {quantity.measure}: {joined(at)}."
    where = _ratios(group, lengths)
    verb = "has" if len(verdict.best) == 1 else "tie for"
    return f"{joined(verdict.best)} {verb} the {quantity.superlative} {quantity.measure} at {where}. {verdict.chance}"


def _chance(group: Group, length: int, best: Sequence[str]) -> str:
    """Whether the differences of the other rows to the best one could be chance: the second sentence."""
    quantity = group.quantity
    others = [label for label in group.values(length) if label not in best]
    if few := too_few(group, length):
        return f"{few} too few to tell whether {_differences(others)} could be chance."
    level = not_told_apart(group, length, best[0])
    if level is None:
        return "The rows have different windows or numbers of runs, so chance cannot be ruled out."
    level = [label for label in level if label in others]
    rest = [label for label in others if label not in level]
    units = counted(_units(group, length), quantity.unit)
    basis = f"({quantity.intervals}, {units})"
    could = f"{_differences(level, named=bool(rest))} could be chance" if level else ""
    real = f"{_differences(rest)} {'is' if len(rest) == 1 else 'are'} larger than chance explains" if rest else ""
    said = ", but ".join(part for part in (could, real) if part)
    return f"{said[0].upper()}{said[1:]} {basis}."


def too_few(group: Group, length: int) -> str:
    """The start of a sentence that says what is too few to tell rows apart, `3 windows are`; empty if nothing is."""
    quantity = group.quantity
    units = _units(group, length)
    runs = [len(group.entries(label, length)) for label in group.values(length)]
    fewest = min((count for count in runs if count > 1), default=ENOUGH_RUNS)
    for count, enough, noun in ((units, quantity.enough, quantity.unit), (fewest, ENOUGH_RUNS, "run")):
        if count < enough:
            return f"{counted(count, noun)} {'is' if count == 1 else 'are'}"
    return ""


def not_told_apart(group: Group, length: int, best: str) -> list[str] | None:
    """Other rows whose difference to `best` could be chance; None if rows cannot be compared."""
    found = []
    for label in group.values(length):
        if label == best:
            continue
        try:
            between = group.quantity.compare(group.entries(best, length), group.entries(label, length))
        except ValueError:  # other windows, or a number of runs that cannot be paired
            return None
        if group.quantity.equal in between:
            found.append(label)
    return found


def joined(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _units(group: Group, length: int) -> int:
    """Windows or trials at `length`, of the row that has the fewest."""
    entries = [each for label in group.values(length) for each in group.entries(label, length)]
    return min(group.quantity.count(each) for each in entries)


def _differences(labels: Sequence[str], *, named: bool = False) -> str:
    """The differences to other rows, by name if asked for or if there is only one."""
    if len(labels) == 1 or named:
        return f"the difference{'s' * (len(labels) > 1)} to {joined(labels)}"
    return "the differences to the other rows"


def _ratios(group: Group, lengths: Sequence[int]) -> str:
    """Lengths in units of the trained one; three or more neighbours as a range."""
    first = group.lengths.index(lengths[0])
    if len(lengths) > 2 and group.lengths[first : first + len(lengths)] == list(lengths):
        return f"{group.ratio(lengths[0])} to {group.ratio(lengths[-1])}"
    return joined([group.ratio(length) for length in lengths])


def _values(group: Group) -> list[str]:
    """The values of each row at the shortest and the longest length."""
    found = []
    for curve in group.curves:
        at = curve.at()
        ends = dict.fromkeys((group.lengths[0], group.lengths[-1]))
        shown = [length for length in ends if length in at] or [curve.lengths[-1]]
        values = " and ".join(f"{group.quantity.text(at[n].value)} at {group.ratio(n)}" for n in shown)
        found.append(f"{curve.label}: {values}{f', mean of {curve.runs} runs' if curve.runs > 1 else ''}.")
    return found
