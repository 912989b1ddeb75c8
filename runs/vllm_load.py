"""`longwave serve` with vLLM under load: is every answer what longwave generates for that prompt alone?

    python runs/vllm_load.py make FOLDER                with longwave: exports, 200 prompts and their answers
    python runs/vllm_load.py ask FOLDER [--json FILE]   with vLLM, the plugin and the package openai

200 prompts of 0.2 L to 8 L of the demo's model, 16 under way at a time, every other one as a stream. Then a client that
hangs up, requests that are wrong, and SIGTERM with eight requests under way.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BASE = ROOT / "src" / "longwave" / "demo" / "model"
L, LARGEST, ANSWER, LONGER = 256, 8, 16, 120
METHODS = ("yarn", "two-band")
KEY = "a-key"
PROMPTS = "prompts.json"


def make(folder: Path, count: int) -> None:
    """Write the exports, the prompts, and what longwave answers to each of them alone."""
    import torch
    from transformers import AutoTokenizer

    import longwave
    from longwave.data.documents import read_documents
    from longwave.data.tokens import token_stream
    from longwave.demo.corpus import stdlib_files

    folder.mkdir(parents=True, exist_ok=True)
    tokens = token_stream(read_documents(stdlib_files("heldout")), AutoTokenizer.from_pretrained(BASE))
    draw, prompts = random.Random(0), []
    for _ in range(count):
        length = round(L * 0.2 * (LARGEST / 0.2) ** draw.random()) - ANSWER
        start = draw.randrange(len(tokens) - length)
        prompts.append([int(token) for token in tokens[start : start + length]])
    found: dict[str, Any] = {"prompts": prompts, "answers": {}}
    for method in METHODS:
        longwave.export(BASE, folder / method, method=method, profiles="1,2,4,8")
        model, answers = longwave.load(folder / method, dtype=torch.float32).eval(), []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            row = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER, do_sample=False, pad_token_id=0
            )
            answers.append(row[0, len(prompt) :].tolist())
        found["answers"][method] = answers
        print(method, "answered", flush=True)
    (folder / PROMPTS).write_text(json.dumps(found))


@contextmanager
def served(folder: Path, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`longwave serve FOLDER`, until it hears requests: its address and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [sys.executable, "-m", "longwave", "serve", str(folder), "--port", str(port), "--dtype", "float32"]
    environment = os.environ | {"LONGWAVE_API_KEY": KEY}
    with log.open("wb") as output:
        process = subprocess.Popen(line, stdout=output, stderr=output, env=environment, start_new_session=True)
        url = f"http://127.0.0.1:{port}"
        try:
            until(lambda: process.poll() is not None or status(f"{url}/health") == 200, 600)
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with {process.returncode}: see {log}")
            yield url, process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # vLLM's processes, too
            process.wait()


def status(url: str, body: bytes | None = None, key: str = KEY) -> int:
    """The status of a request, 0 where nothing answers."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def until(reached: Callable[[], bool], seconds: float) -> float:
    """Wait; returns how long it took."""
    started = time.monotonic()
    while not reached():
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"not reached in {seconds:g} s")
        time.sleep(0.1)
    return time.monotonic() - started


def t_of(length: int) -> int:
    """The profile of so many tokens; 0 beyond the largest."""
    return next((t for t in (1, 2, 4, 8) if length <= t * L), 0)


def running(url: str) -> int:
    """Requests that vLLM computes or holds, by its metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    return sum(int(float(line.rsplit(" ", 1)[1])) for line in lines if line.split("{")[0] in names)


def ask(folder: Path, method: str) -> dict[str, Any]:
    """A row: answers under load, and what else a server meets."""
    import openai

    known = json.loads((folder / PROMPTS).read_text())
    answers = known["answers"][method]

    with served(folder / method, folder / f"{method}.log") as (url, process):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=600)

        def complete(number: int, most: int = ANSWER, *, stream: bool = False) -> list[int]:
            how: dict[str, Any] = {"model": method, "prompt": known["prompts"][number], "max_tokens": most}
            extra = {"return_token_ids": True}
            found: Any = client.completions.create(**how, temperature=0, stream=stream, extra_body=extra)
            parts = found if stream else [found]
            return [token for part in parts for choice in part.choices for token in choice.token_ids or ()]

        started = time.monotonic()
        with ThreadPoolExecutor(16) as pool:
            waiting = [pool.submit(complete, number, stream=bool(number % 2)) for number in range(len(answers))]
            given = [each.result() for each in waiting]
        (folder / f"{method}-given.json").write_text(json.dumps(given))
        row: dict[str, Any] = {
            "requests": len(answers),
            "equal": sum(mine == theirs for mine, theirs in zip(given, answers, strict=True)),
            "seconds": round(time.monotonic() - started, 1),
        }

        shortest = min(range(len(answers)), key=lambda number: len(known["prompts"][number]))
        stream: Any = client.completions.create(
            model=method, prompt=known["prompts"][shortest], max_tokens=LARGEST * L // 2, stream=True, temperature=0,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        next(iter(stream))
        under_way = running(url)
        stream.close()
        row["freed after a hang-up, seconds"] = round(until(lambda: running(url) == 0, 60), 1) if under_way else None

        def body(**fields: Any) -> bytes:
            return json.dumps({"model": method, "prompt": "a", "max_tokens": 4} | fields).encode()

        at = f"{url}/v1/completions"
        row["statuses"] = {
            "wrong key": status(at, body(), "another"),
            "no JSON": status(at, b"{"),
            "a wrong field": status(at, body(max_tokens="many")),
            "another model": status(at, body(model="none")),
            "too long": status(at, body(prompt=[1] * (LARGEST * L), max_tokens=1)),
            "t too small": status(at, body(prompt=[1] * (2 * L), vllm_xargs={"rope_factor": 1})),
            "t that there is not": status(at, body(vllm_xargs={"rope_factor": 3})),
            "a right one": status(at, body()),
        }

        # Longer answers, so that all are under way at once; at the same t, so that they begin as the known ones do.
        longer = [number for number, prompt in enumerate(known["prompts"]) if t_of(len(prompt) + ANSWER) ==
                  t_of(len(prompt) + LONGER)][:8]  # fmt: skip
        with ThreadPoolExecutor(len(longer)) as pool:
            waiting = [pool.submit(complete, number, LONGER) for number in longer]
            until(lambda: running(url) == len(longer), 60)
            process.send_signal(signal.SIGTERM)
            told, drained = time.monotonic(), 0
            for number, each in zip(longer, waiting, strict=True):
                drained += each.exception() is None and each.result()[:ANSWER] == answers[number]
        row["answered after SIGTERM"] = f"{drained} of {len(longer)}"
        process.wait(60)
        row["seconds from SIGTERM to the end"] = round(time.monotonic() - told, 1)
        row["exit code"] = process.returncode
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "ask"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.what == "make":
        make(args.folder, args.count)
        return
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    found = {}
    for method in args.methods:
        found[method] = ask(args.folder, method)
        print(method, json.dumps(found[method], indent=1), flush=True)
        if args.json is not None:
            args.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
