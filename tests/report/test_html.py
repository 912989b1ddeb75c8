"""The report is one file that needs nothing else, escapes what it is given, and says what the records say."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import CHROMIUM, browser
from examples import LENGTHS, metrics, perplexity, retrieval

from longwave.evaluation.records import is_ours
from longwave.evaluation.results import NEEDLE, PASSKEY, Record
from longwave.methods import METHODS
from longwave.report.groups import grouped, told_apart
from longwave.report.html import page
from longwave.report.markup import Markup, element
from longwave.report.plots import curve_figure, save
from longwave.report.sources import RecordFile, Training, check_metrics, read_source, read_training
from longwave.report.summary import summary
from longwave.rope import Rope

EVIL = '"><script>alert(1)</script><img src=x onerror=alert(2)>&amp;'
VOID = {"meta", "link", "br", "wbr"}


class Read(HTMLParser):
    """Elements, ids and text of a page; an element that is not closed in order is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, name: str) -> list[str]:
        """Values of an attribute."""
        return [attrs[name] or "" for _, attrs in self.elements if name in attrs]

    def tags(self, name: str) -> int:
        return sum(tag == name for tag, _ in self.elements)


def sources(*records: Record) -> list[RecordFile]:
    return [RecordFile(Path(f"run{index}/record.json"), value) for index, value in enumerate(records)]


@pytest.fixture(scope="module")
def full() -> str:
    """A page with everything in it, foreign strings where there may be some."""
    rope = Rope(10_000.0 ** -(torch.arange(0, 16, 2) / 16), 64)
    made = perplexity({"none": (5, 50, 500), EVIL: (5, 6, 7)}, data={EVIL: "bb" * 32}, positions=8, protocol="overlap")
    made["command"] = f"longwave perplexity {EVIL}"
    found = sources(
        made,
        perplexity({"none": (5, 40, 400), "ntk": (5, 6, 7)}),
        retrieval({"none": (1, 0, 0), "ntk": (1, 1, 0.5)}),
        retrieval({"ntk": (1, 0.75, 0.25)}, NEEDLE),
    )
    record = {"status": "finished", "command": EVIL, "config": {"lr": 1e-4}, "seed": 3, "versions": {"torch": EVIL}}
    return page(
        found,
        trainings=[Training(Path("out/metrics.jsonl"), metrics(), record)],
        trajectories={name: METHODS[name].build(rope, 4.0) for name in ("none", "linear", "ntk", "yarn")},
        title=f"Title {EVIL}",
    )


def test_rows_name_the_longest_window_they_were_trained_on() -> None:
    """A section marks what lies beyond it: in the table, the figure and the grid; older records have no mark."""
    made = [perplexity({"tuned": (5, 6, 7), "ntk": (5, 60, 70)}), retrieval({"tuned": (1, 1, 0.5)})]
    assert "extrapolation" not in page(sources(*made))
    for each in made:
        each["rows"][0]["trained_length"] = 128
    text = page(sources(*made))
    found = Read(text).text
    assert {"≤ 2×", "7.00*", "trained", "50 %*", "256*"} <= set(found)
    assert not {"6.00*", "70.0*"} & set(found)  # within the window, and a row of which nothing is known
    for mark in ("Hollow", "A number with *"):
        assert f"{mark}: extrapolation, longer than the longest window that the row was trained on." in text
    assert "hollow: longer than the longest window that the row was trained on (not known: ntk)" in text
    assert found.count("unknown") == 1 and "128" in found


def test_nothing_is_loaded(full: str) -> None:
    read = Read(full)
    assert not {tag for tag, _ in read.elements} & {"script", "img", "iframe", "object", "embed", "image", "base"}
    assert read.all("src") == read.all("srcset") == read.all("xlink:href") == []
    targets = read.all("href")
    assert targets.count("data:,") == 1
    ids = read.all("id")
    assert {target for target in targets if target != "data:,"} <= {f"#{name}" for name in ids}
    assert set(re.findall(r"url\(([^)]*)\)", full)) <= {f"#{name}" for name in ids}
    assert "@import" not in full
    assert "http" not in full.replace("http-equiv", "")


def test_ids_are_unique_and_no_handler_is_an_attribute(full: str) -> None:
    read = Read(full)
    ids = read.all("id")
    assert len(ids) == len(set(ids)) > 10
    assert not [name for _, attrs in read.elements for name in attrs if name.startswith("on")]


