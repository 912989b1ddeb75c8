"""Records: complete, strict JSON, comparable in pairs, refused where they are not."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest

from longwave.evaluation.results import NEEDLE, PASSKEY, PERPLEXITY, Record, compare, curves, grids, read, record, write


def entry(length: int, nll: list[float]) -> dict:
    ppl = 2.0 + length / 100
    return {"length": length, "factor": None, "windows": 3, "ppl": ppl, "interval": [ppl - 0.1, ppl + 0.1],
            "ends": [500, 600, 700], "nll": nll, "tokens": [64, 64, 64]}  # fmt: skip


def perplexity_record(*nll: float, label: str = "ntk", **changes: object) -> Record:
    values = [*nll, 70.0, 80.0, 60.0][:3]
    rows = [{"label": label, "method": "ntk", "schedule": "continuous", "max_factor": 4.0, "log_n": 0.0, "own": False,
             "lengths": [entry(256, values), entry(128, values)]}]  # fmt: skip
    arguments = {"model": {"path": "m"}, "settings": {"protocol": "stride"}, "original_length": 128, "rows": rows}
    return record(PERPLEXITY, **arguments | {"data": {"a/book.txt": "5f"}} | changes)


def test_round_trip(tmp_path: Path) -> None:
    value = perplexity_record()
    path = write(tmp_path / "r.json", value)
    assert read(path, PERPLEXITY) == value
    assert json.loads(path.read_text()) == value
    assert {"torch", "transformers", "python"} <= set(value["versions"])
    assert value["command"]


def test_writing_is_refused_or_atomic(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", perplexity_record())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"r\.json exists\. Choose another name or pass --overwrite"):
        write(path, perplexity_record())
    with pytest.raises(ValueError, match="not JSON compliant"):
        write(path, perplexity_record(float("nan")), overwrite=True)
    assert path.read_bytes() == before
    write(path, perplexity_record(1.0), overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_reading_refuses_what_is_no_record(tmp_path: Path) -> None:
    for text, message in (("[]", "is not a record"), ("{", "is not valid JSON"), ('{"schema": 1}', "it lacks some")):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "x.json")
    write(tmp_path / "p.json", perplexity_record())
    with pytest.raises(ValueError, match=r"has schema 'longwave.perplexity/1', expected longwave.passkey/1"):
        read(tmp_path / "p.json", PASSKEY)


def test_a_single_run_keeps_the_interval_of_its_record() -> None:
    (curve,) = curves([perplexity_record()])
    assert (curve.label, curve.runs, curve.lengths) == ("ntk", 1, (128, 256))
    assert (curve.values[0].low, curve.values[0].value, curve.values[0].high) == pytest.approx((3.18, 3.28, 3.38))


def test_runs_of_one_label_become_a_curve_with_a_band() -> None:
    both = curves([perplexity_record(), perplexity_record(90.0), perplexity_record(label="yarn")])
    assert [(curve.label, curve.runs) for curve in both] == [("ntk", 2), ("yarn", 1)]
    value = both[0].values[0]
    assert value.low < value.value < value.high


def one_window(nll: float, end: int = 500) -> Record:
    found = perplexity_record()
    for entry in found["rows"][0]["lengths"]:
        entry |= {"ends": [end], "nll": [nll], "tokens": [64], "ppl": math.exp(nll / 64), "interval": None}
    return found


def test_runs_of_one_window_have_a_mean_and_no_interval() -> None:
    (curve,) = curves([one_window(64.0), one_window(192.0)])
    assert (curve.runs, curve.lengths) == (2, (128, 256))
    for value in curve.values:
        assert value.low == value.value == value.high == pytest.approx(math.exp(2))
    (alone,) = curves([one_window(64.0)])
    assert alone.values[0].low == alone.values[0].value == pytest.approx(math.e)
    for other in (one_window(64.0, end=501), perplexity_record()):
        with pytest.raises(ValueError, match="measured on different windows"):
            curves([one_window(64.0), other])


def test_passkey_runs_add_up() -> None:
    rows = [{"label": "clex", "lengths": [{"length": 256, "correct": [True, True, False, True]}]}]
    one = record(PASSKEY, model={}, settings={}, original_length=128, rows=rows, seed=0)
    (curve,) = curves([one, one])
    assert curve.values[0].value == 0.75
    assert curve.values[0].high - curve.values[0].low < curves([one])[0].values[0].high - 0.30


def test_grids_of_lengths_and_depths() -> None:
    def entry(length: int, *correct: bool) -> dict:
        return {"length": length, "depths": [0.0, 1.0, 0.0, 1.0], "correct": list(correct)}

    rows = [{"label": "ntk", "lengths": [entry(512, False, True, False, False), entry(256, True, True, True, False)]}]
    one = record(NEEDLE, model={}, settings={}, original_length=128, rows=rows, seed=0)
    (grid,) = grids([one])
    assert (grid.label, grid.lengths, grid.depths, grid.runs) == ("ntk", (256, 512), (0.0, 1.0), 1)
    assert grid.rates == ((1.0, 0.0), (0.5, 0.5))
    other = copy.deepcopy(one)
    other["rows"][0]["lengths"][0] = entry(512, True, True, True, True)
    (both,) = grids([one, other])
    assert (both.runs, both.rates) == (2, ((1.0, 0.5), (0.5, 0.75)))
    assert curves([one])[0].values[0].value == 0.75
    with pytest.raises(ValueError, match=r"records of longwave.perplexity/1 have no depths"):
        grids([perplexity_record()])
    with pytest.raises(ValueError, match="differ in their original length"):
        grids([one, {**one, "original_length": 64}])


@pytest.mark.parametrize(
    ("key", "value"),
    [("settings", {"protocol": "overlap"}), ("original_length", 64), ("data", {"a/book.txt": "60"})],
)
def test_what_is_not_comparable_is_not_shown_together(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"the records differ in their {key.replace('_', ' ')}"):
        curves([perplexity_record(), perplexity_record(**{key: value})])


def test_kinds_are_never_drawn_together() -> None:
    with pytest.raises(ValueError, match=r"differ in their schema and cannot be compared. Draw them apart.$"):
        curves([perplexity_record(), {**perplexity_record(), "schema": "longwave.passkey/1"}], mixed=True)


def test_data_is_known_by_its_contents() -> None:
    assert len(curves([perplexity_record(), perplexity_record(data={"elsewhere/book.txt": "5f"})])) == 1


def test_compare_pairs_windows() -> None:
    a = perplexity_record()["rows"][0]["lengths"][0]
    b = copy.deepcopy(a)
    b["nll"] = [value + 6.4 for value in a["nll"]]
    interval = compare([a], [b])
    assert interval.low == pytest.approx(interval.high)
    assert interval.value == pytest.approx(2.718281828**-0.1)
    b["ends"] = [500, 600, 701]
    with pytest.raises(ValueError, match="measured on different windows"):
        compare([a], [b])
