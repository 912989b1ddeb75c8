"""Peak memory of perplexity over 32,768 tokens with a vocabulary of 128,000 (hidden 256, 2 layers).

    python benchmarks/perplexity_memory.py [--method yarn] [--log-n] [--json perplexity_memory.json]

Each protocol runs in a process of its own; what counts is the peak resident memory during the call minus
the resident memory before it. The logits of one window alone, as one tensor, would take 17 GB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from longwave.files import write_json
from longwave.provenance import versions

LENGTH, VOCABULARY = 32_768, 128_000
PROTOCOLS = ("same-targets", "stride", "overlap")


def resident(field: str) -> int:
    """VmRSS or VmHWM (its peak) of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/self/status has no {field}")


def measure(protocol: str, method: str, log_n: bool) -> dict[str, float]:
    """One window in this process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import longwave

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=4096,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    longwave.extend(model, method, max_factor=8, log_n=log_n)
    tokens = torch.randint(0, VOCABULARY, (LENGTH,))
    before = resident("VmRSS")
    with suppress(OSError):  # where it is not allowed, the peak is at most overstated
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the model
    started = time.perf_counter()
    longwave.perplexity(model, tokens, [LENGTH], protocol=protocol, windows=1)
    seconds = time.perf_counter() - started
    logits = LENGTH * VOCABULARY * 4
    used = resident("VmHWM") - before
    return {"peak_bytes": used, "seconds": round(seconds, 1), "share_of_one_logits_tensor": used / logits}


def in_subprocess(protocol: str, method: str, log_n: bool) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--protocol", protocol, "--method", method]
    done = subprocess.run([*command, *(["--log-n"] if log_n else [])], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--protocol", choices=PROTOCOLS, help=argparse.SUPPRESS)
    parser.add_argument("--method", default="yarn", help="scaling method of the model")
    parser.add_argument("--log-n", action="store_true", help="with per-query log-n attention")
    args = parser.parse_args()
    if args.protocol:
        print(json.dumps(measure(args.protocol, args.method, args.log_n)))
        return
    found = {protocol: in_subprocess(protocol, args.method, args.log_n) for protocol in PROTOCOLS}
    for protocol, row in found.items():
        print(f"{protocol:13} peak {row['peak_bytes'] / 1e6:6.0f} MB = {row['share_of_one_logits_tensor']:.1%} of the "
              f"logits of one window, {row['seconds']:.0f} s")  # fmt: skip
    if args.json:
        write_json(args.json, {"length": LENGTH, "vocabulary": VOCABULARY, "protocols": found, "versions": versions()})


if __name__ == "__main__":
    main()