def test_foreign_strings_are_text(full: str) -> None:
    text = "".join(Read(full).text)
    assert text.count(EVIL) >= 5  # title, row, file name, two commands
    assert "<script" not in full


def test_markup_escapes_text_and_attributes_only_once() -> None:
    inner = element("b", "a < b")
    made = element("p", inner, 3, None, class_="x", data_y='"<', hidden=True, title=None)
    assert made == '<p class="x" data-y="&quot;&lt;" hidden><b>a &lt; b</b>3</p>'
    assert isinstance(made, Markup)


def test_every_section_has_its_figures_table_and_provenance(full: str) -> None:
    headings = re.findall(r"<h2[^>]*>(.*?)</h2>", full)
    kinds = [heading.split(" · ")[0] for heading in headings]
    assert kinds == ["In short", "Perplexity", "Perplexity", "Passkey retrieval", "Needle retrieval", "Training",
                     "Frequencies"]  # fmt: skip
    parts = re.split(r"<h2", full)[2:]
    # A line and three figures by position; a line; a line and a heat map, twice; curves and a histogram; three.
    assert [part.count("<svg") for part in parts] == [4, 1, 2, 2, 2, 3]
    assert [part.count("What made it") for part in parts] == [1, 1, 1, 1, 1, 0]
    assert all("<caption>" in part for part in (*parts[:4], parts[5]))
    described = [attrs for tag, attrs in Read(full).elements if tag == "svg"]
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in described)
    assert all(
        n in full for n in ("bb" * 32, "same-targets", "continuous", "gradient norm", "all parameters", "depth in %")
    )


def test_figures_follow_the_colour_scheme(full: str) -> None:
    style = full[full.index("<style>") : full.index("</style>")]
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    defined = [set(re.findall(r"(--[\w-]+):", part)) for part in (light, dark.split("\n}\n")[0])]
    used = set(re.findall(r"var\((--[\w-]+)\)", full))
    assert used <= defined[0] == defined[1]
    drawings = "".join(re.findall(r"<svg.*?</svg>", full, re.DOTALL))
    assert "var(--c1)" in drawings
    assert not re.search(r"(?:fill|stroke|color)[:=]\s*\"?(?:#|rgb|black|white)", drawings)
    assert "<style" not in drawings


@pytest.mark.parametrize(
    ("other", "apart"),
    [
        ({"protocol": "stride"}, True),
        ({"data": {"book.txt": "cc" * 32}}, True),
        ({"original_length": 128}, True),
        ({"data": {"moved/book.txt": "aa" * 32}}, False),
        ({"model": "other"}, False),
    ],
)
def test_what_cannot_be_compared_is_never_in_one_section(other: dict[str, Any], apart: bool) -> None:
    found = grouped(sources(perplexity({"ntk": (5, 6, 7)}), perplexity({"yarn": (5, 6, 7)}, **other)))
    assert [list(group.rows) for group in found] == ([["ntk"], ["yarn"]] if apart else [["ntk", "yarn"]])


def test_same_targets_at_other_places_are_other_targets() -> None:
    moved = perplexity({"yarn": (5, 6, 7)})
    for entry in moved["rows"][0]["lengths"]:
        entry["ends"] = [end + 1 for end in entry["ends"]]
    assert len(grouped(sources(perplexity({"ntk": (5, 6, 7)}), moved))) == 2


def test_equal_labels_are_runs_only_under_other_training_seeds() -> None:
    values = {"clex": (5, 6, 7)}
    seeds = [perplexity(values, model=f"out{seed}", training_seed=seed, own=True) for seed in range(2)]
    (group,) = grouped(sources(*seeds))
    assert [(curve.label, curve.runs) for curve in group.curves] == [("clex", 2)]
    (group,) = grouped(sources(perplexity(values, model="a"), perplexity(values, model="b")))
    assert list(group.rows) == ["clex (a)", "clex (b)"]
    (group,) = grouped(sources(perplexity(values), perplexity(values)))
    assert list(group.rows) == ["clex (run0/record.json)", "clex (run1/record.json)"]
    (group,) = grouped([RecordFile(Path("r.json"), perplexity(values))] * 2)
    assert list(group.rows) == ["clex (r.json)", "clex (r.json) #2"]


