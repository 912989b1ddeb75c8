"""The recipe, row by row: untrained methods, learned scalars, weights that follow t, and what each part is worth.

    python runs/recipe.py                                     # all cells that are missing, in this process
    python runs/recipe.py --rows "two-band;scalars" --seeds 1
    python runs/recipe.py --write-text FOLDER                 # the demo's texts, and on a GPU then
    python runs/recipe.py --text FOLDER --device cuda --jobs 8
    python runs/recipe.py --report                            # only the tables, from what is there

    python runs/recipe.py --write-text FOLDER --stories TRAIN.txt HELDOUT.txt
    python runs/recipe.py --name babyllama --model MODEL --length 256 --text FOLDER --no-passkeys --rows main


A cell is a row with one seed: trained through `longwave.train`, measured through `longwave.perplexity` and
`longwave.passkey`. Cells lie in runs/results/recipe/ and are kept. Windows begin `SHIFT` tokens later than those on
which the recipe was chosen: no target is shared. "Short" rows never saw a real window of more than 4 L.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "src" / "longwave" / "demo" / "model"
RESULTS = ROOT / "runs" / "results"
SHIFT, TARGETS = 2000, 64
FACTORS, FAR, PASSKEYS = (1, 2, 4, 8, 16), (1, 32, 64), (2, 4, 8, 16, 32)
# train_length in multiples of L, see `settings_of`.
SHORT: dict[str, Any] = {"train_length": 4, "max_factor": 64, "train_factor": 32, "precision": "fp32"}
LONG = SHORT | {"train_length": 16, "batch_size": 16, "row_length": "1x"}
FROZEN = {"freeze_weights": True, "steps": 80}
READY = {"engine_ready": True}
# Full fine-tuning as it was done before the recipe, on as many tokens: rows of L, a part of them short, real windows.
FULL: dict[str, Any] = {
    "steps": 160, "batch_size": 16, "row_length": "1x", "chunks": 8, "lr": 2e-4, "field_lr": 3e-3, "log_n": 1.0,
    "short_share": 0.3, "long_share": 0.6,
}  # fmt: skip
PAPER = {"train_length": 1, "positions": "random", "factors": "integer", "field_lr": 2e-4, "short_share": 0.0,
         "long_share": 0.0}  # fmt: skip
COLD = {"options": {"temperature": 0.0}}  # log-n does the work of YaRN's temperature


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Arguments:
        method: what it runs.
        training: settings of `longwave.train`; None without training.
        options: of `extend`, for a row without training.
    """

    method: str
    training: dict[str, Any] | None = None
    options: dict[str, Any] = field(default_factory=dict)


