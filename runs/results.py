"""The table of docs/results.md: every row, three training seeds, the same targets, paired intervals.

    python runs/results.py                       # two processes of one thread each, hours
    python runs/results.py --report              # only write docs/results.md from what is there

Each (row, seed) is a cell: train through `longwave.train`, measure perplexity and passkey through
`longwave.perplexity` and `longwave.passkey`, keep per-window losses as JSON in runs/results/. Cells
that exist are not computed again, so the script may be killed and started at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "src" / "longwave" / "demo" / "model"
CELLS = ROOT / "runs" / "results"
LENGTHS = "1x,2x,4x,8x,16x"

# One budget for every trained row: 256 steps of 16 rows of L tokens, 1.05 M tokens; real windows of up to 16 L.
TRAINING: dict[str, Any] = {
    "train_length": 4096,
    "row_length": 256,
    "max_factor": 16,
    "steps": 256,
    "batch_size": 16,
    "lr": 2e-4,
    "field_lr": 3e-3,
    "positions": "chunks",
    "chunks": 8,
    "factors": "log-uniform",
    "short_share": 0.3,
    "long_share": 0.6,
    "log_n": 1.0,
    "precision": "bf16",
}


SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Row:
    """A line of the table: a method, and what its training changes in TRAINING (None: training-free)."""

    name: str
    label: str
    method: str
    training: dict[str, Any] | None = field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS


def free(name: str, label: str, method: str) -> Row:
    return Row(name, f"{label}, training-free", method, None, seeds=(0,))


ROWS = [
    Row("none", "unscaled", "none", None, seeds=(0,)),
    free("linear", "PI", "linear"),
    free("ntk", "dynamic NTK", "ntk"),
    free("yarn", "dynamic YaRN", "yarn"),
    Row("clex", "**CLEX** (from NTK), fine-tuned", "clex"),
    Row("ntk-tuned", "dynamic NTK, fine-tuned", "ntk"),
    # Log-n does the work of YaRN's temperature; both together would sharpen attention twice.
    Row("yarn-tuned", "dynamic YaRN, fine-tuned", "yarn", {"options": {"temperature": 0.0}}),
    Row("naive", "unscaled, fine-tuned", "none"),
    Row(
        "clex-paper",
        "CLEX as published: windows of L only, random positions, integer t, additive field",
        "clex-paper",
        {
            "positions": "random",
            "factors": "integer",
            "field_lr": TRAINING["lr"],
            "train_length": 256,
            "short_share": 0.0,
            "long_share": 0.0,
        },
    ),
    Row("clex-short", "CLEX, windows of L only", "clex", {"train_length": 256, "long_share": 0.0}, seeds=(0,)),
    Row("clex-yarn", "CLEX from YaRN, fine-tuned", "clex", {"prior": "yarn"}, seeds=(0,)),
    Row("yarn-published", "dynamic YaRN, fine-tuned, its temperature, no log-n", "yarn", {"log_n": 0.0}, seeds=(0,)),
]


def cells() -> list[tuple[Row, int]]:
    """Every (row, seed), seed by seed, so that a table of one seed is there early; the rows of one seed last."""

    def order(cell: tuple[Row, int]) -> tuple[bool, int]:
        row, seed = cell
        return row.training is not None and len(row.seeds) == 1, seed

    return sorted(((row, seed) for row in ROWS for seed in row.seeds), key=order)


def cell_path(row: Row, seed: int) -> Path:
    return CELLS / f"{row.name}-{seed}.json"


def settings_of(row: Row, seed: int) -> dict[str, Any] | None:
    """What a cell trains with; None for a training-free row."""
    return None if row.training is None else TRAINING | row.training | {"method": row.method, "seed": seed}


def in_present_terms(training: dict[str, Any] | None) -> dict[str, Any] | None:
    """The settings of a cell from the time when `train_length` was the length of a row: they trained the same."""
    if training is None or "row_length" in training:
        return training
    row = training["train_length"]
    longest = row * training["max_factor"] if training["long_share"] else row
    return training | {"train_length": longest, "row_length": row}


def is_current(row: Row, seed: int, windows: int, trials: int) -> bool:
    """Whether the cell is there and was made with this base model, these settings and as many windows and trials."""
    from longwave.files import read_json, sha256

    if not cell_path(row, seed).exists():
        return False
    cell = read_json(cell_path(row, seed))
    made = (
        cell["base"],
        in_present_terms(cell["training"]),
        len(cell["perplexity"][0]["nll"]),
        cell["passkey"][0]["trials"],
    )
    return made == (sha256(BASE / "model.safetensors"), settings_of(row, seed), windows, trials)


def compute(row: Row, seed: int, windows: int, trials: int) -> None:
    """Train and measure one cell in this process."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import longwave
    from longwave.data.documents import read_documents
    from longwave.data.tokens import token_stream
    from longwave.demo.corpus import stdlib_files
    from longwave.files import sha256, write_text
    from longwave.provenance import versions

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    started = time.time()
    training = settings_of(row, seed)
    with tempfile.TemporaryDirectory() as folder:
        if training is None:
            model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
            longwave.extend(model, row.method, max_factor=16)
        else:
            longwave.train(BASE, stdlib_files("train"), Path(folder) / "out", progress=False, **training)
            model = longwave.load(Path(folder) / "out", dtype=torch.float32)
    trained = time.time()
    tokens = token_stream(read_documents(stdlib_files("heldout")), tokenizer)
    loss = longwave.perplexity(model, tokens, LENGTHS, windows=windows)
    found = longwave.passkey(model, tokenizer, LENGTHS, trials=trials)
    record = {
        "row": asdict(row),
        "seed": seed,
        "training": training,
        "base": sha256(BASE / "model.safetensors"),
        "heldout_tokens": tokens.numel(),
        "versions": versions(),
        "seconds": {"train": round(trained - started), "measure": round(time.time() - trained)},
        "perplexity": [entry.to_json() for entry in loss.lengths],
        "passkey": [{"length": entry.length, "trials": trials, "rate": entry.rate.value} for entry in found.lengths],
    }
    for entry in record["perplexity"]:  # nats to 5 digits are plenty, and keep the files readable
        entry["nll"] = [round(value, 4) for value in entry["nll"]]
    CELLS.mkdir(parents=True, exist_ok=True)
    write_text(
        cell_path(row, seed), json.dumps(record, allow_nan=False) + "\n"
    )  # on one line: they are in the repository