def test_summary_says_what_the_records_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.WINDOWS", 16)
    made = perplexity({"none": (5, 50, 500), "ntk": (5, 6, 7.07), "yarn": (5, 5.5, 7)})
    for window in (0, 1):  # so that yarn is better in some windows and worse in others
        made["rows"][2]["lengths"][2]["nll"][window] += 20 * (-1) ** window
    (group,) = grouped(sources(made))
    assert summary(group) == [
        "Within the trained length, all rows have the same perplexity: 5.00 at 1×.",
        "yarn has the lowest perplexity at 2×. The differences to the other rows are larger than chance explains "
        "(paired 95 % intervals, 16 windows).",
        "yarn has the lowest perplexity at 4×. The difference to ntk could be chance, but the difference to none is "
        "larger than chance explains (paired 95 % intervals, 16 windows).",
        "none: 5.00 at 1× and 500 at 4×.",
        "ntk: 5.00 at 1× and 7.07 at 4×.",
        "yarn: 5.00 at 1× and 7.00 at 4×.",
    ]
    (group,) = grouped(sources(retrieval({"none": (1, 0.5, 0), "ntk": (1, 0.75, 0)})))
    assert summary(group)[:3] == [
        "Within the trained length, all rows have the same share of passkeys retrieved: 100 % at 1×.",
        "ntk has the highest share of passkeys retrieved at 2×. The difference to none could be chance "
        "(95 % intervals, 12 trials).",
        "All rows have the same share of passkeys retrieved: 0 % at 4×.",
    ]


def test_what_holds_at_several_lengths_is_said_once() -> None:
    (group,) = grouped(sources(retrieval({"none": (0.5, 0.25, 0), "ntk": (1, 0.75, 0)})))
    assert summary(group)[:2] == [
        "ntk has the highest share of passkeys retrieved at 1× and 2×. The difference to none is larger than chance "
        "explains (95 % intervals, 12 trials).",
        "All rows have the same share of passkeys retrieved: 0 % at 4×.",
    ]


