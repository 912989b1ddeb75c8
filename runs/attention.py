"""Attention methods without training: perplexity and passkeys by length, paired with dynamic YaRN.

    python runs/attention.py                                            # the demo's base model
    python runs/attention.py --name stories260K --model FOLDER --stories heldout.txt --length 512
    python runs/attention.py --report                                   # only the tables, from what is there
    python runs/attention.py --write-text demo.jsonl                    # the demo's held-out text, and on a GPU then
    python runs/attention.py --data demo.jsonl --device cuda --jobs 12

A cell is one model under one method in one evaluation. Cells lie in runs/results/attention/NAME/ and are
kept: the script may be killed and started at any time. Windows begin `SHIFT` tokens later than those of the earlier
runs, on which the defaults of two-band were chosen: no target is shared.

The demo's held-out text is the standard library of the running Python. Another Python has another library: write the
text with the Python 3.11 of the earlier cells, and read it there with --data. A story model (--stories) gets its text
as it was trained: a story in one line, each after the beginning-of-text token; it cannot do passkeys.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
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
SLOW = ("infllm", "token-select")  # row by row
# Evaluation -> factors of L, measured in one call: they share their targets.
FACTORS = {
    "perplexity": (1, 2, 4, 8, 16), "far": (1, 32), "passkey": (2, 4, 8, 16), "multikey": (2, 4, 8, 16)
}  # fmt: skip
FEWER = {"far": 4}  # windows are divided by
KEYS = {"passkey": 1, "multikey": 3}  # in a prompt; one is asked for
TOKENS_PER_BATCH = {"cpu": 8192, "cuda": 65536}


def path_of(folder: Path, evaluation: str, row: str) -> Path:
    return folder / f"{evaluation}-{row.replace(', ', '_').replace(' ', '-')}.json"


@dataclass(frozen=True)
class Bench:
    """A model on its device, with its text: what cells are measured on."""

    args: argparse.Namespace
    model: Any
    tokenizer: Any
    tokens: Any

    @classmethod
    def of(cls, args: argparse.Namespace, tokens: Any) -> Bench:
        from longwave.models import open_model

        opened = open_model(str(args.model), dtype="float32", device=args.device)
        return cls(args, opened.model, opened.tokenizer, tokens)

    def cell(self, evaluation: str, row: str) -> None:
        """Measure a cell and write it. All lengths of a row at once: they share their targets."""
        import torch

        import longwave
        from longwave.evaluation.templates import SHORT
        from longwave.files import write_text
        from longwave.provenance import versions

        args, (method, options) = self.args, VARIANTS.get(row, (row, {}))
        factors, started = FACTORS[evaluation], time.time()
        lengths = [factor * args.length for factor in factors]
        batch = {"tokens_per_batch": args.tokens_per_batch or TOKENS_PER_BATCH.get(kind_of(args.device), 8192)}
        with torch.no_grad(), longwave.extended(self.model, method, max_factor=max(factors), **options):
            if evaluation in KEYS:
                keys = KEYS[evaluation]
                asked = {"trials": args.trials, "keys": keys, "template": SHORT if keys == 1 else SHORT.naming()}
                found = longwave.passkey(self.model, self.tokenizer, lengths, **asked, **batch)
            else:
                windows = args.windows // FEWER.get(evaluation, 1)
                found = longwave.perplexity(self.model, self.tokens, lengths, windows=windows, **batch)
        record = {"model": args.name, "row": row, "evaluation": evaluation, "lengths": []}
        for factor, entry in zip(factors, found.lengths, strict=True):
            shown = entry.to_json()
            shown |= {"nll": [round(value, 4) for value in shown["nll"]]} if "nll" in shown else {}
            record["lengths"].append({"factor": factor, **shown})
        card = torch.cuda.get_device_name() if kind_of(args.device) == "cuda" else args.device
        record |= {"device": card, "dtype": "float32", "seconds": round(time.time() - started), "versions": versions()}
        write_text(path_of(CELLS / args.name, evaluation, row), json.dumps(record, allow_nan=False) + "\n")
        print(f"{evaluation} {row}: {record['seconds']} s", flush=True)


def kind_of(device: str) -> str:
    return device.partition(":")[0]


def documents_of(args: argparse.Namespace) -> Any:
    """The held-out text."""
    import datasets

    from longwave.data.documents import read_documents
    from longwave.demo.corpus import stdlib_files

    if args.stories is not None:
        stories = args.stories.read_text("utf-8").split("<|endoftext|>")
        text = "<s>".join(" ".join(story.split()) for story in stories if story.strip())
        return datasets.Dataset.from_dict({"text": [text]})
    return read_documents(stdlib_files("heldout") if args.data is None else [args.data])


def measure(args: argparse.Namespace) -> bool:
    """All cells that are missing, in this process or in some; whether all of them could be measured."""
    from longwave.checkpoints.folder import resolve
    from longwave.checkpoints.tokenizer import load_tokenizer
    from longwave.data.tokens import token_stream

    rows = args.rows.split(";") if args.rows else [*METHODS, *VARIANTS]
    asked = [(evaluation, row) for evaluation in args.evaluations.split(",") for row in rows]
    cells = [cell for cell in asked if not path_of(CELLS / args.name, *cell).exists()]
    (CELLS / args.name).mkdir(parents=True, exist_ok=True)
    tokens = token_stream(documents_of(args), load_tokenizer(resolve(str(args.model))))[SHIFT:]
    if args.jobs == 1:
        bench = Bench.of(args, tokens)
        for cell in cells:
            bench.cell(*cell)
        return True
    cells.sort(key=lambda cell: cell[1] not in SLOW)  # those first: the others fill the gaps
    context, jobs = multiprocessing.get_context("spawn"), min(args.jobs, max(1, len(cells)))
    with ProcessPoolExecutor(jobs, context, start_worker, (args, tokens.numpy())) as pool:
        return all(list(pool.map(work, cells)))


def start_worker(args: argparse.Namespace, tokens: Any) -> None:
    """In a process of its own: open the model."""
    global _BENCH
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // args.jobs))
    _BENCH = Bench.of(args, torch.from_numpy(tokens))


def work(cell: tuple[str, str]) -> bool:
    """Measure a cell; a cell that fails leaves the others."""
    assert _BENCH is not None
    try:
        _BENCH.cell(*cell)
    except Exception:
        print(f"{' '.join(cell)} failed:\n{traceback.format_exc()}", flush=True)
        return False
    return True


_BENCH: Bench | None = None  # of a worker


def table(folder: Path) -> str:
    """Markdown: perplexities with the paired difference to dynamic YaRN, and passkeys."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    original = {round(entry["length"] / entry["factor"]) for cell in found.values() for entry in cell["lengths"][:1]}
    lines = [f"### {folder.name} (L = {', '.join(map(str, sorted(original)))})"]
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
        if evaluation not in KEYS:
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
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--data", type=Path, help="held-out text; default: the demo's")
    text.add_argument("--stories", type=Path, help="held-out stories, <|endoftext|> between them")
    parser.add_argument("--length", type=int, default=256, help="L")
    parser.add_argument("--windows", type=int, default=256)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--rows", help="names with ; between them; default all")
    parser.add_argument("--evaluations", help="default all; with --stories: perplexity,far")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:0, ...")
    parser.add_argument("--tokens-per-batch", type=int, help=f"default {TOKENS_PER_BATCH}")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with the model; a cell is done by one")
    parser.add_argument("--write-text", type=Path, metavar="FILE", help="write the held-out text as jsonl, and stop")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if args.write_text is not None:
        lines = [json.dumps({"text": text}) + "\n" for text in documents_of(args)["text"]]
        args.write_text.write_text("".join(lines), "utf-8")
        return
    args.evaluations = args.evaluations or ",".join(FACTORS if args.stories is None else ("perplexity", "far"))
    whole = args.report or measure(args)
    print(table(CELLS / args.name))
    if not whole:
        sys.exit("some cells failed, see above. Start again: the others are kept.")


if __name__ == "__main__":
    main()
