"""What the demo found: one table, one plot, and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from longwave.evaluation.results import compare, curves, quantity_of
from longwave.evaluation.statistics import Interval
from longwave.report.plots import curve_figure, save
from longwave.report.tables import curve_table

PLAIN = "unscaled"
PLOT = "perplexity.png"


def comparisons(perplexity: dict[str, Any]) -> dict[str, list[Interval]]:
    """Perplexity of each extended row by length, over that of the plain model within L, paired by window."""
    rows = {row["label"]: row["lengths"] for row in perplexity["rows"]}
    plain = rows.pop(PLAIN)[0]
    return {label: [compare([entry], [plain]) for entry in lengths] for label, lengths in rows.items()}


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers of the tables, without those of every window."""
    rows = [
        {
            "label": row["label"],
            "perplexity": {entry["length"]: entry["ppl"] for entry in row["lengths"]},
            "passkey": {entry["length"]: entry["rate"] for entry in found["lengths"]},
        }
        for row, found in zip(result["perplexity"]["rows"], result["passkey"]["rows"], strict=True)
    ]
    found = comparisons(result["perplexity"])
    ratios = {name: [[ratio.value, ratio.low, ratio.high] for ratio in each] for name, each in found.items()}
    return {"rows": rows, "seconds": result["seconds"], "comparisons": ratios}


def show(result: dict[str, Any], output: Path, console: Console) -> None:
    """Print the table and draw the plot of a finished demo."""
    perplexity, passkey = result["perplexity"], result["passkey"]
    original, windows = perplexity["original_length"], perplexity["settings"]["windows"]
    lines, quantity = curves([perplexity]), quantity_of(perplexity)
    figure = curve_figure(
        lines,
        quantity,
        original_length=original,
        title=f"A model trained at {original} tokens, read further",
        subtitle=f"the same 64 target tokens of {windows} held-out windows, under more and more context",
    )
    save(figure, output / PLOT)
    table = curve_table(lines, quantity, original)
    table.add_section()
    table.add_row(Text("against unscaled, 1x", style="italic"))
    for name, ratios in comparisons(perplexity).items():
        table.add_row(name, *(percent(ratio) for ratio in ratios))
    table.add_section()
    table.add_row(Text(f"passkeys found, of {passkey['settings']['trials']}", style="italic"))
    for row in passkey["rows"]:
        table.add_row(row["label"], *(str(sum(entry["correct"])) for entry in row["lengths"]))
    console.print(f"\n[bold]Perplexity of the same tokens[/bold] by context length; {windows} windows, ± 95 %\n", table)
    console.print(_where(result, output), soft_wrap=True, highlight=False)


def percent(ratio: Interval) -> str:
    """A paired ratio as a change with half the width of its 95 % interval, e.g. `-1.2 ±0.7%`."""
    change, half = 100 * (ratio.value - 1), 50 * (ratio.high - ratio.low)
    digits = 1 if abs(change) < 10 else 0
    return f"{change:+.{digits}f} ±{half:.{digits}f}%" if half else "0"


def _where(result: dict[str, Any], output: Path) -> str:
    minutes, seconds = divmod(round(sum(result["seconds"].values())), 60)
    return f"""
Took {minutes} min {seconds} s. Written to [bold]{output}[/bold]:
  {PLOT}                     the plot
  perplexity.json passkey.json       every window and trial behind the tables
  recipe/  scalars/  clex-tuned/     the trained models: longwave.load("{output / "recipe"}")
  text/                              what they were trained on, and the held-out part

[bold]Next, with a model of yours[/bold] (a folder or a name on the Hugging Face hub):
  longwave perplexity MODEL --data book.txt --methods none,linear,ntk,yarn
  longwave train MODEL --data books/ --train-length 4096 --max-factor 16 --output out
  longwave perplexity out --data book.txt --lengths 1x,2x,4x,8x,16x
"""
