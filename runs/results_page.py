"""docs/results.md and its plot, from the cells that runs/results.py computed."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from longwave.evaluation.registry import EVALUATIONS
from longwave.evaluation.results import PERPLEXITY, curves
from longwave.evaluation.statistics import Interval, paired_bootstrap
from longwave.files import read_json, write_text
from longwave.report.plots import curve_figure, save

START, END = "<!-- demo model: written by runs/results.py -->", "<!-- end of the demo model -->"
TARGETS = (
    "These targets for CLEX were set before the runs. At 1x it should be no worse than the base model. It should\n"
    "stay within 3 % of its own 1x at 2x to 8x, and within 10 % at 16x. At 4x and beyond it should be no worse\n"
    'than any other row. "No worse" means that the interval of the ratio reaches 1.'
)


Cells = dict[int, dict[str, Any]]  # of one row, by seed


def losses(cells: Cells, seeds: list[int], column: int) -> np.ndarray:
    """Summed nll of each window, [runs, windows]."""
    return np.array([cells[seed]["perplexity"][column]["nll"] for seed in seeds])


def compare(a: Cells, b: Cells, column: int, other: int | None = None) -> Interval:
    """Ratio of perplexities a/b at a length (or of a at one length and b at another), paired 95 % interval.

    Trained rows are paired seed by seed; the one run of a training-free row is paired with each of the other's.
    """
    free = any(cell["training"] is None for cell in [*a.values(), *b.values()])
    mine, theirs = (sorted(a), sorted(b)) if free else (sorted(set(a) & set(b)),) * 2
    tokens = a[mine[0]]["perplexity"][column]["tokens"]
    return paired_bootstrap(losses(a, mine, column), losses(b, theirs, column if other is None else other), tokens)


def percent(interval: Interval) -> str:
    low, middle, high = (100 * (value - 1) for value in (interval.low, interval.value, interval.high))
    return f"{middle:+.1f} % [{low:+.1f}, {high:+.1f}]"


def perplexity_of(cells: Cells, column: int) -> tuple[float, float]:
    """exp of the mean loss over runs, and the half range over the runs."""
    values = [cell["perplexity"][column]["ppl"] for cell in cells.values()]
    return math.exp(float(np.mean(np.log(values)))), (max(values) - min(values)) / 2


def write_page(
    rows: list[Any], paths: dict[str, dict[int, Path]], docs: Path, training: dict[str, Any], command: str
) -> None:
    """Write the section of the demo model from the cells at `paths`, by row and seed."""
    found = {
        row.name: {seed: read_json(path) for seed, path in paths[row.name].items()} for row in rows if paths[row.name]
    }
    if "clex" not in found or "none" not in found:
        print("rows `none` and `clex` are needed for the page; compute them first")
        return
    lengths = [entry["length"] for entry in found["none"][0]["perplexity"]]
    original = lengths[0]
    heads = [f"{length // original}x" for length in lengths]
    labels = {row.name: row.label for row in rows}
    lines = [START, "", *_introduction(found, training, command), "", "### Perplexity of the same targets", ""]
    lines += [f"| row | seeds | {' | '.join(heads)} |", f"|---|---|{'---|' * len(heads)}"]
    for name, cells in found.items():
        values = [perplexity_of(cells, column) for column in range(len(lengths))]
        texts = [f"{value:.2f}" + (f" ± {spread:.2f}" if len(cells) > 1 else "") for value, spread in values]
        lines.append(f"| {labels[name]} | {len(cells)} | {' | '.join(texts)} |")
    lines += ["", "± is half the range over the training seeds.", "", "![perplexity by length](results.png)", ""]
    lines += ["![fine-tuned rows](results-tuned.png)", ""]
    lines += [
        "### CLEX against each row",
        "",
        "Each entry is the ratio of perplexities CLEX / row, minus 1, with its paired 95 % interval (10,000 bootstrap",
    ]
    lines += ["samples of windows and seeds). Negative means that CLEX is better.", ""]
    lines += [f"| row | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for name, cells in found.items():
        if name != "clex":
            texts = [percent(compare(found["clex"], cells, column)) for column in range(len(lengths))]
            lines.append(f"| {labels[name]} | {' | '.join(texts)} |")
    lines += ["", "### Flatness: CLEX at each length against its own 1x", ""]
    texts = [percent(compare(found["clex"], found["clex"], column, 0)) for column in range(1, len(lengths))]
    lines += [f"| {' | '.join(heads[1:])} |", f"|{'---|' * len(heads[1:])}", f"| {' | '.join(texts)} |", ""]
    lines += [TARGETS, "", *verdicts(found, heads), "", "### Passkey retrieval", ""]
    trials = found["none"][0]["passkey"][0]["trials"]
    lines += [f"Share of keys found in {trials} trials for each length and seed, depths from 0 to 1.", ""]
    lines += [f"| row | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for name, cells in found.items():
        rates = np.mean([[entry["rate"] for entry in cell["passkey"]] for cell in cells.values()], axis=0)
        lines.append(f"| {labels[name]} | {' | '.join(f'{100 * rate:.0f} %' for rate in rates)} |")
    lines += ["", END]
    _replace(docs / "results.md", "\n".join(lines))
    _plot(found, labels, docs)
    print(f"written: {docs / 'results.md'} and its plots")


def verdicts(found: dict[str, Cells], heads: list[str]) -> list[str]:
    """Each target with what was measured."""
    clex = found["clex"]
    lines = [_no_worse("1x no worse than the base model", compare(clex, found["none"], 0))]
    for column, head in enumerate(heads[1:], start=1):
        bound = 1.10 if head == "16x" else 1.03
        lines.append(_within(f"{head} within {100 * (bound - 1):.0f} % of 1x", compare(clex, clex, column, 0), bound))
    worse = []
    for name, cells in found.items():
        for column, head in list(enumerate(heads))[2:] if name != "clex" else []:
            interval = compare(clex, cells, column)
            if interval.value > 1:
                worse.append(_no_worse(f"{head} no worse than `{name}`", interval))
    return lines + (worse or ["- 4x and beyond no worse than any other row: met, each ratio is at most 1"])


def _no_worse(what: str, interval: Interval) -> str:
    return f"- {what}: {'met' if interval.low <= 1 else '**not met**'} ({percent(interval)})"


def _within(what: str, interval: Interval, bound: float) -> str:
    return f"- {what}: {'met' if interval.value <= bound else '**not met**'} ({percent(interval)})"


def _introduction(found: dict[str, Cells], training: dict[str, Any], command: str) -> list[str]:
    cell = next(iter(found["clex"].values()))
    tokens = training["steps"] * training["batch_size"] * training["row_length"]
    windows = len(cell["perplexity"][0]["nll"])
    about = (
        f"The model is a Llama of 1.9 M parameters, pre-trained at L = 256 (`runs/pretrain_demo.py`). Trained rows saw "
        f"{tokens:,} tokens, with learning rate {training['lr']:g} for the weights and {training['field_lr']:g} for "
        f"the field, and with per-query log-n attention. {100 * training['short_share']:.0f} % of the micro-batches "
        f"are windows of L at t = 1. {100 * training['long_share']:.0f} % are real windows of 2L to 16L, with as many "
        f"tokens in fewer rows. The rest are windows of L whose positions skip in {training['chunks']} chunks, with t "
        f"log-uniform in [1, {training['max_factor']}]. Rows differ from this recipe only as their labels say. "
        "Fine-tuned YaRN has no temperature, because log-n does the same work. The recipe was chosen for CLEX, on "
        "seed 0 and on other targets of the same held-out files, halfway between these windows: see the "
        f"[diary](LOG.md). The evaluation scores the last 64 tokens of {windows} windows of held-out library sources, "
        f"by the protocol `same-targets`, at t = n/L (`clex-paper`: rounded up). Command: `{command}`."
    )
    return ["## The demo model", "", *textwrap.wrap(about, 120, break_on_hyphens=False)]


def _replace(path: Path, text: str) -> None:
    """Put the section between its marks, leaving the rest of the page alone."""
    page = path.read_text("utf-8") if path.exists() else f"# Results\n\n{START}\n{END}\n"
    before, _, rest = page.partition(START)
    write_text(path, before + text + rest.partition(END)[2])


def _plot(found: dict[str, Cells], labels: dict[str, str], docs: Path) -> None:
    """All rows, and those trained at several lengths alone, whose differences the first plot hides."""
    records = {
        name: [
            {
                "schema": PERPLEXITY,
                "original_length": cell["perplexity"][0]["length"],
                "data": None,
                "settings": None,
                "rows": [{"label": labels[name].replace("**", ""), "lengths": cell["perplexity"]}],
            }
            for cell in cells.values()
        ]
        for name, cells in found.items()
    }
    close = [name for name in ("clex", "ntk-tuned", "yarn-tuned") if name in records]
    for names, title, file, bands in (
        (list(records), "The demo model, trained at 256 tokens, read further", "results.png", True),
        (close, "Fine-tuned rows, closer", "results-tuned.png", False),
    ):
        shown = curves(record for name in names for record in records[name])
        figure = curve_figure(
            shown, EVALUATIONS["perplexity"].quantity, original_length=shown[0].lengths[0], title=title, bands=bands,
            subtitle="the same targets, more and more context · "
            + ("bands: 95 % interval" if bands else "paired intervals: see the table"),
        )  # fmt: skip
        save(figure, docs / file)
