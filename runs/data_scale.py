"""Much text, two processes: does each keep its memory, and is the text tokenised only once?

A generator writes text that is quick to tokenise (a vocabulary of 500 random words of some 50 letters). A tiny Llama
trains on it for 50 steps, in one process with two micro-batches a step and then in two processes with one. Both runs
start without a cache. Every process samples its own anonymous memory. Then the loader is timed alone.

    python runs/data_scale.py --gigabytes 5 --work FOLDER     (needs three times the text on disk)

Writes runs/results/data_scale.json and data_scale.png.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
WORDS, LETTERS = 500, 50
DOCUMENT = 40_000  # letters of a document
STEPS, ROW, ROWS = 50, 256, 4
EVERY = 0.25  # seconds between samples of the memory


def write_text(folder: Path, size: float) -> None:
    """JSON lines of `size` bytes of text in all, in files of 256 MiB. A fifth of the documents is ten times as long."""
    import numpy as np

    rng = np.random.default_rng(0)
    words = vocabulary()
    folder.mkdir(parents=True)
    written, number = 0, 0
    while written < size:
        with (folder / f"part-{number:03}.jsonl").open("w") as handle:
            while handle.tell() < min(256 << 20, size - written):
                length = DOCUMENT // LETTERS * (10 if rng.random() < 0.2 else 1)
                handle.write(json.dumps({"text": " ".join(words[k] for k in rng.integers(0, WORDS, length))}) + "\n")
            written += handle.tell()
        number += 1


def vocabulary() -> list[str]:
    import numpy as np

    rng = np.random.default_rng(1)
    letters = rng.integers(ord("a"), ord("z") + 1, (WORDS, LETTERS), dtype=np.uint8)
    return [bytes(row[: 40 + k % 11]).decode() for k, row in enumerate(letters)]


def write_model(folder: Path) -> None:
    """A random Llama of 2 layers with the words as its tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    known = {"</s>": 0, "<unk>": 1} | {word: k + 2 for k, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(known), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


class Memory(threading.Thread):
    """Samples the memory of this process: anonymous pages, and pages of files."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[dict[str, float]] = []
        self.over = threading.Event()
        self.phase, self.started = "start", time.time()

    def run(self) -> None:
        while not self.over.wait(EVERY):
            self.sample()

    def sample(self) -> None:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        anonymous, of_files = (int(status[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
        self.samples.append(
            {"seconds": time.time() - self.started, "anonymous": anonymous, "files": of_files, "phase": self.phase}
        )


def rank(args: argparse.Namespace) -> None:
    """One process of a run: train, and write what it took."""
    memory = Memory()
    memory.sample()
    memory.start()
    from transformers import TrainerCallback

    import longwave
    from longwave.training.texts import Asked

    class Phases(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            memory.sample()
            memory.phase = "steps"

        def on_step_end(self, *_: Any, **__: Any) -> None:
            memory.sample()

    real = Asked.text

    def timed(*arguments: Any, **options: Any) -> Any:
        memory.sample()
        memory.phase = "tokenise"
        found = real(*arguments, **options)
        memory.sample()
        memory.phase = "after"
        return found

    Asked.text = timed  # type: ignore[method-assign]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    longwave.train(
        args.work / "model", [args.work / "text"], args.out, method="clex", train_length=ROW, max_factor=8,
        steps=STEPS, batch_size=ROWS, accumulation=2 // int(os.environ.get("WORLD_SIZE", 1)), lr=1e-3, progress=False,
        overwrite=True, callbacks=[Phases()],
    )  # fmt: skip
    memory.over.set()
    used = resource.getrusage(resource.RUSAGE_SELF)
    number = int(os.environ.get("RANK", 0))
    found = {"rank": number, "user": used.ru_utime, "user_of_training": used.ru_utime - before, "system": used.ru_stime,
             "seconds": time.time() - memory.started, "samples": memory.samples}  # fmt: skip
    args.out.with_name(f"{args.out.name}-{number}.json").write_text(json.dumps(found))


def launch(args: argparse.Namespace, processes: int, *, cold: bool) -> list[dict[str, Any]]:
    """A run with its own cache, empty if `cold`. Returns what each process wrote."""
    cache, out = args.work / "cache", args.work / f"run-{processes}-{'cold' if cold else 'warm'}"
    if cold:
        shutil.rmtree(cache, ignore_errors=True)
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache), "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        environment.pop(name, None)
    starter = [sys.executable]
    if processes > 1:
        starter += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    own = [__file__, "--rank", "--work", str(args.work), "--out", str(out)]
    subprocess.run([*starter, *own], env=environment, check=True)
    return [json.loads(out.with_name(f"{out.name}-{number}.json").read_text()) for number in range(processes)]


def growth(one: dict[str, Any]) -> dict[str, float]:
    """MiB of anonymous memory that were added by tokenising and reading the tokens, and by the steps."""
    at = {name: [each["anonymous"] for each in one["samples"] if each["phase"] == name] for name in
          ("start", "tokenise", "after", "steps")}  # fmt: skip
    before = at["start"][-1]
    return {
        "before": before,
        "peak_while_tokenising": max(at["tokenise"] or [before]) - before,
        "with_tokens": at["after"][0] - before if at["after"] else 0.0,
        "first_steps_to_last": at["steps"][-1] - at["steps"][len(at["steps"]) // 5],
        "files_mapped_at_the_end": one["samples"][-1]["files"],
    }


def loader(args: argparse.Namespace) -> dict[str, float]:
    """Tokens a second that the loader delivers, with nothing that consumes them."""
    os.environ["HF_DATASETS_CACHE"] = str(args.work / "cache")
    from transformers import AutoTokenizer

    from longwave.data.kinds import Parsing
    from longwave.data.mixture import parts_of
    from longwave.training.batches import MicroBatches, PackedRows, pack
    from longwave.training.config import TrainConfig
    from longwave.training.draw import LengthSampler
    from longwave.training.texts import Asked

    asked = Asked(parts_of([args.work / "text"]), None, Parsing(strict=False))
    tokenizer = AutoTokenizer.from_pretrained(args.work / "model")
    config = TrainConfig.create(train_length=ROW, max_factor=8)
    stream = asked.text(tokenizer, config, progress=False).streams[0].tensor()
    rows = PackedRows(pack(stream, ROW), 4000 * ROWS, 0)
    sampler = LengthSampler(original_length=128, max_factor=8.0, chunks=4)
    batches = MicroBatches(rows, sampler, size=ROWS)
    started = time.perf_counter()
    for first in range(0, len(rows), ROWS):
        batches.collate(range(first, first + ROWS))
    return {"tokens": stream.numel(), "tokens_per_second": len(rows) * ROW / (time.perf_counter() - started)}


def plot(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(runs), figsize=(5 * len(runs), 3.6), sharey=True, squeeze=False)
    for axis, (name, ranks) in zip(axes[0], runs.items(), strict=True):
        for one in ranks:
            seconds = [each["seconds"] for each in one["samples"]]
            axis.plot(seconds, [each["anonymous"] for each in one["samples"]], label=f"rank {one['rank']}, anonymous")
            axis.plot(seconds, [each["files"] for each in one["samples"]], ":", label=f"rank {one['rank']}, of files")
        axis.set(title=name, xlabel="seconds")
        axis.legend(fontsize=7)
    axes[0][0].set_ylabel("memory in MiB")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for text, caches and runs")
    parser.add_argument("--gigabytes", type=float, default=5.0, help="of text")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        rank(args)
        return
    if not (args.work / "text").exists():
        write_text(args.work / "text", args.gigabytes * 1e9)
        write_model(args.work / "model")
    runs = {
        "one process, no cache": launch(args, 1, cold=True),
        "two processes, no cache": launch(args, 2, cold=True),
        "two processes, cached": launch(args, 2, cold=False),
    }
    users = {name: sum(one["user"] for one in ranks) for name, ranks in runs.items()}
    one, two, _ = users.values()
    alone = loader(args)
    steady = [each for each in runs["two processes, cached"][0]["samples"] if each["phase"] == "steps"]
    consumed = 2 * STEPS * ROWS * ROW / (steady[-1]["seconds"] - steady[0]["seconds"])
    found = {
        "text_bytes": sum(file.stat().st_size for file in (args.work / "text").iterdir()),
        "tokenizer": f"WordLevel, {WORDS} words of some {LETTERS} letters",
        "steps": STEPS, "row": ROW, "rows_per_step": 2 * ROWS,
        "user_seconds": users, "two_over_one": two / one,
        "memory_mib": {name: [growth(each) for each in ranks] for name, ranks in runs.items()},
        "loader": alone, "consumer_tokens_per_second": consumed,
        "loader_over_consumer": alone["tokens_per_second"] / consumed,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "data_scale.json").write_text(json.dumps(found, indent=2) + "\n")
    plot(runs, RESULTS / "data_scale.png")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
