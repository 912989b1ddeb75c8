"""LoRA and QLoRA against full fine-tuning on a small real checkpoint: is the folder exact, how large, and how good?

    python runs/adapters.py --model MODEL --train TRAIN.txt --heldout HELDOUT.txt
    python runs/adapters.py --model MODEL --train TRAIN.txt --heldout HELDOUT.txt --rows "qlora 4bit" --steps 40
    python runs/adapters.py --report

A row is one training through `longwave.train`. The result lies in runs/results/adapters/ROW.json: the largest
difference of logits between the model in memory and the folder read again, between the LoRA and the merged weights, and
within L between the trained model and its base, quantized where it was; megabytes of the folder; perplexity by length
(same targets). A LoRA that was trained on a quantized base is merged into the unquantized one: that is another model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CELLS = ROOT / "runs" / "results" / "adapters"
FACTORS = (1, 2, 4, 8)
# The same draws for all: windows of up to 4 L, rows of 2 L whose positions skip.
SHORT: dict[str, Any] = {
    "method": "clex", "max_factor": 8, "row_length": "2x", "long_share": 0.5, "least_factor": 1.0, "chunks": 8,
    "log_n": 1.0, "batch_size": 4, "precision": "fp32",
}  # fmt: skip
ROWS: dict[str, dict[str, Any] | None] = {
    "base": None,  # NTK, which CLEX starts from, untrained
    "full": {"lora": "none", "lr": 2e-4},
    "lora": {"lora": "r=16"},
    "lora plain": {"lora": "r=16,gate=none"},
    "qlora 4bit": {"lora": "r=16", "quantize": "4bit"},
    "qlora 4bit plain": {"lora": "r=16,gate=none", "quantize": "4bit"},
    "qlora 8bit": {"lora": "r=16", "quantize": "8bit"},
    "field alone": {"freeze_weights": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None)
    parser.add_argument("--train", default=None)
    parser.add_argument("--heldout", default=None)
    parser.add_argument("--rows", default=";".join(ROWS))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    for name in [] if args.report else args.rows.split(";"):
        path = CELLS / f"{name.replace(' ', '_')}.json"
        if path.exists():
            continue
        found = run(args, ROWS[name])
        CELLS.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"row": name, **found}, indent=2) + "\n")
        print(name, json.dumps(found), flush=True)
    report()


def run(args: argparse.Namespace, row: dict[str, Any] | None) -> dict[str, Any]:
    """Train, save, read again, merge, and measure."""
    import torch
    from transformers import TrainerCallback

    import longwave
    from longwave.data.documents import read_documents
    from longwave.data.tokens import token_stream
    from longwave.models import open_model
    from longwave.provenance import versions

    held: list[Any] = []

    class Hold(TrainerCallback):
        def on_train_end(self, *_: Any, **kwargs: Any) -> None:
            held.append(kwargs["model"])

    found: dict[str, Any] = {"training": row, "steps": args.steps, "versions": versions()}
    length = longwave.extension(longwave.extend(longwave.load(args.model), "ntk", max_factor=2)).original_length
    with tempfile.TemporaryDirectory() as scratch, torch.no_grad():
        folder = args.model
        if row is not None:
            started = time.time()
            with torch.enable_grad():
                settings = SHORT | {"train_length": 4 * length, "steps": args.steps} | row
                folder = str(
                    longwave.train(
                        args.model, [args.train], f"{scratch}/out", progress=False, callbacks=[Hold()], **settings
                    )
                )
            found["seconds"] = round(time.time() - started, 1)
            found["megabytes"] = size(Path(folder))
        opened = open_model(folder, dtype="float32")
        model = opened.model
        if row is None:
            longwave.extend(model, "ntk", max_factor=8, log_n=1.0)
        tokens = token_stream(read_documents([args.heldout]), opened.tokenizer)
        short, long = tokens[None, :length], tokens[None, : 4 * length]
        if held:
            trained = held[0].eval()
            found["reload_difference"] = max(distance(trained, model, ids) for ids in (short, long))
            plain = longwave.load(args.model, dtype=torch.float32, quantize=(row or {}).get("quantize"))
            found["change_within_l"] = distance(plain, model, short)
        if row and "gate=none" in str(row.get("lora")):
            merged = longwave.merge(folder, f"{scratch}/merged", quantize="none" if "quantize" in row else None)
            key = "merge_difference" if "quantize" not in row else "merge_into_the_unquantized_base"
            found[key] = max(distance(longwave.load(merged), model, ids) for ids in (short, long))
            found["merged_megabytes"] = size(merged)
        lengths = [factor * length for factor in FACTORS]
        result = longwave.perplexity(model, tokens, lengths, windows=args.windows)
        found["perplexity"] = [round(each.to_json()["ppl"], 4) for each in result.lengths]
    return found


def distance(one: Any, other: Any, ids: Any) -> float:
    """The largest difference of logits."""
    return float((one(ids).logits - other(ids).logits).abs().max())


def size(folder: Path) -> float:
    """Megabytes of all files."""
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 3)


def report() -> None:
    """The table of what is there."""
    keys = (
        "seconds", "megabytes", "reload_difference", "merge_difference", "merge_into_the_unquantized_base",
        "change_within_l",
    )  # fmt: skip
    print("| row | " + " | ".join(keys) + " | " + " | ".join(f"{factor}x" for factor in FACTORS) + " |")
    for name in ROWS:
        path = CELLS / f"{name.replace(' ', '_')}.json"
        if path.exists():
            found = json.loads(path.read_text())
            shown = ["" if found.get(key) is None else f"{found[key]:.3g}" for key in keys]
            print(f"| {name} | " + " | ".join([*shown, *(f"{ppl:.3f}" for ppl in found["perplexity"])]) + " |")


if __name__ == "__main__":
    main()