@pytest.mark.parametrize(
    ("windows", "runs", "said"),
    [
        (1, 1, "1 window is too few to tell whether the difference to yarn could be chance."),
        (15, 1, "15 windows are too few to tell whether the difference to yarn could be chance."),
        (15, 5, "15 windows are too few to tell whether the difference to yarn could be chance."),
        (16, 1, "The difference to yarn is larger than chance explains (paired 95 % intervals, 16 windows)."),
        (16, 2, "2 runs are too few to tell whether the difference to yarn could be chance."),
        (16, 4, "4 runs are too few to tell whether the difference to yarn could be chance."),
        (16, 5, "The difference to yarn is larger than chance explains (paired 95 % intervals, 16 windows)."),
    ],
)
def test_few_windows_or_runs_tell_nothing_apart(
    windows: int, runs: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("examples.WINDOWS", windows)
    rows = {"ntk": (5, 6, 7), "yarn": (6, 7, 8)}
    (group,) = grouped(sources(*(perplexity(rows, model=f"out{n}", training_seed=n, own=True) for n in range(runs))))
    assert summary(group)[0] == f"ntk has the lowest perplexity at 1× to 4×. {said}"


def test_a_single_run_beside_few_runs_is_not_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.WINDOWS", 16)
    trained = [perplexity({"clex": (5, 6, 7)}, model=f"out{n}", training_seed=n, own=True) for n in range(3)]
    (group,) = grouped(sources(perplexity({"ntk": (6, 7, 8)}), *trained))
    assert summary(group)[0] == (
        "clex has the lowest perplexity at 1× to 4×. "
        "3 runs are too few to tell whether the difference to ntk could be chance."
    )


def test_other_windows_or_unequal_runs_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.WINDOWS", 16)
    moved = perplexity({"yarn": (6, 7, 8)}, protocol="stride")
    for entry in moved["rows"][0]["lengths"]:
        entry["ends"] = [end + 1 for end in entry["ends"]]
    (group,) = grouped(sources(perplexity({"ntk": (5, 6, 7)}, protocol="stride"), moved))
    assert summary(group)[0].endswith("different windows or numbers of runs, so chance cannot be ruled out.")
    runs = [perplexity({"clex": (5, 6, 7)}, model=f"a{n}", training_seed=n, own=True) for n in range(5)]
    runs += [perplexity({"yarn": (6, 7, 8)}, model=f"b{n}", training_seed=n, own=True) for n in range(6)]
    (group,) = grouped(sources(*runs))
    assert summary(group)[0].endswith("different windows or numbers of runs, so chance cannot be ruled out.")


def test_equal_shares_tie() -> None:
    (group,) = grouped(sources(retrieval({"none": (1, 0, 0), "ntk": (1, 0.75, 0), "yarn": (1, 0.75, 0)})))
    assert summary(group)[1] == (
        "ntk and yarn tie for the highest share of passkeys retrieved at 2×. "
        "The difference to none is larger than chance explains (95 % intervals, 12 trials)."
    )


@pytest.mark.parametrize("label", [r"$\foo$", "a$b$c", r"\$1"])
def test_a_label_is_never_a_formula(label: str, tmp_path: Path) -> None:
    found = sources(
        perplexity({label: (5, 6, 7), "ntk": (6, 7, 8)}, positions=8, protocol="overlap"),
        retrieval({label: (1, 0.5, 0)}),
    )
    drawn = re.findall(r"<svg.*?</svg>", page(found), re.DOTALL)
    # A line and three figures by position, a line and a heat map.
    assert ["".join(Read(each).text).count(label) for each in drawn] == [1] * 6
    for index, source in enumerate(found):
        (group,) = grouped([source])
        figure = curve_figure(group.curves, group.quantity, original_length=64, title=label, subtitle=label)
        path = save(figure, tmp_path / f"{index}.png")
        assert path.stat().st_size > 10_000


def test_names_of_rows_stand_above_a_figure_that_scrolls() -> None:
    text = page(sources(perplexity({"ntk": (5, 6, 7), "yarn": (5, 6, 7)})))
    assert '<span class="k1">ntk</span><span class="k2">yarn</span>' in text


def test_records_of_one_kind_have_titles_of_their_own(tmp_path: Path) -> None:
    first, second = sources(perplexity({"ntk": (5, 6, 7)}), perplexity({"ntk": (5, 6, 7)}))
    second.record["settings"] = {**second.record["settings"], "windows": 7}
    titles = [group.title for group in told_apart(grouped([first, second]))]
    assert len(set(titles)) == 2 and all(titles)


def test_rows_of_other_lengths_leave_a_gap(tmp_path: Path) -> None:
    short = perplexity({"yarn": (5, 6, 7)}, model="other")
    del short["rows"][0]["lengths"][1]
    text = page(sources(perplexity({"ntk": (5, 6, 7)}), short))
    assert text.count("<td>–</td>") == 1


def test_one_window_has_no_interval_and_no_comparison() -> None:
    made = perplexity({"ntk": (5, 6, 7), "yarn": (5, 7, 8)})
    for entry in (entry for row in made["rows"] for entry in row["lengths"]):
        entry |= {"interval": None, "windows": 1} | {key: entry[key][:1] for key in ("ends", "nll", "tokens")}
    text = page(sources(made))
    assert "1 window is too few to tell whether the difference to yarn could be chance" in text
    assert "<small>" not in text


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda r: r.pop("rows"), "lacks some of"),
        (lambda r: r.update(rows=[]), "its rows must be a list that is not empty"),
        (lambda r: r.pop("settings"), "the record lacks settings"),
        (lambda r: r["rows"][0].pop("schedule"), "a row lacks schedule"),
        (lambda r: r["rows"][0]["lengths"][1].pop("nll"), "an entry of lengths lacks nll"),
        (lambda r: r["rows"][0]["lengths"][1].update(ppl="6"), "ppl is '6' where a number must be"),
        (lambda r: r["rows"][0]["lengths"][1].update(ppl=float("nan")), "ppl is nan where a number must be"),
        (
            lambda r: r["rows"][0]["lengths"][1].update(interval=[1]),
            "values in interval is 1 and must be 2",
        ),
        (lambda r: r["rows"][0]["lengths"][1].update(interval=[1, "2"]), "interval[1] is '2' where a number must be"),
        (lambda r: r["rows"][0]["lengths"][1].update(by_position=[{"start": 0}]), "end is None"),
        (
            lambda r: r["rows"][0]["lengths"][1].update(by_position=7),
            "its by_position must be a list",
        ),
        (lambda r: r["rows"][0]["lengths"][1]["nll"].__setitem__(3, None), "nll[3] is None where a number must be"),
        (lambda r: r.update(model="base"), "its model must be an object"),
        (lambda r: r.update(data=["book.txt"]), "its data must be an object or null"),
        (lambda r: r.update(original_length=0), "original_length is 0 where a whole number from 1 on must be"),
        (lambda r: r["rows"][0].update(label=["ntk"]), "label is ['ntk'] where text must be"),
        (lambda r: r["rows"][0]["lengths"][0].update(length=-64), "length is -64 where a whole number from 1 on must"),
        (lambda r: r.update(schema="longwave.perplexity/9"), "has schema 'longwave.perplexity/9'"),
    ],
)
def test_a_damaged_record_is_named(change: Any, complaint: str, tmp_path: Path) -> None:
    made = perplexity({"ntk": (5, 6, 7)})
    path = tmp_path / "perplexity.json"
    path.write_text(json.dumps(made))
    assert read_source(path).record == made
    change(made)
    path.write_text(json.dumps(made))
    with pytest.raises(ValueError, match=r"perplexity\.json .*") as error:
        read_source(path)
    assert complaint in str(error.value)


