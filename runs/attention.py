"""Attention methods without training: perplexity and passkeys by length, paired with dynamic YaRN.

    python runs/attention.py                                            # the demo's base model
    python runs/attention.py --name stories260K --model FOLDER --data heldout.txt --length 512
    python runs/attention.py --report                                   # only the tables, from what is there

A cell is one model under one method in one evaluation. Cells lie in runs/results/attention/NAME/ and are
kept: the script may be killed and started at any time. Windows begin `SHIFT` tokens later than those of the earlier
runs, on which the defaults of two-band were chosen: no target is shared.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "src" / "longwave" / "demo" / "model"
CELLS = ROOT / "runs" / "results" / "attention"
SHIFT = 1000
TARGETS = 64  # tokens scored in each window

METHODS = (
    "none", "yarn", "two-band", "leaky-rerope", "self-extend", "dca", "rerope", "streaming-llm", "lm-infinite",
    "infllm", "token-select",
)  # fmt: skip
# What was found beside the defaults: mass on Self-Extend, and log-n on two-band.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "self-extend, mass 1, no log-n": ("self-extend", {"mass": 1.0, "log_n": 0.0}),
    "dca, mass 1, no log-n": ("dca", {"mass": 1.0, "log_n": 0.0}),
}
# Evaluation -> factors of L, measured in one call: they share their targets.
FACTORS = {"perplexity": (1, 2, 4, 8, 16), "far": (1, 32), "passkey": (2, 4, 8, 16)}
FEWER = {"far": 4}  # windows are divided by


def path_of(folder: Path, evaluation: str, row: str) -> Path:
    return folder / f"{evaluation}-{row.replace(', ', '_').replace(' ', '-')}.json"


def measure(args: argparse.Namespace, folder: Path) -> None:
    """All cells that are missing, in this process. All lengths of a row at once: they share their targets."""
    import torch

    import longwave
    from longwave.data.documents import read_documents
    from longwave.data.tokens import token_stream
    from longwave.demo.corpus import stdlib_files
    from longwave.files import write_text
    from longwave.models import open_model
    from longwave.provenance import versions

    opened = open_model(str(args.model), dtype="float32", device="cpu")
    model, tokenizer, length = opened.model, opened.tokenizer, args.length
    data = stdlib_files("heldout") if args.data is None else [args.data]
    tokens = token_stream(read_documents(data), tokenizer)[SHIFT:]
    folder.mkdir(parents=True, exist_ok=True)
    for evaluation in args.evaluations.split(","):
        for row in args.rows.split(";") if args.rows else [*METHODS, *VARIANTS]:
            path = path_of(folder, evaluation, row)
            if path.exists():
                continue
            method, options = VARIANTS.get(row, (row, {}))
            factors, started = FACTORS[evaluation], time.time()
            lengths = [factor * length for factor in factors]
            with torch.no_grad(), longwave.extended(model, method, max_factor=max(factors), **options):
                if evaluation == "passkey":
                    found = longwave.passkey(model, tokenizer, lengths, trials=args.trials)
                else:
                    windows = args.windows // FEWER.get(evaluation, 1)
                    found = longwave.perplexity(model, tokens, lengths, windows=windows)
            record = {"model": args.name, "row": row, "evaluation": evaluation, "lengths": []}
            for factor, entry in zip(factors, found.lengths, strict=True):
                shown = entry.to_json()
                shown |= {"nll": [round(value, 4) for value in shown["nll"]]} if "nll" in shown else {}
                record["lengths"].append({"factor": factor, **shown})
            record |= {"seconds": round(time.time() - started), "versions": versions()}
            write_text(path, json.dumps(record, allow_nan=False) + "\n")
            print(f"{evaluation} {row}: {record['seconds']} s", flush=True)


def table(folder: Path, length: int) -> str:
    """Markdown: perplexities with the paired difference to dynamic YaRN, and passkeys."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    lines = [f"### {folder.name} (L = {length})"]
    for evaluation, factors in FACTORS.items():
        cells = {cell["row"]: cell["lengths"] for cell in found.values() if cell["evaluation"] == evaluation}
        if not cells:
            continue
        lines += ["", f"| {evaluation} | " + " | ".join(f"{factor}x" for factor in factors) + " |"]
        lines += ["| --- |" + " --- |" * len(factors)]
        for row in [*METHODS, *VARIANTS]:
            if row in cells:
                shown = [
                    _shown(entry, other) for entry, other in zip(cells[row], cells.get("yarn", cells[row]), strict=True)
                ]
                lines.append(f"| {row} | " + " | ".join(shown) + " |")
        if evaluation != "passkey":
            windows = len(next(iter(cells.values()))[0]["nll"])
            lines += ["", f"{windows} windows, the last {TARGETS} tokens of each."]
    return "\n".join(lines) + "\n"


def _shown(entry: dict[str, Any], other: dict[str, Any]) -> str:
    from longwave.evaluation.statistics import paired_bootstrap

    if "rate" in entry:
        return f"{entry['rate']:.0%}"
    text = f"{entry['ppl']:.3f}"
    if entry is other or entry["factor"] == 1:
        return text
    ratio = paired_bootstrap(entry["nll"], other["nll"], [TARGETS] * len(entry["nll"]))
    return f"{text} [{ratio.low - 1:+.0%}, {ratio.high - 1:+.0%}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="demo", help="of the folder of cells")
    parser.add_argument("--model", type=Path, default=BASE)
    parser.add_argument("--data", type=Path, help="held-out text; default: the demo's")
    parser.add_argument("--length", type=int, default=256, help="L")
    parser.add_argument("--windows", type=int, default=256)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--rows", help="names with ; between them; default all")
    parser.add_argument("--evaluations", default=",".join(FACTORS))
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if not args.report:
        measure(args, CELLS / args.name)
    print(table(CELLS / args.name, args.length))


if __name__ == "__main__":
    main()
