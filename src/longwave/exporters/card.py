"""The model card: what the export is, what was measured of it, and how to serve it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from longwave.exporters.base import Exporter
from longwave.exporters.exported import Exported
from longwave.exporters.source import Source
from longwave.files import read_json
from longwave.methods import METHODS
from longwave.outside import Outside
from longwave.provenance import versions
from longwave.trajectory import Snapshot

MADE_WITH = ("longwave", "transformers", "torch")


def model_card(source: Source, exporter: Exporter, done: Exported, *, log_n: str, tables: Sequence[str] = ()) -> str:
    """README.md of an export, in Markdown with the hub's front matter.

    Arguments:
        done: the export, whose folder's name is in the commands.
        log_n: `constant` or `drop`.
        tables: of perplexity, as `perplexity_table` makes them.
    """
    front: dict[str, Any] = {"tags": ["longwave", "long-context", source.extension.spec]}
    front |= {"library_name": exporter.library, "pipeline_tag": "text-generation"}
    snapshot, name = done.snapshot, done.folder.name
    length, original = snapshot.max_length, snapshot.original_length
    frozen = f"served at the length factors {', '.join(f'{t:g}' for t in done.profiles)}" if done.profiles else ""
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=True)}---",
        f"# {name}",
        f"{_base(source)}, extended from {original:,} to {length:,} tokens with "
        f"longwave (`{source.extension.spec}`) and {frozen or 'frozen at one length factor'}.",
        *([] if frozen else [_facts(source, snapshot, log_n)]),
        "## Serve it",
        exporter.serving_profiles(name).strip() if frozen else exporter.serving(source, snapshot, name).strip(),
    ]
    if done.notes:
        sections += ["## Mind", "\n".join(f"- {note}" for note in done.notes)]
    if done.agreement is not None:
        sections += ["## Verified", f"Against longwave at the same length factor: {done.agreement}."]
    if tables:
        sections += ["## Perplexity", *tables]
    if source.training:
        sections += ["## Training", training_table(source.training)]
    return "\n\n".join(sections) + "\n"


def _base(source: Source) -> str:
    return f"`{Path(source.path).resolve().name}` ({source.model_type})"


def _facts(source: Source, snapshot: Snapshot, log_n: str) -> str:
    scaling = f"{snapshot.attention_scaling:.6g}"
    if snapshot.query_scaling:
        scaling += "; per-query log-n is a constant of each head, for the last query, in the weights that make queries"
    elif source.log_n and log_n == "constant":
        constant = snapshot.constant_log_n(source.log_n)
        scaling += f", of which {constant:.6g} stands for per-query log-n (its value for the last query)"
    elif source.log_n:
        scaling += "; the model's per-query log-n was left out"
    rows = [
        ("method", f"`{source.method}`: {METHODS[source.method].summary} ({METHODS[source.method].source})"),
        ("length factor t", f"{snapshot.factor:g}"),
        ("context", f"{snapshot.max_length:,} tokens, trained for {snapshot.original_length:,}"),
        ("stretch θ(1)/θ(t)", f"{float(snapshot.stretch.min()):.4g} to {float(snapshot.stretch.max()):.4g}"),
        ("attention scaling", scaling),
        ("made with", ", ".join(f"{key} {value}" for key, value in versions().items() if key in MADE_WITH)),
    ]
    table = "\n".join(f"| {key} | {value} |" for key, value in rows)
    return (
        f"| | |\n|---|---|\n{table}\n\nOne t serves every prompt: texts within the trained length run at these "
        "frequencies, too. In longwave itself t follows the length, and short prompts keep the model's own."
    )


def perplexity_table(path: Path | str) -> str:
    """The table of a record of `longwave perplexity`, in Markdown.

    Raises:
        ValueError: if the file is another one, or is damaged.
    """
    if not Path(path).is_file():
        raise ValueError(f"results {path} do not exist. Give a perplexity.json of `longwave perplexity`.")
    record = read_json(path)
    schema = str(record.get("schema", "")) if isinstance(record, dict) else ""
    if not schema.startswith("longwave.perplexity/"):
        raise ValueError(f"{path} is no record of `longwave perplexity`. Give its perplexity.json.")
    _check(record, Outside(path))
    return _perplexity(record)


def _check(record: dict[str, Any], outside: Outside) -> None:
    """The fields that the table has."""
    outside.require(record, ("rows", "data", "settings"), "the record")
    outside.require(record["settings"], ("protocol",), "settings")
    outside.texts(record["settings"], ("protocol",))
    outside.objects(record, ("data",))
    outside.texts(record["data"] or {}, list(record["data"] or {}))
    for row in outside.filled(record["rows"], "rows"):
        outside.require(row, ("label", "lengths"), "a row")
        outside.texts(row, ("label",))
        for entry in outside.filled(row["lengths"], "lengths"):
            outside.require(entry, ("length", "ppl"), "an entry of lengths")
            outside.counts(entry, ("length",))
            outside.numbers(entry, ("ppl",))


def _perplexity(record: dict[str, Any]) -> str:
    lengths = [entry["length"] for entry in record["rows"][0]["lengths"]]
    lines = ["| | " + " | ".join(f"{length:,}" for length in lengths) + " |", "|---" * (len(lengths) + 1) + "|"]
    for row in record["rows"]:
        by_length = {entry["length"]: entry["ppl"] for entry in row["lengths"]}
        cells = [f"{by_length[length]:.4g}" if length in by_length else "" for length in lengths]
        lines.append(f"| {row['label']} | " + " | ".join(cells) + " |")
    protocol, data = record["settings"]["protocol"], _files(record["data"])
    return (
        "\n".join(lines) + f"\n\nProtocol `{protocol}` on {data}, by length in tokens. Rows with "
        "`@static` ran at one t. In the other rows t followed the length."
    )


def _files(data: dict[str, str] | None) -> str:
    """The names of data files, with the start of their SHA-256."""
    return ", ".join(f"`{Path(name).name}` ({digest[:12]})" for name, digest in (data or {}).items())


def training_table(training: dict[str, Any]) -> str:
    """What made a trained model, in Markdown, from its training.json."""
    config, result = training.get("config") or {}, training.get("result") or {}
    told = [
        ("from", f"`{Path(str(training['model'])).name}`" if "model" in training else None),
        ("command", f"`{_without_folders(training['command'])}`" if "command" in training else None),
        ("data", _files(training.get("data")) or None),
        ("steps", config.get("steps")),
        ("tokens", f"{result['tokens']:,}" if "tokens" in result else None),
        ("longest window", result.get("trained_length") or config.get("train_length")),
        ("largest factor", config.get("max_factor")),
        ("seed", training.get("seed")),
    ]
    return "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in told if value is not None)


def _without_folders(command: str) -> str:
    """The command with names in place of paths: a card is public, and the paths of a machine are not."""
    return shlex.join(Path(word).name if "/" in word else word for word in shlex.split(command))
