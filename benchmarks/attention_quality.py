"""What selections lose on the demo's base model at 8x: KL of the logits, loss and several passkeys, beside the speed.

    python benchmarks/attention_quality.py [--windows 4] [--trials 6] [--json benchmarks/results/attention-cpu.json]

A window of 8 L tokens of held-out text is read, but for its last 64 tokens, which are decoded one by one as they stand
in the text. KL is Σ p_all·ln(p_all/p) of a method against `all`, the same method with room for every key; token-select
has no such twin beyond L, and is compared with two-band, which sees every key within L tokens of distance. The last
column of passkeys asks for three keys, one after the other.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from attention_ways import remembered, token_select
from torch import Tensor

import longwave
from longwave.data.documents import read_documents
from longwave.data.tokens import token_stream
from longwave.demo.corpus import stdlib_files
from longwave.evaluation.templates import SHORT
from longwave.files import write_json
from longwave.models import open_model
from longwave.provenance import versions

MODEL = Path(__file__).resolve().parents[1] / "src" / "longwave" / "demo" / "model"
FACTOR, DECODED, SHIFT = 8, 64, 5000


def ways(tokens: int) -> dict[str, tuple[str, dict[str, Any], str]]:
    """Each with its method, its options, and what it is compared with."""
    return {
        "two-band": ("two-band", {}, ""),
        "token-select": ("token-select", {}, "two-band"),
        "token-select, no hits": ("token-select", {"threshold": 2.0}, "two-band"),
        "token-select, 90 % hits": ("token-select", token_select(tokens // FACTOR), "two-band"),
        "infllm, all": ("infllm", {"top_blocks": tokens}, ""),
        "infllm": ("infllm", {}, "infllm, all"),
        "quest, all": ("yarn+quest", {"budget": tokens}, ""),
        "quest": ("yarn+quest", {}, "quest, all"),
    }


@torch.no_grad()
def decoded(model: Any, ids: Tensor, method: str, options: dict[str, Any]) -> tuple[Tensor, float]:
    """Log-probabilities of the last tokens [DECODED, vocabulary], and the share of steps that found their choice."""
    with longwave.extended(model, method, max_factor=FACTOR, **options):
        longwave.set_policy(model, "fixed", FACTOR)
        found, hits, asked = [], 0, 0
        out = model(ids[:, : -DECODED - 1], use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        for at in range(ids.shape[1] - DECODED - 1, ids.shape[1] - 1):
            before = remembered(cache)
            found.append(model(ids[:, at : at + 1], past_key_values=cache).logits[0, -1].log_softmax(-1))
            for one, other in zip(before, remembered(cache), strict=True):
                hits, asked = hits + (one is other and one is not None), asked + 1
    return torch.stack(found), hits / asked


@torch.no_grad()
def passkeys(model: Any, tokenizer: Any, method: str, options: dict[str, Any], trials: int) -> dict[str, float]:
    """Shares of prompts whose keys were all repeated, with one key and with three."""
    found, length = {}, FACTOR * model.config.max_position_embeddings
    with longwave.extended(model, method, max_factor=FACTOR, **options):
        for keys, template in ((1, SHORT), (3, SHORT.naming())):
            asked = longwave.passkey(model, tokenizer, [length], template=template, trials=trials, keys=keys)
            found[f"passkey, {keys}"] = asked.lengths[0].to_json()["rate"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--trials", type=int, default=6, help="of passkeys")
    parser.add_argument("--json", type=Path, help="where the numbers are added")
    parser.add_argument("--ways", help="separated by semicolons; default all")
    args = parser.parse_args()
    opened = open_model(str(MODEL), dtype="float32", device="cpu")
    model, tokenizer = opened.model, opened.tokenizer
    length = FACTOR * model.config.max_position_embeddings
    tokens = token_stream(read_documents(stdlib_files("heldout")), tokenizer)[SHIFT:]
    windows = [torch.as_tensor(tokens[at * length : (at + 1) * length])[None].long() for at in range(args.windows)]
    found: dict[str, dict[str, Any]] = {}
    logits: dict[str, list[Tensor]] = {}
    every = ways(length)
    for name in args.ways.split(";") if args.ways else every:
        method, options, against = every[name]
        runs = [decoded(model, ids, method, options) for ids in windows]
        logits[name] = [own for own, _ in runs]
        loss = [-own.gather(1, ids[0, -DECODED:, None]).mean() for own, ids in zip(logits[name], windows, strict=True)]
        found[name] = {"loss": round(float(torch.stack(loss).mean()), 4)}
        if "token-select" in name:
            found[name]["hits"] = round(sum(share for _, share in runs) / len(runs), 3)
        if against:
            pairs = zip(logits[against], logits[name], strict=True)
            kl = torch.stack([(all_.exp() * (all_ - own)).sum(-1).mean() for all_, own in pairs])
            found[name] |= {"against": against, "kl": [round(float(value), 4) for value in kl]}
        if method == "two-band" or against:
            found[name] |= passkeys(model, tokenizer, method, options, args.trials)
        print(name, found[name], flush=True)
    if args.json:
        record = json.loads(args.json.read_text("utf-8")) if args.json.exists() else {"benchmark": "attention"}
        about = {"model": "demo base", "factor": FACTOR, "decoded": DECODED, "windows": args.windows}
        record["quality"] = {**about, "trials": args.trials, "versions": versions(), "ways": found}
        write_json(args.json, record)


if __name__ == "__main__":
    main()
