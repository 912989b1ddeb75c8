"""Fixtures that every test may use: real components, made as small as they come."""

from __future__ import annotations

import gc
import os
from pathlib import Path

# Before torch is imported: parallel workers with all cores each would wait for one another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import longwave
from longwave.extensions.handle import rotaries

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_finish() -> None:
    """The libraries stay. Each training collects garbage, and would look through all of them anew for a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real books and checkpoints (LONGWAVE_SHARED); the test is skipped where there is none."""
    folder = (ROOT / os.environ.get("LONGWAVE_SHARED", "../shared")).resolve()
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the shared data: {folder / 'data'} does not exist (set LONGWAVE_SHARED)")
    return folder


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def llama() -> LlamaForCausalLM:
    """A random 2-layer Llama: 256 tokens of vocabulary, head dimension 16, L = 64, rope base 1e4."""
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def neox() -> GPTNeoXForCausalLM:
    """A random 2-layer GPT-NeoX, partial rotary (8 of 16 dimensions), L = 64."""
    config = GPTNeoXConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte (256 in all), and byte 0 (written "Ā") as end of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    order = {"Ā": 0} | {c: i + 1 for i, c in enumerate(c for c in alphabet if c != "Ā")}
    tokenizer = Tokenizer(models.BPE(vocab=order, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="Ā", bos_token="Ā")


@pytest.fixture
def plain(tmp_path: Path, llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with the random Llama and its tokenizer, as transformers writes it."""
    llama.save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


@pytest.fixture
def trained(tmp_path: Path, llama: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder of `longwave.save` with a `clex` whose field has left its start, max_factor 4."""
    longwave.extend(llama, "clex", max_factor=4)
    for parameter in rotaries(llama)[0].trajectory.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return longwave.save(llama, tmp_path / "trained", tokenizer=tokenizer)
