"""What made a record or a training run: enough to repeat it, or to see why another result differs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from longwave.evaluation.records import TRAINED
from longwave.layout import TRAINING
from longwave.report.markup import Content, Markup, element, join, table
from longwave.report.ratios import ratio_text
from longwave.report.sources import RecordFile, Training


def made(source: RecordFile) -> Markup:
    """Command, time, versions, data hashes, protocol, schedules and seed of a record, folded away."""
    record = source.record
    seed = record.get("seed")
    fields = [
        ("file", str(source.path)),
        ("command", element("code", record["command"])),
        ("created", record["created"]),
        ("model", _pairs(record["model"])),
        ("data", _pairs(record.get("data") or {}, "none: prompts are made")),
        ("settings", _pairs(record["settings"])),
        ("seed", "none: nothing is drawn" if seed is None else str(seed)),
        ("versions", _pairs(record["versions"])),
    ]
    body = join(_list(fields), _policies(source) if source.by_length else None)
    return element("details", element("summary", f"What made it: {source.path}"), body)


def made_training(training: Training) -> Markup:
    """The same of a training run, from its training.json."""
    record = training.record
    if record is None:
        return element(
            "p", f"{training.path} has no training.json beside it: what made it is not known.", class_="soft"
        )
    config = {key: value for key, value in (record.get("config") or {}).items() if value not in (None, {})}
    fields = [
        ("file", str(training.path)),
        ("status", str(record.get("status"))),
        ("longest window", _tokens((record.get("result") or {}).get(TRAINED))),
        ("command", element("code", record.get("command", "not recorded"))),
        ("model", str(record.get("model"))),
        ("data", _pairs(record.get("data") or {})),
        ("settings", _pairs(config)),
        ("seed", str(record.get("seed"))),
        ("processes", str(record.get("world_size", 1))),
        ("versions", _pairs(record.get("versions") or {})),
    ]
    return element("details", element("summary", f"What made it: {training.path.with_name(TRAINING)}"), _list(fields))


def _policies(source: RecordFile) -> Markup:
    """How t follows the length in each row, and the t it ran at."""
    rows, original = source.record["rows"], source.record["original_length"]
    lengths = sorted({entry["length"] for row in rows for entry in row["lengths"]})
    head = [element("th", name, scope="col", class_="text") for name in ("row", "method", "schedule")]
    head += [element("th", name, scope="col") for name in ("own", "trained on", "max t", "log-n")]
    head += [element("th", f"t at {ratio_text(length, original).replace('x', '×')}", scope="col") for length in lengths]
    body = []
    for row in rows:
        at = {entry["length"]: entry["factor"] for entry in row["lengths"]}
        cells = [element("td", row[key], class_="text") for key in ("method", "schedule")]
        cells.append(element("td", "yes" if row["own"] else "no"))
        cells.append(element("td", "unknown" if row.get(TRAINED) is None else f"{row[TRAINED]:,}"))
        cells += [element("td", _number(row[key])) for key in ("max_factor", "log_n")]
        cells += [element("td", _number(at.get(length))) for length in lengths]
        body.append(element("tr", element("th", row["label"], scope="row"), *cells))
    caption = (
        "How t follows the length in each row, and the t that each length ran at. Own: as the model was saved. Trained "
        "on: tokens of the longest real window, in pre-training or later."
    )
    return table(caption, head, body)


def _tokens(value: Any) -> str:
    return "unknown" if value is None else f"{value:,} tokens"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "–"


def _list(fields: Iterable[tuple[str, Content]]) -> Markup:
    return element("dl", *(join(element("dt", name), element("dd", value)) for name, value in fields))


def _pairs(values: Mapping[str, Any], nothing: str = "none") -> Markup:
    if not values:
        return join(nothing)
    lines = [join(f"{key}: ", element("code", str(value))) for key, value in values.items()]
    return join(*(part for line in lines for part in (line, element("br"))))
