"""kill -9 of a random rank at random steps on each engine: does the run go on as if nothing had happened?

    python runs/engines.py --kills 10 --output runs/results/engines.json

For each engine one run is killed `--kills` times and resumed each time, every other time in one process instead of two
where the engine's checkpoints allow it. It is compared with a run that nobody killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "training"))

from launching import ENGINES, Launch  # noqa: E402

from longwave.training.metrics import read_metrics  # noqa: E402

SAVE_EVERY = 2
BOUND = ("zero2", "zero3")  # their checkpoints are read by the same number of processes


def tiny_base(folder: Path) -> tuple[Path, Path]:
    """A random model with its tokenizer, and a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder / "base")
    book = folder / "book.txt"
    book.write_text("".join(f"{n} sheep and {n + 1} goats went up the hill. " for n in range(400)), "utf-8")
    return folder / "base", book


def kill_at(step: int, launch: Launch, *places: Path) -> bool:
    """Run until `step` has its row, then kill a random rank; returns whether the run was still going."""
    output = places[-1]
    process = subprocess.Popen(
        launch.command(*places), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=launch.environment
    )
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        rows = read_metrics(output / "metrics.jsonl")
        if rows and rows[-1]["step"] >= step:
            ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("utf-8").split()
            os.kill(int(random.choice(ranks)), signal.SIGKILL)
            process.wait(120)
            return True
        time.sleep(0.01)
    if process.poll() is None:
        process.kill()
        raise TimeoutError(f"{launch.engine} did not reach step {step}")
    return False


def measure(engine: str, kills: int, folder: Path, base: Path, book: Path) -> dict[str, Any]:
    """One row of the table."""
    steps = 3 * kills + 3
    settings = ("--steps", str(steps), "--save-every", str(SAVE_EVERY))
    whole = Launch(engine, more=settings).run(base, book, folder / f"{engine}-whole")
    killed, layouts = folder / f"{engine}-killed", []
    for number, step in enumerate(sorted(random.sample(range(2, steps - 1), kills))):
        processes = 1 if number % 2 and engine not in BOUND else 2
        launch = Launch(engine, processes, more=(*settings, *(("--resume",) if number else ())))
        if kill_at(step, launch, base, book, killed):
            layouts.append({"step": step, "processes": processes})
    Launch(engine, more=(*settings, "--resume")).run(base, book, killed)
    mine, theirs = (read_metrics(path / "metrics.jsonl") for path in (whole, killed))
    drawn = [[(row["step"], row["factors"], row["positions"]) for row in rows] for rows in (mine, theirs)]
    return {
        "engine": engine,
        "steps": steps,
        "kills": layouts,
        "same draws": drawn[0] == drawn[1],
        "loss": max(abs(a["loss"] - b["loss"]) for a, b in zip(mine, theirs, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    random.seed(given.seed)
    table = Table("engine", "steps", "kills", "processes", "same draws", "largest difference of a loss")
    found = []
    with tempfile.TemporaryDirectory() as name:
        base, book = tiny_base(Path(name))
        for engine in given.engines:
            row = measure(engine, given.kills, Path(name), base, book)
            found.append(row)
            counts = " ".join(str(kill["processes"]) for kill in row["kills"])
            table.add_row(
                engine, str(row["steps"]), str(len(row["kills"])), counts, str(row["same draws"]), f"{row['loss']:.1e}"
            )
            if given.output is not None:  # after each engine: a run takes long
                given.output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    Console().print(table)


if __name__ == "__main__":
    main()
