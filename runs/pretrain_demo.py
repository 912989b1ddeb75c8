"""Pre-train the small Llama base model that `longwave demo` extends (about an hour on one core).

    python runs/pretrain_demo.py --output build/demo-base --steps 3000 --threads 1
    python runs/pretrain_demo.py --output build/neox-base --family neox           # partial rotary, the same corpus
    python runs/pretrain_demo.py --output build/slow-base --rope-base 10000

Trained on the Python standard library's own sources (held-out files set aside by a hash of their
path, the same split as the demo's) with short passkey and copy tasks mixed in, so that in-window
retrieval works and its loss beyond the window can be measured. RoPE base 200: at L = 256 and head
dimension 64 that lets 70 % of the dimensions complete a rotation within L, as in LLaMA-2.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

from longwave.demo.corpus import stdlib_files
from longwave.evaluation.templates import SHORT

LENGTH = 256
EOS = "<|endoftext|>"


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    # Digits one by one: numbers of any length are then copied digit by digit (llama.cpp: "starcoder").
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=EOS, eos_token=EOS)


class Mixture:
    """Rows of LENGTH token ids: 75 % text, 15 % passkey documents, 10 % copies of random spans."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: list[str], seed: int) -> None:
        self.tokenizer = tokenizer
        self.random = random.Random(seed)
        self.eos = tokenizer.eos_token_id
        self.stream: list[int] = []
        for ids in tokenizer(texts)["input_ids"]:
            self.stream += [self.eos, *ids]

    def text(self, n: int) -> list[int]:
        start = self.random.randrange(len(self.stream) - n)
        return self.stream[start : start + n]

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]

    def passkey(self, n: int) -> list[int]:
        """One passkey document of at most n tokens: filler, needle, filler, question, answer."""
        key = f"{self.random.randrange(10**5):05d}"
        needle = self.encode(SHORT.needle.format(key=key))
        question = self.encode(SHORT.question + SHORT.answer.format(key=key) + ".\n")
        room = n - len(needle) - len(question) - 1
        if self.random.random() < 0.6:
            unit = self.encode(SHORT.filler)
            filler = (unit * (room // len(unit) + 1))[: max(room, 0)]
        else:
            filler = self.text(max(room, 0))
        cut = self.random.randint(0, len(filler))
        return [self.eos, *filler[:cut], *needle, *filler[cut:], *question]

    def copy(self, n: int) -> list[int]:
        """Spans of random tokens, each said twice: what induction heads learn from."""
        row: list[int] = []
        while len(row) < n:
            span = [self.random.randrange(1, 512) for _ in range(self.random.randint(8, n // 2 - 2))]
            row += [self.eos, *span, *span]
        return row[:n]

    def row(self) -> list[int]:
        draw = self.random.random()
        if draw < 0.75:
            return self.text(LENGTH)
        if draw < 0.90:
            row: list[int] = []
            while len(row) < LENGTH:  # half the rows one full-window document, half several short ones
                row += self.passkey(LENGTH if self.random.random() < 0.5 else self.random.randint(70, LENGTH))
            return row[:LENGTH] if len(row) < 2 * LENGTH else row[-LENGTH:]
        return self.copy(LENGTH)


def config_of(family: str, rope_base: float, eos: int) -> PreTrainedConfig:
    """Four layers with three heads of 64: as Llama, or as GPT-NeoX with a quarter of each head rotated."""
    shared = {
        "vocab_size": 512, "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3,
        "max_position_embeddings": LENGTH, "bos_token_id": eos, "eos_token_id": eos,
    }  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": rope_base}
    if family == "neox":
        return GPTNeoXConfig(**shared, intermediate_size=768, rope_parameters={**rope, "partial_rotary_factor": 0.25})
    return LlamaConfig(**shared, intermediate_size=512, num_key_value_heads=3, head_dim=64, tie_word_embeddings=True,
                       rope_parameters=rope)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=32, help="rows of 256 tokens per step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--family", choices=("llama", "neox"), default="llama")
    parser.add_argument("--rope-base", type=float, default=200.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)

    texts = [path.read_text("utf-8", errors="replace") for path in stdlib_files("train")]
    template = [SHORT.filler + SHORT.needle.format(key=k) + SHORT.question for k in range(10000, 10200)]
    tokenizer = train_tokenizer(texts + template)
    mixture = Mixture(tokenizer, texts, args.seed)
    print(f"{len(texts)} files, {len(mixture.stream):,} tokens", flush=True)

    model = AutoModelForCausalLM.from_config(config_of(args.family, args.rope_base, mixture.eos))
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.95)
    )

    def lr_at(step: int) -> float:
        warm = min(1.0, (step + 1) / 100)
        return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))

    def save(folder: Path) -> None:
        import copy

        half = copy.deepcopy(model).to(torch.bfloat16)  # 3.8 MB instead of 7.5; computed in fp32 after loading
        half.save_pretrained(folder)
        tokenizer.model_max_length = LENGTH
        tokenizer.save_pretrained(folder)

    args.output.mkdir(parents=True, exist_ok=True)
    started, log = time.time(), (args.output / "pretrain.jsonl").open("w")
    for step in range(args.steps):
        rows = torch.tensor([mixture.row() for _ in range(args.batch)])
        for group in optimizer.param_groups:
            group["lr"] = args.lr * lr_at(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0 or step == args.steps - 1:
            row = {"step": step, "loss": round(loss.item(), 4), "seconds": round(time.time() - started, 1)}
            print(json.dumps(row), file=log, flush=True)
        if step and step % 500 == 0:
            save(args.output / "latest")
    save(args.output)


if __name__ == "__main__":
    main()