def run(wanted: list[tuple[Row, int]], args: argparse.Namespace) -> bool:
    """Missing cells in processes of their own, `args.jobs` at a time; False if one failed."""
    missing = [(row, seed) for row, seed in wanted if not is_current(row, seed, args.windows, args.trials)]
    print(f"{len(missing)} cells to compute, {len(wanted) - len(missing)} kept", flush=True)

    def one(cell: tuple[Row, int]) -> bool:
        row, seed = cell
        started = time.time()
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "false"}
        amount = ["--windows", str(args.windows), "--trials", str(args.trials)]
        command = [sys.executable, __file__, "--cell", row.name, "--seed", str(seed), *amount]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        outcome = "done" if done.returncode == 0 else f"FAILED\n{done.stderr[-2000:]}"
        print(f"{row.name} seed {seed}: {outcome} ({time.time() - started:.0f} s)", flush=True)
        return done.returncode == 0

    with ThreadPoolExecutor(args.jobs) as pool:
        return all(list(pool.map(one, missing)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="cells computed at a time")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    parser.add_argument("--windows", type=int, default=512, help="windows of perplexity")
    parser.add_argument("--trials", type=int, default=100, help="passkey prompts for each length")
    parser.add_argument("--rows", help="comma-separated names, default all")
    parser.add_argument("--report", action="store_true", help="only write the page")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    rows = {row.name: row for row in ROWS}
    if args.cell:
        compute(rows[args.cell], args.seed, args.windows, args.trials)
        return
    if not args.report:
        wanted = [cell for cell in cells() if not args.rows or cell[0].name in args.rows.split(",")]
        if not run(wanted, args):
            sys.exit("a cell failed: the page is not written")
    from results_page import write_page

    current = {
        row.name: {s: cell_path(row, s) for s in row.seeds if is_current(row, s, args.windows, args.trials)}
        for row in ROWS
    }
    made_by = f"python runs/results.py --windows {args.windows} --trials {args.trials}"
    write_page(ROWS, current, ROOT / "docs", TRAINING, made_by)


if __name__ == "__main__":
    main()