@pytest.mark.parametrize("schema", [PASSKEY, NEEDLE])
def test_a_depth_too_many_is_noticed(schema: str, tmp_path: Path) -> None:
    made = retrieval({"ntk": (1, 0.5, 0)}, schema)
    made["rows"][0]["lengths"][2]["depths"].append(0.5)
    (tmp_path / "r.json").write_text(json.dumps(made))
    with pytest.raises(ValueError, match="the number of values in depths is 13 and must be 12"):
        read_source(tmp_path / "r.json")


def test_a_cut_off_record_is_still_known_as_ours(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(perplexity({"ntk": (5, 6, 7)}))[:300])
    assert is_ours(path)
    with pytest.raises(ValueError, match="not valid JSON"):
        read_source(path)
    path.write_text('{"schema": "other"}')
    assert not is_ours(path)


@pytest.mark.parametrize(
    "rows", [[], [{"step": 1}], [{"step": 1, "loss": "x"}], [{"step": 1, "loss": float("inf")}], [3]]
)
def test_metrics_that_cannot_be_drawn_are_named(rows: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"out/metrics\.jsonl"):
        check_metrics(rows, Path("out/metrics.jsonl"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[1]", "holds no JSON object, but a list"),
        ('{"config": [1]}', "its config must be an object or null"),
        ('{"data": ["book.txt"]}', "its data must be an object or null"),
        ('{"versions": "1.0"}', "its versions must be an object or null"),
        ('{"seed": [1]}', "seed is [1] where a number must be"),
    ],
)
def test_a_damaged_record_of_a_training_is_named(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    (tmp_path / "training.json").write_text("{}")
    assert read_training(tmp_path / "metrics.jsonl").record == {}
    (tmp_path / "training.json").write_text(text)
    with pytest.raises(ValueError, match=r"training\.json ") as error:
        read_training(tmp_path / "metrics.jsonl")
    assert complaint in str(error.value) and "\n" not in str(error.value)


def test_metrics_of_one_step_and_nothing_to_report() -> None:
    assert "1 step, 512 tokens. Loss 2.950" in page([], trainings=[Training(Path("out/metrics.jsonl"), metrics(1))])
    with pytest.raises(ValueError, match="nothing to report"):
        page([])


@pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium to render in")
def test_rendered_without_a_request_on_a_phone_in_both_schemes(full: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(full)
    with browser() as tab:
        papers = []
        for scheme in ("light", "dark"):
            tab.open(path, width=360, scheme=scheme)
            tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
            assert tab.evaluate("innerWidth") == 360
            assert tab.evaluate("document.scrollingElement.scrollWidth") <= 360
            assert tab.evaluate(
                "[...document.querySelectorAll('svg')].every(e => e.getBoundingClientRect().height > 50)"
            )
            papers.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
            line = "getComputedStyle(document.querySelector('svg path[style*=\"--c1\"]')).stroke"
            papers.append(tab.evaluate(line))
        assert len(set(papers)) == 4
        assert tab.requests == [path.as_uri()] * 2
        # The log does see what is asked for: a page with a picture asks for it.
        (tmp_path / "loads.html").write_text(f"<img src='{(tmp_path / 'gone.png').as_uri()}'>")
        tab.open(tmp_path / "loads.html", width=360)
        assert tab.requests[-1].endswith("gone.png")


def test_lengths_are_ascending() -> None:
    assert grouped(sources(perplexity({"ntk": (5, 6, 7)})))[0].lengths == list(LENGTHS)
