"""A sharded model on disk that never was in memory, and the peak of a process that exports it."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
from accelerate import init_empty_weights
from transformers import LlamaConfig, LlamaForCausalLM

import longwave

SHARDS = 8
MEASURE = """
import sys
from longwave.cli.main import main
code = main(sys.argv[1:])
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print("peak", peak)
sys.exit(code)
"""


def write_big_model(folder: Path) -> int:
    """A Llama of 0.76 billion parameters with random bfloat16 weights in 8 files; its size in bytes."""
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=1536, intermediate_size=4608, num_hidden_layers=24, num_attention_heads=12,
        num_key_value_heads=4, max_position_embeddings=2048, dtype="bfloat16",
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    with init_empty_weights():
        shapes = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    parts = np.array_split(np.array(list(shapes)), SHARDS)
    weight_map, total, generator = {}, 0, np.random.default_rng(0)
    for index, names in enumerate(parts):
        file = f"model-{index + 1:05}-of-{SHARDS:05}.safetensors"
        header, end = {}, 0
        for name in names.tolist():
            size = 2 * int(np.prod(shapes[name]))
            header[name] = {"dtype": "BF16", "shape": list(shapes[name]), "data_offsets": [end, end + size]}
            weight_map[name] = file
            end += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / file, "wb") as target:
            target.write(struct.pack("<Q", len(text)) + text)
            for name in names.tolist():  # bfloat16 bit patterns of numbers around 0.01
                values = generator.standard_normal(int(np.prod(shapes[name])), dtype=np.float32) * 0.01
                target.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
        total += end
    index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_file))
    demo = Path(longwave.__file__).parent / "demo/model"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(demo / name, folder / name)
    return total


def peak_of(*arguments: str) -> int:
    """Largest resident memory, in bytes, of `longwave ARGUMENTS` in a process of its own."""
    done = subprocess.run([sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout.split("peak")[1])