MAIN = {
    "unscaled": Row("none"),
    "PI": Row("linear"),
    "NTK": Row("ntk"),
    "YaRN": Row("yarn"),
    "leaky ReRoPE": Row("leaky-rerope"),
    "Self-Extend": Row("self-extend"),
    "DCA": Row("dca"),
    "two-band": Row("two-band"),
    "scalars": Row("two-band", SHORT | FROZEN),
    "scalars and LoRA": Row("two-band", SHORT),
    "scalars, LoRA, field": Row("clex+two-band", SHORT),
    "engine-ready": Row("ntk", SHORT | READY),
    "engine-ready, field": Row("clex", SHORT | READY),
    "engine-ready, long rows": Row("ntk", SHORT | READY | {"row_length": "4x", "batch_size": 4}),
    "scalars and LoRA, windows to 16 L": Row("two-band", LONG),
    "engine-ready, windows to 16 L": Row("ntk", LONG | READY),
    "full, no scaling": Row("none", SHORT | FULL),
    "full, NTK": Row("ntk", SHORT | FULL),
    "full, YaRN": Row("yarn", SHORT | FULL | COLD),
    "full, no scaling, windows to 16 L": Row("none", LONG | FULL),
    "full, NTK, windows to 16 L": Row("ntk", LONG | FULL),
    "full, YaRN, windows to 16 L": Row("yarn", LONG | FULL | COLD),
    "clex-paper": Row("clex-paper", SHORT | FULL | PAPER),
}
ABLATIONS = {  # on a quarter of the windows, with fewer passkeys
    "the recipe": Row("two-band", SHORT),
    "two-band, no mass": Row("two-band", options={"mass": 0.0}),
    "two-band, no mass, log-n": Row("two-band", options={"mass": 0.0, "log_n": 1.0}),
    "two-band, mass and log-n": Row("two-band", options={"log_n": 1.0}),
    "two-band, reach 1": Row("two-band", options={"reach": 1.0}),
    "two-band, reach 0.5": Row("two-band", options={"reach": 0.5}),
    "two-band, w 32": Row("two-band", options={"window": 32}),
    "two-band, w 128": Row("two-band", options={"window": 128}),
    "LoRA, no scalars": Row("two-band", SHORT | {"head_scalars": False}),
    "gate ramp": Row("two-band", SHORT | {"lora": "gate=ramp"}),
    "gate hard": Row("two-band", SHORT | {"lora": "gate=hard"}),
    "rank 4": Row("two-band", SHORT | {"lora": "r=4"}),
    "rank 64": Row("two-band", SHORT | {"lora": "r=64"}),
    "rank full": Row("two-band", SHORT | {"lora": "r=full", "lr": 1e-3}),
    "real windows 0.25": Row("two-band", SHORT | {"long_share": 0.25}),
    "real windows 0.9": Row("two-band", SHORT | {"long_share": 0.9}),
    "lr 2e-3": Row("two-band", SHORT | {"lr": 2e-3}),
    "steps 80": Row("two-band", SHORT | {"steps": 80}),
    "steps 320": Row("two-band", SHORT | {"steps": 320}),
    "field alone": Row("clex+two-band", SHORT | FROZEN | {"head_scalars": False}),
    "engine-ready YaRN": Row("yarn", SHORT | READY | COLD),
    "engine-ready, rows of 4 L": Row("ntk", SHORT | READY | {"row_length": "4x", "batch_size": 4}),
    "engine-ready, rows of 4 L, lr 2e-3": Row("ntk", SHORT | READY | {"row_length": "4x", "batch_size": 4, "lr": 2e-3}),
}
ROWS = MAIN | ABLATIONS


def cells_of(name: str) -> Path:
    return RESULTS / ("recipe" if name == "demo" else f"recipe-{name}")


def settings_of(row: Row, length: int) -> dict[str, Any]:
    """The settings of its training for a model with this original length."""
    assert row.training is not None
    return row.training | {"train_length": row.training["train_length"] * length, "method": row.method}


def path_of(folder: Path, row: str, seed: int) -> Path:
    return folder / f"{row.replace(', ', '_').replace(' ', '-').replace('/', '-')}-{seed}.json"


