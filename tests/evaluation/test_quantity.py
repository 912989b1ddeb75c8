"""A new evaluation picks a kind of quantity; records, tables, plots, the report and the plot command follow."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

import longwave
from longwave.cli.main import main
from longwave.cli.showing import Showing, show
from longwave.evaluation.curves import curves
from longwave.evaluation.kinds import Loss, Share
from longwave.evaluation.quantity import Quantity
from longwave.evaluation.records import Record, quantity_of, read, record
from longwave.evaluation.registry import EVALUATIONS
from longwave.evaluation.statistics import difference, wilson

ROW = {"method": "ntk", "schedule": "continuous", "max_factor": 4.0, "log_n": 0.0, "own": False}
TRIALS = 40


class Tracing:
    """A toy evaluation, with what the look-up reads of one: how often a variable is traced to its value."""

    schema = "longwave.tracing/1"
    before: ClassVar[dict] = {}
    quantity = Share("Variable tracing", "variables traced", "accuracy", "chain", lambda s: f"{s['hops']} hops")


class Surprise:
    """Another one: a loss, of its own name and key."""

    schema = "longwave.surprise/1"
    before: ClassVar[dict] = {}
    quantity = Loss("Surprise", "surprise per line", "surprise", "page")


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    for toy in (Tracing, Surprise):
        monkeypatch.setitem(EVALUATIONS, toy.__name__.lower(), toy)


def hits(length: int, rate: float) -> dict[str, Any]:
    correct = [trial < rate * TRIALS for trial in range(TRIALS)]
    found = wilson(sum(correct), TRIALS)
    return {"length": length, "factor": length / 64, "trials": TRIALS, "accuracy": found.value,
            "interval": [found.low, found.high], "correct": correct}  # fmt: skip


def losses(length: int, value: float) -> dict[str, Any]:
    nll = [64 * (math.log(value) + 0.1 * (-1) ** page) for page in range(20)]
    return {"length": length, "factor": None, "windows": 20, "surprise": value, "interval": [0.9 * value, 1.1 * value],
            "ends": list(range(100, 2100, 100)), "nll": nll, "tokens": [64] * 20}  # fmt: skip


def tracing() -> Record:
    rows = [{"label": label, **ROW, "lengths": [hits(64, 1), hits(128, rate)]} for label, rate in
            (("ntk", 0.75), ("none", 0.25))]  # fmt: skip
    return record(Tracing.schema, model={"path": "base"}, settings={"hops": 3}, original_length=64, rows=rows, seed=1)


def surprise() -> Record:
    rows = [{"label": label, **ROW, "lengths": [losses(64, 5.0), losses(128, far)]} for label, far in
            (("ntk", 6.0), ("none", 60.0))]  # fmt: skip
    return record(Surprise.schema, model={"path": "base"}, settings={}, original_length=64, rows=rows,
                  data={"book.txt": "aa" * 32})  # fmt: skip


@pytest.mark.parametrize(
    ("made", "shown", "said"),
    [
        (
            tracing,
            ("Variable tracing by context length, base: 3 hops, 40 chains for each length", "75 % 60–86"),
            (
                "Variable tracing",
                "Within the trained length, all rows have the same share of variables traced: 100 % at 1×.",
                "ntk has the highest share of variables traced at 2×. The difference to none is larger than chance "
                "explains (95 % intervals, 40 chains).",
                "Share of variables traced against context length, with 95 % intervals. Higher is better.",
            ),
        ),
        (
            surprise,
            ("Surprise by context length, base: 20 pages", "60.0 ±6.0"),
            (
                "Surprise · book.txt",
                "Within the trained length, all rows have the same surprise per line: 5.00 at 1×.",
                "ntk has the lowest surprise per line at 2×. The difference to none is larger than chance explains "
                "(paired 95 % intervals, 20 pages).",
                "Surprise per line against context length, with 95 % intervals. Lower is better.",
            ),
        ),
    ],
)
def test_a_new_evaluation_is_shown_everywhere(
    made: Any, shown: tuple[str, ...], said: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = made()
    name = found["schema"].removeprefix("longwave.").removesuffix("/1")
    show(found, tmp_path, Showing("base", overwrite=False))
    path = tmp_path / f"{name}.json"
    assert read(path) == found
    printed = " ".join(capsys.readouterr().out.split())
    assert all(part in printed for part in (*shown, f"written: {path} {path.with_suffix('.png')}"))
    with Image.open(path.with_suffix(".png")) as picture:
        assert picture.size == (1200, 720)
    assert main(["plot", f"first={path}", str(path), "-o", str(tmp_path / "again.svg")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "first: ntk" in printed and shown[1] in printed
    assert (tmp_path / "again.svg").stat().st_size > 10_000
    assert main(["report", str(path), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert all(part in page for part in said)
    assert page.count("<svg") == 1  # neither has depths or positions


def test_a_damaged_record_of_a_new_evaluation_is_named(tmp_path: Path) -> None:
    for made, key in ((tracing(), "accuracy"), (surprise(), "surprise")):
        del made["rows"][0]["lengths"][1][key]
        (tmp_path / "r.json").write_text(json.dumps(made))
        with pytest.raises(ValueError, match=rf"r\.json is damaged: an entry of lengths lacks {key}"):
            read(tmp_path / "r.json")


def change_correct(entry: dict[str, Any]) -> None:
    entry["correct"][0] = 1


@pytest.mark.parametrize(
    ("made", "change", "complaint"),
    [
        (surprise, lambda entry: entry["nll"].pop(), "ends has 20 values, nll has 19 values, tokens has 20 values"),
        (surprise, lambda entry: entry.update(nll=["1"] * 20), "nll[0] is '1' where a number must be"),
        (surprise, lambda entry: entry.update(length=True), "length is True where a number must be"),
        (surprise, lambda entry: entry.update(factor="2"), "factor is '2' where a number must be"),
        (tracing, change_correct, "its correct must be true or false for each trial"),
        (tracing, lambda entry: entry.update(correct=[]), "its correct must be a list that is not empty"),
    ],
)
def test_values_of_windows_and_trials_are_checked(made: Any, change: Any, complaint: str, tmp_path: Path) -> None:
    found = made()
    change(found["rows"][0]["lengths"][0])
    (tmp_path / "r.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match=re.escape(complaint)):
        read(tmp_path / "r.json")


def test_every_evaluation_has_a_quantity_and_an_own_schema() -> None:
    found = [each.schema for each in EVALUATIONS.values()]
    assert len(set(found)) == len(found)
    assert all(isinstance(each.quantity, Quantity) for each in EVALUATIONS.values())


def test_a_record_without_lengths_is_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"task": "niah", "metric": "exact", "value": 0.5, "samples": 4}]
    made = record("longwave.tasks/1", model={}, settings={}, original_length=64, rows=rows)
    with pytest.raises(ValueError, match=r"'longwave\.tasks/1' has no lengths"):
        quantity_of(made)
    (tmp_path / "tasks.json").write_text(json.dumps(made))
    assert main(["plot", str(tmp_path / "tasks.json")]) == 1
    assert "tasks.json has no lengths to plot. `longwave report` shows records of tasks." in capsys.readouterr().err
    assert main(["report", str(tmp_path / "tasks.json"), "-o", str(tmp_path / "t.html")]) == 0


def test_same_targets_at_other_places_are_refused_by_curves_as_by_the_report() -> None:
    made = {**surprise(), "settings": {"protocol": "same-targets", "targets": 64}}
    other = copy.deepcopy(made)
    for row in other["rows"]:
        row["label"] += " moved"
    assert len(curves([made, other])) == 4
    for entry in (entry for row in other["rows"] for entry in row["lengths"]):
        entry["ends"] = [end + 1 for end in entry["ends"]]
    with pytest.raises(ValueError, match="the records differ in their targets and cannot be compared"):
        curves([made, other])
    assert len(curves([made, other], mixed=True)) == 4


def test_a_map_needs_a_place() -> None:
    with pytest.raises(ValueError, match="`place` must say what lies at a depth"):
        Share("Retrieval", "needles retrieved", "rate", mapped=True)


@pytest.mark.parametrize(
    ("a", "b", "apart"), [(12, 0, True), (9, 0, True), (7, 6, False), (3, 0, False), (0, 0, False)]
)
def test_shares_are_told_apart_by_their_difference(a: int, b: int, apart: bool) -> None:
    found = difference(wilson(a, 12), wilson(b, 12))
    assert found.value == pytest.approx((a - b) / 12)
    assert found.low <= found.value <= found.high
    assert (0 not in found) == apart


def test_the_interval_of_a_difference_is_newcombes() -> None:
    """Newcombe (1998), table II, example (a): 56 of 70 against 48 of 80, method 10."""
    found = difference(wilson(56, 70), wilson(48, 80))
    assert (found.low, found.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_no_schema_is_named_where_records_are_shown() -> None:
    """The report and the commands ask the quantity: an evaluation they would have to know could not be added."""
    package = Path(longwave.__file__).parent
    names = re.compile(r"\b(LOSSES|KNOWN|KINDS|LONGPPL)\b|longwave\.(perplexity|longppl|passkey|needle|tasks)/\d")
    shown = ["plot", "report", "showing", "evaluating", "progressing", "comparing"]
    files = [*(package / "report").glob("*.py"), *(package / "cli" / f"{name}.py" for name in shown)]
    assert len(files) > 15
    assert [path.name for path in files if names.search(path.read_text())] == []
