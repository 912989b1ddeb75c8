"""A chat of 100,000 tokens under streaming-llm: memory, and the answers against a reading of the whole text.

    python runs/endless_chat.py [--tokens 100000] [--output runs/results/endless_chat]

The demo's base model (L = 256) reads passages of its held-out corpus in turns and continues each. Resident memory is
noted after every turn. At three points the last answer is computed again: one forward over all tokens so far, without a
cache. Writes JSON and a plot.
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import torch

import longwave
from longwave.data.documents import read_documents
from longwave.data.tokens import token_stream
from longwave.demo.corpus import stdlib_files
from longwave.files import write_json
from longwave.models import open_model
from longwave.provenance import versions

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "src" / "longwave" / "demo" / "model"
READ, WRITTEN = 700, 300  # tokens of a turn


def resident() -> int:
    """Bytes in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "results" / "endless_chat")
    args = parser.parse_args()
    opened = open_model(str(BASE), dtype="float32", device="cpu")
    model, tokenizer = opened.model, opened.tokenizer
    text = tokenizer.decode(token_stream(read_documents(stdlib_files("heldout")), tokenizer)[: args.tokens].tolist())
    longwave.extend(model, "streaming-llm", max_factor=args.tokens / 256 + 16)
    longwave.set_policy(model, "grow")
    talk = longwave.Conversation(model, tokenizer, eos_token_id=None)
    points, turns = [args.tokens // 10, args.tokens // 2, args.tokens], []
    checks: list[dict[str, Any]] = []
    started, at = time.time(), 0
    while talk.length < args.tokens:
        talk.say(text[at : at + 3 * READ], max_new_tokens=WRITTEN)
        at += 3 * READ
        turns.append({"tokens": talk.length, "resident": resident(), "seconds": round(time.time() - started, 1)})
        if points and talk.length >= points[0]:
            points.pop(0)
            checks.append(check(model, talk))
        if len(turns) % 10 == 0:
            print(
                f"{talk.length:,} tokens, {turns[-1]['resident'] / 1e6:.0f} MB, {turns[-1]['seconds']:.0f} s",
                flush=True,
            )
    args.output.mkdir(parents=True, exist_ok=True)
    record = {"turns": turns, "checks": checks, "versions": versions()}
    write_json(args.output / "endless_chat.json", record)
    plot(turns, args.output / "endless_chat.png")
    print(checks)


@torch.no_grad()
def check(model: Any, talk: longwave.Conversation) -> dict[str, Any]:
    """How many tokens of the last answer a forward over the whole text would choose."""
    whole = torch.tensor([talk._tokens])
    predicted = model(input_ids=whole, use_cache=False, logits_to_keep=WRITTEN + 1).logits[0, :-1].argmax(-1)
    equal = int((predicted == whole[0, -WRITTEN:]).sum())
    print(f"{len(talk._tokens):,} tokens: {equal} of {WRITTEN} tokens equal", flush=True)
    return {"tokens": len(talk._tokens), "equal": equal, "of": WRITTEN}


def plot(turns: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    axes.plot([turn["tokens"] for turn in turns], [turn["resident"] / 1e6 for turn in turns])
    axes.set(
        xlabel="tokens of the chat", ylabel="resident memory, MB", ylim=(0, None), title="A chat under streaming-llm"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