def measure(args: argparse.Namespace, name: str, seed: int) -> str:
    """Train and measure a cell, and write it."""
    import torch

    import longwave
    from longwave.data.documents import read_documents
    from longwave.data.tokens import token_stream
    from longwave.evaluation.templates import SHORT as TEMPLATE
    from longwave.files import write_text
    from longwave.models import open_model
    from longwave.provenance import versions

    row, times, length = ROWS[name], {}, args.length
    fewer = 4 if name in ABLATIONS else 1
    windows, trials = args.windows // fewer, args.trials * 2 // (5 if fewer > 1 else 2)
    batch = {"tokens_per_batch": args.tokens_per_batch}
    with tempfile.TemporaryDirectory() as scratch:
        folder, started = str(args.model), time.time()
        if row.training is not None:
            folder = f"{scratch}/trained"
            settings = settings_of(row, length) | {"seed": seed}
            longwave.train(str(args.model), texts(args, "train"), folder, progress=False, **settings)
        times["train"] = round(time.time() - started, 1)
        opened = open_model(folder, dtype="float32", device=args.device)
        model, tokenizer = opened.model, opened.tokenizer
        if row.training is None:
            longwave.extend(model, row.method, max_factor=64, **row.options)
        model.eval()
        tokens = token_stream(read_documents(texts(args, "heldout")), tokenizer)[SHIFT:]
        found: dict[str, Any] = {}
        with torch.no_grad():
            measured = [("perplexity", FACTORS, windows), ("far", FAR, windows // 4)]
            for what, factors, count in measured[: 1 if name in ABLATIONS else 2]:
                started = time.time()
                result = longwave.perplexity(model, tokens, [f * length for f in factors], windows=count, **batch)
                found[what] = [
                    {"factor": f, "ppl": e.to_json()["ppl"], "nll": [round(x, 4) for x in e.to_json()["nll"]]}
                    for f, e in zip(factors, result.lengths, strict=True)
                ]
                times[what] = round(time.time() - started, 1)
            asked = (("passkey", 1), ("multikey", 3))[: 1 if name in ABLATIONS else 2]
            for what, keys in () if args.no_passkeys else asked:
                started = time.time()
                template = TEMPLATE if keys == 1 else TEMPLATE.naming()
                result = longwave.passkey(
                    model,
                    tokenizer,
                    [f * length for f in PASSKEYS],
                    trials=trials,
                    keys=keys,
                    template=template,
                    **batch,
                )
                found[what] = [
                    {"factor": f, "rate": e.to_json()["rate"]} for f, e in zip(PASSKEYS, result.lengths, strict=True)
                ]
                times[what] = round(time.time() - started, 1)
        heads = longwave.extension(model).heads
        learned = {} if heads is None else {k: v.detach().cpu().tolist() for k, v in heads.named_parameters()}
    card = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    record = {"row": name, "method": row.method, "training": row.training, "options": row.options, "seed": seed,
              "device": card, "windows": windows, "trials": trials, "seconds": times, "heads": learned,
              **found, "versions": versions()}  # fmt: skip
    cells_of(args.name).mkdir(parents=True, exist_ok=True)
    write_text(path_of(cells_of(args.name), name, seed), json.dumps(record, allow_nan=False) + "\n")
    return f"{name}, seed {seed}: {[round(e['ppl'], 3) for e in found['perplexity']]} {times}"


def texts(args: argparse.Namespace, split: str) -> list[Path]:
    """The demo's texts: the standard library of the running Python, or what another Python has written."""
    from longwave.demo.corpus import stdlib_files

    return stdlib_files(split) if args.text is None else [args.text / f"{split}.jsonl"]


def write_texts(folder: Path, stories: list[Path]) -> None:
    """The two texts as jsonl: the demo's; or stories, one a line, each after the beginning-of-text token."""
    from longwave.data.documents import read_documents
    from longwave.demo.corpus import stdlib_files

    folder.mkdir(parents=True, exist_ok=True)
    for index, split in enumerate(("train", "heldout")):
        if stories:
            parts = stories[index].read_text("utf-8").split("<|endoftext|>")
            found = ["<s>".join(" ".join(part.split()) for part in parts if part.strip())]
        else:
            found = [document["text"] for document in read_documents(stdlib_files(split))]
        lines = (json.dumps({"text": text}) for text in found)
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


def work(args: argparse.Namespace, name: str, seed: int) -> str:
    import torch

    cores = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    torch.set_num_threads(max(1, cores // args.jobs))
    try:
        return measure(args, name, seed)
    except Exception:
        return f"{name}, seed {seed} failed:\n{traceback.format_exc()}"


def report(folder: Path) -> str:
    """Markdown: perplexity by length against the base's own 1x, and passkeys; means over seeds."""
    return "\n".join(
        [
            *table(folder, "Main rows", MAIN, FAR[1:]),
            "",
            *table(folder, "What each part is worth, on fewer windows", ABLATIONS, ()),
        ]
    )


def table(folder: Path, title: str, rows: dict[str, Row], far: tuple[int, ...]) -> list[str]:
    head = [f"{factor}x" for factor in (*FACTORS, *far)] + [f"keys {factor}x" for factor in PASSKEYS]
    lines = [f"### {title}", "", "| row | seeds | " + " | ".join(head) + " |", "| --- | --- |" + " --- |" * len(head)]
    for name in rows:
        cells = [json.loads(path.read_text()) for s in range(9) if (path := path_of(folder, name, s)).exists()]
        if cells:
            shown = [perplexity(cells, "perplexity", index) for index in range(len(FACTORS))]
            shown += [perplexity(cells, "far", index + 1) for index in range(len(far))]
            shown += [rates(cells, index) for index in range(len(PASSKEYS))]
            lines.append(f"| {name} | {len(cells)} | " + " | ".join(shown) + " |")
    return lines


def perplexity(cells: list[dict[str, Any]], what: str, index: int) -> str:
    """The mean over seeds; in brackets the mean paired interval against 1x on the same windows."""
    from longwave.evaluation.statistics import paired_bootstrap

    mean = sum(cell[what][index]["ppl"] for cell in cells) / len(cells)
    text = f"{mean:.3f}" if mean < 100 else f"{mean:.0f}"
    if index == 0:
        return text
    pairs = [(cell[what][index]["nll"], cell[what][0]["nll"]) for cell in cells]
    ratios = [paired_bootstrap(own, within, [TARGETS] * len(own)) for own, within in pairs]
    low, high = (sum(getattr(ratio, side) for ratio in ratios) / len(ratios) - 1 for side in ("low", "high"))
    return f"{text} [{low:+.1%}, {high:+.1%}]"


def rates(cells: list[dict[str, Any]], index: int) -> str:
    """Passkeys found, and of three keys the one that was asked for."""
    kinds = [kind for kind in ("passkey", "multikey") if kind in cells[0]]
    return " / ".join(f"{sum(cell[kind][index]['rate'] for cell in cells) / len(cells):.0%}" for kind in kinds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="names with ; between them, main or ablations; default all")
    parser.add_argument("--seeds", type=int, default=3, help="of trained main rows; ablations have one")
    parser.add_argument("--windows", type=int, default=512)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--tokens-per-batch", type=int, default=16384)
    parser.add_argument("--name", default="demo", help="of the folder of cells")
    parser.add_argument("--model", type=Path, default=BASE)
    parser.add_argument("--length", type=int, default=256, help="L")
    parser.add_argument("--no-passkeys", action="store_true", help="for models that cannot do them")
    parser.add_argument("--stories", type=Path, nargs=2, default=[], metavar="FILE", help="with --write-text")
    parser.add_argument("--text", type=Path, help="folder with train.jsonl and heldout.jsonl")
    parser.add_argument("--write-text", type=Path, metavar="FOLDER")
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    if args.write_text is not None:
        write_texts(args.write_text, args.stories)
        return
    folder = cells_of(args.name)
    if not args.report:
        named = {"main": [*MAIN], "ablations": [*ABLATIONS]}
        chosen = [name for part in (args.rows or "main;ablations").split(";") for name in named.get(part, [part])]
        seeds = {name: args.seeds if name in MAIN and ROWS[name].training is not None else 1 for name in chosen}
        cells = [
            (name, seed) for name in chosen for seed in range(seeds[name]) if not path_of(folder, name, seed).exists()
        ]
        cells.sort(key=lambda cell: (cell[0] in ABLATIONS, cell[1]))
        if args.jobs == 1:
            for cell in cells:
                print(work(args, *cell), flush=True)
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(args.jobs, context) as pool:
                for done in as_completed([pool.submit(work, args, *cell) for cell in cells]):
                    print(done.result(), flush=True)
    print(report(folder))


if __name__ == "__main__":
    main()
